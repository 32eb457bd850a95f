"""Workers that are killed from outside, at moments that no call of the table can choose."""

from __future__ import annotations

import contextlib
import os
import signal
from typing import TYPE_CHECKING

import pytest

import mpkit
from mpkit import _wait
from tests import poolwork
from tests.support import (
    PATIENCE,
    asleep,
    exists,
    expect_short_tasks,
    supervisor_held,
    supervisor_of,
    until,
)

if TYPE_CHECKING:
    from pathlib import Path

WORKERS = 2
BEHIND = 6


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_a_worker_that_is_killed_while_it_starts_is_replaced(
    start_method: str, number: signal.Signals, tmp_path: Path
) -> None:
    log = str(tmp_path / "log")
    with mpkit.TaskPool(WORKERS) as pool:
        tasks = [pool.submit(poolwork.note, log, n) for n in range(BEHIND)]
        first, _ = pool.stats().workers
        with contextlib.suppress(ProcessLookupError):
            os.kill(first.pid, number)
        results = [task.exception(PATIENCE) for task in tasks]
    # It may have got so far that it ran one of them.
    assert len([error for error in results if error is not None]) <= 1
    ran = poolwork.notes(log)
    assert len(ran) == len(set(ran))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_a_worker_that_is_killed_in_the_middle_of_its_report_loses_that_alone(
    start_method: str, number: signal.Signals, tmp_path: Path
) -> None:
    """Nobody reads what it says, so it blocks in the sending of it when there is no more room."""
    log = str(tmp_path / "log")
    count = 32
    with mpkit.TaskPool(1) as pool:
        pid = pool.apply(poolwork.pid_of_worker)
        expect_short_tasks(pool)
        began, go = mpkit.Signal(), mpkit.Signal()
        tasks = [pool.submit(poolwork.tell_and_wait, began, go)]
        tasks += [pool.submit(poolwork.note_much, log, n) for n in range(count)]
        assert began.wait(PATIENCE)
        until(tasks[8].running)
        with supervisor_held(pool):
            go.set()
            # It has run the last one that there was room for, and one more. (Most probably:
            # it may be asleep for another reason.)
            until(lambda: len(poolwork.notes(log)) > 1 and asleep(pid))
            os.kill(pid, number)
            until(lambda: not exists(pid))
        errors = [task.exception(PATIENCE) for task in tasks]
    lost = [n for n, error in enumerate(errors[1:]) if error is not None]
    assert len(lost) <= 1
    assert all(isinstance(error, mpkit.WorkerDied) for error in errors if error is not None)
    ran = [int(word) for word in poolwork.notes(log)]
    assert len(ran) == len(set(ran)), "one ran twice"
    assert {*range(count)} - {*lost} <= {*ran}


def test_what_a_worker_had_reported_when_it_was_killed_counts(
    start_method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There are more reports of it than are read at a time, and then its death is told."""
    monkeypatch.setattr("mpkit._engine.crew.REPORTS_AT_A_TIME", 4)
    log = str(tmp_path / "log")
    began, go = mpkit.Signal(), mpkit.Signal()
    with mpkit.TaskPool(1) as pool:
        pid = pool.apply(poolwork.pid_of_worker)
        expect_short_tasks(pool)
        first = pool.submit(poolwork.tell_and_wait, began, go)
        tasks = [pool.submit(poolwork.note, log, n) for n in range(32)]
        assert began.wait(PATIENCE)
        until(tasks[8].running)
        with supervisor_held(pool):
            go.set()
            until(lambda: len(poolwork.notes(log)) > 8)
            os.kill(pid, signal.SIGKILL)
            supervisor = supervisor_of(pool)
            (worker,) = supervisor._crew.values()
            assert _wait.poll([worker.child.sentinel], PATIENCE)
        assert first.result(PATIENCE)
        lost = [n for n, task in enumerate(tasks) if task.exception(PATIENCE) is not None]
    # One that it was running, perhaps, and none of those eight.
    assert len(lost) <= 1
    assert not {*lost} & {*range(8)}
    ran = [int(word) for word in poolwork.notes(log)]
    assert len(ran) == len(set(ran)), "one ran twice"
