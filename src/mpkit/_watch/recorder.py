"""What a pool notes of itself while it runs, for `TaskPool.stats` and for pictures."""

from __future__ import annotations

import itertools
import os
import threading
import time
from typing import TYPE_CHECKING, Final, Protocol

from mpkit._errors import PoolClosed
from mpkit._platform import memory
from mpkit._task.task import report
from mpkit._watch.picture import Run
from mpkit._watch.sketch import FunctionRecord, Functions

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mpkit._watch.picture import Picture
    from mpkit._watch.report import Report
    from mpkit._watch.stats import Stats
    from mpkit._watch.trace import Trace

#: Of how many workers more is known than counts, the newest: a pool that replaces each one
#: after a task, say, must not grow for ever.
MOST_WORKERS: Final = 2000

#: Seconds between two looks at how much memory a worker has had. (A look takes 20 µs.)
BETWEEN_LOOKS: Final = 0.25


class Noted(Protocol):
    """A task, as far as it is noted."""

    #: Its function's name, or the one that it was given.
    what: str
    #: Since when it waits (`time.monotonic`).
    since: float
    attempts: int

    @property
    def name(self) -> str:
        """What errors call it."""
        ...


#: A task, when it began and ended (`time.monotonic`), and whether it failed.
Span = tuple[Noted, float, float, bool]


class _Record:
    """What was noted of a worker. It lives as long as ``reason`` is empty."""

    __slots__ = (
        "busy",
        "failed",
        "last",
        "lived",
        "looked",
        "number",
        "peak",
        "reason",
        "restarts",
        "since",
        "tasks",
        "waited",
    )

    def __init__(self, number: int, restarts: int) -> None:
        self.number = number
        self.restarts = restarts
        self.since = time.monotonic()
        #: When it had done all that it has reported.
        self.last = self.since
        self.looked = self.since
        self.tasks = 0
        self.failed = 0
        self.busy = 0.0
        self.waited = 0.0
        self.lived = 0.0
        self.peak = 0
        self.reason = ""


class Recorder:
    """Notes what happens in a pool. Any thread may tell it, and ask."""

    def __init__(self) -> None:
        self.submitted: int = 0
        #: How many were submitted besides, of which the one thread has not heard yet.
        self.unheard: Callable[[], int] = int
        #: Whether there are pictures: then `tasks_ended` is to be told what was moved, too.
        self.pictured: bool = False
        #: How many were submitted of which nobody has told before they were done.
        self._untold = 0
        self._done = self._failed = self._cancelled = 0
        self._attempts = self._retries = self._lost = self._restarts = 0
        self._workers: dict[int, _Record] = {}
        self._functions = Functions()
        #: The record that was used last: mostly it is the next one, too.
        self._record = FunctionRecord("")
        #: How many workers died, by their place; and which places are taken.
        self._deaths: dict[int, int] = {}
        self._taken: set[int] = set()
        self._pictures: list[Picture] = []
        self._over = False
        # Held while anything is counted. Re-entrant: a signal handler may call a pool, too.
        self._counting = threading.RLock()

    def after_fork_in_child(self) -> None:
        """Some thread of the parent may have held the lock, which is not here to let go."""
        self._counting = threading.RLock()

    # workers

    def worker_started(self, pid: int) -> None:
        """A worker was started. It has the first place that is free."""
        with self._counting:
            if len(self._workers) >= MOST_WORKERS:
                self._forget_one()
            number = next(n for n in itertools.count(1) if n not in self._taken)
            self._taken.add(number)
            worker = self._workers[pid] = _Record(number, self._deaths.get(number, 0))
            for picture in self._pictures:
                picture.worker_started(number, pid, worker.since)

    def _forget_one(self) -> None:
        """Forget the worker that was started first, of those that have ended."""
        ended = (pid for pid, worker in self._workers.items() if worker.reason)
        if (first := next(ended, None)) is not None:
            del self._workers[first]

    def worker_leaves(self, pid: int) -> None:
        """A worker is about to be told to leave, after which nobody can ask how it fared."""
        with self._counting:
            worker = self._workers.get(pid)
            if worker is not None:
                worker.peak = max(worker.peak, memory.peak_bytes_of(pid))

    def worker_ended(self, pid: int, reason: str, expected: bool) -> None:
        """A worker is gone."""
        with self._counting:
            worker = self._workers.get(pid)
            if worker is None or worker.reason:
                return  # a Ctrl-C came just after its start, and ends the pool that is being made
            now = time.monotonic()
            worker.lived = now - worker.since
            worker.reason = reason
            self._taken.discard(worker.number)
            if not expected:
                self._restarts += 1
                self._deaths[worker.number] = self._deaths.get(worker.number, 0) + 1
            for picture in self._pictures:
                picture.worker_ended(worker.number, pid, now, reason, not expected)

    # tasks

    def tasks_ended(
        self,
        pid: int,
        spans: Sequence[Span],
        moved: Sequence[tuple[int, int]] | None = None,
        untold: int = 0,
    ) -> None:
        """A worker ran tasks to their ends; ``moved`` are the bytes of their calls and results.

        One that returned is done. What becomes of one that failed is told besides. Of so
        many nobody has told when they were submitted: they are ``untold``, and counted now.
        """
        with self._counting:
            worker, count = self._workers[pid], len(spans)
            record, failures, ended = self._record, 0, 0.0
            name, note_run, note_wait = record.name, record.runs.note, record.waits.note
            last, busy, waited = worker.last, worker.busy, worker.waited
            for task, began, ended, failed in spans:
                if task.what != name:
                    if record.runs.full:
                        record.fold()
                    record = self._record = self._functions.of(task.what)
                    name, note_run, note_wait = task.what, record.runs.note, record.waits.note
                took, since = ended - began, task.since
                note_run(took)
                note_wait(began - since)
                busy += took
                # The part of the pause before it for which it was there already.
                waited += began - (since if since > last else last)
                last = ended
                if failed:
                    record.failed += 1
                    failures += 1
            # Nothing in between from which a signal handler may raise: of what is untold nobody
            # would ever tell that it is done.
            worker.last, worker.busy, worker.waited = last, busy, waited
            worker.tasks += count
            worker.failed += failures
            self._attempts += count
            self._untold += untold
            self._done += count - failures
            if record.runs.full:
                record.fold()
            if ended - worker.looked > BETWEEN_LOOKS:
                worker.looked = ended
                worker.peak = max(worker.peak, memory.peak_bytes_of(pid))
            if self._pictures:
                self._draw(pid, worker, spans, moved)

    def _draw(
        self,
        pid: int,
        worker: _Record,
        spans: Sequence[Span],
        moved: Sequence[tuple[int, int]] | None,
    ) -> None:
        for (task, began, ended, failed), (sent, received) in zip(
            spans, moved or [(0, 0)] * len(spans), strict=True
        ):
            # Of one that its caller has sent and read the supervisor may not have heard.
            attempt, outcome = max(1, task.attempts), "failed" if failed else "done"
            run = Run(
                worker.number,
                pid,
                task.name,
                task.what,
                attempt,
                task.since,
                began,
                ended,
                outcome,
                sent,
                received,
            )
            for picture in self._pictures:
                picture.ran(run)

    def task_lost(self, pid: int, task: Noted, sent: int = 0) -> None:
        """A worker died, or was stopped, while it ran a task. It began when it can have, at the earliest."""
        with self._counting:
            self._attempts += 1
            self._lost += 1
            self._functions.of(task.what).lost += 1
            worker = self._workers.get(pid)
            if worker is None:
                return
            ended = worker.since + worker.lived if worker.reason else time.monotonic()
            began = min(ended, max(worker.last, task.since))
            worker.busy += ended - began
            worker.last = ended
            run = Run(
                worker.number,
                pid,
                task.name,
                task.what,
                max(1, task.attempts),
                task.since,
                began,
                ended,
                "lost",
                sent,
                0,
            )
            for picture in self._pictures:
                picture.ran(run)

    def task_misread(self) -> None:
        """A task that was done has failed after all: its result cannot be unpickled."""
        with self._counting:
            self._done -= 1

    def task_retried(self, pid: int | None, what: str) -> None:
        """A task that failed in a worker is to be tried again."""
        with self._counting:
            self._retries += 1
            worker = None if pid is None else self._workers.get(pid)
            if worker is not None and self._pictures:
                for picture in self._pictures:
                    picture.retried(worker.number, what, time.monotonic())

    def task_failed(self) -> None:
        """A task has failed, and is not tried again."""
        with self._counting:
            self._failed += 1

    def task_cancelled(self) -> None:
        """A task was cancelled, and will not be run."""
        with self._counting:
            self._cancelled += 1

    # what is told of it

    def stats(self) -> Stats:
        """Return what was noted until now."""
        # Not at the top: they are dataclasses, and slow to import.
        from mpkit._watch.stats import (  # noqa: PLC0415
            FunctionStats,
            Spread,
            Stats,
            WorkerStats,
        )

        with self._counting:
            now = time.monotonic()
            workers: list[WorkerStats] = []
            for pid, it in self._workers.items():
                if not it.reason:
                    it.peak = max(it.peak, memory.peak_bytes_of(pid))
                lived = it.lived if it.reason else now - it.since
                waited = max(0.0, it.waited)
                idle = max(0.0, lived - it.busy - waited)
                workers.append(
                    WorkerStats(
                        pid,
                        it.number,
                        it.tasks,
                        it.failed,
                        it.busy,
                        waited,
                        idle,
                        lived,
                        it.restarts,
                        it.peak,
                        it.reason,
                    )
                )
            functions = [
                FunctionStats(
                    name,
                    it.failed,
                    it.lost,
                    Spread(*it.runs.figures()),
                    Spread(*it.waits.figures()),
                )
                for name, it in self._functions.records.items()
            ]
            return Stats(
                submitted=self.submitted + self.unheard() + self._untold,
                done=self._done,
                failed=self._failed,
                cancelled=self._cancelled,
                attempts=self._attempts,
                retries=self._retries,
                lost=self._lost,
                restarts=self._restarts,
                workers=tuple(workers),
                functions=tuple(functions),
            )

    def trace(self, path: str | os.PathLike[str]) -> Trace:
        """Begin a timeline."""
        self._check_going()
        from mpkit._watch.trace import Trace  # noqa: PLC0415  rarely needed

        trace = Trace(os.fspath(path), self._forget)
        self._begin(trace)
        return trace

    def report(self, path: str | os.PathLike[str]) -> Report:
        """Begin a page."""
        self._check_going()
        from mpkit._watch.report import Report  # noqa: PLC0415  rarely needed

        report = Report(os.fspath(path), self._forget, self.stats)
        self._begin(report)
        return report

    def _check_going(self) -> None:
        """Raise before a file is written over that nobody would end."""
        if self._over:
            raise PoolClosed("the pool", "it has ended, and there is nothing to record")

    def _begin(self, picture: Picture) -> None:
        with self._counting:
            for pid, worker in self._workers.items():
                if not worker.reason:
                    picture.worker_started(worker.number, pid, worker.since)
            self._pictures.append(picture)
            self.pictured = True

    def _forget(self, picture: Picture) -> bool:
        """Tell a picture nothing more; tell whether it was told until now."""
        with self._counting:
            if picture not in self._pictures:
                return False
            self._pictures.remove(picture)
            self.pictured = bool(self._pictures)
            return True

    def close(self) -> None:
        """Write the pictures that are still open: the pool is over."""
        self._over = True
        for picture in list(self._pictures):
            try:
                picture.close()
            except Exception as error:  # noqa: BLE001  nobody is there to catch it
                report(error, f"raised as {picture.path} was written")
