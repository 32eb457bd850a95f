"""The tasks of a pool that are not settled: what runs them again, and what ends them."""

from __future__ import annotations

import heapq
import time
from typing import TYPE_CHECKING, Any

from mpkit._errors import WorkerDied
from mpkit._pool.task import report_callback

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mpkit._parcel import Parcel
    from mpkit._pool.task import Task


#: Seconds; after that one looks again. (epoll can count to 24 days.)
LONGEST_WAIT = 86_400.0


class Entry:
    """A task, its packed call, and how it has fared."""

    __slots__ = ("deadline", "parcel", "pid", "retries", "task", "timed_out", "worker")

    def __init__(self, task: Task[Any], parcel: Parcel) -> None:
        self.task = task
        self.parcel = parcel
        #: How many more times it may be run again.
        self.retries = task.options.retries
        #: The worker that it was sent to last, by its number in the schedule and its pid.
        self.worker: int | None = None
        self.pid: int | None = None
        self.deadline: float | None = None
        self.timed_out = False


class Ledger:
    """Knows every task that was submitted and not settled. Used by the supervisor only."""

    def __init__(self) -> None:
        self._entries: dict[int, Entry] = {}
        # (when, number) of tasks that were sent and have a timeout; a heap. Entries of
        # tasks that have ended meanwhile are passed over.
        self._deadlines: list[tuple[float, int]] = []

    def __getitem__(self, number: int) -> Entry:
        return self._entries[number]

    def add(self, task: Task[Any], parcel: Parcel) -> Entry:
        """A task was submitted."""
        entry = self._entries[task.number] = Entry(task, parcel)
        return entry

    def begin(self, number: int) -> bool:
        """A task is about to be sent; False if it was cancelled, and is forgotten now."""
        task = self._entries[number].task
        if task.running() or task.set_running_or_notify_cancel():
            return True
        self._forget(number)
        return False

    def sent(self, number: int, worker: int, pid: int) -> None:
        """A task was sent to a worker: its time runs."""
        entry = self._entries[number]
        entry.worker, entry.pid = worker, pid
        timeout = entry.task.options.timeout
        if timeout is not None:
            entry.deadline = time.monotonic() + timeout
            heapq.heappush(self._deadlines, (entry.deadline, number))

    def came_back(self, number: int) -> None:
        """A task was not taken by the worker that it was sent to: its time has not begun."""
        entry = self._entries[number]
        entry.worker = entry.pid = entry.deadline = None
        entry.timed_out = False

    @property
    def in_flight(self) -> bool:
        """Whether some worker has a task that it will report."""
        return any(entry.worker is not None for entry in self._entries.values())

    def next_deadline(self) -> float | None:
        """Return the seconds until `expired` may have something, or None."""
        if not self._deadlines:
            return None
        # No longer than a selector can wait.
        return min(max(0.0, self._deadlines[0][0] - time.monotonic()), LONGEST_WAIT)

    def expired(self) -> Iterator[Entry]:
        """Yield the tasks that have run for too long, each once."""
        while self._deadlines and self._deadlines[0][0] <= time.monotonic():
            deadline, number = heapq.heappop(self._deadlines)
            entry = self._entries.get(number)
            if entry is not None and entry.deadline == deadline:
                entry.timed_out = True
                yield entry

    def runs_again(self, number: int, error: BaseException, *, crashed: bool) -> bool:
        """Tell whether a task that failed is to be run again; this is counted."""
        entry = self._entries[number]
        if not entry.retries or not (crashed or isinstance(error, entry.task.options.retry_on)):
            return False
        entry.retries -= 1
        self.came_back(number)
        return True

    def settle(self, number: int, value: Any, error: BaseException | None) -> None:
        """A task has its outcome."""
        task = self._forget(number).task
        if not task.running() and not task.set_running_or_notify_cancel():
            return
        # Callbacks run in here, and an exit that one asks for is not the supervisor's.
        try:
            if error is None:
                task.set_result(value)
            else:
                task.set_exception(error)
        except BaseException as raised:  # noqa: BLE001
            report_callback(task.name, raised)

    def settle_all(self, reason: str) -> None:
        """Cancel what waits, and fail what was sent."""
        for number, entry in list(self._entries.items()):
            entry.task.cancel()
            self.settle(number, None, WorkerDied(entry.task.name, entry.pid, None, reason))

    def cancel_waiting(self) -> None:
        """Cancel the tasks that were not sent."""
        for entry in list(self._entries.values()):
            entry.task.cancel()

    def _forget(self, number: int) -> Entry:
        entry = self._entries.pop(number)
        entry.parcel.close()
        return entry
