"""How the items of maps are cut."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import mpkit
from mpkit._worker import chunks


@given(st.integers(0, 10_000), st.integers(1, 3000))
def test_all_items_are_in_some_chunk(items: int, size: int) -> None:
    sizes = chunks.sizes(items, size)
    assert sum(sizes) == items
    assert all(0 < one <= size for one in sizes)
    assert all(one == size for one in sizes[:-1])
    joined = chunks.joined(sizes)
    assert sum(joined) == items
    assert joined[:1] == sizes[:1], "the first is packed by then"
    assert all(0 < one <= 2 * size for one in joined)
    assert len(joined) == len(sizes) // 2 + (len(sizes) > 0)


class Shortens:
    """Takes items from the list in which it is, as it is pickled."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __reduce__(self) -> Any:
        del self.items[20:]
        return int, ()


def test_a_map_whose_list_becomes_shorter_meanwhile_says_so() -> None:
    items: list[Any] = [1] * 40
    items[0] = Shortens(items)
    with mpkit.TaskPool(1) as pool:
        with pytest.raises(RuntimeError, match="became shorter .* a copy"):
            pool.map(repr, items)
        assert pool.map(abs, [-1, -2]) == [1, 2]


@pytest.mark.parametrize("kind", [list, tuple, iter])
@pytest.mark.parametrize("item", [-1, "x" * 100])
def test_a_map_of_many_is_right_whether_its_chunks_are_joined_or_not(kind: Any, item: Any) -> None:
    items = [(n, item) for n in range(9001)]
    with mpkit.TaskPool(2) as pool:
        for _ in range(2):  # the second time it is known how long they take
            assert pool.map(tuple, kind(items)) == items


def test_a_range_is_cut_without_being_made_a_list() -> None:
    items = range(10**15, 0, -(10**9))  # a million
    assert chunks.sliceable(items) is items
    with mpkit.TaskPool(2) as pool:
        assert pool.map(str, range(9001, 0, -3)) == [str(n) for n in range(9001, 0, -3)]
        assert pool.starmap(max, [range(2, 5)]) == [4]
