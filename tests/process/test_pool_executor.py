"""`PoolExecutor`: what libraries do with the executors that they are given."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import itertools
import os
import pickle
import threading
import weakref
from concurrent.futures import FIRST_COMPLETED, CancelledError, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

import mpkit
from tests import poolwork
from tests.support import PATIENCE, supervisor_of, until

if TYPE_CHECKING:
    from collections.abc import Iterator


def squares(count: int) -> list[int]:
    return [n * n for n in range(count)]


@pytest.mark.usefixtures("start_method")
def test_it_does_what_executors_do() -> None:
    with mpkit.TaskPool(2) as pool, pool.options(name="view").executor as executor:
        assert isinstance(executor, concurrent.futures.Executor)
        futures = [executor.submit(poolwork.square, n) for n in range(5)]
        done, pending = concurrent.futures.wait(futures, PATIENCE)
        assert sorted(future.result() for future in done) == squares(5)
        assert not pending
        assert list(executor.map(poolwork.square, range(9), timeout=PATIENCE)) == squares(9)
        assert list(executor.map(poolwork.square, range(9), chunksize=4)) == squares(9)
        assert list(executor.map(pow, itertools.count(), [2] * 4, buffersize=2)) == squares(4)


def test_its_tasks_have_the_options_of_their_view(tmp_path: Any) -> None:
    with mpkit.TaskPool(2) as pool:
        once = str(tmp_path / "once")
        patient = pool.options(retries=1, name="patient").executor
        task = patient.submit(die_once, once)
        assert task.result(PATIENCE) == "lived"
        assert task.attempts == 2
        assert "patient" in task.name
        chunked = str(tmp_path / "chunked")
        assert list(patient.map(die_once, [chunked, chunked], chunksize=2)) == ["lived"] * 2
        hasty = pool.options(timeout=0.05).executor
        with pytest.raises(mpkit.TaskTimeout):
            list(hasty.map(poolwork.sleep_for_ever, [None]))


def die_once(path: str) -> str:
    if poolwork.first_time(path):
        os._exit(3)
    return "lived"


def test_its_tasks_mix_with_the_futures_of_others() -> None:
    go = mpkit.Signal()
    with ThreadPoolExecutor(2) as threads, mpkit.TaskPool(2) as pool:
        kept = [pool.executor.submit(poolwork.wait_for, go), threads.submit(go.wait, PATIENCE)]
        ours, theirs = pool.executor.submit(abs, -1), threads.submit(abs, -2)
        done, _ = concurrent.futures.wait([*kept, ours], PATIENCE, FIRST_COMPLETED)
        assert done == {ours}
        done, _ = concurrent.futures.wait([*kept, theirs], PATIENCE, FIRST_COMPLETED)
        assert done == {theirs}
        everything = concurrent.futures.as_completed([*kept, ours, theirs], PATIENCE)
        first = {next(everything), next(everything)}
        assert first == {ours, theirs}
        go.set()
        assert set(everything) == set(kept)


@pytest.mark.usefixtures("start_method")
def test_asyncio_runs_in_it() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with mpkit.TaskPool(2) as pool:
            for executor in (pool.executor, pool.options(priority=1).executor):
                runs = [loop.run_in_executor(executor, poolwork.square, n) for n in range(20)]
                assert await asyncio.gather(*runs) == squares(20)
                with pytest.raises(LookupError, match="no such thing"):
                    await loop.run_in_executor(executor, poolwork.die, "exception")
            with pytest.raises(mpkit.WorkerDied):
                await loop.run_in_executor(pool.executor, poolwork.die, "SIGKILL")

    asyncio.run(main())


# map


def test_without_a_buffer_all_is_run_whether_anybody_asks_or_not(tmp_path: Any) -> None:
    with mpkit.TaskPool(2) as pool:
        pool.executor.map(touch, [str(tmp_path / str(n)) for n in range(20)])  # and dropped
    assert len(list(tmp_path.iterdir())) == 20


def touch(path: str) -> None:
    open(path, "x").close()


@pytest.mark.parametrize("chunksize", [1, 2])
def test_a_map_that_is_dropped_cancels_what_has_not_begun(chunksize: int) -> None:
    go, began = mpkit.Signal(), mpkit.Signal()
    with mpkit.TaskPool(1) as pool:
        # With a timeout they travel one by one: what is in the packet of another cannot be had back.
        executor = pool.options(timeout=PATIENCE, name="dropped").executor
        signals = itertools.chain([go] * chunksize, itertools.repeat(began, 6))
        go.set()
        results = executor.map(poolwork.wait_for, signals, chunksize=chunksize)
        assert next(results)
        until(lambda: any(task.running() for task in executor._pending))
        left = [task for task in executor._pending if not task.done()]
        del results
        gc.collect()
        until(lambda: sum(task.cancelled() for task in left) >= len(left) - 1)
        began.set()


def test_the_time_of_a_map_is_that_of_all_its_results() -> None:
    go = mpkit.Signal()
    with mpkit.TaskPool(1) as pool:
        executor = pool.options(timeout=PATIENCE, name="slow").executor
        results = executor.map(poolwork.wait_for, [go] * 5, timeout=0.05)
        tasks = list(executor._pending)
        with pytest.raises(TimeoutError):
            next(results)
        assert sum(task.cancelled() for task in tasks) >= 4
        go.set()
        executor.shutdown()
        with pytest.raises(TimeoutError):  # a time that has passed is no mistake
            next(executor_of(pool).map(poolwork.sleep_for_ever, [None], timeout=-1))
        pool.terminate()


def executor_of(pool: mpkit.TaskPool) -> mpkit.PoolExecutor:
    return pool.options(name="another").executor


@pytest.mark.parametrize("buffersize", [None, 3])
def test_input_that_raises_cancels_what_was_submitted(buffersize: int | None) -> None:
    go = mpkit.Signal()

    def signals() -> Iterator[mpkit.Signal]:
        yield go
        yield go
        yield go
        raise LookupError("mine")

    with mpkit.TaskPool(1) as pool:
        executor = pool.options(timeout=PATIENCE, name="broken").executor
        if buffersize is None:
            with pytest.raises(LookupError, match="mine"):
                executor.map(poolwork.wait_for, signals())
            assert len(executor._pending) <= 1  # what has begun
        else:
            results = executor.map(poolwork.wait_for, signals(), buffersize=buffersize)
            assert len(executor._pending) == 3
            go.set()
            assert next(results)
            with pytest.raises(LookupError, match="mine"):
                next(results)
            assert list(results) == []
        go.set()
        until(lambda: not executor._pending)


def test_a_worker_that_dies_fails_its_item_and_the_map() -> None:
    with mpkit.TaskPool(2) as pool:
        results = pool.executor.map(pick, range(5), buffersize=2)
        assert next(results) == 0
        with pytest.raises(mpkit.WorkerDied, match="SIGKILL"):
            list(results)
        assert list(pool.executor.map(abs, range(5))) == list(range(5))


def pick(number: int) -> int:
    if number == 2:
        poolwork.die("SIGKILL")
    return number


def test_an_iterator_does_not_keep_what_it_gave() -> None:
    with mpkit.TaskPool(1) as pool:
        for chunksize in (1, 3):
            results = pool.executor.map(set, [[n] for n in range(6)], chunksize=chunksize)
            gone = weakref.ref(next(results))
            until(lambda gone=gone: gone() is None)  # type: ignore[misc]
            results.close()  # type: ignore[attr-defined]


def test_a_pool_does_not_keep_the_results_of_a_map() -> None:
    """Nor does a cycle, until there is a search for garbage."""
    with mpkit.TaskPool(2) as pool:
        until(lambda: len(supervisor_of(pool)._intake.shortcut.idle) == 2)
        gc.disable()
        try:
            gone = [weakref.ref(each) for each in pool.map(set, [[n] for n in range(50)])]
            until(lambda: not any(each() for each in gone))
        finally:
            gc.enable()


@pytest.mark.parametrize(
    ("wrong", "error", "says"),
    [
        ({"chunksize": 0}, ValueError, "chunksize is 1 or more, not 0"),
        ({"chunksize": 1.5}, TypeError, "chunksize is a whole number"),
        ({"buffersize": 0}, ValueError, "buffersize is 1 or more, not 0"),
        ({"buffersize": "2"}, TypeError, "buffersize is a whole number"),
        ({"timeout": "2"}, TypeError, "timeout is a number of seconds"),
    ],
)
def test_what_makes_no_sense_is_said_at_the_call(
    wrong: dict[str, Any], error: type[Exception], says: str
) -> None:
    with mpkit.TaskPool(1) as pool:
        with pytest.raises(error, match=says):
            pool.executor.map(abs, [1], **wrong)
        with pytest.raises(TypeError, match="functions"):
            pool.executor.map(5, [1])  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            pool.executor.map(abs, 1)  # type: ignore[arg-type]
        with pytest.raises(mpkit.NotPicklable, match="lock"):
            pool.executor.map(abs, [1, threading.Lock()])


# shutdown


def test_to_shut_down_the_executor_of_a_pool_closes_the_pool() -> None:
    with mpkit.TaskPool(1) as pool:
        with pool.executor as executor:
            task = executor.submit(poolwork.square, 3)
        assert task.result(0) == 9
        for take in (pool, executor, pool.options(retries=1).executor):
            with pytest.raises(RuntimeError, match="closed"):
                take.submit(poolwork.square, 1)
            with pytest.raises(RuntimeError, match="closed"):
                take.map(poolwork.square, [])


def test_to_shut_down_the_executor_of_a_view_waits_for_its_tasks_and_ends_nothing_else() -> None:
    go, began = mpkit.Signal(), mpkit.Signal()
    with mpkit.TaskPool(2) as pool:
        others = pool.submit(poolwork.tell_and_wait, began, go)
        assert began.wait(PATIENCE)
        with pool.options(name="mine").executor as executor:
            tasks = [executor.submit(poolwork.square, n) for n in range(20)]
        assert [task.result(0) for task in tasks] == squares(20)
        assert others.running()
        for use in (executor.submit, executor.map):
            with pytest.raises(mpkit.PoolClosed, match="the executor .* was shut down"):
                use(poolwork.square, [])  # type: ignore[operator]
        executor.shutdown()
        go.set()
        assert pool.apply(poolwork.square, (3,)) == 9


def test_to_shut_down_with_cancel_cancels_what_is_the_views_and_has_not_begun() -> None:
    go, began = mpkit.Signal(), mpkit.Signal()
    with mpkit.TaskPool(1) as pool:
        executor = pool.options(name="mine").executor
        running = executor.submit(poolwork.tell_and_wait, began, go)
        assert began.wait(PATIENCE)
        waiting = [executor.submit(poolwork.square, n) for n in range(5)]
        others = pool.submit(poolwork.square, 3)
        executor.shutdown(wait=False, cancel_futures=True)
        assert all(task.cancelled() for task in waiting)
        with pytest.raises(CancelledError):
            waiting[0].result()
        go.set()
        assert running.result(PATIENCE)
        assert others.result(PATIENCE) == 9


def test_what_is_submitted_while_the_executor_is_shut_down_is_taken_back() -> None:
    go = mpkit.Signal()
    with mpkit.TaskPool(1) as pool:
        pool.submit(poolwork.wait_for, go)
        executor = pool.options(name="mine").executor
        give, given = executor._give, []

        def shut_down_meanwhile(*args: Any, **kwargs: Any) -> mpkit.Task[Any]:
            executor.shutdown()
            given.append(give(*args, **kwargs))
            return given[0]

        executor._give = shut_down_meanwhile
        with pytest.raises(mpkit.PoolClosed):
            executor.submit(poolwork.square, 1)
        assert given[0].cancelled()
        go.set()


def test_a_callback_of_the_pool_cannot_wait_for_the_end_of_an_executor() -> None:
    go = mpkit.Signal()
    said: list[BaseException] = []
    with mpkit.TaskPool(1) as pool:
        executor = pool.options(name="mine").executor

        def shut_down(_: object) -> None:
            try:
                executor.shutdown()
            except RuntimeError as error:
                said.append(error)
            finally:
                go.set()

        first = pool.submit(poolwork.square, 1)
        executor.submit(poolwork.wait_for, go)
        first.add_done_callback(shut_down)
    assert "callback" in str(said[0])


def test_an_executor_keeps_its_pool() -> None:
    executor = mpkit.TaskPool(1).options(name="mine").executor
    gc.collect()
    assert executor.submit(poolwork.square, 3).result(PATIENCE) == 9
    pool = executor._give.__self__._owner  # type: ignore[attr-defined]
    pool.close()
    pool.join()


def test_an_executor_of_a_forked_child_says_that_it_has_no_workers() -> None:
    with mpkit.TaskPool(1) as pool, pool.options(name="mine").executor as executor:
        executor.submit(poolwork.square, 1).result(PATIENCE)
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            try:
                executor.submit(poolwork.square, 1)
            except mpkit.PoolClosed as error:
                os.write(writer, pickle.dumps(error))
            finally:
                executor.shutdown()
                os._exit(0)
        os.close(writer)
        os.waitpid(child, 0)
        with open(reader, "rb") as said:
            assert f"belongs to process {os.getpid()}" in str(pickle.load(said))
