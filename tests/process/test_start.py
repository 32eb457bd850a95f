"""`start` and `Job`, under every start method."""

from __future__ import annotations

import asyncio
import faulthandler
import multiprocessing
import os
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from mpkit import (
    ChannelMoved,
    NotPicklable,
    RemoteError,
    RemoteTraceback,
    ResultTimeout,
    Signal,
    TaskExit,
    WorkerDied,
    channel,
    start,
    wait,
)
from tests.support import PATIENCE, asleep, exists, until

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.usefixtures("start_method")


def add(one: int, other: int = 0, *more: int, scale: int = 1) -> int:
    return (one + other + sum(more)) * scale


def pid_and_name() -> tuple[int, str]:
    return os.getpid(), multiprocessing.current_process().name


def hang(ready: Signal) -> None:
    ready.set()
    signal.pause()


def fail(*args: object) -> None:
    error = ValueError(*args)
    error.add_note("a note")
    raise error


class TwoFacts(Exception):
    def __init__(self, name: str, number: int) -> None:
        super().__init__(f"{name} {number}")


def fail_twofold() -> None:
    raise TwoFacts("a", 1)


def fail_together() -> None:
    raise ExceptionGroup("both", [ValueError(1), KeyError(2)])


def be_interrupted() -> None:
    raise KeyboardInterrupt


def test_a_job_returns_its_result() -> None:
    job = start(add, 1, 2, 3, scale=10)
    assert job.result(PATIENCE) == 60
    assert job.result() == 60
    assert job.exception() is None
    assert job.join(PATIENCE)
    assert job.exitcode == 0
    assert not job.is_alive()
    assert repr(job).endswith(f"process {job.pid} exited with code 0>")


def test_a_job_is_another_process_and_knows_its_name() -> None:
    with start(pid_and_name) as job:
        assert job.result(PATIENCE) == (job.pid, job.name)
        assert job.pid != os.getpid()


def test_large_arguments_and_results_arrive_equal_and_writable() -> None:
    numpy = pytest.importorskip("numpy")
    array = numpy.asfortranarray(numpy.arange(90_000.0).reshape(300, 300))
    with start(doubled, array) as job:
        result = job.result(PATIENCE)
    assert numpy.array_equal(result, array * 2)
    result += 1


def doubled(array: Any) -> Any:
    array *= 2
    return array


def test_its_exception_has_the_traceback_of_its_process() -> None:
    with start(fail, "wrong", 7) as job:
        with pytest.raises(ValueError) as caught:
            job.result(PATIENCE)
    assert caught.value.args == ("wrong", 7)
    assert caught.value.__notes__ == ["a note"]
    assert isinstance(caught.value.__cause__, RemoteTraceback)
    assert "in fail" in caught.value.__cause__.text
    assert "_run_job" not in caught.value.__cause__.text
    assert job.exception() is caught.value
    assert job.exitcode == 1


def test_groups_arrive_whole() -> None:
    with start(fail_together) as job, pytest.raises(ExceptionGroup) as caught:
        job.result(PATIENCE)
    assert repr(caught.value.exceptions) == "(ValueError(1), KeyError(2))"


@pytest.mark.parametrize(
    ("fn", "why"),
    [(fail_twofold, "missing 1 required"), (be_interrupted, "is not an Exception")],
)
def test_an_exception_that_cannot_travel_is_replaced(fn: Callable[[], None], why: str) -> None:
    with start(fn) as job, pytest.raises(RemoteError, match=why) as caught:
        job.result(PATIENCE)
    assert f"in {fn.__name__}" in caught.value.traceback
    assert job.exitcode == 1


def lock_returned() -> object:
    return threading.Lock()


def test_a_result_that_cannot_travel_is_named() -> None:
    with start(lock_returned) as job, pytest.raises(NotPicklable, match="lock_returned") as caught:
        job.result(PATIENCE)
    assert "lock" in caught.value.why


@pytest.mark.parametrize(("code", "exitcode"), [(None, 0), (0, 0), (3, 3), ("text", 1)])
def test_sys_exit_is_an_exception_with_its_code(
    code: object, exitcode: int, capfd: pytest.CaptureFixture[str]
) -> None:
    with start(sys.exit, code) as job, pytest.raises(TaskExit) as caught:
        job.result(PATIENCE)
    assert caught.value.code == code
    assert job.exitcode == exitcode


def crash() -> None:
    faulthandler.disable()
    os.kill(os.getpid(), signal.SIGSEGV)
    signal.pause()


@pytest.mark.parametrize(
    ("fn", "args", "exitcode", "reason"),
    [
        (os._exit, (3,), 3, "exited with code 3"),
        (os._exit, (0,), 0, "exited with code 0"),
        (signal.raise_signal, (signal.SIGKILL,), -9, "was killed by SIGKILL"),
        (signal.raise_signal, (signal.SIGTERM,), -15, "was killed by SIGTERM"),
        (crash, (), -11, "was killed by SIGSEGV"),
    ],
)
def test_a_death_is_told_with_its_reason(
    fn: Callable[..., None], args: tuple[Any, ...], exitcode: int, reason: str
) -> None:
    with start(fn, *args) as job, pytest.raises(WorkerDied) as caught:
        job.result(PATIENCE)
    assert (caught.value.exitcode, caught.value.reason) == (exitcode, reason)
    assert caught.value.pid == job.pid
    assert job.exitcode == exitcode
    assert f"process {job.pid} {reason} while it ran job " in str(caught.value)


def test_terminate_and_kill_end_it() -> None:
    for act, number in (("terminate", signal.SIGTERM), ("kill", signal.SIGKILL)):
        ready = Signal()
        job = start(hang, ready)
        assert ready.wait(PATIENCE)
        assert job.is_alive()
        getattr(job, act)()
        with pytest.raises(WorkerDied, match=number.name):
            job.result(PATIENCE)
        assert job.join(PATIENCE)
        getattr(job, act)()  # of a dead process: nothing


def test_waiting_gives_up_and_the_job_goes_on() -> None:
    ready = Signal()
    job = start(hang, ready)
    for timeout in (0, 0.001):
        with pytest.raises(ResultTimeout, match=f"no result after {timeout} s"):
            job.result(timeout)
        assert not job.join(timeout)
        assert wait(job, timeout=timeout) == []
    assert ready.wait(PATIENCE)
    job.kill()
    assert wait(job, timeout=PATIENCE) == [job]
    assert job.join(PATIENCE)


def test_a_block_that_ends_well_waits_for_the_job() -> None:
    with start(add, 1) as job:
        pass
    assert job.exitcode == 0
    assert job.result() == 1


def test_jobs_can_be_awaited() -> None:
    async def main() -> list[Any]:
        return await asyncio.gather(*(gathered(start(add, number)) for number in range(3)))

    async def gathered(job: Any) -> Any:
        result = await job
        job.join()
        return result

    assert asyncio.run(main()) == [0, 1, 2]


def test_an_awaited_job_that_fails_raises() -> None:
    async def main() -> None:
        job = start(fail)
        try:
            await job
        finally:
            job.join()

    with pytest.raises(ValueError):
        asyncio.run(main())


def test_several_threads_get_the_same_result() -> None:
    job = start(add, 7)
    got: list[int] = []
    threads = [threading.Thread(target=lambda: got.append(job.result(PATIENCE))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [7] * 4
    job.join()


def nested(depth: int) -> int:
    if depth == 0:
        return 1
    with start(nested, depth - 1) as job:
        return 1 + job.result(PATIENCE)


def test_jobs_start_jobs() -> None:
    with start(nested, 2) as job:
        assert job.result(PATIENCE) == 3


def answer(end: Any) -> int:
    return sum(end)


def test_an_end_of_a_channel_moves_to_the_job() -> None:
    here, there = channel()
    with start(answer, there) as job:
        with pytest.raises(ChannelMoved):
            there.send(1)
        here.send(1)
        here.send(2)
        here.close()
        assert job.result(PATIENCE) == 3


def new_end() -> Any:
    here, there = channel()
    there.send("hello")
    return here


def test_an_end_of_a_channel_comes_back_as_the_result() -> None:
    with start(new_end) as job:
        end = job.result(PATIENCE)
    assert list(end) == ["hello"]
    end.close()


def test_what_cannot_travel_starts_no_process(start_method: str) -> None:
    if start_method == "fork":
        pytest.skip("fork pickles nothing")
    here, there = channel()
    with pytest.raises(NotPicklable, match=r"add\(...\) cannot be pickled"):
        start(add, threading.Lock(), there)  # type: ignore[arg-type]
    here.send(1)
    assert there.recv() == 1
    here.close()
    there.close()


def test_what_cannot_be_called_is_refused() -> None:
    with pytest.raises(TypeError, match="takes a function"):
        start(7)  # type: ignore[arg-type]


def leave_a_job(ready: Signal, go: Signal) -> int:
    """Return with a job still running: a normal exit waits for it."""
    return start(wait_for, ready, go).pid


def wait_for(ready: Signal, go: Signal) -> None:
    ready.set()
    assert go.wait(PATIENCE)


def test_a_normal_exit_waits_for_the_jobs_left_running() -> None:
    ready, go = Signal(), Signal()
    outer = start(leave_a_job, ready, go)
    inner = outer.result(PATIENCE)
    assert ready.wait(PATIENCE)
    assert exists(inner)
    assert outer.is_alive()
    go.set()
    assert outer.join(PATIENCE)
    assert outer.exitcode == 0
    assert not exists(inner)


def test_a_job_that_nobody_keeps_runs_to_its_end() -> None:
    ready, go = Signal(), Signal()
    pid = start(wait_for, ready, go).pid
    assert ready.wait(PATIENCE)
    go.set()
    until(lambda: not multiprocessing.active_children())
    assert not exists(pid)


def test_a_result_that_nobody_asked_for_does_not_keep_the_job_alive() -> None:
    """It is larger than any socket's buffer."""
    job = start(bytes, 10_000_000)
    assert job.join(PATIENCE)
    assert job.exitcode == 0
    assert len(job.result()) == 10_000_000


def test_waiting_burns_no_time_while_a_job_that_said_its_last_goes_on() -> None:
    """Its link may be at its end long before the process is."""
    ready, go = Signal(), Signal()
    job = start(close_everything, os.getpid(), ready, go)
    assert ready.wait(PATIENCE)
    before = time.process_time()
    assert wait(job, timeout=0.3) == []
    assert time.process_time() - before < 0.1
    go.set()
    assert job.join(PATIENCE)


def close_everything(watched: int, ready: Signal, go: Signal) -> None:
    """As a daemon does; here, as soon as somebody waits for it."""
    ready.set()
    until(lambda: asleep(watched))
    for fd in range(3, 256):
        if is_socket(fd):
            os.close(fd)
    go.wait(PATIENCE)
    os._exit(0)


def is_socket(fd: int) -> bool:
    import stat

    try:
        return stat.S_ISSOCK(os.fstat(fd).st_mode)
    except OSError:
        return False
