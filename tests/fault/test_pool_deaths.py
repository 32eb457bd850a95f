"""Deaths in a pool, of workers and of the program: beside the table of test_pool_table.py."""

from __future__ import annotations

import contextlib
import inspect
import os
import select
import signal
import socket
import stat
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

import mpkit
from mpkit._platform import descriptors
from tests import poolwork
from tests.support import PATIENCE, can_kill_in_c, exists, stopped, supervisor_of, until

if TYPE_CHECKING:
    from pathlib import Path
    from types import FrameType

#: How a call ends, what its task raises, and what the message says. (More in the table.)
RUNNING: dict[str, tuple[type[BaseException], str]] = {
    "unpicklable exception": (mpkit.RemoteError, "not this one"),
    "KeyboardInterrupt": (mpkit.RemoteError, "KeyboardInterrupt"),
    "lambda": (mpkit.NotPicklable, "result of task"),
}


def wait_for_the_death_of(pid: int) -> None:
    until(lambda: not exists(pid))


def check_that_it_goes_on(pool: mpkit.TaskPool) -> None:
    assert pool.map(poolwork.square, range(8), 1) == [n * n for n in range(8)]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("how", RUNNING)
def test_a_call_that_ends_badly_fails_alone(start_method: str, how: str) -> None:
    kind, text = RUNNING[how]
    with mpkit.TaskPool(2) as pool:
        bad = pool.submit(poolwork.die, how)
        others = [pool.submit(poolwork.square, n) for n in range(20)]
        with pytest.raises(kind, match=text):
            bad.result(PATIENCE)
        assert [task.result(PATIENCE) for task in others] == [n * n for n in range(20)]
        check_that_it_goes_on(pool)


def test_an_idle_worker_that_is_killed_is_replaced(start_method: str) -> None:
    with mpkit.TaskPool(2) as pool:
        for _ in range(3):
            pid = pool.apply(poolwork.pid_of_worker)
            os.kill(pid, signal.SIGKILL)
            wait_for_the_death_of(pid)  # until then it might take a task
            check_that_it_goes_on(pool)


def take_its_descriptors(goes_on: bool) -> None:
    """Close all that this process has open, and open others, which get their numbers."""
    os.closerange(3, 1000)
    mpkit.worker_state()["others"] = [socket.socketpair() for _ in range(30)]
    if goes_on:
        poolwork.sleep_for_ever()


@pytest.mark.parametrize("goes_on", [True, False], ids=["goes on", "returns"])
def test_a_worker_whose_descriptors_are_others_by_now_is_killed(
    start_method: str, goes_on: bool
) -> None:
    """It reported to itself, and then waited for ever for what it might send to itself."""
    with mpkit.TaskPool(1) as pool:
        bad = pool.submit(take_its_descriptors, goes_on)
        after = pool.submit(poolwork.square, 3)
        error = bad.exception(PATIENCE)
        assert isinstance(error, mpkit.WorkerDied)
        assert after.result(PATIENCE) == 9
    # Unless what it takes for a packet has ended it; and without pidfds that looks like an end.
    assert not (
        goes_on and descriptors.HAS_PACKETS
    ) or "closed its connection to the pool, and was killed" in str(error)


def test_a_stopped_worker_that_has_nothing_to_do_ends_with_its_pool(start_method: str) -> None:
    pool = mpkit.TaskPool(2)
    pid = pool.apply(poolwork.pid_of_worker)
    os.kill(pid, signal.SIGSTOP)
    until(lambda: stopped(pid))
    pool.close()
    assert pool.join(PATIENCE)
    assert not exists(pid)


class PickledOnce:
    """Cannot be pickled once its worker has died."""

    def __init__(self) -> None:
        self.spent = False

    def __reduce__(self) -> tuple[Any, ...]:
        if self.spent:
            raise LookupError("there is no other")
        return str, ("once",)


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_an_initializer_that_cannot_be_pickled_again_fails_tasks_and_says_so(method: str) -> None:
    """It ended the supervisor, and what waited was cancelled without a word."""
    once = PickledOnce()
    with mpkit.TaskPool(1, poolwork.remember, (once,), context=method) as pool:
        assert pool.apply(poolwork.recall) == "once"
        once.spent = True
        assert isinstance(
            pool.submit(poolwork.die, "SIGKILL").exception(PATIENCE), mpkit.WorkerDied
        )
        for _ in range(2):
            with pytest.raises(mpkit.WorkerInitError, match="there is no other") as caught:
                pool.apply(poolwork.square, (3,))
            assert isinstance(caught.value.__cause__, mpkit.NotPicklable)


def fork_and_die(began: mpkit.Signal, pids: mpkit.Channel[int, None]) -> None:
    """Leave a grandchild behind that has copies of whatever the worker had open."""
    pid = os.fork()
    if pid == 0:
        poolwork.sleep_for_ever(began)
    pids.send(pid)
    began.wait(60)
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_grandchild_that_lives_on_does_not_hide_the_death_of_a_worker(start_method: str) -> None:
    """Row 26 of the table of faults."""
    here, there = mpkit.channel(send=type(None), recv=int)
    with mpkit.TaskPool(1) as pool, here:
        bad = pool.submit(fork_and_die, mpkit.Signal(), there)
        grandchild = here.recv(PATIENCE)
        try:
            assert isinstance(bad.exception(PATIENCE), mpkit.WorkerDied)
            assert exists(grandchild)
            check_that_it_goes_on(pool)
        finally:
            os.kill(grandchild, signal.SIGKILL)
            wait_for_the_death_of(grandchild)


def give_back(thing: object) -> object:
    return thing


def babble(text: bytes) -> str:
    """Write to every socket that there is, as C code with a wrong descriptor may."""
    for name in os.listdir("/dev/fd"):
        with contextlib.suppress(OSError):
            if stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                os.write(int(name), text)
    return "large enough to be sent" * 100


@pytest.mark.parametrize(
    "text",
    [b"garbage", b"d", b"d" * 60, b"y", b"iii", b"wwww"],
    ids=["anything", "half a report", "of no task", "ready again", "no initializer", "awake"],
)
def test_a_worker_that_writes_into_its_connection_is_ended(text: bytes, start_method: str) -> None:
    with mpkit.TaskPool(2) as pool:
        others = [pool.submit(poolwork.square, number) for number in range(5)]
        task = pool.submit(babble, text)
        others += [pool.submit(poolwork.square, number) for number in range(5, 10)]
        with pytest.raises(mpkit.WorkerDied, match="wrote into its connection to the pool"):
            task.result(PATIENCE)
        assert [other.result(PATIENCE) for other in others] == [n * n for n in range(10)]
        check_that_it_goes_on(pool)


def test_an_exception_that_a_task_returns_is_a_value(start_method: str) -> None:
    """Row 27 of the table of faults."""
    with mpkit.TaskPool(1) as pool:
        assert repr(pool.apply(give_back, (ValueError(1),))) == "ValueError(1)"
        assert [repr(e) for e in pool.imap(give_back, [KeyError(2)])] == ["KeyError(2)"]


def test_what_is_very_large_travels_there_and_back() -> None:
    """Row 17a of the table of faults."""
    ballast = bytearray(200_000_000)
    ballast[-1] = 7
    with mpkit.TaskPool(1) as pool:
        assert pool.apply(give_back, (ballast,)) == ballast


@pytest.mark.skipif(not hasattr(select, "epoll"), reason="epoll alone keeps what was closed")
def test_what_a_forked_child_still_has_open_does_not_wake_the_pool_for_ever() -> None:
    with mpkit.TaskPool(1) as pool:
        pid = pool.apply(poolwork.pid_of_worker)
        supervisor = supervisor_of(pool)
        (worker,) = supervisor._crew.values()
        copy = os.dup(worker.outbox.fd)
        os.kill(pid, signal.SIGKILL)
        wait_for_the_death_of(pid)
        check_that_it_goes_on(pool)
        until(lambda: not supervisor._roster._selector._selector.poll(0))
        os.close(copy)


def test_a_thousand_tasks_of_which_some_kill_their_worker(
    start_method: str, tmp_path: Path
) -> None:
    """Every innocent has its result, and every task ran exactly once."""
    count = 1000 if start_method == "fork" else 200
    log = tmp_path / "log"
    with mpkit.TaskPool(4) as pool:
        tasks = [pool.submit(poolwork.count_and_maybe_die, n, str(log)) for n in range(count)]
    for number, task in enumerate(tasks):
        if number % 20:
            assert task.result(0) == number * number
        else:
            assert isinstance(task.exception(0), mpkit.WorkerDied)
    ran = [int(line) for line in log.read_text().split()]
    assert sorted(ran) == list(range(count))


def test_a_map_with_a_killer_in_it_ends_and_the_next_one_works(start_method: str) -> None:
    with mpkit.TaskPool(2) as pool:
        with pytest.raises(mpkit.WorkerDied, match="SIGKILL"):
            pool.map(poolwork.die, ["garbage", "SIGKILL", "garbage"], 1)
        check_that_it_goes_on(pool)


def test_a_pool_is_of_no_use_in_a_forked_child() -> None:
    with mpkit.TaskPool(1) as pool:
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                pool.submit(poolwork.square, 1)
            except mpkit.PoolClosed as error:
                os.write(writer, str(error).encode())
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        said = os.read(reader, 1000).decode()
        os.close(reader)
        os.close(writer)
        assert f"belongs to process {os.getpid()}" in said
        assert pool.apply(poolwork.square, (3,)) == 9


PARENT = """
import re, multiprocessing, sys, mpkit

def in_c():
    re.match("(a+)+$", "a" * 40 + "b")  # for years, with the GIL held

def in_python():
    while True:
        pass

def nest(pids, busy):
    job = mpkit.start(busy)
    pids.send(job.pid)
    job.result()

def me():
    import os
    return os.getpid()

if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1])
    busy = {"in C": in_c, "in Python": in_python}[sys.argv[2]]
    here, there = mpkit.channel()
    pool = mpkit.TaskPool(2)
    pids = [pool.apply(me)]
    pool.submit(nest, there, busy)
    pids.append(here.recv())
    pool.submit(busy)
    print(*pids, *(worker.pid for worker in pool.stats().workers), flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("busy", ["in C", "in Python"])
def test_all_workers_and_their_jobs_leave_with_a_killed_parent(
    start_method: str, busy: str, tmp_path: Path
) -> None:
    if busy == "in C" and not can_kill_in_c():
        pytest.skip("the kernel cannot kill orphans here, and no thread runs beside this C code")
    program = tmp_path / "parent.py"
    program.write_text(PARENT)
    parent = subprocess.Popen(
        [sys.executable, str(program), start_method, busy],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    assert parent.stdin is not None
    pids = [int(word) for word in parent.stdout.readline().split()]
    assert len(pids) >= 4
    parent.kill()
    parent.wait(PATIENCE)
    until(lambda: not any(exists(pid) for pid in pids))
    parent.stdin.close()
    parent.stdout.close()


EXIT = """
import sys, mpkit

def wait_for(signal):
    signal.wait()

if __name__ == "__main__":
    pool = mpkit.TaskPool(2)
    if sys.argv[1] == "garbage":  # with nothing pending, for that keeps it
        assert pool.map(abs, range(9)) == list(range(9))
        del pool
        sys.exit()
    tasks = [pool.submit(wait_for, mpkit.Signal(name="never")) for _ in range(5)]
    if sys.argv[1] == "raise":
        raise LookupError("main")
"""


@pytest.mark.parametrize("how", ["return", "raise", "garbage"])
def test_a_forgotten_pool_ends_with_its_program_and_says_where_it_was_made(
    how: str, tmp_path: Path
) -> None:
    program = tmp_path / "forgets.py"
    program.write_text(EXIT)
    done = subprocess.run(
        [sys.executable, "-W", "always", str(program), how],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == (1 if how == "raise" else 0), done.stderr
    assert f"{program}:8: ResourceWarning" in done.stderr
    assert done.stderr.count("Traceback") == (1 if how == "raise" else 0)


_kept: list[socket.socket] = []


def put_something_in_place_of_the_inbox() -> int:
    frame: FrameType | None = inspect.currentframe()
    while frame is not None and "inbox" not in frame.f_locals:
        frame = frame.f_back
    assert frame is not None
    _kept[:] = socket.socketpair()  # or it would be the end of one
    return os.dup2(_kept[0].fileno(), frame.f_locals["inbox"].fd)


def test_a_worker_whose_inbox_is_something_else_is_replaced(start_method: str) -> None:
    """It would wait for tasks where none come, and they for it."""
    with mpkit.TaskPool(1) as pool:
        for _ in range(2):
            pool.submit(put_something_in_place_of_the_inbox).result(PATIENCE)
            assert pool.submit(abs, -1).result(PATIENCE) == 1
