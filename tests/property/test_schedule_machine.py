"""The schedule under any order of events: nothing lost, nothing twice, nothing after the end."""

from __future__ import annotations

import itertools
from collections import Counter, deque

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mpkit._engine.actions import Abandon, Lose, Retire, Send, Spawn, TakeBack
from mpkit._engine.reserve import Reserve
from mpkit._engine.schedule import MOST_IN_PACKET, SEND_AHEAD_BELOW, Schedule
from mpkit._engine.starts import MOST_START_FAILURES

# Pure Python, and nothing of it is the system's.
pytestmark = pytest.mark.any_python

#: For what would keep all else from happening if it came as often as that.
SELDOM = st.integers(0, 9).map(lambda number: number == 9)

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
        #: Whether it notes what it begins, so that of what it has taken the rest can come back.
        self.notes = False
        #: What it may have begun, and may not, when that was done.
        self.may_decline: int | None = None

    def held(self) -> list[int]:
        return [*self.taken, *itertools.chain(*self.inbox)]


class ScheduleMachine(RuleBasedStateMachine):
    """An engine without processes, which does what a schedule says."""

    reserve: Reserve | None = None

    def thinks_short(self, task: int) -> bool:
        """Tell whether the schedule is told that a task is short (see `test_schedule_reserve`)."""
        return False

    @initialize(
        size=st.integers(1, 4),
        quota=st.none() | st.integers(1, 12),
        seconds=st.sampled_from([(1e-6, 1e-6), (1e-6, 1e-4), (1e-4, 0.01), (0.01, 1.0)]),
        at_once=st.booleans(),
    )
    def begin(
        self, size: int, quota: int | None, seconds: tuple[float, float], at_once: bool
    ) -> None:
        """Say how long tasks take, and whether every worker starts as soon as it may."""
        self.seconds, self.at_once = seconds, at_once
        self.schedule = Schedule(size, quota, self.reserve)
        self.size, self.quota = size, quota
        self.workers: dict[int, FakeWorker] = {}
        self.numbers = itertools.count()
        self.tasks = itertools.count(1)
        self.alone: set[int] = set()
        self.priority: dict[int, int] = {}
        self.waiting: set[int] = set()
        self.was_sent: set[int] = set()
        self.ended: dict[int, str] = {}
        self.cancelled: set[int] = set()
        #: What failed, and waits for its next attempt without the schedule.
        self.resting: set[int] = set()
        self.lost: list[int] = []
        # How often a task may run, and has.
        self.allowed: Counter[int] = Counter()
        self.ran: Counter[int] = Counter()
        self.short_ones = False
        self.closed = self.stopped = False
        self.spawn_fails = False
        # How often in a row the system refused a worker; and workers did not start.
        self.refused = self.stillborn = self.init_failed = 0
        self.act()

    def act(self) -> None:
        """Perform what the schedule decides, as the engine does."""
        over = self.schedule.over
        for count, action in enumerate(self.schedule.decide()):
            assert count < ENOUGH, "the schedule never stops acting"
            assert not over, f"{action} when all is over"
            match action:
                case Spawn():
                    self.spawn()
                case Send(number, tasks):
                    self.send(number, list(tasks))
                case TakeBack(number):
                    self.take_back(number)
                case Retire(number):
                    worker = self.workers[number]
                    assert not worker.retired
                    assert self.closed or worker.received == self.quota, "it has tasks left"
                    worker.retired = True
                case Lose(task, _):
                    self.lost.append(task)
                    self.fail(task, "lost")
                case Abandon(task, attempts):
                    assert not self.workers, "there are workers that could run it"
                    assert attempts >= MOST_START_FAILURES
                    assert (
                        max(self.refused, self.stillborn, self.init_failed) >= MOST_START_FAILURES
                    ), "nothing is known that would keep a worker from starting"
                    self.waiting.remove(task)
                    self.end(task, "abandoned")
        # When all is given up, the next task is tried anew.
        if not self.workers and self.refused >= MOST_START_FAILURES:
            self.refused = 0
        for number, worker in self.workers.items():
            if self.at_once and not worker.started:
                self.start(number)
                break

    def spawn(self) -> None:
        assert self.waiting or self.resting or not self.closed, "a worker for nothing"
        assert self.init_failed < MOST_START_FAILURES
        assert self.stillborn < MOST_START_FAILURES + self.size
        if self.spawn_fails:
            self.refused += 1
            self.schedule.spawn_failed()
            return
        self.refused = 0
        number = next(self.numbers)
        self.workers[number] = FakeWorker()
        self.workers[number].notes = number % 3 > 0
        self.schedule.spawned(number)

    def send(self, number: int, tasks: list[int]) -> None:
        worker = self.workers[number]
        assert tasks
        assert not worker.retired, "it was told to leave"
        self.waiting.difference_update(tasks)
        for task in list(tasks):
            self.check_the_turn_of(task)
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
        held = set(worker.held())
        assert not held & self.alone, "one that must be alone is there"
        if tasks:
            worker.inbox.append(tasks)
        assert len(tasks) <= MOST_IN_PACKET
        if len(held) + len(tasks) > 1:
            assert self.short_ones, "two on a worker, and none was ever short"

    def check_the_turn_of(self, task: int) -> None:
        """Higher priorities come first, and then who came first, also if he came back."""
        mine = self.priority[task]
        assert all(self.priority[other] <= mine for other in self.waiting)
        if task not in self.was_sent:
            self.was_sent.add(task)
            equals = [other for other in self.waiting if self.priority[other] == mine]
            assert all(other > task or self.ran[other] for other in equals)

    def take_back(self, number: int) -> None:
        worker = self.workers[number]
        tasks = list(itertools.chain(*worker.inbox))
        worker.inbox.clear()
        if worker.notes and worker.taken:
            worker.may_decline, *behind = worker.taken
            worker.taken = deque([worker.may_decline])
            tasks = behind + tasks
        self.came_back(number, tasks)

    def came_back(self, number: int, tasks: list[int]) -> None:
        worker = self.workers[number]
        worker.received -= len(tasks)
        self.waiting.update(tasks)
        self.schedule.returned(number, tasks)

    def end(self, task: int, how: str) -> None:
        assert task not in self.ended, f"{task} ends twice: {self.ended[task]}, {how}"
        assert task not in self.waiting | self.resting
        self.ended[task] = how

    def fail(self, task: int, how: str, *, rests: bool = False) -> None:
        """A task failed: it runs again if it may, now or later, as the ledger counts."""
        self.ran[task] += 1
        if self.ran[task] == self.allowed[task]:
            self.end(task, how)
        elif rests:
            self.schedule.postponed()
            self.resting.add(task)
        else:
            self.enter(task)

    def enter(self, task: int) -> None:
        self.waiting.add(task)
        self.schedule.submitted(
            task,
            priority=self.priority[task],
            alone=task in self.alone,
            short=self.thinks_short(task),
        )

    def busiest(self) -> int:
        held = {number: worker.held() for number, worker in self.workers.items()}
        return max(held, key=lambda number: len(held[number]))

    def some(self, index: int) -> int:
        return sorted(self.workers)[index % len(self.workers)]

    @precondition(lambda self: not self.closed)
    @rule(
        count=st.integers(1, 20),
        priority=st.sampled_from([0, 0, 0, 1, -1]),
        alone=st.sampled_from([False, False, False, True]),
        retries=st.sampled_from([0, 0, 1, 2]),
    )
    def submit(self, count: int, priority: int, alone: bool, retries: int) -> None:
        for _ in range(count):
            task = next(self.tasks)
            if alone:
                self.alone.add(task)
            self.priority[task] = priority
            self.allowed[task] = 1 + retries
            self.enter(task)
        self.act()

    @precondition(lambda self: self.schedule.idle_workers())
    @rule(index=st.integers(0, 9), retries=st.sampled_from([0, 0, 1]))
    def hand_over(self, index: int, retries: int) -> None:
        """A caller sends a task to an idle worker, and the schedule is told afterwards."""
        idle = self.schedule.idle_workers()
        assert not self.waiting, "somebody was there before"
        assert not self.closed
        self.hand(idle[index % len(idle)], retries)

    def hand(self, number: int, retries: int) -> None:
        worker, task = self.workers[number], next(self.tasks)
        assert worker.started
        assert not worker.retired
        assert not list(worker.held())
        self.priority[task], self.allowed[task] = 0, 1 + retries
        self.was_sent.add(task)
        worker.received += 1
        worker.inbox.append([task])
        self.schedule.handed(number, task, short=self.thinks_short(task))
        self.act()

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        if self.waiting:
            self.cancelled.add(data.draw(st.sampled_from(sorted(self.waiting))))

    @precondition(lambda self: any(worker.inbox for worker in self.workers.values()))
    @rule(data=st.data())
    def recall(self, data: st.DataObject) -> None:
        """A task that was sent is cancelled: it is had back if no worker has taken it."""
        number = data.draw(st.sampled_from([n for n in self.workers if self.workers[n].inbox]))
        tasks = list(itertools.chain(*self.workers[number].inbox))
        self.take_back(number)
        self.cancelled.add(data.draw(st.sampled_from(tasks)))
        self.act()

    @rule(index=st.integers(0, 9))
    def decline(self, index: int) -> None:
        """A worker sees that it must not begin with what it was about to begin."""
        for number in sorted(self.workers)[index % 4 :]:
            worker = self.workers[number]
            if worker.taken and worker.may_decline == worker.taken[0]:
                self.came_back(number, [worker.taken.popleft()])
        self.act()

    @precondition(lambda self: self.resting)
    @rule(data=st.data())
    def resume(self, data: st.DataObject) -> None:
        """The pause before another attempt is over."""
        self.wake(data.draw(st.sampled_from(sorted(self.resting))))
        self.act()

    def wake(self, task: int) -> None:
        self.resting.remove(task)
        self.schedule.resumed()
        self.enter(task)

    @precondition(lambda self: any(not worker.started for worker in self.workers.values()))
    @rule(index=st.integers(0, 9))
    def start_one(self, index: int) -> None:
        unborn = sorted(n for n, worker in self.workers.items() if not worker.started)
        self.start(unborn[index % len(unborn)])

    def start(self, number: int) -> None:
        self.workers[number].started = True
        self.stillborn = self.init_failed = 0
        self.schedule.started(number)
        self.act()

    @precondition(lambda self: self.workers)
    @rule(
        index=st.integers(0, 9),
        times=st.integers(1, 5),
        which=st.integers(0, 1),
        ends=st.sampled_from(["well", "well", "badly", "badly, and rests"]),
        at_once=st.sampled_from([1, 1, 2, 5, 80]),
    )
    def work_for_a_while(self, index: int, times: int, which: int, ends: str, at_once: int) -> None:
        number = self.busiest() if index > 6 else self.some(index)
        for _ in range(times):
            if number in self.workers and self.workers[number].started:
                self.work(number, self.seconds[which], ends, at_once)

    def work(self, number: int, seconds: float, ends: str = "well", at_once: int = 1) -> None:
        """A worker takes a packet if it has none, and reports a task; or so many, if it can."""
        worker = self.workers[number]
        done: list[int] = []
        while len(done) < at_once and (worker.taken or worker.inbox):
            if not worker.taken:
                worker.taken.extend(worker.inbox.popleft())
            done.append(worker.taken.popleft())
        if done:
            assert self.schedule.running(number) == done[0]
            self.short_ones |= seconds < SEND_AHEAD_BELOW
            count = self.schedule.finished(number, [*done, -1, *worker.held()], seconds)
            assert count == len(done), "what comes behind one that it never had is not true"
            for task in done:
                if ends == "well":
                    self.ran[task] += 1
                    self.end(task, "finished")
                else:
                    self.fail(task, "failed", rests=ends == "badly, and rests")
            self.act()

    @precondition(lambda self: self.workers)
    @rule(index=st.integers(0, 9), takes=st.booleans(), says_why=st.booleans())
    def die(self, index: int, takes: bool, says_why: bool) -> None:
        """A worker dies, or its initializer fails, which it may tell."""
        number = self.busiest() if index > 4 else self.some(index)
        worker = self.workers[number]
        if not worker.started and says_why:
            self.init_failed += 1
            self.schedule.init_failed()
        if takes and worker.started and not worker.taken and worker.inbox:
            worker.taken.extend(worker.inbox.popleft())
        self.take_back(number)
        del self.workers[number]
        before = self.ran.copy()
        lost = [worker.taken[0]] if worker.taken else []
        behind = list(itertools.islice(worker.taken, 1, None))
        self.waiting.update(behind)
        self.stillborn += not worker.started and not worker.retired
        self.refused = 0
        self.lost.clear()
        assert self.schedule.has_started(number) == worker.started
        assert self.schedule.died(number) == behind
        self.act()
        assert self.lost == lost, "what it ran, and nothing else"
        assert self.ran - before == Counter(lost), "all that it ran, and nothing else, has failed"

    @precondition(lambda self: self.workers)
    @rule(index=st.integers(0, 9))
    def leave(self, index: int) -> None:
        """A retiring worker that has nothing left to do leaves."""
        number = self.some(index)
        worker = self.workers[number]
        if worker.retired and not worker.taken and not worker.inbox:
            self.take_back(number)
            del self.workers[number]
            self.refused = 0
            self.schedule.died(number)
            self.act()

    @precondition(lambda self: self.workers)
    @rule(index=st.integers(0, 9))
    def replace(self, index: int) -> None:
        """A worker has too much memory, say."""
        number = self.some(index)
        for action in self.schedule.retire(number):
            assert action == Retire(number)
            assert not self.workers[number].retired
            self.workers[number].retired = True
        assert self.workers[number].retired
        self.act()

    @rule(fails=SELDOM)
    def run_out_of_processes(self, fails: bool) -> None:
        self.spawn_fails = fails

    @precondition(lambda self: self.schedule.short)
    @rule()
    def try_again(self) -> None:
        self.schedule.try_again()
        self.act()

    @rule(really=SELDOM)
    def close(self, really: bool) -> None:
        if really:
            self.closed = True
            self.schedule.close()
            self.act()

    @rule(really=SELDOM)
    def stop(self, really: bool) -> None:
        """The pool is terminated: the engine ends all workers, and settles all tasks."""
        if not really or self.stopped:
            return
        self.closed = self.stopped = True
        self.schedule.stop()
        left = set(self.allowed) - set(self.ended)
        self.workers.clear()
        self.waiting.clear()
        self.resting.clear()
        for task in left:
            self.end(task, "stopped")
        assert self.schedule.over
        self.act()

    @invariant()
    def what_is_counted_is_there(self) -> None:
        workers = self.schedule._workers.values()
        assert self.schedule._sent == sum(len(state.tasks) for state in workers)
        assert self.schedule._retiring == sum(state.retiring for state in workers)

    @invariant()
    def no_more_workers_than_asked_for(self) -> None:
        staying = [worker for worker in self.workers.values() if not worker.retired]
        assert len(staying) <= self.size

    @invariant()
    def nobody_is_forgotten(self) -> None:
        """Tasks without a worker that could run them are given one, or are looked after."""
        if self.waiting - self.cancelled and not self.workers:
            assert self.schedule.short

    @invariant()
    def what_the_schedule_says_of_itself_is_so(self) -> None:
        at_work = any(worker.taken or worker.inbox for worker in self.workers.values())
        assert self.schedule.idle == (not self.waiting and not self.resting and not at_work)
        assert self.schedule.over == (self.closed and self.schedule.idle and not self.workers)

    @invariant()
    def a_task_runs_as_often_as_it_may(self) -> None:
        assert self.ran <= self.allowed

    @invariant()
    def what_waits_is_waited_for(self) -> None:
        """A free worker and a task for it do not coexist once the schedule has acted."""
        assert not (self.free() and self.waiting - self.cancelled)

    def free(self) -> list[int]:
        """Return the workers that could run a task, and have none."""
        return [
            number
            for number, worker in self.workers.items()
            if worker.started
            and not (worker.retired or worker.held())
            and worker.received != self.quota
        ]

    @invariant()
    def nothing_lies_behind_another_while_somebody_is_free(self) -> None:
        """For nobody might report anything for long, and then nobody would look after it."""
        behind = [worker for worker in self.workers.values() if self.can_give(worker)]
        assert not (self.free() and behind) or self.schedule.spares

    def can_give(self, worker: FakeWorker) -> bool:
        """Tell whether a worker has something in its inbox that it is not about to run."""
        in_inbox = len(worker.held()) - len(worker.taken)
        return worker.started and in_inbox > (not worker.taken)

    @invariant()
    def nothing_is_over_while_a_task_is_to_come(self) -> None:
        assert not (self.schedule.over and (self.waiting or self.resting))

    @invariant()
    def nobody_waits_for_one_that_is_starting(self) -> None:
        """What was sent to a worker that may take long to start is run by one that is there."""
        assert not (self.free() and any(w.inbox and not w.started for w in self.workers.values()))

    def teardown(self) -> None:
        """Let everybody finish: all tasks end, and so does the pool."""
        if not hasattr(self, "schedule"):
            return
        self.spawn_fails = False
        self.close(True)
        for task in list(self.resting):
            self.wake(task)
        self.act()
        for _ in range(ENOUGH):
            if self.schedule.over:
                break
            if self.schedule.short:
                self.try_again()
            for number in list(self.workers):
                if not self.workers[number].started:
                    self.start(number)
                self.work(number, 0.1)
                self.leave(sorted(self.workers).index(number))
            self.act()
        assert self.schedule.over, "the pool does not end"
        assert not self.waiting
        assert set(self.ended) == set(range(1, next(self.tasks)))
        for task, how in self.ended.items():
            match how:
                case "cancelled":
                    assert task in self.cancelled
                case "lost" | "failed":
                    assert self.ran[task] == self.allowed[task], "it had a try left"
                case "finished":
                    assert self.ran[task] >= 1


TestSchedule = ScheduleMachine.TestCase
TestSchedule.settings = settings(max_examples=400, stateful_step_count=50, deadline=None)
