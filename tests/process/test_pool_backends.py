"""What holds for a pool whatever it runs on; and where that makes a difference, which."""

from __future__ import annotations

import asyncio
import concurrent.futures
import multiprocessing
import os
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

import mpkit
from tests import poolwork
from tests.backends import CASES, KINDS, POOL_OPTIONS, TASK_OPTIONS, Kind
from tests.support import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(params=CASES, ids="-".join)
def kind(request: pytest.FixtureRequest) -> Iterator[Kind]:
    name, method = request.param
    before = multiprocessing.get_start_method(allow_none=True)
    kind = KINDS[name]
    if kind.on_dask:
        clusters = {
            1: request.getfixturevalue("cluster_of_one"),
            2: request.getfixturevalue("cluster"),
        }
        kind = replace(kind, client=lambda workers: clusters[workers].client())
    multiprocessing.set_start_method(method, force=True)
    yield kind
    multiprocessing.set_start_method(before, force=True)


# what is the same


def test_both_accents_give_the_same_results(kind: Kind) -> None:
    with kind.pool() as pool:
        assert pool.apply(poolwork.add, (1, 2)) == 3
        assert pool.apply(poolwork.add, (1,), {"right": 2}) == 3
        assert pool.apply_async(poolwork.add, (1, 2)).get(PATIENCE) == 3
        assert pool.submit(poolwork.add, 1, right=2).result(PATIENCE) == 3
        assert pool.map(poolwork.square, range(10)) == [n * n for n in range(10)]
        assert pool.map(poolwork.square, []) == []
        assert pool.map_async(poolwork.square, [3]).get(PATIENCE) == [9]
        assert pool.starmap(poolwork.add, [(1, 2), (3, 4)]) == [3, 7]
        assert pool.starmap_async(poolwork.add, [(1, 2)]).get(PATIENCE) == [3]
        assert list(pool.imap(poolwork.square, range(10), 3)) == [n * n for n in range(10)]
        assert sorted(pool.imap_unordered(poolwork.square, range(5))) == [0, 1, 4, 9, 16]


def test_leaving_the_block_finishes_the_work(kind: Kind) -> None:
    with kind.pool() as pool:
        tasks = [pool.submit(poolwork.square, n) for n in range(50)]
    assert [task.result(0) for task in tasks] == [n * n for n in range(50)]


def test_a_closed_pool_takes_nothing_and_says_so(kind: Kind) -> None:
    with kind.pool() as pool:
        with pytest.raises(ValueError, match="close"):
            pool.join()
        pool.close()
        pool.close()
        assert pool.join(PATIENCE)
        for error in (mpkit.PoolClosed, ValueError, RuntimeError):
            with pytest.raises(error, match="closed"):
                pool.submit(poolwork.square, 1)
            with pytest.raises(error, match="closed"):
                pool.map(poolwork.square, [])
        pool.terminate()
        with pytest.raises(mpkit.PoolClosed, match="terminated"):
            pool.submit(poolwork.square, 1)


def test_the_first_item_that_fails_fails_a_map_and_no_other_task(kind: Kind) -> None:
    with kind.pool() as pool:
        with pytest.raises(ValueError, match="-3"):
            pool.map(poolwork.picky, [1, -3, 2, -5, 4], 1)
        results = pool.imap(poolwork.picky, [1, -1, 2])
        assert results.next(PATIENCE) == 2
        with pytest.raises(ValueError, match="-1"):
            results.next(PATIENCE)
        assert list(results) == [4]


@pytest.mark.parametrize("way", ["task", "map", "imap"])
def test_an_exit_of_a_task_is_not_one_of_the_program(kind: Kind, way: str) -> None:
    with kind.pool() as pool:
        with pytest.raises(mpkit.TaskExit) as caught:
            if way == "task":
                pool.submit(poolwork.die, "sys.exit").result(PATIENCE)
            elif way == "map":
                pool.map(poolwork.die, ["sys.exit"])
            else:
                next(pool.imap(poolwork.die, ["sys.exit"]))
        assert caught.value.code == 3
        with pytest.raises(mpkit.RemoteError, match="base"):
            pool.submit(poolwork.die, "BaseException").result(PATIENCE)
        assert pool.apply(poolwork.square, (2,)) == 4


def test_callbacks_run_here_and_before_the_result_is_had(kind: Kind) -> None:
    seen: list[object] = []
    with kind.pool() as pool:
        good = pool.apply_async(poolwork.square, (3,), callback=lambda v: seen.append(v))
        assert good.get(PATIENCE) == 9
        assert seen == [9]
        bad = pool.apply_async(poolwork.picky, (-1,), error_callback=lambda e: seen.append(e))
        bad.wait(PATIENCE)
        assert isinstance(seen[1], ValueError)


@pytest.mark.parametrize("error", [RuntimeError, SystemExit])
def test_a_callback_that_raises_is_reported_and_harms_nothing(
    kind: Kind, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    reported: list[BaseException] = []
    monkeypatch.setattr("sys.excepthook", lambda kind, error, trace: reported.append(error))

    def callback(_: object) -> None:
        raise error("mine")

    with kind.pool() as pool:
        assert pool.apply_async(poolwork.square, (3,), callback=callback).get(PATIENCE) == 9
        assert pool.apply(poolwork.square, (4,)) == 16
    assert [type(raised) for raised in reported] == [error]
    assert "the pool goes on" in reported[0].__notes__[0]


def test_a_callback_may_submit_and_must_not_wait(kind: Kind) -> None:
    """It would wait for itself."""
    refused: list[BaseException] = []
    submitted: list[mpkit.Task[int]] = []

    with kind.pool() as pool:

        def callback(_: int) -> None:
            submitted.append(pool.submit(poolwork.square, 5))
            for wait in (submitted[0].result, pool.join):
                try:
                    wait(PATIENCE)
                except (RuntimeError, ValueError) as error:
                    refused.append(error)

        assert pool.apply_async(poolwork.square, (3,), callback=callback).get(PATIENCE) == 9
        assert submitted[0].result(PATIENCE) == 25
    assert [type(error) for error in refused] == [RuntimeError, ValueError]


def test_a_task_is_run_again_only_if_asked_for_and_tells_of_each_attempt(
    kind: Kind, tmp_path: Path
) -> None:
    with kind.pool() as pool:
        once = pool.submit(poolwork.fail_so_often, str(tmp_path / "once"), 1)
        assert isinstance(once.exception(PATIENCE), ConnectionError)
        assert poolwork.notes(str(tmp_path / "once")) == ["try"]

        view = pool.options(retries=2, retry_on=(ConnectionError,))
        again = view.submit(poolwork.fail_so_often, str(tmp_path / "again"), 2)
        assert again.result(PATIENCE) == again.attempts == 3
        never = view.submit(poolwork.fail_so_often, str(tmp_path / "never"), 9)
        error = never.exception(PATIENCE)
        assert isinstance(error, ConnectionError)
        assert "attempt 2 failed with ConnectionError: no answer to call 2" in error.__notes__[0]
        other = view.submit(poolwork.picky, -1)
        assert isinstance(other.exception(PATIENCE), ValueError)
        assert other.attempts == 1


def test_imap_raises_what_its_input_raises_when_its_turn_comes(kind: Kind) -> None:
    def broken() -> Any:
        yield 1
        raise LookupError("input")

    with kind.pool() as pool:
        results = pool.imap(poolwork.square, broken())
        assert next(results) == 1
        with pytest.raises(LookupError, match="input"):
            next(results)
        assert list(results) == []


def test_an_imap_that_was_begun_is_finished_by_a_pool_that_is_closed(
    kind: Kind, tmp_path: Path
) -> None:
    path = str(tmp_path / "notes")
    with kind.pool() as pool:
        results = pool.imap(poolwork.note_it, [(path, n) for n in range(100)])
        assert next(results) == 0
        pool.close()
        assert next(results) == 1
        assert pool.join(PATIENCE)
        assert sorted(map(int, poolwork.notes(path))) == list(range(100))
        assert list(results) == list(range(2, 100))


def test_an_imap_of_a_pool_that_has_ended_says_so(kind: Kind) -> None:
    with kind.pool() as pool:
        results = pool.imap(poolwork.square, poolwork.endless())
        assert next(results) == 0
        pool.terminate()
    # Or, behind what there was, what became of the first that did not end.
    ends = mpkit.PoolClosed, mpkit.WorkerDied, concurrent.futures.CancelledError
    with pytest.raises(ends if kind.ahead else mpkit.PoolClosed):
        list(results)


def test_progress_counts_every_item(kind: Kind) -> None:
    seen: list[tuple[int, int | None]] = []
    with kind.pool() as pool:
        pool.map(poolwork.square, range(10), 3, progress=lambda done, of: seen.append((done, of)))
        assert seen[-1] == (10, 10)
        list(
            pool.imap(poolwork.square, range(4), progress=lambda done, of: seen.append((done, of)))
        )
        assert seen[-4:] == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_stats_count_what_there_was(kind: Kind) -> None:
    with kind.pool() as pool:
        pool.map(poolwork.square, range(8), 1)
        pool.submit(poolwork.picky, -1).wait(PATIENCE)
        pool.close()
        pool.join()
        stats = pool.stats()
    assert (stats.submitted, stats.done, stats.failed, stats.lost) == (9, 8, 1, 0)
    assert (stats.attempts, stats.cancelled, stats.pending) == (9, 0, 0)
    assert sum(worker.tasks for worker in stats.workers) == 9
    assert sum(worker.busy for worker in stats.workers) > 0


def test_the_executor_view_is_one(kind: Kind) -> None:
    with kind.pool() as pool:
        executor = pool.executor
        futures = [executor.submit(poolwork.square, n) for n in range(5)]
        done, _ = concurrent.futures.wait(futures, PATIENCE)
        assert sorted(future.result() for future in done) == [0, 1, 4, 9, 16]
        assert list(executor.map(poolwork.square, range(4), timeout=PATIENCE)) == [0, 1, 4, 9]
        executor.shutdown()
        with pytest.raises(RuntimeError):
            executor.submit(poolwork.square, 1)


def test_asyncio_awaits_tasks_and_iterates_results(kind: Kind) -> None:
    async def main() -> None:
        with kind.pool() as inner:
            async with inner as pool:
                assert await pool.submit(poolwork.square, 3) == 9
                assert [n async for n in pool.imap(poolwork.square, range(5))] == [0, 1, 4, 9, 16]
                loop = asyncio.get_running_loop()
                assert await loop.run_in_executor(pool.executor, poolwork.square, 4) == 16

    asyncio.run(main())


def test_names_and_labels_are_in_errors(kind: Kind) -> None:
    with kind.pool(name="pages") as pool:
        task = pool.options(label="page 3").submit(poolwork.die, "sys.exit")
        with pytest.raises(mpkit.TaskExit) as caught:
            task.result(PATIENCE)
    assert task.name.endswith("(pages, page 3)")
    assert any("page 3" in note for note in caught.value.__notes__)


# in what they differ


def test_where_tasks_run(kind: Kind) -> None:
    with kind.pool() as pool:
        assert (pool.apply(os.getpid) != os.getpid()) == kind.elsewhere
        (thread,) = pool.map(poolwork.thread_name, [None])
        if not kind.ahead:
            assert thread == threading.current_thread().name


def test_whether_tasks_begin_before_anybody_waits(kind: Kind) -> None:
    pulled: list[int] = []
    ahead = threading.Event()

    def numbers() -> Any:
        for number in poolwork.endless():
            pulled.append(number)
            if number > 10:
                ahead.set()
            yield number

    with kind.pool() as pool:
        results = pool.imap(poolwork.square, numbers())
        assert next(results) == 0
        assert not kind.ahead or ahead.wait(PATIENCE)
        assert [next(results) for _ in range(9)] == [n * n for n in range(1, 10)]
        most = 10 + (2 * 32 + 1 if kind.ahead else 0)
        assert len(pulled) <= most
        results.close()


def test_whether_arguments_and_results_are_copies(kind: Kind) -> None:
    items = [1]
    with kind.pool() as pool:
        assert pool.apply(poolwork.append_to, (items, 2)) == [1, 2]
        assert (items == [1]) == kind.copies
        assert (pool.apply(poolwork.append_to, (items, 3)) is not items) == kind.copies


def test_who_tells_of_what_cannot_travel(kind: Kind) -> None:
    lock = threading.Lock()
    with kind.pool() as pool:
        if kind.checks_at_the_call:
            with pytest.raises(mpkit.NotPicklable, match="lock"):
                pool.submit(str, lock)
            with pytest.raises(mpkit.NotPicklable, match="lock"):
                pool.map(str, [1, lock])
            result = pool.submit(poolwork.die, "lambda")
            with pytest.raises(mpkit.NotPicklable, match="result"):
                result.result(PATIENCE)
        elif kind.copies:  # the executor pickles it, in a thread of its own
            assert isinstance(pool.submit(str, lock).exception(PATIENCE), TypeError)
        else:
            assert "lock" in pool.submit(str, lock).result(PATIENCE)
        assert pool.apply(poolwork.square, (2,)) == 4


def test_where_the_traceback_of_an_exception_is(kind: Kind) -> None:
    with kind.pool() as pool:
        error = pool.submit(poolwork.picky, -1).exception(PATIENCE)
    assert isinstance(error, ValueError)
    assert ("picky" in str(error.__cause__)) == kind.tells_traceback
    if not kind.elsewhere:  # for a debugger
        trace = error.__traceback__
        assert trace is not None
        while trace.tb_next is not None:
            trace = trace.tb_next
        assert trace.tb_frame.f_locals["number"] == -1


def test_what_becomes_of_a_task_that_takes_too_long(kind: Kind) -> None:
    if "timeout" in kind.refused:
        with kind.pool() as pool, pytest.raises(ValueError, match="timeout"):
            pool.options(timeout=0.2)
        return
    with kind.pool(1) as pool:
        late = pool.options(timeout=0.2, retries=1).submit(poolwork.be_busy, 0.5)
        with pytest.raises(mpkit.TaskTimeout, match=r"0\.2 s") as caught:
            late.result(PATIENCE)
        assert late.attempts == 2
        assert (caught.value.pid is not None) == kind.elsewhere
        why = "goes on with the call" if kind.elsewhere else "ended by itself"
        assert kind.stops or why in "".join(caught.value.__notes__)
        assert pool.apply(poolwork.square, (3,)) == 9


def test_what_can_be_cancelled_and_what_can_be_killed(kind: Kind) -> None:
    began, go = mpkit.Signal(), mpkit.Signal()
    if not kind.ahead:
        go.set()  # or it would wait for ever
    with kind.pool(1) as pool:
        running = pool.submit(poolwork.tell_and_wait, began, go)
        assert began.wait(PATIENCE)
        waiting = [pool.submit(poolwork.square, n) for n in range(9)]
        # Executors of processes have one more on its way.
        assert [task.cancel() for task in waiting[4:]] == [kind.ahead] * 5
        assert not running.cancel()
        assert running.kill() == kind.stops
        if kind.stops:
            assert isinstance(running.exception(PATIENCE), mpkit.WorkerDied)
        go.set()
        if kind.ahead:
            done, _ = concurrent.futures.wait(waiting[4:], PATIENCE)
            assert len(done) == 5
        assert [task.result(PATIENCE) for task in waiting[:4]] == [0, 1, 4, 9]
    if not kind.stops:
        assert running.result(0)


@pytest.mark.parametrize("option", POOL_OPTIONS)
def test_what_of_a_pool_is_taken_and_what_is_refused(kind: Kind, option: str) -> None:
    given = {option: POOL_OPTIONS[option]}
    if option in kind.refused:
        with pytest.raises(ValueError, match=f"{option}=.* on=" if kind.executor else f"{option}="):
            with kind.pool(**given):
                pass
    elif option == "memory_hard_limit" and not kind.ahead:
        with pytest.warns(RuntimeWarning, match="no effect"):
            with kind.pool(**given) as pool:
                assert pool.apply(poolwork.square, (2,)) == 4
    elif option == "initializer":
        with kind.pool(1, initializer=poolwork.remember, initargs=("ready",)) as pool:
            assert pool.map(poolwork.recall, range(4)) == ["ready"] * 4
    else:
        with kind.pool(**given) as pool:
            assert pool.map(poolwork.square, range(9), 1) == [n * n for n in range(9)]


@pytest.mark.parametrize("option", TASK_OPTIONS)
def test_what_of_a_task_is_taken_and_what_is_refused(kind: Kind, option: str) -> None:
    given = {option: TASK_OPTIONS[option]}
    with kind.pool() as pool:
        if option not in kind.refused:
            assert pool.options(**given).apply(poolwork.square, (2,)) == 4
            return
        with pytest.raises(ValueError, match=f"cannot honour {option}="):
            pool.options(**given)
    with pytest.raises(ValueError, match=f"cannot honour {option}="):
        with kind.pool(**given):
            pass


def test_a_failing_initializer_fails_every_task_with_its_error(kind: Kind) -> None:
    if "initializer" in kind.refused:
        return  # see above
    with kind.pool(2, initializer=poolwork.fail_in_initializer) as pool:
        tasks = [pool.submit(poolwork.square, n) for n in range(5)]
        for task in tasks:
            with pytest.raises(mpkit.WorkerInitError, match="no database") as caught:
                task.result(PATIENCE)
            assert caught.value.attempts >= 3
            assert isinstance(caught.value.__cause__, OSError)


def test_a_pool_is_not_for_its_own_tasks(kind: Kind) -> None:
    """In a worker there is no such pool, or one of another process."""
    if kind.elsewhere or kind.executor is not None:
        return  # it could not be given to one; and threads may share it
    with kind.pool() as pool:
        poolwork.pools["it"] = pool
        try:
            with pytest.raises(mpkit.PoolClosed, match="belongs to process"):
                pool.apply(poolwork.use_pool)
        finally:
            del poolwork.pools["it"]
        assert pool.map(poolwork.nested, [2, 3]) == [[0, 1], [0, 1, 4]]
