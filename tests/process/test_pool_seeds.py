"""Random numbers of items: the same for any workers, chunks, orders and retries."""

from __future__ import annotations

import contextlib
import os
import random
import signal
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mpkit

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("numpy")


def draw(item: int = 0, other: int = 0) -> tuple[int, float, float]:
    return item + other, float(mpkit.rng().random()), random.random()


def draw_or_die(item: int, path: str) -> tuple[int, float, float]:
    """Kill the worker the first time that an item is run, having used some numbers."""
    drawn = draw(item)
    with contextlib.suppress(FileExistsError):
        open(f"{path}-{item}", "x").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return drawn


def draw_without() -> float:
    return random.random()


def serial(seed: int, count: int) -> list[Any]:
    with mpkit.TaskPool(0, seed=seed) as pool:
        return pool.map(draw, range(count), chunksize=1)


def test_items_have_the_same_numbers_everywhere() -> None:
    @settings(max_examples=40, deadline=None)
    @given(
        seed=st.integers(0, 2**64),
        count=st.integers(0, 40),
        workers=st.integers(0, 2),
        chunksize=st.one_of(st.none(), st.integers(1, 9)),
        how=st.sampled_from(["map", "starmap", "imap", "imap_unordered", "executor"]),
    )
    def check(seed: int, count: int, workers: int, chunksize: int | None, how: str) -> None:
        view = pools[workers].options(seed=seed)
        items = range(count)
        if how == "map":
            found = view.map(draw, items, chunksize)
        elif how == "starmap":
            found = view.starmap(draw, [(item - 3, 3) for item in items], chunksize)
        elif how == "imap":
            found = list(view.imap(draw, items, chunksize or 1))
        elif how == "imap_unordered":
            found = sorted(view.imap_unordered(draw, items, chunksize or 1))
        else:
            found = list(view.executor.map(draw, items, chunksize=chunksize or 1))
        assert found == serial(seed, count)

    with mpkit.TaskPool(1) as one, mpkit.TaskPool(2) as two, mpkit.TaskPool(5) as five:
        pools = [one, two, five]
        check()


def test_a_start_method_changes_nothing(start_method: str) -> None:
    with mpkit.TaskPool(2, seed=3) as pool:
        assert pool.map(draw, range(10)) == serial(3, 10)
        with mpkit.TaskPool(0, seed=3) as here:
            here.map(draw, range(10))
            expected = [here.submit(draw, 1).result() for _ in range(3)]
            mapped = here.map(draw, range(5))
        tasks = [pool.submit(draw, 1), pool.executor.submit(draw, 1), pool.submit(draw, 1)]
        assert [task.result() for task in tasks] == expected
        assert list(pool.executor.map(draw, range(5), chunksize=2)) == mapped


@pytest.mark.parametrize("chunksize", [None, 4])
def test_an_item_that_is_tried_again_has_the_same_numbers(
    start_method: str, tmp_path: Path, chunksize: int | None
) -> None:
    items = [(item, str(tmp_path / "died")) for item in range(4)]
    with mpkit.TaskPool(2, seed=9, retries=20) as pool:
        assert pool.starmap(draw_or_die, items, chunksize) == serial(9, 4)


def test_what_has_no_seed_repeats_nothing_in_the_same_worker(start_method: str) -> None:
    with mpkit.TaskPool(1) as pool:
        drawn = []
        for _ in range(3):
            pool.options(seed=1).apply(draw)
            drawn.append(pool.apply(draw_without))
        assert len(set(drawn)) == 3


def test_other_executors_processes_do_it_too() -> None:
    with ProcessPoolExecutor(1) as executor, mpkit.TaskPool(on=executor, seed=3) as pool:
        assert pool.map(draw, range(5)) == serial(3, 5)


def test_errors_name_the_function_and_not_what_it_is_wrapped_in(start_method: str) -> None:
    with mpkit.TaskPool(1, seed=1) as pool:
        assert "divmod" in pool.submit(divmod, 1, 1).name
        assert "divmod" in pool.starmap_async(divmod, [(1, 1)]).name
        with pytest.raises(TypeError, match="a pool calls functions"):
            pool.submit(5)  # type: ignore[arg-type]
