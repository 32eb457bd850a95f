"""What ends a task by ending its worker: its timeout, `Task.kill`, the hard memory limit.

And what ends a worker that has nothing to do, and does not leave when told to.

A worker may have taken several tasks, and what we know of it is a little late: it may have
done the one that is to be ended, and have begun the next. To kill it then would be the end
of an innocent. So it is stopped first (SIGSTOP), then all that it has reported is read, and
only then one sees which task it is that runs. A task with a timeout is alone in its worker,
and needs none of that.
"""

from __future__ import annotations

import signal
import time
from collections import deque
from typing import TYPE_CHECKING

from mpkit._errors import MemoryLimitExceeded, TaskTimeout, WorkerDied
from mpkit._platform import memory, processes
from mpkit._process import GRACE

if TYPE_CHECKING:
    from collections.abc import Callable

    from mpkit._engine.crew import Worker
    from mpkit._engine.ledger import Entry, Ledger
    from mpkit._engine.schedule import Schedule

#: Seconds between two looks at the memory of the workers, of which no descriptor tells.
BETWEEN_LOOKS = 0.05

#: Seconds after which workers are to have reported something, while others are spared that could
#: do what lies behind. (A short packet takes 1 ms, and to wake who has slept for long half of one.)
MOMENT = 0.002

#: Seconds for a worker to stop. It takes some microseconds.
TO_STOP = 0.2

_KILLED = "was killed by Task.kill()"
_HUNG_UP = "closed its connection to the pool, and was killed"
_BABBLED = "wrote into its connection to the pool, and was killed"


class Warden:
    """Kills workers whose tasks are to end. Used by the supervisor thread only."""

    def __init__(
        self,
        crew: dict[int, Worker],
        ledger: Ledger,
        schedule: Schedule,
        *,
        read_reports: Callable[[int], None],
        take_back: Callable[[int], None],
        memory_hard_limit: int | None,
    ) -> None:
        self._crew = crew
        self._ledger = ledger
        self._schedule = schedule
        self._read_reports = read_reports
        self._take_back = take_back
        self._memory_hard_limit = memory_hard_limit
        # When to kill workers that are to end, in order: the grace is always the same.
        self._last_calls: deque[tuple[float, int]] = deque()
        self._next_look = 0.0
        # When to look after those that were told to leave; None if there are none. And who of
        # them stood still at the last look.
        self._next_visit: float | None = None
        self._standing: set[int] = set()
        #: When (of `_ticking`) to see whether those that work get on, while others are spared.
        self._moment: float | None = None
        #: Tasks that are to be killed, as soon as their worker runs them.
        self._hunted: set[int] = set()

    def next_round(self) -> float | None:
        """Return the time (of `time.monotonic`) of the next thing to see to, or None."""
        when = self._ledger.next_deadline()
        if self._last_calls:
            when = _earlier(when, self._last_calls[0][0])
        if self._memory_hard_limit is not None and self._ledger.in_flight:
            when = _earlier(when, self._next_look)
        if self._next_visit is not None:
            when = _earlier(when, self._next_visit)
        if not self._schedule.spares:
            self._moment = None
        else:
            now = _ticking()
            if self._moment is None:
                self._moment = now + MOMENT
            when = _earlier(when, time.monotonic() + self._moment - now)
        return when

    def make_rounds(self, retire: Callable[[int], None]) -> None:
        """End what has run for too long, or has grown too large."""
        for entry in self._ledger.expired():
            self._time_out(entry, retire)
        now = time.monotonic()
        while self._last_calls and self._last_calls[0][0] <= now:
            _, number = self._last_calls.popleft()
            if number in self._crew:
                self._end(number)
        if self._memory_hard_limit is not None and self._next_look <= now:
            self._next_look = now + BETWEEN_LOOKS
            self._weigh_all(self._memory_hard_limit)
        if self._next_visit is not None and self._next_visit <= now:
            self._visit_leaving()
        if self._moment is not None and self._moment <= _ticking():
            self._moment = None
            self._schedule.moment_passed()

    def told_to_leave(self) -> None:
        """A worker was told to leave: see now and then, until it has, that nothing keeps it."""
        if self._next_visit is None:
            self._next_visit = time.monotonic() + GRACE / 2

    def _visit_leaving(self) -> None:
        """Kill who was told to leave, has nothing to run, and is stopped: nobody waits for it.

        One that is not stopped may have much to do at its end, and is waited for. Nor is it
        enough to have found it stopped once: after Ctrl-Z and `fg` we may go on before it does.
        """
        leaving = {number for number, worker in self._crew.items() if worker.retiring}
        standing = {
            number
            for number in leaving
            if self._schedule.running(number) is None
            and processes.is_stopped(self._crew[number].pid)
        }
        for number in standing & self._standing:
            self._crew[number].child.signal(signal.SIGKILL)
        self._standing = standing
        self._next_visit = time.monotonic() + GRACE / 2 if leaving else None

    def _time_out(self, entry: Entry, retire: Callable[[int], None]) -> None:
        number, timeout = entry.worker, entry.task.options.timeout
        assert number is not None
        assert timeout is not None
        worker = self._crew[number]
        # Whatever handles the signal may leave the worker in any state: it gets no other task.
        retire(number)
        worker.ask_to_end()
        self._last_calls.append((time.monotonic() + GRACE, number))
        # One that never took it is stopped, perhaps: then others do.
        self._take_back(number)
        if entry.worker is not None:
            entry.doom = TaskTimeout(entry.task.name, timeout, worker.pid)

    def hung_up(self, number: int) -> None:
        """A worker can report nothing more, and is about to end.

        Unless something has closed its descriptors and goes on, or waits for packets in
        what has their numbers by now. So it is given some time, and killed then. One that
        babbles will do no better. (One that was told to leave, and has nothing to run, is about
        to end indeed: its connection is gone while its interpreter takes all else down.)
        """
        if self._crew[number].babbles:
            self._end(number)
        elif not self._crew[number].retiring or self._schedule.running(number) is not None:
            self._last_calls.append((time.monotonic() + GRACE, number))

    def _end(self, number: int) -> None:
        """Kill a worker that has not ended by itself."""
        worker = self._crew[number]
        if worker.hung_up:
            self._take_back(number)
            running = self._schedule.running(number)
            entry = None if running is None else self._ledger[running]
            if entry is not None and entry.doom is None:
                why = _BABBLED if worker.babbles else _HUNG_UP
                entry.doom = WorkerDied(entry.task.name, worker.pid, -signal.SIGKILL, why)
        worker.child.signal(signal.SIGKILL)

    def _weigh_all(self, limit: int) -> None:
        for number, worker in list(self._crew.items()):
            running = self._schedule.running(number)
            if running is None:
                continue
            resident = memory.resident_bytes_of(worker.pid)
            if resident > limit:
                what = self._ledger[running].task.name
                doom = MemoryLimitExceeded(what, worker.pid, resident, limit)
                self._kill_if_running(number, running, doom)

    def kill(self, number: int) -> None:
        """End a task, now or as soon as its worker gets to it."""
        entry = self._ledger.get(number)
        if entry is None:
            return
        entry.killed = True
        if entry.worker is None:
            entry.task.cancel()
        else:
            self._hunted.add(number)
            self.strike(entry.worker)

    def strike(self, number: int) -> None:
        """Kill a worker if the task that it runs now is to be killed."""
        running = self._schedule.running(number) if self._hunted else None
        if running is not None and running in self._hunted:
            self._hunted.discard(running)
            worker = self._crew[number]
            what = self._ledger[running].task.name
            doom = WorkerDied(what, worker.pid, -signal.SIGKILL, _KILLED)
            self._kill_if_running(number, running, doom)

    def _kill_if_running(self, number: int, task: int, doom: BaseException) -> None:
        worker = self._crew[number]
        worker.child.signal(signal.SIGSTOP)
        # One that does not stop is inside of the kernel, and leaves it only to stop.
        processes.has_stopped(worker.pid, TO_STOP)
        while worker.has_reports():
            self._read_reports(number)
        self._take_back(number)  # what it has not taken, or some thread has taken out
        if self._schedule.running(number) == task:
            self._ledger[task].doom = doom
            worker.child.signal(signal.SIGKILL)
        else:
            worker.child.signal(signal.SIGCONT)


def _ticking() -> float:
    """Return the time of a clock that goes on where a test lets `time.monotonic` stand still.

    By that one only what has a timeout would be late. But who is spared is wanted by any task.
    """
    return time.clock_gettime(time.CLOCK_MONOTONIC)


def _earlier(when: float | None, other: float) -> float:
    return other if when is None else min(when, other)
