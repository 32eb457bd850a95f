"""Who waits for a job, who else may have, and what interrupts them."""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import signal
import sys
import threading
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import mpkit
from mpkit import Job, NotPicklable, Signal, WorkerDied, _wait, channel, start, wait
from mpkit._platform import stdlib
from tests.support import PATIENCE, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

pytestmark = pytest.mark.usefixtures("start_method")


def reaped(job: Job[Any]) -> Job[Any]:
    """Return a job for whose process somebody else has waited."""
    os.waitpid(job.pid, 0)
    return job


def hang(ready: Signal) -> None:
    ready.set()
    signal.pause()


def test_a_death_of_which_somebody_else_was_told_has_no_exit_code(start_method: str) -> None:
    if start_method == "forkserver":
        pytest.skip("the server waits for it, and nobody else can")
    job = reaped(start(os._exit, 3))
    with pytest.raises(WorkerDied, match=f"process {job.pid} vanished") as caught:
        job.result(PATIENCE)
    assert caught.value.exitcode is None
    assert job.join(PATIENCE)
    assert not job.is_alive()
    assert job.exitcode is None
    assert wait(job, timeout=PATIENCE) == [job]
    assert job.stop(PATIENCE)
    assert "vanished" in repr(job)
    assert not multiprocessing.active_children()


def waits_for_its_turn(thread: threading.Thread) -> bool:
    frame = sys._current_frames().get(thread.ident or 0)
    return frame is not None and frame.f_code.co_filename == stdlib.__file__


def test_two_threads_that_look_for_an_exit_code_at_once_both_find_it(
    start_method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One took the end of a pipe for code 255. Each start of a process looks at all others."""
    if start_method != "forkserver":
        pytest.skip("only a fork server tells it once")
    other = threading.Thread(target=multiprocessing.active_children)
    read_signed: Callable[[int], int] = forkserver.read_signed

    def read(fd: int) -> int:
        if other.ident is None:
            other.start()
            until(lambda: not other.is_alive() or waits_for_its_turn(other))
        return read_signed(fd)

    job = start(os._exit, 3)
    assert _wait.poll([job._child.process.sentinel], PATIENCE)
    monkeypatch.setattr(forkserver, "read_signed", read)
    error = job.exception(PATIENCE)
    other.join()
    assert isinstance(error, WorkerDied)
    assert error.exitcode == job.exitcode == 3


def test_a_result_outlives_the_one_of_whose_death_somebody_else_was_told(
    start_method: str,
) -> None:
    if start_method == "forkserver":
        pytest.skip("the server waits for it, and nobody else can")
    job = reaped(start(pow, 2, 10))
    assert job.join(PATIENCE)
    assert job.result(PATIENCE) == 1024
    assert not job.is_alive()


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="tells what is open")
def test_a_start_that_fails_leaves_no_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_more(*_: object) -> None:
        raise BlockingIOError(errno.EAGAIN, "no more processes")

    start(pow, 2, 10).join(PATIENCE)  # what one has for all jobs is there then
    monkeypatch.setattr(BaseProcess, "start", no_more)
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(BlockingIOError) as caught:
        start(pow, 2, 10)
    # While its traceback keeps all objects: nobody can leave it to the collector.
    assert set(os.listdir("/proc/self/fd")) == before
    del caught


METHODS: dict[str, Callable[[Job[Any]], object]] = {
    "exitcode": lambda job: job.exitcode,
    "is_alive": lambda job: job.is_alive(),
    "result": lambda job: job.result(PATIENCE),
    "exception": lambda job: job.exception(PATIENCE),
    "join": lambda job: job.join(PATIENCE),
    "terminate": lambda job: job.terminate(),
    "kill": lambda job: job.kill(),
    "stop": lambda job: job.stop(0),
    "wait": lambda job: wait(job, timeout=PATIENCE),
}


def test_a_forked_child_is_told_whose_job_it_is() -> None:
    ready = Signal()
    job = start(hang, ready)
    assert ready.wait(PATIENCE)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            for name, method in METHODS.items():
                try:
                    method(job)
                except RuntimeError as error:
                    os.write(writer, f"{name}: {error}\n".encode())
            os.write(writer, repr(job).encode())
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    said = os.read(reader, 10_000).decode().splitlines()
    os.close(reader)
    os.close(writer)
    why = f"job {__name__}.hang (process {job.pid}) belongs to process {os.getpid()}"
    assert [line.partition(", and only there")[0] for line in said[:-1]] == [
        f"{name}: {why}" for name in METHODS
    ]
    assert said[-1].endswith(f"of process {os.getpid()}>")
    assert job.is_alive()
    job.kill()
    assert job.join(PATIENCE)


#: What happens here, once, while a result is unpickled.
meanwhile: list[Callable[[], object]] = []


class Result:
    """Has `meanwhile` happen when it arrives, and becomes a text."""

    def __reduce__(self) -> tuple[Any, ...]:
        return arrive, ("precious",)


def arrive(text: str) -> str:
    while meanwhile:
        meanwhile.pop()()
    return text


def return_one(size: int) -> Any:
    return Result(), bytes(size)


def return_end_first() -> Any:
    here, _ = channel()
    return here, Result()


def ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


@contextlib.contextmanager
def on_term(handle: Callable[[], object]) -> Iterator[None]:
    """Have ``handle`` called by SIGTERM, which comes as a result is unpickled."""
    before = signal.signal(signal.SIGTERM, lambda *_: handle())
    meanwhile.append(lambda: signal.raise_signal(signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("size", [10, 1_000_000], ids=["in its packet", "in a segment"])
def test_a_result_whose_unpickling_was_interrupted_is_unpickled_again(size: int) -> None:
    job = start(return_one, size)
    meanwhile.append(ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        job.result(PATIENCE)
    assert job.result(PATIENCE) == ("precious", bytes(size))
    assert job.join(PATIENCE)


def test_what_cannot_be_unpickled_again_after_an_interruption_says_so() -> None:
    """An end of a channel can be had from a packet once."""
    job = start(return_end_first)
    meanwhile.append(ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        job.result(PATIENCE)
    with pytest.raises(NotPicklable, match=r"interrupted \(KeyboardInterrupt\)") as caught:
        job.result(PATIENCE)
    assert isinstance(caught.value.__cause__, KeyboardInterrupt)
    assert job.join(PATIENCE)


class Sweep:
    """Raises KeyboardInterrupt where a signal handler may, at the ``count``th such place.

    These are the calls of mpkit's functions, and the returns of C functions to them.
    """

    def __init__(self, count: int) -> None:
        self.left = count

    def __call__(self, frame: FrameType, event: str, arg: object) -> None:
        ours = Path(frame.f_code.co_filename).parent == Path(mpkit.__file__).parent
        callers = (frame, frame.f_back)
        if any(it is not None and it.f_code.co_name == "__del__" for it in callers):
            return  # what is raised there goes nowhere
        if ours and event in ("call", "c_return"):
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt


def test_no_result_is_lost_wherever_the_waiting_is_interrupted(start_method: str) -> None:
    if start_method != "fork":
        pytest.skip("it is all the same, and takes long")
    count, interrupted = 0, True
    while interrupted:
        count += 1
        job = start(pow, 2, 10)
        assert _wait.poll([job._child.sentinel], PATIENCE)
        sweep = Sweep(count)
        try:
            sys.setprofile(sweep)
            with contextlib.suppress(KeyboardInterrupt):
                job.result(PATIENCE)
        finally:
            sys.setprofile(None)
        interrupted = sweep.left <= 0
        assert job.result(PATIENCE) == 1024, f"interrupted at step {count}"
        assert job.join(PATIENCE)
    assert count > 10


def test_a_handler_may_stop_the_job_whose_result_is_unpickled() -> None:
    job = start(return_one, 10)
    stopped: list[bool] = []
    with on_term(lambda: stopped.append(job.stop())):
        assert job.result(PATIENCE) == ("precious", bytes(10))
    assert stopped == [True]
    assert job.join(PATIENCE)


def test_a_handler_cannot_wait_for_the_result_that_it_interrupts() -> None:
    job = start(return_one, 10)
    with on_term(job.result), pytest.raises(RuntimeError, match="unpickled by this thread"):
        job.result(PATIENCE)
    assert job.join(PATIENCE)


def test_a_handler_may_stop_the_job_that_is_being_reaped(monkeypatch: pytest.MonkeyPatch) -> None:
    job = start(pow, 2, 10)
    process, stopped = job._child.process, list[bool]()
    join = process.join

    def interrupted(timeout: float | None = None) -> None:
        monkeypatch.undo()
        stopped.append(job.stop())
        join(timeout)

    monkeypatch.setattr(process, "join", interrupted)
    assert job.join(PATIENCE)
    assert stopped == [True]
    assert job.exitcode == 0
    assert job.result() == 1024
