"""Whatever the items, chunks and failures: a pool's results are the builtin's."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import mpkit
from tests import poolwork

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

ITEMS = st.lists(st.integers(-3, 50), max_size=60)
CHUNKS = st.none() | st.integers(1, 70)
#: All examples of a test share a pool: what is left over from one would show in the next.
RELAXED = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture(params=[0, 1, 2, 3])
def pool(request: pytest.FixtureRequest) -> Iterator[mpkit.TaskPool]:
    with mpkit.TaskPool(request.param) as pool:
        pool.map(poolwork.square, range(9))
        yield pool


def builtin(items: list[int]) -> list[int] | str:
    try:
        return list(map(poolwork.picky, items))
    except ValueError as error:
        return str(error)


@RELAXED
@given(items=ITEMS, chunksize=CHUNKS)
def test_map_equals_the_builtin(
    pool: mpkit.TaskPool, items: list[int], chunksize: int | None
) -> None:
    expected = builtin(items)
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=f"^{expected}$"):
            pool.map(poolwork.picky, items, chunksize)
    else:
        assert pool.map(poolwork.picky, items, chunksize) == expected


@RELAXED
@given(items=ITEMS, chunksize=st.integers(1, 9))
def test_imap_keeps_the_order_and_goes_on_behind_a_failure(
    pool: mpkit.TaskPool, items: list[int], chunksize: int
) -> None:
    results = pool.imap(poolwork.picky, items, chunksize)
    for item in items:
        if item < 0:
            with pytest.raises(ValueError, match=f"^{item}$"):
                next(results)
        else:
            assert next(results) == 2 * item
    with pytest.raises(StopIteration):
        next(results)


@RELAXED
@given(items=ITEMS, chunksize=st.integers(1, 9), ordered=st.booleans())
def test_an_asynchronous_input_is_one_like_any_other(
    pool: mpkit.TaskPool, items: list[int], chunksize: int, ordered: bool
) -> None:
    async def numbers() -> AsyncIterator[int]:
        for item in items:
            await asyncio.sleep(0)
            yield item

    async def main() -> list[int]:
        aimap = pool.aimap if ordered else pool.aimap_unordered
        return [result async for result in aimap(poolwork.square, numbers(), chunksize)]

    found = asyncio.run(main())
    squares = [item * item for item in items]
    assert found == squares if ordered else sorted(found) == sorted(squares)


@RELAXED
@given(items=st.lists(st.integers(0, 50), max_size=60), chunksize=st.integers(1, 9))
def test_imap_unordered_is_a_permutation(
    pool: mpkit.TaskPool, items: list[int], chunksize: int
) -> None:
    results = list(pool.imap_unordered(poolwork.square, items, chunksize))
    assert sorted(results) == sorted(item * item for item in items)


@RELAXED
@given(items=st.lists(st.tuples(st.integers(), st.integers()), max_size=30), chunksize=CHUNKS)
def test_starmap_equals_the_builtin(
    pool: mpkit.TaskPool, items: list[tuple[int, int]], chunksize: int | None
) -> None:
    assert pool.starmap(poolwork.add, items, chunksize) == [a + b for a, b in items]


@RELAXED
@given(items=ITEMS)
def test_callbacks_are_called_exactly_once_and_here(pool: mpkit.TaskPool, items: list[int]) -> None:
    called: list[tuple[int, int, str]] = []

    def note(index: int, kind: str) -> None:
        called.append((os.getpid(), index, kind))

    tasks = [
        pool.apply_async(
            poolwork.picky,
            (item,),
            callback=lambda _, index=index: note(index, "result"),  # type: ignore[misc]
            error_callback=lambda _, index=index: note(index, "error"),  # type: ignore[misc]
        )
        for index, item in enumerate(items)
    ]
    for task in tasks:
        task.wait()
    assert sorted(called) == [
        (os.getpid(), index, "error" if item < 0 else "result") for index, item in enumerate(items)
    ]
