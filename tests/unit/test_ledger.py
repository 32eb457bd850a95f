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
