"""Random numbers of an item: the same however a call is cut into tasks."""

from __future__ import annotations

import itertools
import random
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import mpkit
from mpkit._task import seeds
from mpkit._task.carriage import Carriage
from mpkit._task.options import Options
from mpkit._worker import chunks
from mpkit._worker.slices import MANY, run_slice

numpy = pytest.importorskip("numpy")


def draw(*_: Any) -> tuple[float, float, float, float]:
    """Return numbers from all places from which code takes them."""
    first = float(mpkit.rng().random())
    return first, float(mpkit.rng().random()), random.random(), float(numpy.random.random())


def carriage(seed: int = 42) -> Carriage:
    return Carriage(Options(seed=seed))


def whole(seed: int, count: int) -> list[Any]:
    """Return what `draw` returns for each item of one call, done one by one."""
    fn, items, _ = carriage(seed).each(draw, range(count), star=False)
    return [fn(item) for item in items]


@given(st.integers(0, 2**80), st.lists(st.integers(1, 7), min_size=1, max_size=6), st.data())
def test_an_item_has_the_same_numbers_in_any_chunk_and_slice(
    seed: int, sizes: list[int], data: st.DataObject
) -> None:
    count = sum(sizes)
    fn, items, star = carriage(seed).each(draw, range(count), star=False)
    iterator = iter(items)
    pieces = [list(itertools.islice(iterator, size)) for size in sizes]
    found: dict[int, list[Any]] = {}
    for number in data.draw(st.permutations(range(len(pieces)))):
        piece = pieces[number]
        kind = data.draw(st.sampled_from(["all", "each", "slices"]))
        if kind == "all":
            values, _ = chunks.run_all(fn, piece, star)
        elif kind == "each":
            values = [value for _, value in chunks.run_each(fn, piece)]
        else:
            cut = data.draw(st.integers(0, len(piece) - 1))
            spans = [(start, stop) for start, stop in ((cut, len(piece)), (0, cut)) if start < stop]
            parts = {span[0]: run_slice(fn, piece, star, (*span, 1e9, MANY))[0] for span in spans}
            values = [value for start in sorted(parts) for value in parts[start]]
        found[number] = values
    assert [value for number in sorted(found) for value in found[number]] == whole(seed, count)


def test_no_two_items_or_calls_or_seeds_have_the_same() -> None:
    once = carriage()
    drawn: list[float] = []
    for _ in range(3):
        drawn += once.once(draw)()
        fn, items, _ = once.each(draw, range(20), star=False)
        drawn += [number for item in items for number in fn(item)]
    drawn += carriage(43).once(draw)()
    assert len(set(drawn)) == len(drawn)


def test_what_has_no_seed_goes_on_as_if_nothing_had_been() -> None:
    random.seed(5)
    numpy.random.seed(5)
    expected = random.random(), random.random(), *numpy.random.random(2)
    random.seed(5)
    numpy.random.seed(5)
    with mpkit.TaskPool(0, seed=1) as pool:
        found = [random.random()]
        pool.map(draw, range(3))
        found += [random.random(), numpy.random.random()]
        with pytest.raises(ZeroDivisionError):
            pool.apply(divmod, (1, 0))
        found += [numpy.random.random()]
    assert tuple(found) == expected


def test_a_view_with_a_seed_of_its_own_counts_from_the_start() -> None:
    with mpkit.TaskPool(0, seed=1) as pool:
        pool.apply(draw)
        first, second = pool.apply(draw), pool.options(name="other").apply(draw)
        assert first != second
        again = [pool.options(seed=1).apply(draw) for _ in range(2)]
        view = pool.options(seed=1)
        assert [view.apply(draw) for _ in range(3)] == [again[0], first, second]
        assert again[0] == again[1]


def nested(_: object) -> list[Any]:
    before = mpkit.rng().random()
    with mpkit.TaskPool(0, seed=7) as pool:
        inner = pool.map(draw, range(2))
    return [before, inner, mpkit.rng().random()]


def test_a_pool_inside_an_item_has_its_own() -> None:
    with mpkit.TaskPool(0, seed=1) as pool:
        (before, inner, after), _ = pool.map(nested, range(2))
    generator = numpy.random.default_rng(numpy.random.SeedSequence(1, spawn_key=(0, 0)))
    assert [before, after] == list(generator.random(2))
    assert inner == whole(7, 2)


def test_without_a_seed_there_is_no_generator() -> None:
    with mpkit.TaskPool(0) as pool, pytest.raises(RuntimeError, match="seed="):
        pool.apply(draw)


def test_without_numpy_the_error_says_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seeds._current, "stream", seeds._Stream(1, 0, 0))
    monkeypatch.setitem(sys.modules, "numpy.random", None)
    with pytest.raises(ImportError, match="pip install numpy"):
        mpkit.rng()


@pytest.mark.parametrize(("seed", "kind"), [(-1, ValueError), ("x", TypeError), (1.5, TypeError)])
def test_a_seed_is_a_whole_number(seed: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind, match="seed is"):
        mpkit.TaskPool(0, seed=seed)


def test_threads_that_share_their_random_numbers_are_refused() -> None:
    with ThreadPoolExecutor(1) as executor, mpkit.TaskPool(on=executor) as pool:
        with pytest.raises(ValueError, match="seed="):
            pool.options(seed=1)
        with pytest.raises(ValueError, match="seed="):
            mpkit.TaskPool(on=executor, seed=1)
