"""What keeps a pool going, what ends it, and that each thing is told once."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import mpkit
from tests import poolwork
from tests.support import PATIENCE, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.mark.parametrize("method", ["imap", "imap_unordered"])
def test_an_imap_that_was_begun_is_finished_by_a_pool_that_is_closed(
    start_method: str, method: str
) -> None:
    """More than is pulled ahead, and nobody takes any of it before the pool has ended."""
    pool = mpkit.TaskPool(2)
    results = getattr(pool, method)(poolwork.square, range(500))
    pool.close()
    with pytest.raises(mpkit.PoolClosed):
        pool.imap(poolwork.square, range(3))
    assert pool.join(PATIENCE)
    assert sorted(results) == [n * n for n in range(500)]


def test_leaving_a_with_block_stops_an_endless_imap() -> None:
    with mpkit.TaskPool(2) as pool:
        results = pool.imap(abs, itertools.count())
        assert next(results) == 0
    with pytest.raises(mpkit.PoolClosed):
        for _ in results:
            pass


class Stuck:
    """An input that gives three items, and then nothing until it may."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.waits = threading.Event()

    def __iter__(self) -> Iterator[int]:
        yield from range(3)
        self.waits.set()
        self.go.wait()
        yield 3


@pytest.fixture
def stuck() -> Iterator[Stuck]:
    stuck = Stuck()
    yield stuck
    stuck.go.set()


def test_nobody_who_leaves_waits_for_an_input_that_is_stuck(stuck: Stuck) -> None:
    with mpkit.TaskPool(1) as pool:
        results = pool.imap(poolwork.square, stuck)
        assert [next(results) for _ in range(3)] == [0, 1, 4]
        assert stuck.waits.wait(PATIENCE)
    with pytest.raises(mpkit.PoolClosed, match="before all of the input was read"):
        next(results)
    stuck.go.set()
    assert list(results) == []


@pytest.mark.parametrize("how", ["close", "with", "drop", "aclose"])
def test_a_pool_does_not_wait_for_an_input_that_nobody_wants(stuck: Stuck, how: str) -> None:
    pool = mpkit.TaskPool(1)
    results = pool.imap(poolwork.square, stuck)
    assert next(results) == 0
    assert stuck.waits.wait(PATIENCE)
    match how:
        case "close":
            results.close()
        case "with":
            with results:
                pass
        case "aclose":

            async def close() -> None:
                async with contextlib.aclosing(results):
                    pass
                async with results:
                    pass

            asyncio.run(close())
        case _:
            del results
            gc.collect()
    pool.close()
    assert pool.join(PATIENCE)


def test_terminate_stops_an_endless_imap_of_a_closed_pool() -> None:
    pool = mpkit.TaskPool(1)
    results = pool.imap(abs, itertools.count())
    assert next(results) == 0
    pool.close()
    pool.terminate()
    assert pool.join(PATIENCE)


def tasks_of_a_pool_that_nobody_keeps() -> list[mpkit.Task[int]]:
    pool = mpkit.TaskPool(2)
    return [pool.apply_async(poolwork.square, (n,)) for n in range(50)]


@pytest.mark.filterwarnings("ignore:the TaskPool made here")
def test_pending_tasks_keep_their_pool(start_method: str) -> None:
    tasks = tasks_of_a_pool_that_nobody_keeps()
    gc.collect()
    assert [task.get(PATIENCE) for task in tasks] == [n * n for n in range(50)]
    assert mpkit.TaskPool(2).map_async(poolwork.square, range(9)).get(PATIENCE) == [
        n * n for n in range(9)
    ]


def call_back_and_close(said: list[int]) -> None:
    pool = mpkit.TaskPool(2)
    for n in range(50):
        pool.apply_async(poolwork.square, (n,), callback=said.append)
    pool.close()


def test_a_closed_pool_that_nobody_keeps_finishes_its_work_and_says_nothing() -> None:
    said: list[int] = []
    call_back_and_close(said)
    gc.collect()
    until(lambda: len(said) == 50)
    assert sorted(said) == [n * n for n in range(50)]


def test_a_program_that_ends_waits_for_the_work_of_a_closed_pool() -> None:
    code = """
import mpkit
pool = mpkit.TaskPool(1)
pool.apply_async(divmod, (7, 2), callback=print)
pool.close()
"""
    ran = subprocess.run(
        [sys.executable, "-Wall", "-c", code],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "(3, 1)\n", "")


def test_a_forked_child_leaves_the_with_block_as_if_there_were_no_pool() -> None:
    status = -1
    with mpkit.TaskPool(1) as pool:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                with pool:
                    sys.exit(7)
            except SystemExit as error:
                pool.terminate()
                code = int(error.code or 0)
            finally:
                os._exit(code)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert pool.apply(abs, (-1,)) == 1
    assert status == 7


# told once


def complaints(monkeypatch: pytest.MonkeyPatch) -> list[BaseException]:
    said: list[BaseException] = []
    monkeypatch.setattr(sys, "excepthook", lambda kind, error, traceback: said.append(error))
    return said


def fail_to_show(done: int, total: int | None) -> None:
    raise RuntimeError("no display")


def test_progress_that_raises_is_reported_once_and_harms_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = complaints(monkeypatch)
    with mpkit.TaskPool(2) as pool:
        assert pool.map(abs, range(8), 1, progress=fail_to_show) == list(range(8))
        assert [str(error) for error in said] == ["no display"]
        assert list(pool.imap(abs, range(8), progress=fail_to_show)) == list(range(8))
    assert len(said) == 2


def test_the_callback_of_a_map_is_called_once_whatever_threads_there_are() -> None:
    called: list[list[None]] = []
    with ThreadPoolExecutor(8) as executor, mpkit.TaskPool(on=executor) as pool:
        for _ in range(30):
            pool.map_async(
                time.sleep,
                [0.002] * 8,
                1,
                callback=called.append,
                progress=lambda done, total: time.sleep(0.001),
            ).get(PATIENCE)
    assert called == [[None] * 8] * 30


def test_several_threads_take_from_one_imap() -> None:
    interval = sys.getswitchinterval()
    taken: list[int] = []

    def take(results: Iterator[int]) -> None:
        taken.extend(results)

    try:
        sys.setswitchinterval(1e-6)
        with mpkit.TaskPool(2) as pool:
            results = pool.imap(abs, range(1000), 10)
            threads = [threading.Thread(target=take, args=(results,)) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert sorted(taken) == list(range(1000))


def test_waiting_for_a_cancelled_task_returns() -> None:
    with mpkit.TaskPool(1) as pool:
        first = pool.submit(time.sleep, PATIENCE)
        second = pool.submit(time.sleep, PATIENCE)
        assert second.cancel()
        second.wait(PATIENCE)
        assert not first.done()
        pool.terminate()


def test_a_task_whose_executor_was_shut_down_before_its_retry_has_its_error() -> None:
    go = threading.Event()

    def fail() -> None:
        go.wait(PATIENCE)
        raise ValueError("first")

    executor = ThreadPoolExecutor(1)
    with mpkit.TaskPool(on=executor, retries=3, retry_on=ValueError) as pool:
        task = pool.submit(fail)
        executor.shutdown(wait=False)
        go.set()
        with pytest.raises(ValueError, match="first"):
            task.result(PATIENCE)


BAD: dict[str, Callable[[Any], object]] = {
    "imap of nothing callable": lambda pool: pool.imap(None, [1]),
    "imap in halves": lambda pool: pool.imap(abs, [1], chunksize=2.5),
    "imap in no chunks": lambda pool: pool.imap(abs, [1], chunksize=None),
    "map of nothing callable": lambda pool: pool.map(None, []),
    "map in halves": lambda pool: pool.map(abs, [1], 2.5),
    "callback that is a number": lambda pool: pool.apply_async(abs, (1,), callback=5),
    "callback of a map": lambda pool: pool.map_async(abs, [1], error_callback="no"),
    "name that is a number": lambda pool: pool.options(name=5),
    "retries by halves": lambda pool: pool.options(retries=0.5),
    "workers by halves": lambda pool: mpkit.TaskPool(2.5),
    "a worker that is true": lambda pool: mpkit.TaskPool(True),
    "progress that is a number": lambda pool: pool.map(abs, [1], progress=5),
}


@pytest.mark.parametrize("how", BAD)
def test_bad_arguments_fail_at_the_call(how: str) -> None:
    with mpkit.TaskPool(0) as pool, pytest.raises(TypeError):
        BAD[how](pool)


def test_numbers_of_numpy_are_numbers() -> None:
    two = np.int64(2)
    with mpkit.TaskPool(two, maxtasksperchild=two, retries=two) as pool:
        assert pool.map(abs, [-1, -2, -3], two) == [1, 2, 3]
        assert list(pool.imap(abs, [-1, -2, -3], chunksize=two)) == [1, 2, 3]
