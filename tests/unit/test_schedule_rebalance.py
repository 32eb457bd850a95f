"""What lies behind a task is had back for each worker that has nothing, in one go."""

from __future__ import annotations

import itertools
from collections import deque

import pytest

from mpkit._engine.actions import Send, Spawn, TakeBack
from mpkit._engine.schedule import Schedule

pytestmark = pytest.mark.any_python

WORKERS = 4


class Engine:
    """Does what a schedule says; its workers run what they are told to, and no more."""

    def __init__(self) -> None:
        self.schedule = Schedule(WORKERS)
        self.held: dict[int, deque[int]] = {}
        self.act()
        for number in self.held:
            self.schedule.started(number)
        self.submit([0])
        self.report(next(number for number, tasks in self.held.items() if tasks))
        self.act()

    def submit(self, tasks: list[int]) -> None:
        self.schedule.submitted(*tasks)
        self.act()

    def report(self, number: int) -> None:
        """A worker has done all that it has, in no time."""
        assert self.schedule.finished(number, list(self.held[number]), 1e-6)
        self.held[number].clear()

    def act(self) -> None:
        for action in self.schedule.decide():
            match action:
                case Spawn():
                    number = len(self.held)
                    self.held[number] = deque()
                    self.schedule.spawned(number)
                case Send(number, tasks):
                    self.held[number].extend(tasks)
                case TakeBack(number):
                    first, *behind = self.held[number]
                    self.held[number] = deque([first])
                    self.schedule.returned(number, behind)
                case _:
                    raise AssertionError(f"{action} for no reason")


def test_all_that_have_nothing_get_what_lies_behind_others() -> None:
    engine = Engine()
    engine.submit(list(range(1, 1 + 2 * WORKERS)))
    assert [len(tasks) for tasks in engine.held.values()] == [2] * WORKERS
    first, second, *others = engine.held
    for number in others:
        engine.report(number)
    # Those that have begun may run for an hour, and nobody would report anything.
    engine.act()
    assert [len(tasks) for tasks in engine.held.values()] == [1] * WORKERS
    assert not engine.schedule.idle_workers()
    assert engine.schedule.running(first) is not None
    assert engine.schedule.running(second) is not None


def test_what_lies_behind_a_long_task_is_done_though_others_always_wait() -> None:
    engine = Engine()
    numbers = itertools.count(1)
    engine.submit([next(numbers) for _ in range(1000 * WORKERS)])
    stuck, *others = engine.held
    running, *behind = engine.held[stuck]
    assert behind
    reports = 0
    while any(task in engine.held[stuck] for task in behind):
        assert len(engine.schedule._queues), "or it would be had back anyway"
        number = others[reports % len(others)]
        reports += 1
        assert reports < 1000
        engine.submit([next(numbers) for _ in engine.held[number]])
        engine.report(number)
        engine.act()
    # They went first, and it gets no others until it has done what it runs.
    assert set(behind) & {task for number in others for task in engine.held[number]}
    assert list(engine.held[stuck]) == [running]
    for number in others:
        engine.report(number)
        engine.act()
    assert list(engine.held[stuck]) == [running]
    engine.report(stuck)
    engine.submit([next(numbers) for _ in range(1000 * WORKERS)])
    assert len(engine.held[stuck]) > 1
