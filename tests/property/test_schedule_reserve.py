"""Workers that are spared: only while others work, for short tasks, and if these are short."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from mpkit._engine.reserve import Reserve
from tests.property import test_schedule_machine as machine

# Pure Python, and nothing of it is the system's.
pytestmark = pytest.mark.any_python


class SparingMachine(machine.ScheduleMachine):
    """As the machine, with a schedule that knows what is short, and spares workers by that."""

    @initialize(
        size=st.integers(2, 6),
        few=st.integers(1, 3),
        seconds=st.sampled_from([(1e-6, 1e-6), (1e-6, 1e-4), (1e-6, 1.0)]),
    )
    def begin(self, size: int, few: int, seconds: tuple[float, float]) -> None:
        """Have all workers there, of which ``few`` are of use, and all tasks short until now."""
        self.short: set[int] = set()
        self.all_are_short = True
        self.few, self.reserve = few, Reserve(few, ample=0)
        #: The workers that a caller may have: it was told of them, and nobody has sent them anything.
        self.offered: set[int] = set()
        super().begin(size, None, seconds, at_once=True)
        for number in list(self.workers):
            if not self.workers[number].started:
                self.start(number)
        self.submit(1, 0)
        self.work(self.busiest(), seconds[0])

    def thinks_short(self, task: int) -> bool:
        if self.all_are_short:
            self.short.add(task)
        return task in self.short

    def act(self) -> None:
        super().act()
        if not self.stopped:
            self.offered.update(self.schedule.idle_workers())
        self.offered &= set(self.free())

    @precondition(lambda self: not self.closed)
    @rule(count=st.integers(1, 20), retries=st.sampled_from([0, 0, 1]))
    def submit(self, count: int, retries: int) -> None:
        super().submit(count, 0, False, retries)

    @precondition(lambda self: not self.closed)
    @rule(really=machine.SELDOM)
    def submit_long_ones(self, really: bool) -> None:
        """Tasks come of which nothing is known."""
        if really:
            self.all_are_short = False
            super().submit(3, 0, False, 0)
            self.all_are_short = True

    @precondition(lambda self: self.offered and not self.closed)
    @rule(data=st.data())
    def hand_over(self, data: st.DataObject) -> None:
        """A caller may have a worker that is spared, too; and the schedule hears of that later."""
        number = data.draw(st.sampled_from(sorted(self.offered)))
        self.hand(number, 0)
        assert number not in self.schedule._reserve.spared

    @precondition(lambda self: self.workers)
    @rule(index=st.integers(0, 9), really=st.sampled_from([False, False, True]))
    def replace(self, index: int, really: bool) -> None:
        if really:
            super().replace(index)

    @precondition(lambda self: self.schedule.spares)
    @rule()
    def let_a_moment_pass(self) -> None:
        self.schedule.moment_passed()
        self.act()

    @precondition(lambda self: self.schedule.spares)
    @rule()
    def let_nothing_happen(self) -> None:
        """Nobody reports anything for two moments: then all do what there is to do."""
        self.schedule.moment_passed()
        self.schedule.moment_passed()
        self.act()
        assert not self.schedule.spares
        assert not (self.free() and self.waiting - self.cancelled)
        self.nothing_lies_behind_another_while_somebody_is_free()

    @invariant()
    def what_waits_is_waited_for(self) -> None:
        """A free worker is left alone only while others work, on what is thought to be short."""
        if not (self.free() and self.waiting - self.cancelled):
            return
        assert self.schedule.spares, "and nobody would look after it"
        assert any(worker.held() for worker in self.workers.values()), "nobody works"
        held = itertools.chain.from_iterable(w.held() for w in self.workers.values())
        assert self.waiting.union(held) <= self.short, "something else is there"

    @invariant()
    def who_is_spared_has_nothing(self) -> None:
        spared = self.schedule._reserve.spared.keys()
        assert not any(self.workers[number].held() for number in spared)
        assert not spared & self.schedule._open.keys()


TestSparing: Any = SparingMachine.TestCase
TestSparing.settings = settings(max_examples=300, stateful_step_count=40, deadline=None)
