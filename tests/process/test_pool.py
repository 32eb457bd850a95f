"""TaskPool in normal use, under every start method."""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import os
import threading
from typing import TYPE_CHECKING, Any

import pytest

import mpkit
from mpkit._pool.lookahead import AHEAD, MOST_TIMES
from tests import poolwork
from tests.support import PATIENCE, until

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("start_method")


def test_leaving_the_block_finishes_the_work() -> None:
    with mpkit.TaskPool(2) as pool:
        tasks = [pool.submit(poolwork.square, n) for n in range(200)]
    assert [task.result(0) for task in tasks] == [n * n for n in range(200)]


def test_an_exception_in_the_block_stops_what_runs_and_cancels_what_waits() -> None:
    began = mpkit.Signal()
    with pytest.raises(LookupError, match="mine"):
        with mpkit.TaskPool(1) as pool:
            running = pool.submit(poolwork.sleep_for_ever, began)
            waiting = pool.submit(poolwork.square, 1)
            assert began.wait(PATIENCE)
            raise LookupError("mine")
    assert waiting.cancelled()
    assert isinstance(running.exception(0), mpkit.WorkerDied)


def test_terminate_settles_everything_from_any_thread_and_twice() -> None:
    pool, began = mpkit.TaskPool(1), mpkit.Signal()
    tasks = [pool.submit(poolwork.sleep_for_ever, began), pool.submit(poolwork.square, 2)]
    assert began.wait(PATIENCE)
    threads = [threading.Thread(target=pool.terminate) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert pool.join(PATIENCE)
    assert all(task.done() for task in tasks)


def test_an_exception_comes_with_the_traceback_of_its_worker() -> None:
    with mpkit.TaskPool(1) as pool:
        task = pool.submit(poolwork.picky, -1)
        with pytest.raises(ValueError, match="-1") as caught:
            task.result(PATIENCE)
    assert "picky" in str(caught.value.__cause__)
    assert not task.successful()


def test_a_callback_runs_here_and_before_the_result_is_had() -> None:
    seen: list[tuple[str, object, int]] = []
    with mpkit.TaskPool(2) as pool:
        good = pool.apply_async(
            poolwork.square, (3,), callback=lambda v: seen.append(("good", v, os.getpid()))
        )
        assert good.get(PATIENCE) == 9
        assert seen == [("good", 9, os.getpid())]
        bad = pool.apply_async(
            poolwork.picky, (-1,), error_callback=lambda e: seen.append(("bad", e, os.getpid()))
        )
        bad.wait(PATIENCE)
        assert seen[1][0] == "bad"
        assert isinstance(seen[1][1], ValueError)


def test_an_initializer_prepares_every_worker() -> None:
    with mpkit.TaskPool(2, poolwork.remember, ("ready",)) as pool:
        assert pool.map(poolwork.recall, range(8)) == ["ready"] * 8


def test_a_failing_initializer_fails_every_task_with_its_error() -> None:
    with mpkit.TaskPool(2, poolwork.fail_in_initializer) as pool:
        tasks = [pool.submit(poolwork.square, n) for n in range(5)]
        for task in tasks:
            with pytest.raises(mpkit.WorkerInitError, match="no database") as caught:
                task.result(PATIENCE)
            assert isinstance(caught.value.__cause__, OSError)


def test_workers_are_replaced_after_so_many_tasks() -> None:
    with mpkit.TaskPool(1, tasks_per_worker=2) as pool:
        pids = [pool.apply(poolwork.pid_of_worker) for _ in range(6)]
    assert [pids.count(pid) for pid in dict.fromkeys(pids)] == [2, 2, 2]


def test_workers_are_replaced_when_they_grew_too_large() -> None:
    with mpkit.TaskPool(1, memory_limit=1) as pool:
        pids = [pool.apply(poolwork.pid_of_worker) for _ in range(3)]
    assert len(set(pids)) == 3


def test_a_task_that_runs_too_long_is_stopped_and_others_go_on() -> None:
    with mpkit.TaskPool(1) as pool:
        late = pool.options(timeout=0.2).submit(poolwork.sleep_for_ever)
        after = pool.submit(poolwork.square, 3)
        with pytest.raises(mpkit.TaskTimeout, match=r"0\.2 s"):
            late.result(PATIENCE)
        assert after.result(PATIENCE) == 9


def test_a_task_is_run_again_only_if_asked_for(tmp_path: Path) -> None:
    with mpkit.TaskPool(1) as pool:
        once = pool.submit(poolwork.crash_once, str(tmp_path / "once"))
        again = pool.options(retries=1).submit(poolwork.crash_once, str(tmp_path / "again"))
        assert isinstance(once.exception(PATIENCE), mpkit.WorkerDied)
        assert again.result(PATIENCE) == "survived"


def test_higher_priorities_start_first() -> None:
    order: list[str] = []
    began, go = mpkit.Signal(), mpkit.Signal()
    with mpkit.TaskPool(1) as pool:
        pool.submit(poolwork.tell_and_wait, began, go)
        assert began.wait(PATIENCE)
        for name, priority in (("low", -1), ("usual", 0), ("high", 1)):
            task = pool.options(priority=priority).submit(poolwork.square, 1)
            task.add_done_callback(lambda _, name=name: order.append(name))  # type: ignore[misc]
        go.set()
    assert order == ["high", "usual", "low"]


def test_a_waiting_task_can_be_cancelled_and_a_running_one_cannot() -> None:
    began, go = mpkit.Signal(), mpkit.Signal()
    with mpkit.TaskPool(1) as pool:
        running = pool.submit(poolwork.tell_and_wait, began, go)
        waiting = [pool.submit(poolwork.square, n) for n in range(5)]
        assert began.wait(PATIENCE)
        assert [task.cancel() for task in waiting[:4]] == [True] * 4
        assert not running.cancel()
        go.set()
        assert waiting[4].result(PATIENCE) == 16


def test_signals_semaphores_and_channels_are_arguments() -> None:
    here, there = mpkit.channel(send=int, recv=int)
    semaphore = mpkit.Semaphore(2)
    with mpkit.TaskPool(2) as pool:
        echo = pool.submit(poolwork.echo_on, there)
        assert here.request(1, timeout=PATIENCE) == 2
        with pytest.raises(mpkit.ChannelMoved):
            there.send(1)
        here.close()
        assert echo.result(PATIENCE) != os.getpid()
        assert pool.starmap(poolwork.in_limit, [(n, semaphore) for n in range(10)]) == [*range(10)]
    assert semaphore.available == 2


def test_a_task_may_have_a_pool_of_its_own() -> None:
    with mpkit.TaskPool(2) as pool:
        assert pool.map(poolwork.nested, [2, 3]) == [[0, 1], [0, 1, 4]]


def test_large_arrays_arrive_equal_and_writable() -> None:
    numpy = pytest.importorskip("numpy")
    arrays = [numpy.arange(300_000) + n for n in range(5)]
    with mpkit.TaskPool(2) as pool:
        results = pool.map(numpy.negative, arrays)
    for array, result in zip(arrays, results, strict=True):
        assert (array == -result).all()
        result[0] = 1


def test_imap_pulls_an_endless_input_no_further_than_it_must() -> None:
    pulled: list[int] = []

    def numbers() -> Any:
        for number in poolwork.endless():
            pulled.append(number)
            yield number

    with mpkit.TaskPool(2) as pool:
        results = pool.imap(poolwork.square, numbers())
        assert [next(results) for _ in range(100)] == [n * n for n in range(100)]
        assert len(pulled) <= 100 + 2 * AHEAD * MOST_TIMES + 1
        results.close()


class Counter:
    """A function that remembers how often it was called."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, number: int) -> tuple[int, int]:
        self.calls += 1
        return number, self.calls


def test_an_item_finds_the_function_as_it_was_when_imap_was_called(start_method: str) -> None:
    with mpkit.TaskPool(1) as pool:
        counter = Counter()
        results = pool.imap(counter, range(100))
        assert list(results) == [(number, 1) for number in range(100)]


def test_an_item_is_what_it_was_when_it_was_pulled() -> None:
    """Though the input changes it then, and though many travel together."""

    def growing() -> Any:
        item: list[int] = []
        for number in range(200):
            item.append(number)
            yield item

    with mpkit.TaskPool(1) as pool:
        assert list(pool.imap(len, growing())) == list(range(1, 201))


def test_tasks_of_several_functions_share_their_packets() -> None:
    with mpkit.TaskPool(1) as pool:
        squares = pool.imap(poolwork.square, range(300))
        absolute = pool.imap(abs, range(-300, 0))
        tasks = [pool.submit(poolwork.add, number, 1) for number in range(300)]
        assert list(zip(squares, absolute, strict=True)) == [
            (number * number, 300 - number) for number in range(300)
        ]
        assert [task.result() for task in tasks] == list(range(1, 301))


def test_imap_delivers_what_is_ready_though_the_input_is_slow() -> None:
    go = threading.Event()

    def slow() -> Any:
        yield 1
        go.wait(PATIENCE)
        yield 2

    with mpkit.TaskPool(1) as pool:
        results = pool.imap(poolwork.square, slow())
        assert results.next(PATIENCE) == 1
        with pytest.raises(TimeoutError):
            results.next(0.01)
        go.set()
        assert list(results) == [4]


class Slow:
    """An item that is not pickled before somebody lets it."""

    def __init__(self) -> None:
        self.go = threading.Event()

    def __reduce__(self) -> tuple[Any, ...]:
        assert self.go.wait(PATIENCE)
        return int, (3,)


@pytest.mark.parametrize("method", ["imap", "imap_unordered"])
def test_what_is_in_a_list_before_an_item_that_travels_late_or_never_is_there(method: str) -> None:
    slow = Slow()
    items: list[Any] = [*range(2), slow, 4, threading.Lock(), 6]
    with mpkit.TaskPool(1) as pool:
        results = getattr(pool, method)(poolwork.square, items)
        assert [results.next(PATIENCE) for _ in range(2)] == [0, 1]
        slow.go.set()
        assert [next(results) for _ in range(2)] == [9, 16]
        with pytest.raises(mpkit.NotPicklable, match="an item for"):
            next(results)
        with pytest.raises(StopIteration):
            next(results)


def test_imap_raises_what_its_input_raises_when_its_turn_comes() -> None:
    def broken() -> Any:
        yield 1
        raise LookupError("input")

    with mpkit.TaskPool(1) as pool:
        results = pool.imap(poolwork.square, broken())
        assert next(results) == 1
        with pytest.raises(LookupError, match="input"):
            next(results)


def test_progress_counts_every_item() -> None:
    seen: list[tuple[int, int | None]] = []
    with mpkit.TaskPool(2) as pool:
        pool.map(poolwork.square, range(10), 3, progress=lambda done, of: seen.append((done, of)))
        assert seen[-1] == (10, 10)
        list(
            pool.imap(poolwork.square, range(4), progress=lambda done, of: seen.append((done, of)))
        )
        assert seen[-4:] == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_stats_and_trace_tell_what_happened(tmp_path: Path) -> None:
    with mpkit.TaskPool(2) as pool, pool.trace(tmp_path / "run.json"):
        pool.map(poolwork.square, range(8), 1)
        stats = pool.stats()
    assert (stats.submitted, stats.done, stats.failed) == (8, 8, 0)
    assert sum(worker.tasks for worker in stats.workers) == 8
    events = json.loads((tmp_path / "run.json").read_text())["traceEvents"]
    spans = [event for event in events if event["ph"] == "X"]
    assert len(spans) == 8
    assert all(span["dur"] >= 0 and "square" in span["name"] for span in spans)


def test_wait_takes_tasks_jobs_signals_and_channels() -> None:
    up = mpkit.Signal()
    here, there = mpkit.channel(send=int, recv=int)
    with mpkit.TaskPool(1) as pool, mpkit.start(poolwork.wait_for, up) as job:
        task = pool.submit(poolwork.wait_for, up)
        things: tuple[Any, ...] = (up, here, job, task)
        assert mpkit.wait(*things, timeout=0) == []
        there.send(1)
        assert mpkit.wait(*things, timeout=PATIENCE) == [here]
        up.set()
        until(lambda: mpkit.wait(*things, timeout=PATIENCE) == list(things))
        assert job.result(PATIENCE)


def test_the_executor_view_is_one() -> None:
    with mpkit.TaskPool(2) as pool:
        executor = pool.executor
        assert isinstance(executor, concurrent.futures.Executor)
        futures = [executor.submit(poolwork.square, n) for n in range(5)]
        done, _ = concurrent.futures.wait(futures, PATIENCE)
        assert sorted(future.result() for future in done) == [0, 1, 4, 9, 16]
        assert list(executor.map(poolwork.square, range(4), timeout=PATIENCE)) == [0, 1, 4, 9]
        executor.shutdown()
        with pytest.raises(RuntimeError):
            executor.submit(poolwork.square, 1)


def test_asyncio_awaits_tasks_and_iterates_results() -> None:
    async def main() -> None:
        async with mpkit.TaskPool(2) as pool:
            assert await pool.submit(poolwork.square, 3) == 9
            assert [n async for n in pool.imap(poolwork.square, range(5))] == [0, 1, 4, 9, 16]
            loop = asyncio.get_running_loop()
            assert await loop.run_in_executor(pool.executor, poolwork.square, 4) == 16

    asyncio.run(main())


def test_lambdas_travel_with_cloudpickle() -> None:
    pytest.importorskip("cloudpickle")
    with mpkit.TaskPool(1) as pool:
        assert pool.map(lambda number: number + 1, [1, 2]) == [2, 3]


def test_what_cannot_travel_raises_at_the_call() -> None:
    with mpkit.TaskPool(1) as pool:
        with pytest.raises(mpkit.NotPicklable, match="lock"):
            pool.submit(print, threading.Lock())
        assert pool.apply(poolwork.square, (2,)) == 4
