"""An imap in asyncio, whose input may be asynchronous."""

from __future__ import annotations

import asyncio
import itertools
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING

import pytest

import mpkit
from mpkit._pool.lookahead import AHEAD, MOST_TIMES
from tests import poolwork
from tests.support import PATIENCE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


async def numbers(count: int | None = None) -> AsyncIterator[int]:
    for number in itertools.count() if count is None else range(count):
        await asyncio.sleep(0)
        yield number


def test_an_input_of_either_kind(start_method: str) -> None:
    async def main() -> None:
        async with mpkit.TaskPool(2) as pool:
            squares = [n * n for n in range(20)]
            assert [n async for n in pool.aimap(poolwork.square, numbers(20), 3)] == squares
            assert [n async for n in pool.aimap(poolwork.square, range(20))] == squares
            came = [n async for n in pool.aimap_unordered(poolwork.square, numbers(20))]
            assert sorted(came) == squares

    asyncio.run(asyncio.wait_for(main(), PATIENCE))


@pytest.mark.parametrize("seed", [None, 1])
def test_without_workers_the_consumer_pulls_the_input(seed: int | None) -> None:
    """The thread of the loop must not wait for what that loop is to pull."""

    async def main() -> None:
        async with mpkit.TaskPool(0, seed=seed) as pool:
            squares = [n * n for n in range(5)]
            assert [n async for n in pool.aimap(poolwork.square, numbers(5), 2)] == squares
            results = pool.aimap_unordered(poolwork.square, numbers(5))
            by_others = await asyncio.gather(*(anext(results) for _ in range(3)))
            assert [*sorted(by_others), *[n async for n in results]] == squares
            async with pool.aimap(poolwork.square, numbers()) as endless:
                assert [await anext(endless) for _ in range(3)] == squares[:3]

    asyncio.run(asyncio.wait_for(main(), PATIENCE))


def test_without_workers_what_the_input_raises_is_raised_when_its_turn_comes() -> None:
    async def broken() -> AsyncIterator[int]:
        yield 2
        raise LookupError("input")

    async def main() -> None:
        async with mpkit.TaskPool(0) as pool:
            results = pool.aimap(poolwork.square, broken())
            assert await anext(results) == 4
            with pytest.raises(LookupError, match="input"):
                await anext(results)
            with pytest.raises(StopAsyncIteration):
                await anext(results)

    asyncio.run(asyncio.wait_for(main(), PATIENCE))


def test_without_workers_who_waits_in_the_loop_for_its_input_is_told_so() -> None:
    async def main() -> None:
        async with mpkit.TaskPool(0) as pool:
            results = pool.aimap(poolwork.square, numbers(3))
            with pytest.raises(RuntimeError, match="async for"):
                next(results)
            results = pool.aimap(poolwork.square, numbers(3))
            assert await asyncio.to_thread(list, results) == [0, 1, 4]

    asyncio.run(asyncio.wait_for(main(), PATIENCE))


def test_without_workers_a_consumer_who_is_cancelled_loses_no_item() -> None:
    async def main() -> None:
        go = asyncio.Event()

        async def held() -> AsyncIterator[int]:
            await go.wait()
            yield 3

        async with mpkit.TaskPool(0) as pool:
            results = pool.aimap(poolwork.square, held())
            waits = asyncio.ensure_future(anext(results))
            for _ in range(10):
                await asyncio.sleep(0)
            waits.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waits
            go.set()
            assert [n async for n in results] == [9]

    asyncio.run(asyncio.wait_for(main(), PATIENCE))


def test_an_endless_input_is_pulled_no_further_than_it_must() -> None:
    pulled = 0

    async def counted() -> AsyncIterator[int]:
        nonlocal pulled
        async for number in numbers():
            pulled += 1
            yield number

    async def main() -> None:
        async with mpkit.TaskPool(1) as pool, pool.aimap(poolwork.square, counted()) as results:
            async for square in results:
                if square > 10_000:
                    break
        assert pulled <= 102 + AHEAD * MOST_TIMES + 1

    asyncio.run(asyncio.wait_for(main(), PATIENCE))


def test_what_the_input_raises_is_raised_when_its_turn_comes() -> None:
    async def broken() -> AsyncIterator[int]:
        yield 1
        raise LookupError("input")

    async def main() -> None:
        async with mpkit.TaskPool(1) as pool:
            results = pool.aimap(poolwork.square, broken())
            assert await anext(results) == 1
            with pytest.raises(LookupError, match="input"):
                await anext(results)
            with pytest.raises(StopAsyncIteration):
                await anext(results)

    asyncio.run(asyncio.wait_for(main(), PATIENCE))


def test_a_loop_that_ends_ends_an_input_that_waits() -> None:
    pool = mpkit.TaskPool(1)
    results: list[mpkit.Results[int]] = []

    async def stuck() -> AsyncIterator[int]:
        yield 1
        await asyncio.Event().wait()

    async def main() -> None:
        results.append(pool.aimap(poolwork.square, stuck()))
        assert await anext(results[0]) == 1

    asyncio.run(asyncio.wait_for(main(), PATIENCE))
    with pytest.raises(CancelledError):
        results[0].next(PATIENCE)
    pool.close()
    assert pool.join(PATIENCE)


def test_without_a_loop_an_asynchronous_input_is_refused_at_the_call() -> None:
    with mpkit.TaskPool(1) as pool, pytest.raises(RuntimeError, match="loop"):
        pool.aimap(poolwork.square, numbers(3))


@pytest.mark.parametrize("workers", [0, 1])
def test_who_has_the_loop_wait_for_what_it_is_to_pull_is_told_so(workers: int) -> None:
    async def main() -> None:
        async with mpkit.TaskPool(workers) as pool:
            with pytest.raises(RuntimeError, match="async for"):
                list(pool.aimap(poolwork.square, numbers(3)))

    asyncio.run(asyncio.wait_for(main(), PATIENCE))
