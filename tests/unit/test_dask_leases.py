"""The order in which slots of a cluster are renewed and given back, against a scheduler that waits."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from mpkit.dask import _leases
from mpkit.dask._leases import Holding, label, read_label

if TYPE_CHECKING:
    from collections.abc import Callable

pytest.importorskip("distributed")


class FakeScheduler:
    """Answers a question when it is told to; notes what it was asked, and when. And its client."""

    id = "Client-1"
    status = "running"

    def __init__(self) -> None:
        self.scheduler = self
        self.asked: list[tuple[str, Any]] = []
        self.answers: list[asyncio.Future[Any]] = []
        self.other = "of the connection itself"

    async def _ask(self, what: str, about: Any) -> Any:
        self.asked.append((what, about))
        self.answers.append(asyncio.get_running_loop().create_future())
        return await self.answers[-1]

    async def semaphore_acquire(self, *, name: str, timeout: float | None, lease_id: str) -> Any:
        return await self._ask("acquire", lease_id)

    async def semaphore_refresh_leases(self, *, name: str, lease_ids: list[str]) -> Any:
        return await self._ask("renew", lease_ids)

    async def semaphore_release(self, *, name: str, lease_id: str) -> Any:
        return await self._ask("release", lease_id)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(_leases, "seconds", clock)
    return clock


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def with_slots(*names: str) -> tuple[Any, FakeScheduler, list[Holding], list[str]]:
    """Return the order keeper, with slots taken under these names, and what they are called."""
    scheduler, held = FakeScheduler(), list[Holding]()
    client: Any = scheduler
    keeper = _leases._Scheduler(client, held)
    for name in names:
        taking = asyncio.ensure_future(keeper.semaphore_acquire(name="s", timeout=0, lease_id=name))
        await settle()
        scheduler.answers[-1].set_result(True)
        assert await taking is True
    labels = [about for _, about in scheduler.asked]
    scheduler.asked.clear()
    return keeper, scheduler, held, labels


def run(test: Callable[[], Any]) -> None:
    asyncio.run(test())


def test_a_release_waits_for_the_renewal_that_is_under_way() -> None:
    async def test() -> None:
        keeper, scheduler, _, (first, second) = await with_slots("a", "b")
        renewing = asyncio.ensure_future(
            keeper.semaphore_refresh_leases(name="s", lease_ids=["a", "b"])
        )
        await settle()
        releasing = asyncio.ensure_future(keeper.semaphore_release(name="s", lease_id="a"))
        await settle()
        assert scheduler.asked == [("renew", [first, second])]
        scheduler.answers[-1].set_result(None)
        await renewing
        await settle()
        assert scheduler.asked[1:] == [("release", first)]
        scheduler.answers[-1].set_result(None)
        await releasing

    run(test)


def test_what_is_being_given_back_is_not_renewed() -> None:
    """Dask has listed what to renew, and then another one was before us."""

    async def test() -> None:
        keeper, scheduler, _, (first, second) = await with_slots("a", "b")
        releasing = asyncio.ensure_future(keeper.semaphore_release(name="s", lease_id="a"))
        await settle()
        renewing = asyncio.ensure_future(
            keeper.semaphore_refresh_leases(name="s", lease_ids=["a", "b"])
        )
        await settle()
        assert scheduler.asked == [("release", first)]
        scheduler.answers[-1].set_result(None)
        await releasing
        await settle()
        assert scheduler.asked[1:] == [("renew", [second])]
        scheduler.answers[-1].set_result(None)
        await renewing

    run(test)


def test_a_renewal_of_nothing_is_not_sent() -> None:
    async def test() -> None:
        keeper, scheduler, _, (first,) = await with_slots("a")
        releasing = asyncio.ensure_future(keeper.semaphore_release(name="s", lease_id="a"))
        await settle()
        renewing = asyncio.ensure_future(keeper.semaphore_refresh_leases(name="s", lease_ids=["a"]))
        await settle()
        scheduler.answers[-1].set_result(None)
        await releasing
        await renewing
        assert scheduler.asked == [("release", first)]
        assert not keeper._leaving
        assert not keeper._labels

    run(test)


def test_a_release_that_fails_can_be_tried_again() -> None:
    """As Dask does if `distributed.comm.retry.count` says so."""

    async def test() -> None:
        keeper, scheduler, _, (first,) = await with_slots("a")
        releasing = asyncio.ensure_future(keeper.semaphore_release(name="s", lease_id="a"))
        await settle()
        scheduler.answers[-1].set_exception(OSError("cut off"))
        with pytest.raises(OSError):
            await releasing
        await keeper.semaphore_refresh_leases(name="s", lease_ids=["a"])
        releasing = asyncio.ensure_future(keeper.semaphore_release(name="s", lease_id="a"))
        await settle()
        assert scheduler.asked == [("release", first)] * 2
        scheduler.answers[-1].set_result(None)
        await releasing
        assert not keeper._leaving

    run(test)


def test_silence_lasts_from_the_sending_of_a_renewal_to_the_answer_to_the_next(
    clock: Clock,
) -> None:
    async def test() -> None:
        keeper, scheduler, held, _ = await with_slots("a")
        holding = Holding("somebody", clock.now)
        held.append(holding)
        for sent, answered in ((103.0, 104.0), (120.0, 129.0), (130.0, 131.0)):
            clock.now = sent
            renewing = asyncio.ensure_future(
                keeper.semaphore_refresh_leases(name="s", lease_ids=["a"])
            )
            await settle()
            late = Holding("who came meanwhile", clock.now)
            held.append(late)
            clock.now = answered
            scheduler.answers[-1].set_result(None)
            await renewing
            assert holding.heard == sent
            assert (late.heard, late.silence) == (sent, 0.0)
            held.remove(late)
        assert holding.silence == 129.0 - 103.0

    run(test)


def test_a_renewal_that_fails_is_none(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        keeper, scheduler, held, _ = await with_slots("a")
        holding = Holding("somebody", clock.now)
        held.append(holding)
        clock.now += 5
        renewing = asyncio.ensure_future(keeper.semaphore_refresh_leases(name="s", lease_ids=["a"]))
        await settle()
        scheduler.answers[-1].set_exception(OSError("cut off"))
        await renewing
        assert "1 slots of s were not renewed: cut off" in caplog.text
        assert (holding.heard, holding.silence) == (100.0, 0.0)

    run(test)


def test_a_slot_that_was_not_granted_is_not_known() -> None:
    async def test() -> None:
        keeper, scheduler, _, _ = await with_slots()
        taking = asyncio.ensure_future(keeper.semaphore_acquire(name="s", timeout=0, lease_id="a"))
        await settle()
        scheduler.answers[-1].set_result(False)
        assert await taking is False
        assert not keeper._labels
        assert keeper.other == scheduler.other

    run(test)


def test_a_label_tells_who_has_it() -> None:
    told = read_label(label("lease", "Client-1"))
    assert told is not None
    assert told[1] == "Client-1"
    assert read_label("0123456789abcdef") is None
    assert read_label("[1, 2]") is None
    assert read_label("7") is None
