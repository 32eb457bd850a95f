"""A timeline of a pool as Chrome trace events, which Perfetto opens."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any, Final

from mpkit._watch.picture import Picture, Run

if TYPE_CHECKING:
    from collections.abc import Callable

_HEAD: Final = b'{"displayTimeUnit": "ms", "traceEvents": [\n'
#: The file ends with this after each writing, which begins where that was.
_TAIL: Final = b"\n]}\n"

#: How many events, or seconds, are kept until they are written. (Arbitrary: to write takes some
#: 10 µs, and who is killed loses as much.)
MOST_EVENTS: Final = 500
_MOST_SECONDS: Final = 0.5


class Trace(Picture):
    """A timeline being recorded, as `TaskPool.trace` returns it; closing it, or its pool, ends it.

    The file has Chrome trace events, a lane for each place of a worker, which Perfetto
    (https://ui.perfetto.dev) and ``chrome://tracing`` open. A task is a slice with the time that it waited, its
    attempt and the bytes of its call and result; one that failed, or whose worker died, is red. Ends of workers
    and retries are marks. When a task began whose worker died nobody knows: it is drawn from when it can have.

    It is written as it comes, and is valid JSON all the while: also if the program is killed, when
    events may be missing that came within half a second after the last writing.
    """

    def __init__(self, path: str, forget: Callable[[Picture], bool]) -> None:
        """Not for users: `TaskPool.trace` makes them."""
        # Not when it is needed: there may be no descriptor left by then.
        import json  # noqa: PLC0415  slow to import, and rarely needed

        super().__init__(path, forget)
        self._dumps = json.dumps
        self._lanes: set[int] = set()
        self._events: list[bytes] = []
        self._written = time.monotonic()
        name = {"name": f"pool of process {self._pid}"}
        first = self._event("M", 0, name="process_name", args=name)
        self._end = len(_HEAD) + len(first)
        try:
            self._write(_HEAD + first + _TAIL, 0)
        except BaseException:
            self._file.close()
            raise

    def worker_started(self, lane: int, pid: int, when: float) -> None:
        """Note that there is a worker."""
        if lane not in self._lanes:
            self._lanes.add(lane)
            self._add("M", lane, name="thread_name", args={"name": f"worker {lane}"})
            self._add("M", lane, name="thread_sort_index", args={"sort_index": lane})
        self._mark(lane, f"process {pid} started", when)

    def worker_ended(self, lane: int, pid: int, when: float, reason: str, crashed: bool) -> None:
        """Note that it is gone."""
        colour = {"cname": "terrible"} if crashed else {}
        self._mark(lane, f"process {pid} {reason}", when, crashed=crashed, **colour)

    def ran(self, run: Run) -> None:
        """Note what a worker did."""
        facts = {
            "outcome": run.outcome,
            "attempt": run.attempt,
            "waited_ms": max(0.0, run.began - run.since) * 1e3,
            "bytes_sent": run.sent,
            "bytes_received": run.received,
            "pid": run.pid,
        }
        if run.outcome == "lost":
            facts["note"] = "its worker died; it may have begun later than shown"
        colour = {} if run.outcome == "done" else {"cname": "terrible"}
        self._add(
            "X",
            run.lane,
            name=run.name,
            cat=run.what,
            ts=run.began * 1e6,
            dur=max(0.0, run.ended - run.began) * 1e6,
            args=facts,
            **colour,
        )

    def retried(self, lane: int, what: str, when: float) -> None:
        """Note that a task which failed in a worker is to be tried again."""
        self._mark(lane, f"retry: {what}", when)

    def _mark(self, lane: int, name: str, when: float, **facts: Any) -> None:
        colour = {key: facts.pop(key) for key in list(facts) if key == "cname"}
        self._add("i", lane, name=name, ts=when * 1e6, s="t", args=facts, **colour)

    def _add(self, kind: str, lane: int, **facts: Any) -> None:
        if self._error is not None:
            return
        self._events.append(self._event(kind, lane, **facts))
        if len(self._events) >= MOST_EVENTS or time.monotonic() > self._written + _MOST_SECONDS:
            self._finish()

    def _event(self, kind: str, lane: int, **facts: Any) -> bytes:
        event = {"ph": kind, "pid": self._pid, "tid": lane, **facts}
        return self._dumps(event).encode()

    def _finish(self) -> None:
        """Write what is not written."""
        if not self._events or self._error is not None or os.getpid() != self._pid:
            return
        data = b"".join(b",\n" + event for event in self._events)
        self._events.clear()
        self._written = time.monotonic()
        try:
            self._write(data + _TAIL, self._end)
            self._end += len(data)
        except OSError as error:  # the disk is full, say
            self._error = error
            self._cut()

    def _cut(self) -> None:
        """End the file where it was whole. There was room for that."""
        try:
            os.ftruncate(self._file.fileno(), self._end)
            self._write(_TAIL, self._end)
        except OSError as error:
            assert self._error is not None
            self._error.add_note(f"({self.path} could not be ended either: {error})")
