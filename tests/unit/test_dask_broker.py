"""The meeting of two ends in a scheduler, whose connections take their time to write."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

pytest.importorskip("distributed")

from mpkit.dask._broker import Broker


class Comm:
    """A connection whose writing can be held, and whose other side the test plays."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.says: asyncio.Queue[str | None] = asyncio.Queue()
        self.writable = asyncio.Event()
        self.writable.set()

    async def write(self, what: dict[str, Any]) -> None:
        self.told.append(" ".join(str(value) for value in what.values()))
        await self.writable.wait()

    async def read(self) -> dict[str, Any]:
        said = await self.says.get()
        if said is None:
            raise OSError("it is gone")
        return {"op": said}


async def settle() -> None:
    """Return when all coroutines have gone as far as they can."""
    for _ in range(20):
        await asyncio.sleep(0)


def run(test: Any) -> None:
    async def main() -> None:
        broker = Broker()
        attending: list[asyncio.Task[Any]] = []
        comms: list[Comm] = []

        def come(number: int, address: str | None, *, settled: bool) -> Comm:
            comm = Comm()
            meeting = broker.meet(comm, "c", number, address, settled)
            attending.append(asyncio.ensure_future(meeting))
            comms.append(comm)
            return comm

        await test(come)
        for comm in comms:
            comm.writable.set()
            comm.says.put_nowait(None)
        async with asyncio.timeout(30):
            await asyncio.gather(*attending)
        assert not broker._meetings

    asyncio.run(main())


def test_a_maker_who_leaves_as_he_is_told_that_his_end_has_moved_does_not_take_it_along() -> None:
    async def test(come: Any) -> None:
        here = come(0, None, settled=True)
        maker = come(1, None, settled=False)
        await settle()
        maker.writable.clear()
        there = come(1, "there", settled=True)
        await settle()
        maker.says.put_nowait(None)
        await settle()
        maker.writable.set()
        await settle()
        assert maker.told == ["seated", "moved"]
        assert there.told == ["seated"]
        assert here.told == ["seated", "visit there"]

    run(test)


def test_of_two_who_come_for_one_end_at_once_the_first_has_it() -> None:
    async def test(come: Any) -> None:
        come(0, None, settled=True)
        maker = come(1, None, settled=False)
        await settle()
        maker.writable.clear()
        first = come(1, "first", settled=True)
        await settle()
        second = come(1, "second", settled=True)
        await settle()
        assert second.told == ["refused"]
        assert first.told == ["seated"]

    run(test)


def test_two_ends_are_introduced_once() -> None:
    """Both see that both are there, as one of them is slow to be told that it has come."""

    async def test(come: Any) -> None:
        here = come(0, None, settled=False)
        await settle()
        maker = come(1, None, settled=False)
        await settle()
        maker.writable.clear()
        come(1, "there", settled=True)
        here.says.put_nowait("settled")
        await settle()
        maker.writable.set()
        await settle()
        assert here.told == ["seated", "visit there"]

    run(test)
