"""Whatever the items, chunks and buffers: an executor's map is the builtin's, and no greedier."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

import mpkit
from tests import poolwork
from tests.property.test_pool_results import RELAXED

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from mpkit import PoolExecutor

ITEMS = st.lists(st.integers(-3, 50), max_size=40)


@pytest.fixture(params=["processes", "threads", "inline"])
def pool(request: pytest.FixtureRequest) -> Iterator[mpkit.TaskPool]:
    if request.param == "threads":
        with ThreadPoolExecutor(2) as threads, mpkit.TaskPool(on=threads) as pool:
            yield pool
    else:
        with mpkit.TaskPool(2 if request.param == "processes" else 0) as pool:
            yield pool


@pytest.fixture(params=["pool", "view"])
def executor(pool: mpkit.TaskPool, request: pytest.FixtureRequest) -> PoolExecutor:
    return pool.executor if request.param == "pool" else pool.options(name="view").executor


def until_failure(results: Iterable[int]) -> tuple[list[int], str]:
    """Return what there was before an item that failed, and its error."""
    taken: list[int] = []
    try:
        for result in results:
            taken.append(result)
    except ValueError as error:
        return taken, str(error)
    return taken, ""


@RELAXED
@given(
    items=ITEMS,
    others=ITEMS,
    chunksize=st.integers(1, 9),
    buffersize=st.none() | st.integers(1, 5),
)
def test_map_equals_the_builtin(
    executor: PoolExecutor,
    items: list[int],
    others: list[int],
    chunksize: int,
    buffersize: int | None,
) -> None:
    results = executor.map(poolwork.add, items, others, chunksize=chunksize, buffersize=buffersize)
    assert list(results) == list(map(poolwork.add, items, others))


@RELAXED
@given(items=ITEMS, chunksize=st.integers(1, 9), buffersize=st.none() | st.integers(1, 5))
def test_a_failure_comes_in_its_turn_and_fails_its_chunk(
    executor: PoolExecutor, items: list[int], chunksize: int, buffersize: int | None
) -> None:
    before, error = until_failure(map(poolwork.picky, items))
    if error:
        before = before[: len(before) // chunksize * chunksize]
    results = executor.map(poolwork.picky, items, chunksize=chunksize, buffersize=buffersize)
    assert until_failure(results) == (before, error)
    assert list(results) == []  # as of any generator that has raised


@RELAXED
@given(
    items=st.lists(st.integers(), max_size=40),
    chunksize=st.integers(1, 4),
    buffersize=st.integers(1, 5),
)
def test_no_more_is_pulled_than_the_buffer_holds(
    executor: PoolExecutor, items: list[int], chunksize: int, buffersize: int
) -> None:
    pulled: list[int] = []

    def watched() -> Iterator[int]:
        for item in items:
            pulled.append(item)
            yield item

    results = executor.map(poolwork.square, watched(), chunksize=chunksize, buffersize=buffersize)
    most = chunksize * buffersize
    assert len(pulled) == min(most, len(items))
    for taken, _ in enumerate(results, 1):
        # Of the chunk that is taken just now, the rest is not taken, but in our hands.
        begun = -(-taken // chunksize) * chunksize
        assert len(pulled) <= begun + most
    assert pulled == items
