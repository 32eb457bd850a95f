"""Where a pool is made, used and ended: callbacks, tasks, children, modules, the end of a program."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

import mpkit
from tests import poolwork
from tests.support import PATIENCE, exists, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


def run(
    program: Path, code: str, *args: str, options: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    program.write_text(code)
    return subprocess.run(
        [sys.executable, *options, str(program), *args],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )


# from a callback


@pytest.fixture
def complaints(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[BaseException]]:
    said: list[BaseException] = []
    monkeypatch.setattr(sys, "excepthook", lambda kind, error, trace: said.append(error))
    yield said
    said.clear()  # their tracebacks keep the pools


@pytest.mark.parametrize("end", ["close", "terminate", "both twice"])
def test_a_callback_may_end_its_pool(
    start_method: str, end: str, complaints: list[BaseException]
) -> None:
    pool = mpkit.TaskPool(2)

    def callback(_: object) -> None:
        for name in ("close", "terminate") * 2 if end == "both twice" else (end,):
            getattr(pool, name)()

    task = pool.apply_async(poolwork.square, (3,), callback=callback)
    assert task.get(PATIENCE) == 9
    assert pool.join(PATIENCE)
    assert complaints == []
    with pytest.raises(mpkit.PoolClosed):
        pool.submit(abs, 1)


WAITING: dict[str, Callable[[Any], object]] = {
    "join": lambda pool: (pool.close(), pool.join()),
    "apply": lambda pool: pool.apply(abs, (-1,)),
    "result": lambda pool: pool.submit(abs, -1).result(),
    "map": lambda pool: pool.map(abs, [-1]),
}


@pytest.mark.parametrize("how", WAITING)
def test_a_callback_that_would_wait_for_itself_is_told_so(
    how: str, complaints: list[BaseException]
) -> None:
    with mpkit.TaskPool(1) as pool:
        task = pool.apply_async(abs, (-3,), callback=lambda _: WAITING[how](pool))
        assert task.get(PATIENCE) == 3
    (error,) = complaints
    assert isinstance(error, RuntimeError)
    assert "callback" in str(error)


def test_a_callback_may_submit_cancel_and_kill(complaints: list[BaseException]) -> None:
    began, go = mpkit.Signal(), mpkit.Signal()
    with mpkit.TaskPool(1) as pool:
        later: list[mpkit.Task[Any]] = []

        def callback(_: object) -> None:
            later.append(pool.submit(poolwork.square, 2))
            later.append(pool.submit(poolwork.square, 3))
            assert later[1].cancel()
            assert running.kill()

        pool.apply_async(poolwork.tell_and_wait, (began, go), callback=callback)
        running = pool.submit(poolwork.sleep_for_ever)
        assert began.wait(PATIENCE)
        go.set()
        until(running.done)
        assert running.cancelled() or isinstance(running.exception(0), mpkit.WorkerDied)
        assert later[0].result(PATIENCE) == 4
    assert complaints == []


async def awaited(task: mpkit.Task[Any]) -> Any:
    return await task


def test_a_done_callback_that_exits_keeps_no_other_from_being_called(
    complaints: list[BaseException],
) -> None:
    """Whoever awaits a task is called back, too; and a Future stops at what is no Exception."""

    async def main() -> None:
        began, go = mpkit.Signal(), mpkit.Signal()
        async with mpkit.TaskPool(1) as pool:
            task = pool.submit(poolwork.tell_and_wait, began, go)
            task.add_done_callback(lambda _: sys.exit(3))
            waiter = asyncio.ensure_future(awaited(task))
            await began
            go.set()
            assert await asyncio.wait_for(waiter, PATIENCE)

    asyncio.run(main())
    (error,) = complaints
    assert isinstance(error, SystemExit)
    assert "task" in error.__notes__[0]


def test_callbacks_of_cancelled_tasks_that_exit_do_not_end_the_supervisor(
    complaints: list[BaseException],
) -> None:
    """Those that came after the first were never settled."""
    pool, began = mpkit.TaskPool(1), mpkit.Signal()
    tasks: list[mpkit.Task[Any]] = [pool.submit(poolwork.sleep_for_ever, began)]
    tasks += [pool.submit(abs, -n) for n in range(4)]
    for task in tasks:
        task.add_done_callback(lambda _: sys.exit(3))
    assert began.wait(PATIENCE)
    pool.terminate()
    assert pool.join(PATIENCE)
    assert all(task.done() for task in tasks)
    assert len(complaints) == len(tasks)


def test_a_program_whose_excepthook_exits_keeps_its_pool(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As programs with windows have it. The task was never settled."""
    monkeypatch.setattr(sys, "excepthook", lambda *_: sys.exit(4))
    with mpkit.TaskPool(1) as pool:
        task = pool.apply_async(poolwork.square, (3,), callback=lambda _: {}["none"])
        assert task.get(PATIENCE) == 9
        assert pool.apply(poolwork.square, (4,)) == 16
    said = capsys.readouterr().err
    assert "SystemExit: 4" in said
    assert f"(raised by a callback of {task.name}; the pool goes on)" in said


# in a task


def deep(levels: int) -> list[int]:
    """Return the pids of a chain of pools, each in a task of the one above."""
    if not levels:
        return [os.getpid()]
    with mpkit.TaskPool(1) as pool:
        return [os.getpid(), *pool.apply(deep, (levels - 1,))]


def use_all(semaphore: mpkit.Semaphore) -> list[Any]:
    here, there = mpkit.channel(send=int, recv=int)
    with mpkit.TaskPool(1) as pool, mpkit.start(poolwork.square, 3) as job:
        echo = pool.submit(poolwork.echo_on, there)
        answer = here.request(1, timeout=PATIENCE)
        here.close()
        assert echo.result(PATIENCE)
        with semaphore, mpkit.limit(1):
            return [answer, job.result(PATIENCE), pool.apply(poolwork.in_limit, (5, semaphore))]


def test_tasks_have_pools_whose_tasks_have_pools(start_method: str) -> None:
    with mpkit.TaskPool(1) as pool:
        pids = pool.apply(deep, (2,))
    assert len({os.getpid(), *pids}) == 4


def test_tasks_use_all_that_there_is(start_method: str) -> None:
    semaphore = mpkit.Semaphore(2)
    with mpkit.TaskPool(1) as pool:
        assert pool.apply(use_all, (semaphore,)) == [2, 9, 5]
    assert semaphore.available == 2


def hold_a_pool(pids: mpkit.Channel[list[int], None]) -> None:
    with mpkit.TaskPool(2) as pool:
        pool.map(abs, range(8), 1)
        pids.send([worker.pid for worker in pool.stats().workers])
        pool.apply(poolwork.sleep_for_ever)


def test_the_workers_of_a_task_s_pool_leave_with_it(start_method: str) -> None:
    here, there = mpkit.channel(send=type(None), recv=list)
    with mpkit.TaskPool(1) as pool, here:
        task = pool.submit(hold_a_pool, there)
        pids = here.recv(PATIENCE)
        assert task.kill()
        assert isinstance(task.exception(PATIENCE), mpkit.WorkerDied)
        until(lambda: not any(exists(pid) for pid in pids))


# in a child


USES: dict[str, Callable[[Any], object]] = {
    "submit": lambda pool: pool.submit(abs, 1),
    "apply": lambda pool: pool.apply(abs, (1,)),
    "map": lambda pool: pool.map(abs, [1]),
    "imap": lambda pool: pool.imap(abs, [1]),
    "executor": lambda pool: pool.executor.submit(abs, 1),
    "shutdown": lambda pool: pool.executor.shutdown(cancel_futures=True),
}


def use_inherited(
    pool: mpkit.TaskPool, task: mpkit.Task[Any], said: mpkit.Channel[str, None]
) -> None:
    for use in (*USES.values(), lambda pool: task.result()):
        try:
            use(pool)
        except mpkit.PoolClosed as error:
            said.send(str(error))
    pool.close()
    pool.terminate()
    pool.join()


def test_a_forked_child_that_uses_the_pool_of_its_parent_is_told_so() -> None:
    here, there = mpkit.channel(send=type(None), recv=str)
    go = mpkit.Signal()
    with mpkit.TaskPool(1) as pool, here:
        task = pool.submit(poolwork.wait_for, go)
        child = multiprocessing.get_context("fork").Process(
            target=use_inherited, args=(pool, task, there)
        )
        child.start()
        said = list(here)
        child.join(PATIENCE)
        assert child.exitcode == 0
        go.set()
        assert len(said) == len(USES) + 1
        assert all(f"belongs to process {os.getpid()}" in text for text in said)
        assert pool.apply(poolwork.square, (3,)) == 9


def cancel_inherited(task: mpkit.Task[Any], said: mpkit.Channel[bool, None]) -> None:
    said.send(task.cancel())


def test_a_forked_child_cancels_its_copy_of_a_task_that_waits_to_be_tried_again() -> None:
    here, there = mpkit.channel(send=type(None), recv=bool)
    with mpkit.TaskPool(1) as pool, here:
        patient = pool.options(retries=1, retry_on=ValueError, backoff=1000)
        task = patient.submit(poolwork.picky, -1)
        until(lambda: task.attempts == 1 and not task.running())
        fork = multiprocessing.get_context("fork")
        child = fork.Process(target=cancel_inherited, args=(task, there))
        child.start()
        assert list(here) == [True]
        child.join(PATIENCE)
        assert child.exitcode == 0
        assert not task.done()
        assert task.cancel()


# in a module


UNGUARDED = """
import multiprocessing, sys
import mpkit

multiprocessing.set_start_method(sys.argv[1], force=True)
with open("made", "a") as file:
    file.write("x")
pool = mpkit.TaskPool(2)
print(pool.submit(abs, -1).exception(), flush=True)
pool.terminate()
pool.join()
"""


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_a_pool_made_at_import_says_what_is_missing_and_starts_few(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = run(tmp_path / "program.py", UNGUARDED, method)
    assert ran.returncode == 0
    assert 'if __name__ == "__main__":' in ran.stdout
    assert "each new process imports this file" in ran.stderr, "each of the children says it, too"
    assert len((tmp_path / "made").read_text()) <= 8


# strictly


STRICT = """
import asyncio, multiprocessing, os, sys
import mpkit

def work(n):
    return n * n

async def main(pool):
    return await pool.submit(work, 3)

if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1])
    for _ in range(2):
        with mpkit.TaskPool(2, timeout=30, retries=1) as pool:
            assert pool.map(work, range(9)) == [n * n for n in range(9)]
            assert list(pool.imap(work, range(9))) == [n * n for n in range(9)]
            assert isinstance(pool.submit(os._exit, 3).exception(), mpkit.WorkerDied)
            assert pool.map(len, [b"x" * 200_000] * 4, 1) == [200_000] * 4
            assert asyncio.run(main(pool)) == 9
    pool = mpkit.TaskPool(1, tasks_per_worker=1)
    tasks = [pool.submit(work, n) for n in range(3)]
    pool.close()
    pool.join()
"""


def test_a_program_is_clean_under_w_error(start_method: str, tmp_path: Path) -> None:
    """Also where a worker is forked while there are threads, of which Python 3.12 warns."""
    options = "-W", "error", "-X", "dev"
    ran = run(tmp_path / "program.py", STRICT, start_method, options=options)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


FORGETFUL = """
import sys
import mpkit

def wait(signal):
    signal.wait()

if __name__ == "__main__":
    pool = mpkit.TaskPool(2)
    pool.map(abs, range(4), 1)
    print(*(worker.pid for worker in pool.stats().workers), flush=True)
    tasks = [pool.submit(wait, mpkit.Signal(name="never")) for _ in range(4)]
    results = pool.imap(wait, iter(int, 1))
"""


@pytest.mark.parametrize("options", [("-W", "error"), ("-W", "always"), ()])
def test_a_program_that_forgets_its_pool_ends_whatever_becomes_of_warnings(
    options: tuple[str, ...], tmp_path: Path
) -> None:
    ran = run(tmp_path / "program.py", FORGETFUL, options=options)
    assert ran.returncode == 0, ran.stderr
    assert ("ResourceWarning" in ran.stderr) == bool(options)
    pids = [int(word) for word in ran.stdout.split()]
    assert len(pids) == 2
    until(lambda: not any(exists(pid) for pid in pids))
