"""Programs written for multiprocessing.Pool run with only their import changed.

Each test is such a program, and runs with both.
"""

from __future__ import annotations

import multiprocessing
from typing import Any

import pytest

import mpkit
from tests import poolwork
from tests.support import PATIENCE


@pytest.fixture(params=["multiprocessing", "mpkit"])
def Pool(request: pytest.FixtureRequest, start_method: str) -> Any:
    """Return the class under its usual name."""
    return multiprocessing.Pool if request.param == "multiprocessing" else mpkit.TaskPool


def test_the_first_example_of_the_documentation(Pool: Any) -> None:
    with Pool(processes=4) as pool:
        assert pool.map(poolwork.square, range(10)) == [0, 1, 4, 9, 16, 25, 36, 49, 64, 81]
        assert list(pool.imap_unordered(poolwork.square, range(0))) == []
        result = pool.apply_async(poolwork.square, (20,))
        assert result.get(timeout=PATIENCE) == 400
        several = [pool.apply_async(poolwork.pid_of_worker, ()) for _ in range(4)]
        assert all(r.get(timeout=PATIENCE) for r in several)


def test_a_result_that_is_not_there_in_time(Pool: Any) -> None:
    go = mpkit.Signal()
    with Pool(processes=1) as pool:
        result = pool.apply_async(poolwork.wait_for, [go])
        assert not result.ready()
        with pytest.raises(multiprocessing.TimeoutError):
            result.get(timeout=0.01)
        with pytest.raises(ValueError):
            result.successful()
        result.wait(0.01)
        go.set()
        assert result.get(timeout=PATIENCE)
        assert result.ready()
        assert result.successful()


def test_close_join_and_what_comes_after(Pool: Any) -> None:
    pool = Pool(2)
    results = [pool.apply_async(poolwork.square, (n,)) for n in range(10)]
    pool.close()
    pool.join()
    assert [result.get(0) for result in results] == [n * n for n in range(10)]
    with pytest.raises(ValueError):
        pool.apply(poolwork.square, (1,))


def test_join_before_close_is_an_error(Pool: Any) -> None:
    pool = Pool(1)
    with pytest.raises(ValueError):
        pool.join()
    pool.terminate()
    pool.join()


def test_arguments_by_position_and_by_keyword(Pool: Any) -> None:
    with Pool(2, poolwork.remember, ("x",), 5) as pool:
        assert pool.apply(poolwork.recall) == "x"
    with Pool(
        processes=1, initializer=poolwork.remember, initargs=["y"], maxtasksperchild=1
    ) as pool:
        pids = [pool.apply(poolwork.pid_of_worker) for _ in range(2)]
        assert pids[0] != pids[1]
        assert pool.apply(func=poolwork.add, args=(1,), kwds={"right": 2}) == 3
        assert pool.map(func=poolwork.square, iterable=[1, 2], chunksize=1) == [1, 4]
        assert pool.starmap(func=poolwork.add, iterable=[(1, 2)], chunksize=1) == [3]


def test_callbacks_by_position_and_by_keyword(Pool: Any) -> None:
    results: list[Any] = []
    errors: list[Any] = []
    with Pool(1) as pool:
        pool.apply_async(poolwork.square, (2,), {}, results.append).wait(PATIENCE)
        pool.map_async(poolwork.square, [3], 1, results.append).wait(PATIENCE)
        pool.starmap_async(poolwork.add, [(1, 1)], callback=results.append).wait(PATIENCE)
        pool.apply_async(poolwork.picky, (-1,), error_callback=errors.append).wait(PATIENCE)
        pool.map_async(poolwork.picky, [-2], error_callback=errors.append).wait(PATIENCE)
    assert results == [4, [9], [2]]
    assert [(type(error), error.args) for error in errors] == [
        (ValueError, (-1,)),
        (ValueError, (-2,)),
    ]


def test_iterators_have_next_with_a_timeout(Pool: Any) -> None:
    go = mpkit.Signal()
    with Pool(1) as pool:
        iterator = pool.imap(poolwork.wait_for, [go])
        with pytest.raises(multiprocessing.TimeoutError):
            iterator.next(timeout=0.01)
        go.set()
        assert iterator.next(timeout=PATIENCE)
        with pytest.raises(StopIteration):
            iterator.next()


def test_iterators_go_on_behind_an_error(Pool: Any) -> None:
    with Pool(1) as pool:
        iterator = pool.imap(poolwork.picky, [1, -1, 2])
        assert next(iterator) == 2
        with pytest.raises(ValueError):
            next(iterator)
        assert next(iterator) == 4


def test_maps_take_any_iterable_and_none_at_all(Pool: Any) -> None:
    with Pool(2) as pool:
        assert pool.map(poolwork.square, (n for n in range(5))) == [0, 1, 4, 9, 16]
        assert pool.map(poolwork.square, {3}) == [9]
        assert pool.map(poolwork.square, []) == []
        assert pool.starmap(poolwork.add, iter([(1, 2)])) == [3]
        with pytest.raises(TypeError):
            pool.map(poolwork.square, 5)


def test_errors_keep_their_type_arguments_and_remote_traceback(Pool: Any) -> None:
    with Pool(1) as pool:
        with pytest.raises(ValueError) as caught:
            pool.apply(poolwork.picky, (-7,))
    assert caught.value.args == (-7,)
    assert "in picky" in str(caught.value.__cause__)


@pytest.mark.parametrize("wrong", [{"processes": -1}, {"processes": 2, "maxtasksperchild": 0}])
def test_wrong_arguments_fail_at_the_call(Pool: Any, wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError):
        Pool(**wrong)
    with pytest.raises(TypeError):
        Pool(1, initializer=5)
