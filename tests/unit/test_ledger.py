"""The ledger of a pool's tasks."""

from __future__ import annotations

from concurrent.futures import CancelledError
from typing import Any

import pytest

from mpkit import WorkerDied
from mpkit._engine.ledger import Entry, Ledger
from mpkit._task.options import Options
from mpkit._task.task import Task
from mpkit._watch.recorder import Recorder


class Counted(int):
    """The number of a task, and how often one was compared with another."""

    compared = 0
    __hash__ = int.__hash__

    def __eq__(self, other: object) -> bool:
        Counted.compared += 1
        return super().__eq__(other)


def test_cancelled_tasks_are_not_compared_with_each_other() -> None:
    """A packet of them would take as long as all else for thousands."""
    ledger = Ledger(Recorder())
    tasks: list[Task[Any]] = [Task("task", Options()) for _ in range(100)]
    for task in tasks:
        task.number = Counted(task.number)
        ledger.add([Entry(task, b"", None)])
    for task in tasks[::2]:
        task.cancel()
    Counted.compared = 0
    begun, cancelled = ledger.begin(list(ledger.entries.values()))
    assert Counted.compared <= 2 * len(tasks)
    assert [entry.task for entry in begun] == tasks[1::2]
    assert cancelled == [task.number for task in tasks[::2]]
    assert list(ledger.entries) == [task.number for task in tasks[1::2]]


@pytest.mark.parametrize("running", [False, True])
def test_a_callback_may_have_all_settled_that_are_being_settled(running: bool) -> None:
    """A map that ends lets a closed pool end, which settles what came too late."""
    ledger = Ledger(Recorder())
    tasks: list[Task[Any]] = [Task("task", Options()) for _ in range(3)]
    for task in tasks:
        ledger.add([Entry(task, b"", None)])
        task.add_done_callback(lambda _: ledger.settle_all("was stopped again"))
        if running:
            ledger.begin([ledger[task.number]])
    ledger.settle_all("was stopped")
    for task in tasks:
        with pytest.raises(WorkerDied if running else CancelledError):
            task.result(0)


def test_who_is_to_be_told_of_results_is_told_in_their_order() -> None:
    """Whatever has each of them waited for, and though those of whom nobody is told come first."""
    ledger, told = Ledger(Recorder()), list[int]()
    tasks: list[Task[int]] = [Task("task", Options()) for _ in range(5)]
    for place, task in enumerate(tasks):
        ledger.add([Entry(task, b"", None)])
        if place == 2:
            assert task._condition  # as for who waits
        if place != 3:
            task.add_done_callback(lambda task: told.append(task.result()))
    begun, _ = ledger.begin(list(ledger.entries.values()))
    ledger.returned([(entry, place) for place, entry in enumerate(begun)])
    assert told == [0, 1, 2, 4]
    assert tasks[3].result(0) == 3
    assert not ledger.entries
