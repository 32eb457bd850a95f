"""A page that shows what a pool did: its timeline, its slowest tasks, and what went wrong."""

from __future__ import annotations

import heapq
import html
import itertools
import time
from typing import TYPE_CHECKING, Any, Final

from mpkit._watch.picture import Picture, Run
from mpkit._watch.sketch import Functions
from mpkit._watch.timeline import Timeline

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from mpkit._watch.sketch import Figures
    from mpkit._watch.stats import Stats

#: How many of the slowest tasks are shown, of the first events (ends of workers, failures,
#: retries), and of the workers. (Arbitrary: who reads more?)
MOST_SLOWEST: Final = 100
MOST_EVENTS: Final = 500
_MOST_WORKERS: Final = 500

#: What a file has until its report is written.
_UNFINISHED: Final = (
    b"<!doctype html><meta charset=utf-8><title>mpkit report</title>"
    b"<p>This report is written when its pool ends. If the program has ended, it was killed before that.\n"
)


class Report(Picture):
    """A page being recorded, as `TaskPool.report` returns it; closing it, or its pool, writes it.

    The page needs no network and no other file. It has a timeline, a lane for each place of a worker, a table of functions, the 100
    slowest tasks, and the first 500 ends of workers, failures and retries. Its memory is bounded: when there
    are more than 10,000 tasks, those beside each other in a lane are drawn as one box, and the page says so.
    """

    def __init__(
        self, path: str, forget: Callable[[Picture], bool], stats: Callable[[], Stats]
    ) -> None:
        """Not for users: `TaskPool.report` makes them."""
        # All that is read or imported is so now: there may be no descriptor left later.
        import json  # noqa: PLC0415  slow to import, and rarely needed
        import pkgutil  # noqa: PLC0415

        self._dumps = json.dumps
        template = pkgutil.get_data("mpkit._watch", "report.html")
        assert template is not None
        self._template = template.decode()
        stats()
        super().__init__(path, forget)
        self._stats = stats
        self._began = time.monotonic()
        self._date = time.strftime("%Y-%m-%d %H:%M:%S %z")
        self._timeline = Timeline()
        self._functions = Functions()
        self._lanes: set[int] = set()
        self._order = itertools.count()
        #: The least of them first, by how long it took.
        self._slowest: list[tuple[float, int, Run]] = []
        self._events: list[tuple[float, int, str, str]] = []
        self._events_missed = 0
        self._sent = self._received = self._runs = 0
        try:
            self._write(_UNFINISHED, 0)
        except BaseException:
            self._file.close()
            raise

    def worker_started(self, lane: int, pid: int, when: float) -> None:
        """Note that there is a worker."""
        self._lanes.add(lane)

    def worker_ended(self, lane: int, pid: int, when: float, reason: str, crashed: bool) -> None:
        """Note that it is gone."""
        if crashed:
            self._event(when, lane, "crash", f"process {pid} {reason}")

    def ran(self, run: Run) -> None:
        """Note what a worker did."""
        self._runs += 1
        self._sent += run.sent
        self._received += run.received
        self._timeline.add(run)
        record = self._functions.of(run.what)
        took = max(0.0, run.ended - run.began)
        if run.outcome == "lost":
            record.lost += 1
        else:
            record.failed += run.outcome == "failed"
            record.runs.note(took)
            record.waits.note(run.began - run.since)
            if record.runs.full:
                record.fold()
        if run.outcome != "done":
            words = "its worker died" if run.outcome == "lost" else "it raised"
            text = f"{run.name}, attempt {run.attempt}: {words}"
            self._event(run.ended, run.lane, run.outcome, text)
        entry = took, next(self._order), run
        if len(self._slowest) < MOST_SLOWEST:
            heapq.heappush(self._slowest, entry)
        elif entry > self._slowest[0]:
            heapq.heapreplace(self._slowest, entry)

    def retried(self, lane: int, what: str, when: float) -> None:
        """Note that a task which failed in a worker is to be tried again."""
        self._event(when, lane, "retry", f"{what} is to be tried again")

    def _event(self, when: float, lane: int, kind: str, text: str) -> None:
        if len(self._events) < MOST_EVENTS:
            self._events.append((when, lane, kind, text))
        else:
            self._events_missed += 1

    def _finish(self) -> None:
        # Names are the user's, and may have what no encoding has.
        self._write(self._page().encode(errors="replace"), 0)

    # the page

    def _page(self) -> str:
        stats, now = self._stats(), time.monotonic()
        parts = {
            "DATE": html.escape(self._date),
            "SECONDS": _seconds(now - self._began),
            "FACTS": self._facts(stats, now),
            "FUNCTIONS": self._function_table(),
            "SLOWEST": self._slowest_table(),
            "EVENTS": self._event_table(),
            "WORKERS": _worker_table(stats),
            "THINNED": self._thinned(),
            "DATA": self._data(now),
        }
        # In one pass: what is put in may look like a place to put something in.
        pieces = self._template.split("@@")
        return "".join(parts[piece] if n % 2 else piece for n, piece in enumerate(pieces))

    def _facts(self, stats: Stats, now: float) -> str:
        busy = sum(box.busy for lane in self._timeline.lanes.values() for box in lane)
        share = busy / max(1e-9, (now - self._began) * max(1, len(self._lanes)))
        facts: list[tuple[str, str, str]] = [
            (str(stats.done), "done", ""),
            (str(stats.failed), "failed", "bad" if stats.failed else ""),
            (str(stats.cancelled), "cancelled", ""),
            (str(stats.pending), "pending", ""),
            (str(stats.retries), "retries", "bad" if stats.retries else ""),
            (str(stats.restarts), "worker deaths", "bad" if stats.restarts else ""),
            (f"{min(1.0, share):.0%}", "of the workers' time busy", ""),
            (_size(self._sent), "sent", ""),
            (_size(self._received), "received", ""),
        ]
        return "".join(
            f'<div class="{kind}"><b>{number}</b> {what}</div>' for number, what, kind in facts
        )

    def _thinned(self) -> str:
        if not self._timeline.resolution:
            return f"Each of the {self._runs:,} boxes is a run of a task."
        return (
            f"These are {self._runs:,} runs of tasks. Those beside each other in a lane that take less than "
            f"{_seconds(self._timeline.resolution)} together are drawn as one box: the paler it is, the less of "
            "its time was busy."
        )

    def _function_table(self) -> str:
        rows: list[tuple[str | int, ...]] = []
        records = [
            (record.runs.figures(), record.waits.figures(), name, record)
            for name, record in self._functions.records.items()
        ]
        for runs, waits, name, record in sorted(records, key=lambda it: -it[0].total):
            rows.append(
                (
                    name,
                    runs.times,
                    record.failed,
                    record.lost,
                    *_spread(runs),
                    _seconds(waits.p50),
                    _seconds(waits.p99),
                )
            )
        return _table(
            (
                "function",
                "runs",
                "raised",
                "lost",
                "total",
                "p50",
                "p90",
                "p99",
                "longest",
                "wait p50",
                "wait p99",
            ),
            rows,
        )

    def _slowest_table(self) -> str:
        rows: list[tuple[str | int, ...]] = []
        for took, _, run in sorted(self._slowest, reverse=True):
            rows.append(
                (
                    run.name,
                    _seconds(took),
                    _seconds(max(0.0, run.began - run.since)),
                    _seconds(run.began - self._began),
                    f"worker {run.lane}",
                    run.pid,
                    run.attempt,
                    run.outcome,
                    _size(run.sent),
                    _size(run.received),
                )
            )
        return _table(
            (
                "task",
                "took",
                "waited",
                "began at",
                "worker",
                "process",
                "attempt",
                "outcome",
                "sent",
                "received",
            ),
            rows,
        )

    def _event_table(self) -> str:
        rows = [
            (_seconds(when - self._began), f"worker {lane}", kind, text)
            for when, lane, kind, text in self._events
        ]
        table = _table(("at", "worker", "what", ""), rows)
        missed = (
            f"<p>{self._events_missed:,} more are not shown.</p>" if self._events_missed else ""
        )
        return table + missed

    def _data(self, now: float) -> str:
        """Return what the page draws, in seconds from the beginning, for a script element."""
        numbers: dict[str, int] = {}
        lanes: list[dict[str, Any]] = []
        for lane in sorted(self._lanes | self._timeline.lanes.keys()):
            boxes: list[list[float | int]] = []
            for box in self._timeline.lanes.get(lane, ()):
                what = -1 if box.what is None else numbers.setdefault(box.what, len(numbers))
                began, ended = box.began - self._began, box.ended - self._began
                boxes.append(
                    [
                        round(began, 6),
                        round(ended, 6),
                        round(box.busy, 6),
                        box.count,
                        box.failed,
                        what,
                    ]
                )
            lanes.append({"name": f"worker {lane}", "boxes": boxes})
        events = [
            [round(when - self._began, 6), lane, kind, text]
            for when, lane, kind, text in self._events
        ]
        data = {
            "end": round(now - self._began, 6),
            "lanes": lanes,
            "functions": list(numbers),
            "events": events,
        }
        # An element ends at what looks like its end, in whatever string that is.
        text = self._dumps(data, separators=(",", ":"), ensure_ascii=False)
        return text.replace("<", "\\u003c")


def _worker_table(stats: Stats) -> str:
    shown = stats.workers[-_MOST_WORKERS:]
    rows = [
        (
            f"worker {it.number}",
            it.pid,
            it.tasks,
            it.failed,
            _seconds(it.busy),
            _seconds(it.wait),
            _seconds(it.idle),
            it.restarts,
            _size(it.peak_memory) if it.peak_memory else "",
            it.reason or "lives",
        )
        for it in shown
    ]
    return _table(
        (
            "worker",
            "process",
            "runs",
            "raised",
            "busy",
            "waited",
            "idle",
            "deaths before",
            "peak memory",
            "end",
        ),
        rows,
    )


def _spread(it: Figures) -> tuple[str, ...]:
    return tuple(map(_seconds, (it.total, it.p50, it.p90, it.p99, it.longest)))


def _table(heads: Sequence[str], rows: Iterable[Sequence[str | int]]) -> str:
    """Return a table, in which what a user may have written is text and nothing else."""
    head = "".join(f"<th>{html.escape(text)}</th>" for text in heads)
    body = "".join(
        f"<tr>{''.join(f'<td>{html.escape(str(cell))}</td>' for cell in row)}</tr>" for row in rows
    )
    if not body:
        return "<p>None.</p>"
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _seconds(seconds: float) -> str:
    """Return a time as people write it: 12 µs, 3.4 ms, 56 s, 7 min 8 s."""
    if seconds >= 99.95:
        minutes, rest = divmod(round(seconds), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= 0.9995 * size or unit == "µs":
            return f"{_short(seconds / size)} {unit}"
    raise AssertionError


def _size(size: int) -> str:
    """Return a number of bytes as people write it."""
    number = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if number < 999.5:
            return f"{_short(number)} {unit}"
        number /= 1000
    return f"{_short(number)} TB"


def _short(number: float) -> str:
    """Return a number with three digits, and no more behind the point than are needed."""
    places = max(0, 2 - len(str(int(number))) + 1) if number else 0
    text = f"{number:.{places}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
