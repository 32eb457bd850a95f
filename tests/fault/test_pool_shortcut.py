"""A task that a caller sends to an idle worker itself: the supervisor learns of it later."""

from __future__ import annotations

import os
import signal
import threading
from typing import TYPE_CHECKING, Any, cast

import pytest

import mpkit
from mpkit._engine.inbox import Inbox
from mpkit._engine.ledger import Entry
from mpkit._engine.shortcut import Shortcut
from mpkit._platform import descriptors
from mpkit._task.options import Options
from mpkit._task.task import Task
from mpkit._worker.wire import Load
from tests import poolwork
from tests.support import (
    PATIENCE,
    idle_pool,
    stopped,
    supervisor_of,
    until,
    wait_for_an_offer,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mpkit._engine.crew import Worker

pytestmark = pytest.mark.skipif(
    not descriptors.HAS_PACKETS, reason="of what is in a stream the supervisor keeps count"
)


@pytest.fixture
def pool(start_method: str) -> Iterator[mpkit.TaskPool]:
    with idle_pool() as pool:
        yield pool


def shortcut(pool: mpkit.TaskPool) -> Any:
    supervisor = supervisor_of(pool)
    return supervisor._intake.shortcut


def test_the_supervisor_does_not_hear_of_a_task_before_it_has_to(pool: mpkit.TaskPool) -> None:
    began, go = mpkit.Signal(), mpkit.Signal()
    task = pool.submit(poolwork.tell_and_wait, began, go)
    assert began.wait(PATIENCE)
    assert len(shortcut(pool)) == 1
    assert task.running()
    assert pool.stats().submitted == 2, "it is counted all the same"
    other = pool.submit(abs, -3)
    until(lambda: not len(shortcut(pool)))
    assert not task.cancel()
    assert other.cancel()
    go.set()
    assert task.result(PATIENCE)
    assert pool.stats().submitted == 3


def test_a_worker_that_is_killed_fails_what_it_was_sent(pool: mpkit.TaskPool) -> None:
    for _ in range(5):
        task = pool.submit(poolwork.die, "SIGKILL")
        # It may be told to have been for lack of memory, if the kernel has just killed another.
        killed = r"was killed by SIGKILL( \(out of memory, .*\))?"
        with pytest.raises(mpkit.WorkerDied, match=f"{killed} while it ran task {task.number} "):
            task.result(PATIENCE)
        assert pool.apply(abs, (-1,)) == 1
        wait_for_an_offer(pool)


def test_what_a_stopped_worker_was_sent_can_be_taken_back(pool: mpkit.TaskPool) -> None:
    pid = pool.stats().workers[0].pid
    os.kill(pid, signal.SIGSTOP)
    until(lambda: stopped(pid))
    task = pool.submit(abs, -2)
    assert len(shortcut(pool)) == 1
    assert task.cancel()
    other = pool.submit(abs, -3)
    os.kill(pid, signal.SIGCONT)
    assert other.result(PATIENCE) == 3


def test_a_task_can_be_killed_of_which_the_supervisor_has_not_heard(pool: mpkit.TaskPool) -> None:
    began = mpkit.Signal()
    task = pool.submit(poolwork.sleep_for_ever, began)
    assert began.wait(PATIENCE)
    assert task.kill()
    with pytest.raises(mpkit.WorkerDied, match="Task.kill"):
        task.result(PATIENCE)
    assert pool.apply(abs, (-1,)) == 1


def test_a_pool_that_is_closed_waits_for_it(pool: mpkit.TaskPool) -> None:
    began, go = mpkit.Signal(), mpkit.Signal()
    task = pool.submit(poolwork.tell_and_wait, began, go)
    pool.close()
    assert began.wait(PATIENCE)
    go.set()
    pool.join()
    assert task.result(0)


def test_a_pool_that_is_terminated_ends_it(pool: mpkit.TaskPool) -> None:
    began = mpkit.Signal()
    task = pool.submit(poolwork.sleep_for_ever, began)
    assert began.wait(PATIENCE)
    pool.terminate()
    pool.join()
    with pytest.raises(mpkit.WorkerDied, match="stopped with its pool"):
        task.result(0)


def test_an_inbox_that_is_full_or_closed_leaves_it_to_the_supervisor(
    pool: mpkit.TaskPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Inbox, "hand", lambda *_, **__: None)  # as if there were no room
    assert [pool.submit(abs, -n).result(PATIENCE) for n in range(5)] == [0, 1, 2, 3, 4]


class FakeWorker:
    """Takes what it is sent, and is its own inbox."""

    @property
    def inbox(self) -> FakeWorker:
        return self

    def written(self) -> int:
        return 0

    def has_room(self) -> bool:
        return True

    def hand(self, loads: list[Load], receipt: list[int], *, asked: bool, common: bytes) -> None:
        receipt.append(len(loads))


def test_a_worker_that_was_taken_meanwhile_is_not_offered_again() -> None:
    """The supervisor thinks it idle until it learns of what it was sent."""
    shortcut, worker = Shortcut(), cast("Worker", FakeWorker())
    first, second = (
        Entry(Task[Any](what, Options()), b"call", None) for what in ("first", "second")
    )
    shortcut.offer(1, worker)
    assert shortcut.send(first, asked=False)
    shortcut.offer(1, worker)
    assert shortcut.send(second, asked=False) is None
    assert [handed.entry for handed in shortcut.handed()] == [first]
    shortcut.offer(1, worker)
    assert shortcut.send(second, asked=False)


def test_many_threads_take_the_same_few_workers(start_method: str) -> None:
    """Nothing is lost, and nothing runs twice, whoever was quicker."""
    with mpkit.TaskPool(3) as pool:

        def call(first: int, found: list[int]) -> None:
            found += [pool.apply(poolwork.square, (n,)) for n in range(first, first + 200)]

        found: list[list[int]] = [[] for _ in range(8)]
        threads = [
            threading.Thread(target=call, args=(200 * index, mine))
            for index, mine in enumerate(found)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        for index, mine in enumerate(found):
            assert mine == [n * n for n in range(200 * index, 200 * index + 200)]
    assert pool.stats().submitted == pool.stats().done == 1600
