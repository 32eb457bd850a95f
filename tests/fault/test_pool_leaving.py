"""Workers that were told to leave, because their pool is closed or they are replaced, and do not."""

from __future__ import annotations

import os
import signal
import socket
from multiprocessing import util
from typing import TYPE_CHECKING

import pytest

import mpkit
from mpkit._platform import memory, processes
from tests import poolwork
from tests.support import PATIENCE, exists, until

if TYPE_CHECKING:
    from pathlib import Path

needs_proc = pytest.mark.skipif(not memory.HAS_PROC, reason="needs /proc")


@pytest.fixture(autouse=True)
def quick_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mpkit._engine.warden.GRACE", 0.2)


def stop_when_told_to_leave() -> int:
    """Have this worker stop while it leaves, as if somebody sent it SIGSTOP just then."""
    util.Finalize(None, os.kill, (os.getpid(), signal.SIGSTOP), exitpriority=1)
    return os.getpid()


@needs_proc
def test_a_worker_that_is_stopped_while_it_leaves_ends_with_its_pool(start_method: str) -> None:
    """It was looked at when it was told to leave, and never again: join() hung."""
    pool = mpkit.TaskPool(2)
    pid = pool.apply(stop_when_told_to_leave)
    pool.close()
    assert pool.join(PATIENCE)
    assert not exists(pid)


@needs_proc
@pytest.mark.parametrize("replaced", [True, False])
def test_a_worker_that_is_stopped_while_it_is_replaced_does_not_last(replaced: bool) -> None:
    """Whether its pool is closed or goes on."""
    with mpkit.TaskPool(1, tasks_per_worker=1) as pool:
        pid = pool.apply(stop_when_told_to_leave)
        if replaced:
            assert pool.apply(poolwork.pid_of_worker) != pid
            until(lambda: not exists(pid))
    assert not exists(pid)


def take_time_to_leave(log: str, go: mpkit.Signal) -> int:
    """Have this worker write to a file at its end, and that when it may."""
    util.Finalize(None, write_when_told, (log, go), exitpriority=1)
    return os.getpid()


def write_when_told(log: str, go: mpkit.Signal) -> None:
    poolwork.note(log, "begun")
    go.wait(60)
    poolwork.note(log, "written")


@needs_proc
def test_a_worker_that_is_busy_with_its_end_is_waited_for(
    start_method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And one that was stopped is, if it goes on before it was seen twice."""
    looks: list[bool] = []
    is_stopped = processes.is_stopped

    def look(pid: int) -> bool:
        looks.append(is_stopped(pid))
        if looks[-1]:
            os.kill(pid, signal.SIGCONT)
        return looks[-1]

    log, go = str(tmp_path / "log"), mpkit.Signal()
    pool = mpkit.TaskPool(1)
    pid = pool.apply(take_time_to_leave, (log, go))
    pool.close()
    until(lambda: poolwork.notes(log))
    monkeypatch.setattr(processes, "is_stopped", look)
    until(lambda: len(looks) >= 5)  # it would be dead by now
    os.kill(pid, signal.SIGSTOP)
    until(lambda: any(looks))
    seen = len(looks)
    until(lambda: len(looks) >= seen + 3)
    go.set()
    assert pool.join(PATIENCE)
    assert poolwork.notes(log) == ["begun", "written"]


def lose_its_descriptors() -> None:
    """Have others take the numbers of all descriptors of this worker, and go on."""
    os.closerange(3, 1000)
    mpkit.worker_state()["others"] = [socket.socketpair() for _ in range(30)]
    poolwork.sleep_for_ever()


def test_a_worker_that_is_to_be_replaced_and_has_hung_up_is_killed(start_method: str) -> None:
    """It was taken for one that is about to end anyway, which it may never do."""
    with mpkit.TaskPool(1, tasks_per_worker=1) as pool:
        error = pool.submit(lose_its_descriptors).exception(PATIENCE)
        assert isinstance(error, mpkit.WorkerDied)
        assert pool.apply(poolwork.square, (3,)) == 9
