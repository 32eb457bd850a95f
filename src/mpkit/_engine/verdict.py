"""What the end of an attempt is to its task: a result, an error, or another attempt."""

from __future__ import annotations

import itertools
import operator
import pickle
import signal
import time
from typing import TYPE_CHECKING, Any, Final

from mpkit import _outcome, _parcel
from mpkit._engine.paces import Paces
from mpkit._engine.reserve import FEW
from mpkit._errors import WorkerDied, WorkerInitError
from mpkit._platform import mains, memory
from mpkit._task.asked import Asked, misread
from mpkit._task.options import pause_before
from mpkit._task.task import report
from mpkit._worker import wire

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from mpkit._engine.crew import Worker
    from mpkit._engine.ledger import Entry, Ledger
    from mpkit._engine.schedule import Schedule
    from mpkit._watch.recorder import Recorder, Span

_options_and_pace = operator.attrgetter("task.options", "short")

#: Where the stream of `_outcome.ATOMS` begins, which are small and so never by themselves.
_ATOMS_AT: Final = wire.DONE_SIZE + len(_parcel.PLAIN)

#: Seconds until the system is asked again for a process that it had no room for, while
#: tasks wait. (It says so at once; arbitrary.)
TRY_AGAIN = 0.25

_OUT_OF_MEMORY = (
    " (out of memory, it seems: the kernel has killed a process for lack of it meanwhile)"
)
_OF_ITSELF = " (by os._exit, or because its connection to the pool was closed)"
_GUARD = f" (does the program make a pool while it is imported? {mains.GUARD})"


class Verdict:
    """Settles the tasks of a ledger, or queues them again. Used by the supervisor thread only."""

    def __init__(
        self, ledger: Ledger, schedule: Schedule, recorder: Recorder, *, forks: bool
    ) -> None:
        self._ledger = ledger
        self._schedule = schedule
        self._recorder = recorder
        self._forks = forks
        #: How long tasks have been taking, if there are so many workers that it matters.
        self.paces = Paces() if schedule.size > FEW else None
        self._init_error: BaseException | None = None
        # How the last worker ended that ended before it could start.
        self._last_words: str | None = None
        # Why the system would not start a process, and when to ask it again.
        self._spawn_error: BaseException | None = None
        self._next_try = 0.0
        self._oom_kills = memory.oom_kills()

    def queue(self, entries: Iterable[Entry]) -> None:
        """Have tasks run, for the first time or again."""
        for (options, short), group in itertools.groupby(entries, _options_and_pace):
            numbers = [entry.task.number for entry in group]
            alone = options.timeout is not None
            priority = options.priority
            self._schedule.submitted(*numbers, priority=priority, alone=alone, short=short)

    def next_try(self) -> float | None:
        """Return the time (of `time.monotonic`) to ask the system for a process again, or None."""
        return self._next_try if self._schedule.short else None

    def try_again(self) -> None:
        """Try again what has waited long enough for it: tasks that failed, and processes."""
        for number in self._ledger.rested():
            self._schedule.resumed()
            self.queue([self._ledger[number]])
        when = self.next_try()
        if when is not None and when <= time.monotonic():
            self._schedule.try_again()

    def reported(self, pid: int, dones: Sequence[wire.Done], fds: list[int]) -> None:
        """A worker reported the ends of tasks, which it was sent."""
        ours: list[tuple[Entry, bytes, bytes]] = []
        spans: list[Span] = []
        entries = self._ledger.entries
        for number, began, ended, _, kind, data in dones:
            entry, failed = entries[number], kind == _outcome.FAILED
            task = entry.task
            if isinstance(task, Asked) and not (failed or task.claim()):
                self._ledger.settle(entry, None, None)  # its caller has read it
            else:
                ours.append((entry, kind, data))
                spans.append((task, began, ended, failed))
        if self.paces is not None:
            self.paces.note(spans)
        pictured = self._recorder.pictured
        moved = [entry.moved(data) for entry, _, data in ours] if pictured else None
        self._recorder.tasks_ended(pid, spans, moved)  # at which who has the result may look
        self.done(ours, fds)

    def done(self, ended: Iterable[tuple[Entry, bytes, bytes]], fds: list[int]) -> None:
        """A worker reported results and exceptions: kinds, and what comes behind a header."""
        returned: list[tuple[Entry, Any]] = []
        for entry, kind, data in ended:
            if kind != _outcome.ATOMS:  # to unpickle it may take long, or wait for one before it
                self._ledger.returned(returned)
                returned.clear()
            try:
                if kind == _outcome.ATOMS:  # as `unpack`, for a call less
                    returned.append((entry, pickle.loads(data[_ATOMS_AT:])))
                    continue
                if kind != _outcome.FAILED:
                    returned.append((entry, _parcel.unpack(data, fds, wire.DONE_SIZE)))
                    continue
                error = _unpack_error(data, fds, wire.DONE_SIZE)
            except BaseException as raised:  # noqa: BLE001  unpickling is user code
                self._recorder.task_misread()
                error = misread(entry.task, raised)
            self._ledger.returned(returned)  # first, as they ended in this order
            returned.clear()
            self._failed(entry, error)
        self._ledger.returned(returned)

    def lost(self, task: int, worker: Worker) -> None:
        """A worker died while it ran this task."""
        entry = self._ledger[task]
        sent = entry.size if self._recorder.pictured else 0
        self._recorder.task_lost(worker.pid, entry.task, sent)
        error = entry.doom
        if error is None:
            reason = f"{worker.ended}{self._likely_cause(worker)}"
            error = WorkerDied(entry.task.name, worker.pid, worker.child.exitcode, reason)
        self._failed(entry, error, crashed=True)

    def init_failed(self, data: bytes, fds: list[int]) -> None:
        """The initializer raised in a worker."""
        self._init_error = _unpack_error(data, fds)
        self._schedule.init_failed()

    def finalizer_failed(self, pid: int, data: bytes, fds: list[int]) -> None:
        """The finalizer raised in a worker that leaves. No task is any the worse for that."""
        report(_unpack_error(data, fds), f"raised by the finalizer of worker {pid}")

    def ended_before_it_started(self, worker: Worker) -> None:
        """A worker has ended that never began to take tasks."""
        self._last_words = worker.ended

    def no_process(self, error: BaseException) -> None:
        """The system would not start a process."""
        # Its frames would keep the descriptors that there were for this worker.
        self._spawn_error = error.with_traceback(None)
        self._next_try = time.monotonic() + TRY_AGAIN
        self._schedule.spawn_failed()

    def init_cannot_travel(self, error: BaseException) -> None:
        """The initializer, which was pickled for the first workers, cannot be for this one."""
        self._init_error = error
        self._schedule.init_failed()
        self.no_process(error)

    def abandoned(self, task: int, attempts: int) -> None:
        """No worker could be had for this task in so many attempts."""
        if self._schedule.broken:
            cause = self._init_error
            why = self._how_starts_failed() if cause is None else str(cause)
        else:
            cause = self._spawn_error
            why = f"the system would not start a process ({str(cause) or type(cause).__name__})"
        error = WorkerInitError(attempts, why)
        error.__cause__ = cause
        self._ledger.settle(self._ledger[task], None, error)

    def _likely_cause(self, worker: Worker) -> str:
        """Tell why a worker died, where that can be known."""
        if worker.child.exitcode == 0:
            return _OF_ITSELF
        if worker.child.exitcode != -signal.SIGKILL:
            return ""
        before, self._oom_kills = self._oom_kills, memory.oom_kills()
        return _OUT_OF_MEMORY if self._oom_kills > before else ""

    def _how_starts_failed(self) -> str:
        return f"the last one {self._last_words} before it had begun{'' if self._forks else _GUARD}"

    def _failed(self, entry: Entry, error: BaseException, *, crashed: bool = False) -> None:
        if entry.doom is not None and error is not entry.doom:
            # It was asked to end, and this is how it did.
            entry.doom.__cause__, error = error, entry.doom
            crashed = True
        if not self._ledger.runs_again(entry, error, crashed=crashed):
            self._ledger.settle(entry, None, error)
        elif pause := pause_before(entry.task.options, entry.task.attempts):
            self._schedule.postponed()
            self._ledger.rest(entry, pause)
        else:
            self.queue([entry])


def _unpack_error(data: bytes, fds: list[int], start: int = 0) -> BaseException:
    """Return the error that a worker sent, or the one that this raised."""
    try:
        return _outcome.unpack_error(data, fds, start)
    except BaseException as error:  # noqa: BLE001  unpickling is user code
        return error
