"""Workers that a pool spares, as it takes tasks to be short, work when these are not.

All tasks are taken to be short here, and no more than a few workers to be of use.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

import mpkit
from mpkit._engine.mailbox import Mailbox
from mpkit._engine.reserve import FEW
from tests import poolwork
from tests.support import PATIENCE, supervisor_of, until

if TYPE_CHECKING:
    from collections.abc import Iterator

WORKERS = FEW + 4


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[mpkit.TaskPool]:
    monkeypatch.setattr("mpkit._engine.paces.SHORT", 3600.0)
    monkeypatch.setattr("mpkit._engine.reserve.SUPERVISOR_SECONDS", 3600.0)
    with mpkit.TaskPool(WORKERS, context="fork") as pool:
        for task in [pool.submit(poolwork.square, number) for number in range(500)]:
            task.result(PATIENCE)
        until(lambda: not supervisor_of(pool)._schedule._starts.starting)
        yield pool


def block(
    pool: mpkit.TaskPool, count: int, go: mpkit.Signal
) -> tuple[list[mpkit.Task[bool]], list[mpkit.Signal]]:
    """Have so many tasks wait for a signal; return them, and what tells that they have begun."""
    began = [mpkit.Signal() for _ in range(count)]
    return [pool.submit(poolwork.tell_and_wait, signal, go) for signal in began], began


def test_tasks_that_wait_for_each_other_all_run_at_once(pool: mpkit.TaskPool) -> None:
    for _ in range(3):
        go = mpkit.Signal()
        tasks, began = block(pool, WORKERS, go)
        assert all(signal.wait(PATIENCE) for signal in began)
        # While all that there is to do is being done it does not look by the clock.
        until(lambda: supervisor_of(pool)._next_round() is None)
        go.set()
        for task in tasks:
            task.result(PATIENCE)
    until(lambda: supervisor_of(pool)._next_round() is None)  # nor while there is nothing


def all_begin(pool: mpkit.TaskPool) -> None:
    """Have as many tasks as there are workers run at once, of which a few are thought to be enough."""
    pool.submit(poolwork.square, 2).result(PATIENCE)  # or nobody may be spared any more
    go = mpkit.Signal()
    tasks, began = block(pool, WORKERS, go)
    assert all(signal.wait(PATIENCE) for signal in began)
    go.set()
    assert all(task.result(PATIENCE) for task in tasks), "some gave up before the last one began"


def test_nobody_waits_for_a_clock_that_stands_still(
    pool: mpkit.TaskPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As tests of programs have it. No task here has a timeout."""
    now = time.monotonic()
    with monkeypatch.context() as patch:
        patch.setattr(time, "monotonic", lambda: now)
        all_begin(pool)


def test_nobody_waits_for_an_end_of_submissions(
    pool: mpkit.TaskPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where others always have submitted something, the supervisor does not sleep, but time passes."""

    def something(_: Mailbox) -> int:
        return 1

    with monkeypatch.context() as patch:
        patch.setattr(Mailbox, "__len__", something)
        all_begin(pool)


@pytest.mark.parametrize("blocked", [1, FEW, WORKERS - 1])
def test_what_lies_behind_slow_ones_does_not_wait_for_them(
    pool: mpkit.TaskPool, blocked: int
) -> None:
    go = mpkit.Signal()
    squares = [pool.submit(poolwork.square, number) for number in range(100)]
    slow, _ = block(pool, blocked, go)
    squares += [pool.submit(poolwork.square, number) for number in range(100, 300)]
    assert [task.result(PATIENCE) for task in squares] == [number**2 for number in range(300)]
    assert not any(task.done() for task in slow)
    go.set()
    for task in slow:
        task.result(PATIENCE)


def test_the_death_of_all_that_work_is_no_reason_to_wait(pool: mpkit.TaskPool) -> None:
    deaths = [pool.submit(poolwork.die, "SIGKILL") for _ in range(FEW)]
    squares = [pool.submit(poolwork.square, number) for number in range(100)]
    assert [task.result(PATIENCE) for task in squares] == [number**2 for number in range(100)]
    for task in deaths:
        assert isinstance(task.exception(PATIENCE), mpkit.WorkerDied)
