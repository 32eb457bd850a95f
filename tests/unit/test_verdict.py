"""What the end of an attempt is to its task."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from mpkit import _outcome, _parcel
from mpkit._engine.ledger import Entry, Ledger
from mpkit._engine.schedule import Schedule
from mpkit._engine.verdict import Verdict
from mpkit._task.options import Options
from mpkit._task.task import Task
from mpkit._watch.recorder import Recorder
from mpkit._worker import wire

_tasks: list[Task[Any]] = []


def those_that_are_done() -> list[bool]:
    return [task.done() for task in _tasks]


class Looks:
    """Becomes, where it is unpickled, what `those_that_are_done` sees there."""

    def __reduce__(self) -> tuple[Any, ...]:
        return those_that_are_done, ()


@pytest.mark.parametrize("first", [_outcome.ATOMS, _outcome.DONE])
def test_a_result_is_unpickled_when_those_before_it_are_there(first: bytes) -> None:
    """It is somebody's code that runs then: it may take long, and may wait for one of them."""
    recorder = Recorder()
    ledger = Ledger(recorder)
    verdict = Verdict(ledger, Schedule(1), recorder, forks=True)
    _tasks[:] = [Task("task", Options()) for _ in range(3)]
    entries = [Entry(task, b"", None) for task in _tasks]
    ledger.add(entries)
    ledger.begin(entries)
    header = b"-" * (wire.DONE_SIZE)
    results: list[tuple[bytes, object]] = [
        (first, 1),
        (_outcome.DONE, Looks()),
        (_outcome.ATOMS, 3),
    ]
    verdict.done(
        [
            (entry, kind, header + _parcel.PLAIN + pickle.dumps(result))
            for entry, (kind, result) in zip(entries, results, strict=True)
        ],
        [],
    )
    assert [task.result(0) for task in _tasks] == [1, [True, False, False], 3]
