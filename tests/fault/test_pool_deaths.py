"""Where x how a task can go wrong: only that task fails, with its cause, and the pool goes on."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

import mpkit
from tests import poolwork
from tests.support import PATIENCE, exists, until

if TYPE_CHECKING:
    from pathlib import Path

#: How a call ends, what its task raises, and what the message says.
RUNNING: dict[str, tuple[type[BaseException], str]] = {
    "exception": (LookupError, "no such thing"),
    "two-argument exception": (mpkit.RemoteError, "left and right"),
    "unpicklable exception": (mpkit.RemoteError, "not this one"),
    "BaseException": (mpkit.RemoteError, "base"),
    "KeyboardInterrupt": (mpkit.RemoteError, "KeyboardInterrupt"),
    "sys.exit": (mpkit.TaskExit, "3"),
    "os._exit": (mpkit.WorkerDied, "exited with code 3"),
    "SIGKILL": (mpkit.WorkerDied, "killed by SIGKILL"),
    "SIGTERM": (mpkit.WorkerDied, "killed by SIGTERM"),
    "SIGSEGV": (mpkit.WorkerDied, "killed by SIGSEGV"),
    "lambda": (mpkit.NotPicklable, "result of task"),
    "no descriptors": (mpkit.WorkerDied, "exited"),
}

#: How unpickling an argument ends.
ARRIVING = {how: RUNNING[how] for how in ("exception", "sys.exit", "os._exit", "SIGKILL")}


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


@pytest.mark.parametrize("how", ARRIVING)
def test_an_argument_that_cannot_be_unpickled_fails_its_task_alone(
    start_method: str, how: str
) -> None:
    kind, text = ARRIVING[how]
    with mpkit.TaskPool(1) as pool:
        bad = pool.submit(poolwork.square, poolwork.BadArrival(how))  # type: ignore[arg-type]
        other = pool.submit(poolwork.square, 3)
        with pytest.raises(kind, match=text):
            bad.result(PATIENCE)
        assert other.result(PATIENCE) == 9
        check_that_it_goes_on(pool)


def test_a_result_that_cannot_be_unpickled_here_fails_its_task_alone(start_method: str) -> None:
    with mpkit.TaskPool(1) as pool:
        bad = pool.submit(poolwork.bad_result)
        with pytest.raises(LookupError, match="no such thing") as caught:
            bad.result(PATIENCE)
        assert any("unpickled" in note for note in caught.value.__notes__)
        check_that_it_goes_on(pool)


def test_garbage_on_standard_output_disturbs_nothing(start_method: str) -> None:
    with mpkit.TaskPool(1) as pool:
        assert pool.apply(poolwork.die, ("garbage",)) == "printed"
        check_that_it_goes_on(pool)


def test_an_idle_worker_that_is_killed_is_replaced(start_method: str) -> None:
    with mpkit.TaskPool(2) as pool:
        for _ in range(3):
            pid = pool.apply(poolwork.pid_of_worker)
            os.kill(pid, signal.SIGKILL)
            wait_for_the_death_of(pid)  # until then it might take a task
            check_that_it_goes_on(pool)


@pytest.mark.skipif(not hasattr(select, "epoll"), reason="epoll alone keeps what was closed")
def test_what_a_forked_child_still_has_open_does_not_wake_the_pool_for_ever() -> None:
    with mpkit.TaskPool(1) as pool:
        pid = pool.apply(poolwork.pid_of_worker)
        engine: Any = pool._backend
        (worker,) = engine._crew.values()
        copy = os.dup(worker.outbox.fd)
        os.kill(pid, signal.SIGKILL)
        wait_for_the_death_of(pid)
        check_that_it_goes_on(pool)
        until(lambda: not engine._selector._selector.poll(0))
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

def nest(pids):
    job = mpkit.start(in_c)
    pids.send(job.pid)
    job.result()

def me():
    import os
    return os.getpid()

if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1])
    here, there = mpkit.channel()
    pool = mpkit.TaskPool(2)
    pids = [pool.apply(me)]
    pool.submit(nest, there)
    pids.append(here.recv())
    pool.submit(in_c)
    print(*pids, *(worker.pid for worker in pool.stats().workers), flush=True)
    sys.stdin.read()
"""


def test_all_workers_and_their_jobs_leave_with_a_killed_parent(
    start_method: str, tmp_path: Path
) -> None:
    program = tmp_path / "parent.py"
    program.write_text(PARENT)
    parent = subprocess.Popen(
        [sys.executable, str(program), start_method],
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
