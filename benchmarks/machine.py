"""A pool without processes: the real `Schedule`, and a clock that jumps.

What is modelled is what the policy can spoil or save. Messages travel for some time, and
the supervisor, who is one, needs some for each. A worker takes a packet out of its inbox
as a whole; what it has not taken can be taken back, what it has is lost to the others. It
reports each task by itself. All tasks are there at the beginning, and so are the workers.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import deque
from dataclasses import dataclass

from mpkit._engine import schedule as policy
from mpkit._engine.actions import Send, Spawn, TakeBack
from mpkit._engine.schedule import Schedule
from mpkit._engine.warden import MOMENT


@dataclass(frozen=True)
class Costs:
    """What things cost, in seconds; about what they do on a machine of today."""

    #: From one process to another that sleeps: half of what a pipe there and back takes,
    #: and some more for Python.
    latency: float = 75e-6
    #: Of the supervisor, for each message that it sends, or takes back.
    message: float = 10e-6
    #: Of the supervisor, for each report that it reads, and what follows from it.
    report: float = 5e-6
    #: Of a worker, for each task: to unpickle it, and to report.
    task: float = 8e-6
    #: Of the supervisor, for each decision and worker. Nothing, as this is of the code and
    #: not of the policy; `benchmarks.simulate` measures what it is.
    decision: float = 0.0
    #: Whether packets come apart, so that a worker begins one task at a time and all others can
    #: be had back. What that costs the worker is in ``task`` already.
    apart: int = 1
    #: Whether their function is known for short tasks, whatever these are.
    short: int = 1


@dataclass
class Outcome:
    """What came of a run."""

    makespan: float
    optimum: float
    tasks: int
    #: From and to workers, in all.
    messages: int
    #: The longest that a task lay with a worker before it began, sent for the last time.
    longest_wait: float
    #: The longest that it lay in a packet that was taken, so that nobody else could have it.
    longest_stuck: float
    taken_back: int
    #: How long the supervisor was at work.
    busy: float

    @property
    def ratio(self) -> float:
        """The makespan over what no scheduler could do better."""
        return self.makespan / self.optimum


@dataclass(slots=True)
class _Packet:
    tasks: list[int]
    arrives: float


class _Worker:
    def __init__(self) -> None:
        self.inbox: deque[_Packet] = deque()
        #: When it will look into its inbox again. What it has taken ends then.
        self.free_at = 0.0
        #: Whether an event for that is on the way.
        self.awake = False


class Machine:
    """Runs tasks of known lengths, and is asked once."""

    def __init__(self, lengths: list[float], workers: int, costs: Costs) -> None:
        self._lengths = lengths
        self._costs = costs
        self._schedule = Schedule(workers)
        self._workers = [_Worker() for _ in range(workers)]
        self._numbers = itertools.count()
        self._now = 0.0
        # (when, which came first, worker, the task that it reports, or None: it is to take
        # a packet). Those of reports wait for the supervisor, those of packets do not.
        self._reports: list[tuple[float, int, int, int]] = []
        self._wakes: list[tuple[float, int, int]] = []
        self._order = itertools.count()
        self._sent_at = [0.0] * len(lengths)
        #: When the schedule is to be told that a moment has passed, if it is.
        self._moment = math.inf
        self._outcome = Outcome(0, self._optimum(), len(lengths), 0, 0, 0, 0, 0)

    def _optimum(self) -> float:
        """What no schedule can be shorter than, if messages cost nothing."""
        return max(sum(self._lengths) / len(self._workers), max(self._lengths))

    def run(self) -> Outcome:
        """Run all tasks, to the last report."""
        for task in range(len(self._lengths)):
            self._schedule.submitted(task, short=bool(self._costs.short))
        self._act()
        left = len(self._lengths)
        while left:
            if not self._schedule.spares:
                self._moment = math.inf
            elif self._moment == math.inf:
                self._moment = self._now + MOMENT
            self._now = max(self._now, self._next_event())
            left -= self._read_reports()
            if self._moment <= self._now:
                self._moment = math.inf
                self._schedule.moment_passed()
            self._act()
        self._outcome.makespan = self._now
        return self._outcome

    # the workers

    def _next_event(self) -> float:
        """Let workers go on until one of them has reported, or a moment has passed; return when."""
        while self._wakes and self._wakes[0][0] < self._next_report():
            self._take_packet()
        return self._next_report()

    def _next_report(self) -> float:
        return min(self._moment, self._reports[0][0] if self._reports else math.inf)

    def _catch_up(self) -> None:
        """Let workers do what they have done by now."""
        while self._wakes and self._wakes[0][0] <= self._now:
            self._take_packet()

    def _take_packet(self) -> None:
        when, _, number = heapq.heappop(self._wakes)
        worker = self._workers[number]
        worker.awake = False
        if not worker.inbox:  # it was taken back
            return
        at = when
        for task in worker.inbox.popleft().tasks:
            self._note("longest_stuck", at - when)
            self._note("longest_wait", at - self._sent_at[task] - self._costs.latency)
            at += self._costs.task + self._lengths[task]
            arrives = at + self._costs.latency
            heapq.heappush(self._reports, (arrives, next(self._order), number, task))
        worker.free_at = at
        self._wake(number)

    def _note(self, name: str, seconds: float) -> None:
        setattr(self._outcome, name, max(getattr(self._outcome, name), seconds))

    def _wake(self, number: int) -> None:
        """See to it that a worker looks into its inbox when it is free, and there is something."""
        worker = self._workers[number]
        if worker.inbox and not worker.awake:
            worker.awake = True
            when = max(worker.free_at, worker.inbox[0].arrives)
            heapq.heappush(self._wakes, (when, next(self._order), number))

    # the supervisor

    def _read_reports(self) -> int:
        """Read what has arrived when it is looked for; return how many."""
        count = 0
        until = self._now
        while self._reports and self._reports[0][0] <= until:
            _, _, number, task = heapq.heappop(self._reports)
            self._schedule.finished(number, [task], self._lengths[task])
            self._work(self._costs.report)
            count += 1
        return count

    def _work(self, seconds: float) -> None:
        """Be the supervisor at work for so long."""
        self._now += seconds
        self._outcome.busy += seconds

    def _act(self) -> None:
        self._work(self._costs.decision * len(self._workers))
        for action in self._schedule.decide():
            match action:
                case Send(number, tasks):
                    self._send(number, list(tasks))
                case TakeBack(number):
                    self._take_back(number)
                case Spawn():
                    number = next(self._numbers)
                    self._schedule.spawned(number)
                    self._schedule.started(number)
                case _:
                    raise AssertionError(f"nobody died or left, and yet there is {action}")

    def _send(self, number: int, tasks: list[int]) -> None:
        self._outcome.messages += 1
        self._work(self._costs.message)
        for task in tasks:
            self._sent_at[task] = self._now
        packets = [[task] for task in tasks] if self._costs.apart else [tasks]
        arrives = self._now + self._costs.latency
        self._workers[number].inbox.extend(_Packet(packet, arrives) for packet in packets)
        self._wake(number)

    def _take_back(self, number: int) -> None:
        self._catch_up()
        self._work(self._costs.message)
        inbox = self._workers[number].inbox
        tasks = [task for packet in inbox for task in packet.tasks]
        inbox.clear()
        self._outcome.taken_back += len(tasks)
        self._schedule.returned(number, tasks)


def with_policy(
    changes: dict[str, float], costs: Costs, lengths: list[float], workers: int
) -> Outcome:
    """Run with other constants in `mpkit._engine.schedule`, and put them back."""
    before = {name: getattr(policy, name) for name in changes}
    try:
        for name, value in changes.items():
            setattr(policy, name, value)
        return Machine(lengths, workers, costs).run()
    finally:
        for name, value in before.items():
            setattr(policy, name, value)
