"""Programs that no one here wrote, on a pool: their results are those that they have without.

Each of them takes an executor, a map or a backend, and knows nothing of mpkit.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import io
import itertools
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

import mpkit
from tests import poolwork
from tests.support import PATIENCE, python

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

pytestmark = [pytest.mark.any_python, pytest.mark.usefixtures("start_method")]


@pytest.fixture
def pool(start_method: str) -> Iterator[mpkit.TaskPool]:
    with mpkit.TaskPool(2) as pool:
        yield pool


def worked(pool: mpkit.TaskPool, tasks: int) -> bool:
    """Tell whether at least so many tasks were run by workers, and all ended well."""
    stats = pool.stats()
    return stats.done >= tasks and not stats.failed and not stats.lost


# SciPy


def rosenbrock(point: Sequence[float]) -> float:
    """Return the function of the valley, whose lowest point is (1, 1, ...)."""
    return sum(
        100.0 * (right - left**2) ** 2 + (1 - left) ** 2
        for left, right in itertools.pairwise(point)
    )


@pytest.mark.parametrize("by", ["map", "executor"])
def test_scipy_evolves_a_population_in_a_pool(pool: mpkit.TaskPool, by: str) -> None:
    optimize = pytest.importorskip("scipy.optimize")

    def minimum(workers: Any) -> Any:
        bounds = [(-2, 2)] * 3
        return optimize.differential_evolution(
            rosenbrock,
            bounds,
            rng=7,
            maxiter=15,
            polish=False,
            updating="deferred",
            workers=workers,
        )

    serial = minimum(1)
    ours = minimum(pool.map if by == "map" else pool.executor.map)
    assert ours.fun == serial.fun
    assert ours.x.tolist() == serial.x.tolist()
    assert ours.nfev == serial.nfev
    assert worked(pool, ours.nit)


def test_scipy_searches_a_grid_in_a_pool(pool: mpkit.TaskPool) -> None:
    optimize = pytest.importorskip("scipy.optimize")
    grid = (slice(-2, 2, 0.5),) * 2
    serial = optimize.brute(rosenbrock, grid, finish=None)
    assert (
        optimize.brute(rosenbrock, grid, finish=None, workers=pool.map).tolist() == serial.tolist()
    )
    assert worked(pool, 2)


# scikit-learn, through joblib


@pytest.fixture
def joblib() -> Any:
    pytest.importorskip("mpkit.joblib", exc_type=ImportError)  # registers it
    return pytest.importorskip("joblib")


def test_scikit_learn_searches_for_parameters_in_a_pool(pool: mpkit.TaskPool, joblib: Any) -> None:
    pytest.importorskip("sklearn")
    from sklearn.datasets import load_iris
    from sklearn.model_selection import GridSearchCV
    from sklearn.tree import DecisionTreeClassifier

    numbers, kinds = load_iris(return_X_y=True)

    def search() -> Any:
        tree = DecisionTreeClassifier(random_state=7)
        return GridSearchCV(tree, {"max_depth": [1, 2, 3]}, cv=3).fit(numbers, kinds)

    serial = search()
    with joblib.parallel_config("mpkit", pool=pool):
        ours = search()
    assert ours.best_params_ == serial.best_params_
    for score in ("mean_test_score", "rank_test_score", "split0_test_score"):
        assert ours.cv_results_[score].tolist() == serial.cv_results_[score].tolist()
    assert ours.predict(numbers).tolist() == serial.predict(numbers).tolist()
    assert worked(pool, 3)


def test_scikit_learn_grows_a_forest_in_workers_of_its_own(joblib: Any) -> None:
    pytest.importorskip("sklearn")
    from sklearn.datasets import load_iris
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.model_selection import cross_val_score

    numbers, kinds = load_iris(return_X_y=True)
    forest = RandomForestClassifier(n_estimators=5, random_state=7)
    serial = cross_val_score(forest, numbers, kinds, cv=4)
    with joblib.parallel_config("mpkit", n_jobs=2):
        ours = cross_val_score(forest, numbers, kinds, cv=4)
    assert ours.tolist() == serial.tolist()


# Dask


def test_dask_computes_delayed_calls_in_an_executor(pool: mpkit.TaskPool) -> None:
    dask = pytest.importorskip("dask")
    square, add = dask.delayed(poolwork.square), dask.delayed(poolwork.add)
    total = square(1)
    for number in range(2, 9):
        total = add(total, square(number))
    (serial,) = dask.compute(total, scheduler="synchronous")
    assert dask.compute(total, scheduler=pool.executor) == (serial,)
    assert worked(pool, 2)
    patient = pool.options(timeout=PATIENCE).executor
    assert dask.compute(total, scheduler=patient) == (serial,)
    with pytest.raises(LookupError, match="no such thing"):
        dask.compute(dask.delayed(poolwork.die)("exception"), scheduler=pool.executor)


def test_dask_computes_arrays_in_an_executor(pool: mpkit.TaskPool) -> None:
    array = pytest.importorskip("dask.array")
    numbers = array.arange(40_000, chunks=5_000).reshape(200, 200)
    means = (numbers + numbers.T).mean(axis=0)
    serial = means.compute(scheduler="synchronous")
    ours = means.compute(scheduler=pool.executor)
    assert ours.tolist() == serial.tolist()
    assert worked(pool, 8)


# asyncio


def test_asyncio_gathers_what_an_executor_runs(pool: mpkit.TaskPool) -> None:
    async def main() -> list[int]:
        loop = asyncio.get_running_loop()
        runs = [loop.run_in_executor(pool.executor, poolwork.square, n) for n in range(50)]
        return await asyncio.gather(*runs)

    assert asyncio.run(main()) == [n * n for n in range(50)]
    assert worked(pool, 50)


def test_asyncio_goes_on_while_an_executor_runs(pool: mpkit.TaskPool) -> None:
    async def main() -> bool:
        go = mpkit.Signal()
        loop = asyncio.get_running_loop()
        waits = loop.run_in_executor(pool.executor, poolwork.wait_for, go)
        first = await loop.run_in_executor(pool.executor, poolwork.square, 3)
        assert first == 9
        go.set()
        return await asyncio.wait_for(waits, PATIENCE)

    assert asyncio.run(main())


# tqdm


@pytest.fixture
def tqdm(monkeypatch: pytest.MonkeyPatch) -> Any:
    module = pytest.importorskip("tqdm")
    monkeypatch.setattr(module.tqdm, "monitor_interval", 0)  # a thread that would be left
    return module


@pytest.mark.parametrize("method", ["imap", "imap_unordered"])
def test_tqdm_counts_what_comes(pool: mpkit.TaskPool, tqdm: Any, method: str) -> None:
    screen = io.StringIO()
    results = getattr(pool, method)(poolwork.square, range(200))
    bar = tqdm.tqdm(results, total=200, file=screen, mininterval=0)
    assert sorted(bar) == [n * n for n in range(200)]
    assert "200/200" in screen.getvalue()


def test_tqdm_counts_what_an_executor_maps(pool: mpkit.TaskPool, tqdm: Any) -> None:
    """As its ``process_map`` does, which makes an executor of the library and shuts it down."""
    screen = io.StringIO()
    with pool.options(name="mapped").executor as executor:
        mapped = executor.map(poolwork.square, range(100), chunksize=7)
        bar = tqdm.tqdm(mapped, total=100, file=screen, mininterval=0)
        assert list(bar) == [n * n for n in range(100)]
    assert "100/100" in screen.getvalue()
    assert worked(pool, 15)


# concurrent.futures


def test_futures_of_a_pool_and_of_threads_are_waited_for_together(pool: mpkit.TaskPool) -> None:
    with ThreadPoolExecutor(2) as threads:
        by = {
            executor.submit(poolwork.square, n): n
            for n in range(40)
            for executor in (threads, pool.executor)
        }
        done = [(by[future], future.result()) for future in concurrent.futures.as_completed(by)]
    assert sorted(done) == sorted((n, n * n) for n in range(40) for _ in range(2))
    assert worked(pool, 40)


WITH_TBLIB = """
import tblib.pickling_support
import mpkit

def fail():
    first, second = ValueError("first"), KeyError("second")
    first.__cause__, second.__cause__ = second, first
    raise first

if __name__ == "__main__":
    tblib.pickling_support.install()
    with mpkit.TaskPool(1, context="fork") as pool:
        error = pool.submit(fail).exception()
    print(repr(error), repr(error.__cause__), type(error.__cause__.__cause__).__name__)
"""


def test_exceptions_travel_as_ever_where_tblib_has_its_reducers_for_them() -> None:
    """Dask has it put them there, for all that are known by then."""
    pytest.importorskip("tblib")
    with python(WITH_TBLIB) as program:
        said, _ = program.communicate(timeout=PATIENCE)
    assert said == "ValueError('first') KeyError('second') RemoteTraceback\n"
