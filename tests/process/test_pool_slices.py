"""Maps whose items take long: their chunks come in slices, and nothing is lost or run twice."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING

import pytest

import mpkit
from mpkit._worker.packing import MOST_AGAIN
from tests import poolwork
from tests.support import PATIENCE, until

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("start_method")

Item = tuple[str, int, str]


def items(notes: Path, hows: list[str]) -> list[Item]:
    return [(str(notes), number, how) for number, how in enumerate(hows)]


def noted(notes: Path) -> Counter[int]:
    """Return how often each item was run."""
    return Counter(map(int, notes.read_text().split())) if notes.exists() else Counter()


def test_what_is_behind_a_long_item_is_shared_out() -> None:
    """These two wait for each other: in one worker they would do so for ever."""
    here, there = mpkit.Signal(), mpkit.Signal()
    chunk = ["long", (here, there), (there, here)]
    with mpkit.TaskPool(2) as pool:
        values = pool.map_async(poolwork.long_or_meet, chunk + ["quick"] * 21).get(PATIENCE)
    assert values == ["long", True, True] + ["quick"] * 21


@pytest.mark.parametrize("retries", [0, 1])
def test_a_dead_worker_fails_its_slice_and_nothing_runs_twice(tmp_path: Path, retries: int) -> None:
    notes = tmp_path / "notes"
    hows = ["long"] * 30 + ["die"] + ["long"] * 9
    with mpkit.TaskPool(2) as pool:
        task = pool.options(retries=retries).map_async(poolwork.note_and_act, items(notes, hows))
        assert isinstance(task.exception(PATIENCE), mpkit.WorkerDied)
        assert pool.apply(poolwork.add, (1, 2)) == 3
    runs = noted(notes)
    assert runs[30] == 1 + retries
    repeated = {number for number, count in runs.items() if count > 1}
    # Of what is repeated, all was in the slice that the dead worker had not reported.
    assert repeated <= set(range(30 - 30 % 5, 35)) if retries else not repeated
    assert set(range(30)) <= set(runs)


class TakesLongToSend:
    """Waits, as it is pickled, for a moment that another item of its map brings about."""

    def __init__(self, told: mpkit.Signal) -> None:
        self.told = told

    def __reduce__(self) -> tuple[type[bool], tuple[bool]]:
        return bool, (self.told.wait(PATIENCE),)


def test_what_is_small_does_not_wait_for_what_is_large_and_takes_long_to_send() -> None:
    told, large = mpkit.Signal(), bytes(MOST_AGAIN + 1)
    wanted: list[object] = [1, 2, told, 4, large, 6, large, TakesLongToSend(told)]
    with mpkit.TaskPool(1) as pool:
        values = pool.map_async(tell, wanted).get(PATIENCE)
    assert values == [0, 0, 1, 0, 0, 0, 0, 1]


def tell(item: object) -> int:
    if isinstance(item, mpkit.Signal):
        item.set()
        return 1
    return int(item is True)


def test_a_pool_that_is_left_finishes_its_maps() -> None:
    with mpkit.TaskPool(2) as pool:
        task = pool.map_async(poolwork.long_or_meet, ["long"] * 24)
    assert task.result(0) == ["long"] * 24


def test_a_cancelled_map_runs_no_more_slices(tmp_path: Path) -> None:
    notes, go = tmp_path / "notes", mpkit.Signal()
    waiting = mpkit.Signal()
    with mpkit.TaskPool(1) as pool:
        held = pool.submit(poolwork.tell_and_wait, waiting, go)
        assert waiting.wait(PATIENCE)
        task = pool.map_async(poolwork.note_and_act, items(notes, ["long"] * 16))
        assert not task.cancel()
        go.set()
        assert held.result(PATIENCE)
        with pytest.raises(CancelledError):
            task.result(PATIENCE)
    assert sum(noted(notes).values()) <= 4  # what the worker may have taken by then


@pytest.mark.parametrize("how", ["terminate", "kill"])
def test_a_map_that_is_ended_ends(how: str, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    with mpkit.TaskPool(2) as pool:
        hows = ["long"] * 12 + ["wait"] + ["long"] * 11
        task = pool.map_async(poolwork.note_and_act, items(notes, hows))
        until(lambda: noted(notes)[12])
        if how == "terminate":
            pool.terminate()
        else:
            assert task.kill()
        assert isinstance(task.exception(PATIENCE), mpkit.WorkerDied | CancelledError)
