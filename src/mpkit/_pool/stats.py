"""What a pool did: counts and times, and a timeline that Perfetto opens."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType


#: Of how many workers more is known than counts, the newest: a pool that replaces each one
#: after a task, say, must not grow for ever.
MOST_WORKERS = 2000


class WorkerStats(NamedTuple):
    """What one worker did.

    ``busy`` is in seconds; ``lived`` is the seconds from its start to its end, or to now.
    """

    pid: int
    tasks: int
    failed: int
    busy: float
    lived: float
    reason: str


class Stats(NamedTuple):
    """What a pool did until now, as `TaskPool.stats` returns it.

    Tasks are counted as they were sent: a chunk of a map, or a slice of it, is one. ``lost`` counts those
    whose worker died, ``restarts`` the workers that were replaced for whatever reason.
    ``workers`` are those that live, and the latest of those that have ended (2,000 in all).
    """

    submitted: int
    done: int
    failed: int
    lost: int
    restarts: int
    workers: list[WorkerStats]


class Named(Protocol):
    """Something that pictures have a name for."""

    @property
    def name(self) -> str: ...


#: A task, when it began and ended (`time.monotonic`), and whether it failed.
Span = tuple[Named, float, float, bool]


class _Record:
    """What was noted of a worker. It lives as long as ``reason`` is empty."""

    __slots__ = "busy", "failed", "lived", "reason", "since", "tasks"

    def __init__(self) -> None:
        self.since = time.monotonic()
        self.tasks = 0
        self.failed = 0
        self.busy = 0.0
        self.lived = 0.0
        self.reason = ""


class Recorder:
    """Notes what happens in a pool. Written by one thread, read by any.

    But `tasks_ended` is for any thread.
    """

    def __init__(self) -> None:
        self.submitted: int = 0
        #: How many were submitted besides, of which the one thread has not heard yet.
        self.unheard: Callable[[], int] = int
        self.done: int = 0
        self.failed: int = 0
        self.lost: int = 0
        self.restarts: int = 0
        self._workers: dict[int, _Record] = {}
        self._traces: list[Trace] = []
        # Held while an end is counted. Re-entrant: a signal handler may call a pool, too.
        self._counting = threading.RLock()

    def worker_started(self, pid: int) -> None:
        """A worker was started."""
        if len(self._workers) >= MOST_WORKERS:
            self._forget_one()
        self._workers[pid] = _Record()
        for trace in self._traces:
            trace.lane(pid)

    def _forget_one(self) -> None:
        """Forget the worker that was started first, of those that have ended."""
        ended = (pid for pid, worker in self._workers.items() if worker.reason)
        if (first := next(ended, None)) is not None:
            del self._workers[first]

    def worker_ended(self, pid: int, reason: str, expected: bool) -> None:
        """A worker is gone."""
        if pid not in self._workers:
            return  # a Ctrl-C came just after its start, and ends the pool that is being made
        worker = self._workers[pid]
        worker.lived = time.monotonic() - worker.since
        worker.reason = reason
        if not expected:
            self.restarts += 1
            for trace in self._traces:
                trace.mark(pid, f"worker {reason}")

    def tasks_ended(self, pid: int, spans: Sequence[Span]) -> None:
        """A worker reported tasks."""
        with self._counting:
            worker = self._workers[pid]
            worker.tasks += len(spans)
            self.done += len(spans)
            for task, began, ended, failed in spans:
                worker.busy += ended - began
                if failed:
                    worker.failed += 1
                    self.failed += 1
                for trace in self._traces:
                    trace.span(pid, task.name, began, ended, failed)

    def stats(self) -> Stats:
        """Return what was noted until now."""
        workers: list[WorkerStats] = []
        for pid, it in list(self._workers.items()):
            # The reason first: it is what is noted last.
            reason = it.reason
            lived = it.lived if reason else time.monotonic() - it.since
            workers.append(WorkerStats(pid, it.tasks, it.failed, it.busy, lived, reason))
        submitted = self.submitted + self.unheard()
        return Stats(submitted, self.done, self.failed, self.lost, self.restarts, workers)

    def trace(self, path: str | os.PathLike[str]) -> Trace:
        """Begin a timeline."""
        trace = Trace(os.fspath(path), self._traces.remove)
        for pid, worker in list(self._workers.items()):
            if not worker.reason:
                trace.lane(pid)
        self._traces.append(trace)
        return trace

    def close(self) -> None:
        """Write the timelines that are still open."""
        for trace in list(self._traces):
            trace.close()


class Trace:
    """A timeline being recorded; closing it, or its pool, writes the file.

    The file has Chrome trace events, a lane for each worker, which Perfetto
    (https://ui.perfetto.dev) and ``chrome://tracing`` open.
    """

    def __init__(self, path: str, forget: Callable[[Trace], None]) -> None:
        """Not for users: `TaskPool.trace` makes them."""
        # Not in close(): there may be no descriptor left by then.
        import json  # noqa: PLC0415  slow to import, and rarely needed

        self._dump = json.dump
        # So that a path that cannot be written fails now, and not after the run.
        self._file = open(path, "w", encoding="utf-8")  # noqa: SIM115  closed by close()
        self._forget = forget
        self._pid = os.getpid()
        self._events: list[dict[str, Any]] = []

    def lane(self, worker: int) -> None:
        """Note that there is a worker."""
        self._add("M", worker, name="thread_name", args={"name": f"worker {worker}"})

    def span(self, worker: int, name: str, began: float, ended: float, failed: bool) -> None:
        """Note what a worker did, and when (seconds)."""
        colour = {"cname": "terrible"} if failed else {}
        self._add("X", worker, name=name, ts=began * 1e6, dur=(ended - began) * 1e6, **colour)

    def mark(self, worker: int, name: str) -> None:
        """Note a moment of a worker."""
        self._add("i", worker, name=name, ts=time.monotonic() * 1e6, s="t")

    def _add(self, kind: str, worker: int, **facts: Any) -> None:
        self._events.append({"ph": kind, "pid": self._pid, "tid": worker, **facts})

    def close(self) -> None:
        """Write the file. Closing twice does nothing."""
        if not self._file.closed:
            with contextlib.suppress(ValueError):
                self._forget(self)
            with self._file as file:
                self._dump({"traceEvents": self._events, "displayTimeUnit": "ms"}, file)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
