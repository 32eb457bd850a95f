"""The schedule under any order of events: nothing lost, nothing twice, nothing after the end."""

from __future__ import annotations

import itertools
from collections import deque

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mpkit._pool.schedule import (
    Abandon,
    Lose,
    Retire,
    Schedule,
    Send,
    Spawn,
    TakeBack,
)

#: No policy needs more actions than this after one event.
ENOUGH = 10_000


class FakeWorker:
    """What an engine would know of a worker: what lies in its inbox, what it has taken."""

    def __init__(self) -> None:
        self.inbox: deque[list[int]] = deque()
        self.taken: deque[int] = deque()
        self.started = False
        self.retired = False
        self.received = 0


class ScheduleMachine(RuleBasedStateMachine):
    """An engine without processes, which does what a schedule says."""

    @initialize(size=st.integers(1, 4), quota=st.none() | st.integers(1, 3), spawns=st.booleans())
    def begin(self, size: int, quota: int | None, spawns: bool) -> None:
        self.schedule = Schedule(size, quota)
        self.size, self.quota = size, quota
        self.workers: dict[int, FakeWorker] = {}
        self.numbers = itertools.count()
        self.tasks = itertools.count(1)
        self.alone: set[int] = set()
        self.waiting: set[int] = set()
        self.ended: dict[int, str] = {}
        self.cancelled: set[int] = set()
        self.closed = False
        self.spawn_fails = False
        self.act()

    def act(self) -> None:
        """Perform what the schedule decides, as the engine does."""
        for count, action in enumerate(self.schedule.decide()):
            assert count < ENOUGH, "the schedule never stops acting"
            match action:
                case Spawn():
                    if self.spawn_fails:
                        self.schedule.spawn_failed()
                    else:
                        number = next(self.numbers)
                        self.workers[number] = FakeWorker()
                        self.schedule.spawned(number)
                case Send(number, tasks):
                    self.send(number, list(tasks))
                case TakeBack(number):
                    self.take_back(number)
                case Retire(number):
                    assert not self.workers[number].retired
                    self.workers[number].retired = True
                case Lose(task, _):
                    self.end(task, "lost")
                case Abandon(task):
                    assert not self.workers, "there are workers that could run it"
                    self.waiting.remove(task)
                    self.end(task, "abandoned")

    def send(self, number: int, tasks: list[int]) -> None:
        worker = self.workers[number]
        assert tasks
        assert not worker.retired, "it was told to leave"
        for task in list(tasks):
            self.waiting.remove(task)
            if task in self.cancelled:
                tasks.remove(task)
                self.schedule.withdrawn(number, task)
                self.end(task, "cancelled")
        worker.received += len(tasks)
        assert self.quota is None or worker.received <= self.quota
        if self.alone & set(tasks):
            assert len(tasks) == 1, "its time must be known"
            assert worker.started
            assert not worker.inbox
            assert not worker.taken
        held = set(worker.taken) | set(itertools.chain(*worker.inbox))
        assert not held & self.alone, "one that must be alone is there"
        if tasks:
            worker.inbox.append(tasks)

    def take_back(self, number: int) -> None:
        worker = self.workers[number]
        tasks = list(itertools.chain(*worker.inbox))
        worker.inbox.clear()
        worker.received -= len(tasks)
        self.waiting.update(tasks)
        self.schedule.returned(number, tasks)

    def end(self, task: int, how: str) -> None:
        assert task not in self.ended, f"{task} ends twice: {self.ended[task]}, {how}"
        self.ended[task] = how

    def some(self, index: int) -> int:
        return sorted(self.workers)[index % len(self.workers)]

    @precondition(lambda self: not self.closed)
    @rule(count=st.integers(1, 5), priority=st.sampled_from([0, 0, 0, 1, -1]), alone=st.booleans())
    def submit(self, count: int, priority: int, alone: bool) -> None:
        for _ in range(count):
            task = next(self.tasks)
            self.waiting.add(task)
            if alone:
                self.alone.add(task)
            self.schedule.submitted(task, priority=priority, alone=alone)
        self.act()

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        if self.waiting:
            self.cancelled.add(data.draw(st.sampled_from(sorted(self.waiting))))

    @precondition(lambda self: self.workers)
    @rule(index=st.integers(0, 9))
    def start(self, index: int) -> None:
        number = self.some(index)
        if not self.workers[number].started:
            self.workers[number].started = True
            self.schedule.started(number)
            self.act()

    @precondition(lambda self: self.workers)
    @rule(index=st.integers(0, 9), seconds=st.sampled_from([1e-6, 1e-4, 0.01, 1.0]))
    def work(self, index: int, seconds: float) -> None:
        """A worker takes a packet if it has none, and reports a task."""
        number = self.some(index)
        worker = self.workers[number]
        if not worker.started:
            return
        if not worker.taken and worker.inbox:
            worker.taken.extend(worker.inbox.popleft())
        if worker.taken:
            task = worker.taken.popleft()
            self.end(task, "finished")
            self.schedule.finished(number, task, seconds)
            self.act()

    @precondition(lambda self: self.workers)
    @rule(index=st.integers(0, 9), takes=st.booleans())
    def die(self, index: int, takes: bool) -> None:
        number = self.some(index)
        worker = self.workers[number]
        if takes and worker.started and not worker.taken and worker.inbox:
            worker.taken.extend(worker.inbox.popleft())
        self.take_back(number)
        del self.workers[number]
        before = dict(self.ended)
        lost = worker.taken[0] if worker.taken else None
        self.waiting.update(itertools.islice(worker.taken, 1, None))
        self.schedule.died(number)
        self.act()
        ended = {task for task, how in self.ended.items() if how == "lost" and task not in before}
        assert ended == ({lost} if lost is not None else set())

    @precondition(lambda self: self.workers)
    @rule(index=st.integers(0, 9))
    def leave(self, index: int) -> None:
        """A retiring worker that has nothing left to do leaves."""
        number = self.some(index)
        worker = self.workers[number]
        if worker.retired and not worker.taken and not worker.inbox:
            self.take_back(number)
            del self.workers[number]
            self.schedule.died(number)
            self.act()

    @rule(fails=st.booleans())
    def run_out_of_processes(self, fails: bool) -> None:
        self.spawn_fails = fails

    @rule()
    def close(self) -> None:
        self.closed = True
        self.schedule.close()
        self.act()

    @invariant()
    def no_more_workers_than_asked_for(self) -> None:
        staying = [worker for worker in self.workers.values() if not worker.retired]
        assert len(staying) <= self.size

    @invariant()
    def what_waits_is_waited_for(self) -> None:
        """A free worker and a task for it do not coexist once the schedule has acted."""
        idle = [
            worker
            for worker in self.workers.values()
            if worker.started and not worker.retired and not worker.taken and not worker.inbox
        ]
        assert not (idle and self.waiting - self.cancelled)

    def teardown(self) -> None:
        """Let everybody finish: all tasks end, and so does the pool."""
        if not hasattr(self, "schedule"):
            return
        self.spawn_fails = False
        self.close()
        for _ in range(10_000):
            if self.schedule.over:
                break
            for number in list(self.workers):
                if number in self.workers:
                    index = sorted(self.workers).index(number)
                    self.start(index)
                    if number in self.workers:
                        self.work(sorted(self.workers).index(number), 0.1)
                    if number in self.workers:
                        self.leave(sorted(self.workers).index(number))
            self.act()
        assert self.schedule.over, "the pool does not end"
        assert not self.waiting
        assert set(self.ended) == set(range(1, next(self.tasks)))


TestSchedule = ScheduleMachine.TestCase
TestSchedule.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
