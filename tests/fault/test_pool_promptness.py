"""The death of a worker is told at once: by the kernel, and not by a clock.

How long that takes is up to the machine (`docs/faults.md` has figures of one). So these tests
have every clock of the pool go wrong: who waited for one would wait for an hour.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

import mpkit
from tests import poolwork
from tests.fault import chaos_work
from tests.support import PATIENCE, supervisor_of, until

if TYPE_CHECKING:
    from pathlib import Path

CLOCKS = (
    "mpkit._engine.roster.GRACE",
    "mpkit._engine.warden.GRACE",
    "mpkit._engine.warden.BETWEEN_LOOKS",
    "mpkit._engine.verdict.TRY_AGAIN",
)
HOWS = {"sys.exit": mpkit.TaskExit} | dict.fromkeys(
    ("os._exit", "SIGKILL", "SIGTERM", "SIGSEGV", "no descriptors"), mpkit.WorkerDied
)


@pytest.fixture(autouse=True)
def clocks_gone_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    for clock in CLOCKS:
        monkeypatch.setattr(clock, 3600.0)


@pytest.mark.parametrize("how", HOWS)
def test_a_sudden_end_is_told_at_once_and_what_is_behind_it_runs(
    start_method: str, how: str
) -> None:
    began, go = mpkit.Signal(), mpkit.Signal()
    with mpkit.TaskPool(1) as pool:
        bad = pool.submit(poolwork.wait_and_die, how, began, go)
        behind = pool.submit(poolwork.square, 3)
        assert began.wait(PATIENCE)
        until(lambda: supervisor_of(pool)._next_round() is None)  # it does not look by the clock
        go.set()
        assert isinstance(bad.exception(PATIENCE), HOWS[how])
        assert behind.result(PATIENCE) == 9


def by_map(pool: mpkit.TaskPool, call: tuple[Any, ...]) -> BaseException | None:
    return pool.starmap_async(poolwork.wait_and_die, [call] * 2, 1).exception(PATIENCE)


def by_imap(pool: mpkit.TaskPool, call: tuple[Any, ...]) -> BaseException | None:
    results = pool.imap(wait_and_die_of, [call] * 2)
    with pytest.raises(mpkit.WorkerDied) as caught:
        next(results)
    return caught.value


def wait_and_die_of(call: tuple[Any, ...]) -> Any:
    return poolwork.wait_and_die(*call)


def by_callback(pool: mpkit.TaskPool, call: tuple[Any, ...]) -> BaseException | None:
    errors: list[BaseException] = []
    pool.apply_async(poolwork.wait_and_die, call, error_callback=errors.append)
    until(lambda: errors)
    return errors[0]


def by_asyncio(pool: mpkit.TaskPool, call: tuple[Any, ...]) -> BaseException | None:
    async def main() -> None:
        await asyncio.wait_for(pool.submit(poolwork.wait_and_die, *call), PATIENCE)

    with pytest.raises(mpkit.WorkerDied) as caught:
        asyncio.run(main())
    return caught.value


WAYS: list[Callable[[mpkit.TaskPool, tuple[Any, ...]], BaseException | None]] = [
    by_map,
    by_imap,
    by_callback,
    by_asyncio,
]


@pytest.mark.parametrize("way", WAYS)
def test_it_is_told_whichever_way_a_caller_waits(
    way: Callable[[mpkit.TaskPool, tuple[Any, ...]], BaseException | None],
) -> None:
    began, go = mpkit.Signal(), mpkit.Signal()
    go.set()
    with mpkit.TaskPool(2) as pool:
        assert isinstance(way(pool, ("SIGKILL", began, go)), mpkit.WorkerDied)


def test_a_worker_that_is_killed_for_want_of_memory_is_told_at_once_and_why(
    start_method: str, tmp_path: Path
) -> None:
    with chaos_work.short_of_memory() as group, mpkit.TaskPool(1) as pool:
        if group is None:
            pytest.skip("needs a control group of its own")
        place = chaos_work.Place(str(tmp_path / "log"), group)
        bad = pool.submit(chaos_work.work, 0, "out of memory", place)
        behind = pool.submit(poolwork.square, 3)
        assert "SIGKILL (out of memory, it seems" in str(bad.exception(PATIENCE))
        assert behind.result(PATIENCE) == 9
