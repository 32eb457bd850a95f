"""The tasks of a pool that are not settled: what runs them again, and what ends them."""

from __future__ import annotations

import heapq
import time
from typing import TYPE_CHECKING, Any

from mpkit import _parcel
from mpkit._errors import WorkerDied
from mpkit._task.task import Task, report_callback
from mpkit._worker import wire

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mpkit._parcel import Parcel
    from mpkit._watch.recorder import Recorder


#: Deadlines of tasks that have ended that are kept, besides as many as there are tasks: so
#: that it is seldom worth while to look for them. (Arbitrary.)
MOST_PASSED_OVER = 1000


class Entry:
    """A task, its packed call, and how it has fared. The caller makes it, in any thread."""

    __slots__ = (
        "common",
        "deadline",
        "doom",
        "head",
        "killed",
        "parcel",
        "pid",
        "retries",
        "short",
        "task",
        "worker",
    )

    def __init__(
        self, task: Task[Any], head: bytes, parcel: Parcel | None, common: bytes = b""
    ) -> None:
        self.task = task
        #: Whether its function is known for that: see `Paces`.
        self.short = False
        #: The call, as `packing.pack` has made it; or, if it has its function in ``common`` with
        #: others, the chunk, as `packing.Each` has.
        self.head = head
        self.parcel = parcel
        self.common = common
        #: How many more times it may be run again.
        self.retries = task.options.retries
        #: The worker that it was sent to last, by its number in the schedule and its pid.
        self.worker: int | None = None
        self.pid: int | None = None
        self.deadline: float | None = None
        #: Why we have ended its worker, if we have: what the task raises then.
        self.doom: BaseException | None = None
        #: Whether it is to end: by `Task.kill`.
        self.killed = False

    @property
    def size(self) -> int:
        """How many bytes the call has."""
        return len(self.head) + (0 if self.parcel is None else self.parcel.size)

    def moved(self, report: bytes) -> tuple[int, int]:
        """Return how many bytes the call has, and the outcome that a report tells."""
        return self.size, _parcel.size_of(report, wire.DONE_SIZE)


def packets(entries: Sequence[Entry]) -> Iterator[Sequence[Entry]]:
    """Yield small tasks in their order, in as few packets as there can be."""
    first, room, common = 0, wire.ROOM, b""
    for place, entry in enumerate(entries):
        size = len(entry.head) + wire.PER_LOAD
        if size > room or entry.common is not common:
            if place > first:
                yield entries[first:place]
            first, common = place, entry.common
            room = wire.ROOM - len(common)
        room -= size
    if entries:
        yield entries[first:]


class Ledger:
    """Knows every task that was submitted and not settled. Used by the supervisor only."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        #: By the numbers of their tasks. To be read, and changed by nobody else.
        self.entries: dict[int, Entry] = {}
        # (when, number) of tasks that were sent and have a timeout; a heap. Entries of
        # tasks that have ended meanwhile are passed over.
        self._deadlines: list[tuple[float, int]] = []
        # Likewise, of tasks that are to be run again, and when.
        self._pauses: list[tuple[float, int]] = []

    def __getitem__(self, number: int) -> Entry:
        return self.entries[number]

    def get(self, number: int) -> Entry | None:
        """Return the entry of a task, if it is not settled. Any thread may ask."""
        return self.entries.get(number)

    def add(self, entries: Sequence[Entry]) -> None:
        """Tasks were submitted."""
        for entry in entries:
            self.entries[entry.task.number] = entry

    def begin(self, entries: list[Entry]) -> tuple[list[Entry], list[int]]:
        """Tasks are about to be sent; those that were cancelled are forgotten now.

        Returns the others, and the numbers of these.
        """
        for entry in entries:
            if entry.killed:
                entry.task.cancel()
        cancelled = [task.number for task in Task.start_all([entry.task for entry in entries])]
        for number in cancelled:
            self._forget(self.entries[number])
            self._recorder.task_cancelled()
        if cancelled:  # the others are still there
            entries = [entry for entry in entries if entry.task.number in self.entries]
        return entries, cancelled

    def _forget(self, entry: Entry) -> None:
        """A task is not to be sent any more, nor what belongs to it."""
        del self.entries[entry.task.number]
        if entry.parcel is not None:
            entry.parcel.close()

    def sent(self, entries: Sequence[Entry], worker: int, pid: int) -> None:
        """Tasks were sent to a worker: their time runs."""
        for entry in entries:
            entry.worker, entry.pid = worker, pid
            task = entry.task
            task.attempts += 1
            timeout = task.options.timeout
            if timeout is not None:
                self._set_deadline(entry, timeout)

    def _set_deadline(self, entry: Entry, timeout: float) -> None:
        entry.deadline = time.monotonic() + timeout
        heapq.heappush(self._deadlines, (entry.deadline, entry.task.number))
        if len(self._deadlines) > 2 * len(self.entries) + MOST_PASSED_OVER:
            self._forget_deadlines()

    def _forget_deadlines(self) -> None:
        """Forget those of tasks that have ended: with long timeouts they would pile up."""
        entries = self.entries
        self._deadlines = [
            (when, number)
            for when, number in self._deadlines
            if number in entries and entries[number].deadline == when
        ]
        heapq.heapify(self._deadlines)

    def came_back(self, number: int) -> None:
        """A task was not taken by the worker that it was sent to: its time has not begun."""
        entry = self.entries[number]
        if entry.worker is not None:
            entry.task.attempts -= 1
        self._waits_again(entry)

    def _waits_again(self, entry: Entry) -> None:
        entry.worker = entry.pid = entry.deadline = entry.doom = None
        entry.task.wait_again()

    @property
    def in_flight(self) -> bool:
        """Whether some worker has a task that it will report."""
        return any(entry.worker is not None for entry in self.entries.values())

    def next_deadline(self) -> float | None:
        """Return when `expired` or `rested` may have something, or None."""
        if not self._deadlines and not self._pauses:
            return None  # which costs nothing, as mostly there are none
        return min(heap[0][0] for heap in (self._deadlines, self._pauses) if heap)

    def expired(self) -> Iterator[Entry]:
        """Yield the tasks that have run for too long, each once."""
        for deadline, number in _due(self._deadlines):
            entry = self.entries.get(number)
            if entry is not None and entry.deadline == deadline:
                yield entry

    def rest(self, entry: Entry, seconds: float) -> None:
        """A task is to be run again, after so many seconds."""
        heapq.heappush(self._pauses, (time.monotonic() + seconds, entry.task.number))
        entry.task.since += seconds

    def rested(self) -> Iterator[int]:
        """Yield the tasks whose `rest` is over, each once."""
        for _, number in _due(self._pauses):
            yield number

    def wake(self, number: int) -> None:
        """Let the rest of a task end now, if it rests."""
        if any(resting == number for _, resting in self._pauses):
            self._pauses = [(0.0 if n == number else when, n) for when, n in self._pauses]
            heapq.heapify(self._pauses)

    def runs_again(self, entry: Entry, error: BaseException, *, crashed: bool) -> bool:
        """Tell whether a task that failed is to be run again; this is counted."""
        wanted = crashed or isinstance(error, entry.task.options.retry_on)
        if not wanted or not entry.retries or entry.killed:
            return False
        entry.retries -= 1
        self._recorder.task_retried(entry.pid, entry.task.name)
        entry.task.failed_once(error)
        self._waits_again(entry)
        return True

    def returned(self, ended: Sequence[tuple[Entry, Any]]) -> None:
        """Tasks have results."""
        entries = self.entries
        results: list[tuple[Task[Any], Any]] = []
        for entry, value in ended:
            task = entry.task
            del entries[task.number]  # as `_forget`
            if entry.parcel is not None:
                entry.parcel.close()
            results.append((task, value))
        for task, value in Task.set_results(results):
            self._end(task, value, None)

    def settle(self, entry: Entry, value: Any, error: BaseException | None) -> None:
        """A task has its outcome."""
        self._forget(entry)
        self._end(entry.task, value, error)

    def _end(self, task: Task[Any], value: Any, error: BaseException | None) -> None:
        if not (task.running() or task.set_running_or_notify_cancel()):
            self._recorder.task_cancelled()
            return
        if error is not None:
            self._recorder.task_failed()  # first: who has the error may look at that
            task.note_attempts(error)
            task.note_output(error)
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
        self._pauses.clear()
        for number, entry in list(self.entries.items()):
            entry.task.cancel()
            if number in self.entries:  # no callback of a task has led here once more
                self.settle(entry, None, WorkerDied(entry.task.name, entry.pid, None, reason))

    def cancel_waiting(self) -> None:
        """Cancel the tasks that were not sent."""
        for entry in list(self.entries.values()):
            entry.task.cancel()


def _due(heap: list[tuple[float, int]]) -> Iterator[tuple[float, int]]:
    """Take from a heap of times what they have come for."""
    while heap and heap[0][0] <= time.monotonic():
        yield heapq.heappop(heap)
