"""`Job.stop`: SIGTERM, and SIGKILL after a grace period, under every start method."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

import pytest

from mpkit import Job, RemoteError, Signal, TaskExit, WorkerDied, start
from tests.support import PATIENCE, settled, until

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.usefixtures("start_method")


def hang(ready: Signal) -> None:
    ready.set()
    signal.pause()


def ignore(ready: Signal) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    hang(ready)


def honour(ready: Signal) -> str:
    """Return as soon as SIGTERM comes."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    ready.set()
    signal.sigwait([signal.SIGTERM])
    return "cleaned up"


def leave(ready: Signal) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))
    hang(ready)


def begun(fn: Callable[[Signal], Any]) -> Job[Any]:
    ready = Signal()
    job = start(fn, ready)
    assert ready.wait(PATIENCE)
    until(lambda: settled(job.pid))
    return job


def stopped(job: Job[Any], grace: float) -> bool:
    return job.stop(grace)


def stopped_async(job: Job[Any], grace: float) -> bool:
    return asyncio.run(job.stop_async(grace))


ways = pytest.mark.parametrize("stop", [stopped, stopped_async])


@ways
def test_a_job_that_honours_it_ends_in_its_own_way(stop: Callable[..., bool]) -> None:
    job = begun(honour)
    assert stop(job, PATIENCE)
    assert job.exitcode == 0
    assert job.result(0) == "cleaned up"

    job = begun(leave)
    assert stop(job, PATIENCE)
    assert job.exitcode == 5
    with pytest.raises(TaskExit, match="5"):
        job.result(0)


@ways
def test_a_job_that_knows_nothing_of_it_ends_at_once(stop: Callable[..., bool]) -> None:
    job = begun(hang)
    assert stop(job, PATIENCE)
    assert job.exitcode == -signal.SIGTERM
    with pytest.raises(WorkerDied, match="SIGTERM"):
        job.result(0)


@ways
@pytest.mark.parametrize("grace", [0, 0.05])
def test_a_job_that_ignores_it_is_killed(grace: float, stop: Callable[..., bool]) -> None:
    job = begun(ignore)
    assert not stop(job, grace)
    assert job.exitcode == -signal.SIGKILL
    with pytest.raises(WorkerDied, match="SIGKILL"):
        job.result(0)


@ways
@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="tells who has stopped")
def test_a_job_that_was_stopped_is_killed(stop: Callable[..., bool]) -> None:
    job = begun(hang)
    os.kill(job.pid, signal.SIGSTOP)
    until(lambda: state_of(job.pid) == "T")
    assert not stop(job, 0.05)
    assert job.exitcode == -signal.SIGKILL


def state_of(pid: int) -> str:
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0]


@ways
def test_a_job_that_has_ended_keeps_its_result(stop: Callable[..., bool]) -> None:
    job = start(pow, 2, 10)
    assert job.join(PATIENCE)
    assert stop(job, 0)
    assert stop(job, 0)
    assert job.result(0) == 1024


@ways
@pytest.mark.parametrize(
    ("grace", "kind"),
    [
        (None, TypeError),
        ("1", TypeError),
        (True, TypeError),
        (-1, ValueError),
        (math.nan, ValueError),
    ],
)
def test_its_grace_is_a_number_of_seconds(
    grace: Any, kind: type[Exception], stop: Callable[..., bool]
) -> None:
    with start(pow, 2, 10) as job:
        with pytest.raises(kind, match="grace is"):
            stop(job, grace)
    assert job.result() == 1024  # it was not told to end


class Interrupted(BaseException):
    """What a Ctrl-C does, in one thread only."""


def test_what_interrupts_the_grace_kills(monkeypatch: pytest.MonkeyPatch) -> None:
    job = begun(ignore)
    waited: list[object] = []
    join = job.join

    def interrupted(timeout: float | None = None) -> bool:
        waited.append(timeout)
        raise Interrupted

    monkeypatch.setattr(job, "join", interrupted)
    with pytest.raises(Interrupted):
        job.stop(PATIENCE)
    assert waited == [PATIENCE]
    assert join(PATIENCE)
    assert job.exitcode == -signal.SIGKILL


def test_a_task_that_is_cancelled_in_the_grace_kills() -> None:
    async def main(job: Job[Any]) -> None:
        task = asyncio.create_task(job.stop_async(PATIENCE))
        await asyncio.sleep(0)  # it runs until it waits
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    job = begun(ignore)
    asyncio.run(main(job))
    assert job.join(PATIENCE)
    assert job.exitcode == -signal.SIGKILL


def test_a_block_that_raises_stops_the_job() -> None:
    ready = Signal()
    with pytest.raises(KeyError):
        with start(honour, ready) as job:
            assert ready.wait(PATIENCE)
            raise KeyError
    assert job.result(0) == "cleaned up"


def test_a_block_that_raises_kills_the_job_that_ignores_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Job.stop, "__defaults__", (0.05,))
    ready = Signal()
    with pytest.raises(KeyError):
        with start(ignore, ready) as job:
            assert ready.wait(PATIENCE)
            raise KeyError
    assert job.exitcode == -signal.SIGKILL


def test_a_job_has_no_handlers_of_its_parent() -> None:
    """A fork hands them down, and the descriptor that wakes the parent's event loop."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    got: list[int] = []
    old = [
        (number, signal.signal(number, lambda number, _: got.append(number)))
        for number in (signal.SIGTERM, signal.SIGINT)
    ]
    before = signal.set_wakeup_fd(writer)
    interrupted, ended = begun(hang), begun(hang)
    try:
        os.kill(interrupted.pid, signal.SIGINT)
        error = interrupted.exception(PATIENCE)
        assert isinstance(error, RemoteError)
        assert error.type_name == "KeyboardInterrupt"
        assert ended.stop(PATIENCE)
        assert ended.exitcode == -signal.SIGTERM
    finally:
        signal.set_wakeup_fd(before)
        for number, handler in old:
            signal.signal(number, handler)
        for job in (interrupted, ended):
            job.kill()
            job.join(PATIENCE)
    os.close(writer)
    assert os.read(reader, 100).strip(bytes([signal.SIGCHLD])) == b""
    os.close(reader)
    assert got == []
