"""A channel in asyncio: no thread, and nothing lost when a task is cancelled."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from mpkit import BrokenChannel, Channel, ChannelTimeout, EndOfChannel, PeerDied, channel
from tests.support import PATIENCE
from tests.unit.test_channel import fill, lost

End = Channel[Any, Any]


def run(main: Callable[[End, End], Coroutine[Any, Any, None]]) -> None:
    """Run ``main(here, there)``, and check that it leaves no descriptor in the loop."""

    async def with_ends() -> None:
        here, there = channel()
        before = len(os.listdir("/dev/fd"))
        try:
            await main(here, there)
            assert len(os.listdir("/dev/fd")) <= before
        finally:
            here.close()
            there.close()

    asyncio.run(with_ends())
    assert threading.active_count() == 1


def test_messages_pass_between_tasks() -> None:
    async def main(here: End, there: End) -> None:
        async def serve() -> None:
            async for number in there:
                await there.send_async(number + 1)

        serving = asyncio.create_task(serve())
        for number in range(50):
            assert await here.request_async(number) == number + 1
        here.close()
        await serving

    run(main)


def test_a_full_buffer_suspends_only_the_sender() -> None:
    async def main(here: End, there: End) -> None:
        count = 2000
        sending = asyncio.create_task(send_all(here, count))
        got = [await there.recv_async() for _ in range(count)]
        await sending
        assert [number for number, _ in got] == list(range(count))

    async def send_all(end: End, count: int) -> None:
        for number in range(count):
            await end.send_async((number, "x" * 1000))

    run(main)


def test_several_tasks_wait_on_one_end() -> None:
    async def main(here: End, there: End) -> None:
        tasks = [asyncio.create_task(here.recv_async()) for _ in range(5)]
        await asyncio.sleep(0)
        for number in range(5):
            there.send(number)
        assert sorted(await asyncio.gather(*tasks)) == list(range(5))

    run(main)


def test_a_cancelled_receive_has_consumed_nothing() -> None:
    async def main(here: End, there: End) -> None:
        for number in range(50):
            task = asyncio.create_task(here.recv_async())
            await asyncio.sleep(0)
            there.send(number)
            task.cancel()  # readable already, and not yet received
            try:
                assert await task == number
            except asyncio.CancelledError:
                assert await here.recv_async() == number

    run(main)


def test_a_cancelled_send_has_sent_nothing() -> None:
    async def main(here: End, there: End) -> None:
        count = fill(here)
        task = asyncio.create_task(here.send_async("cancelled"))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert [there.recv() for _ in range(count)] == list(range(count))
        assert not there.poll()

    run(main)


def test_waiting_gives_up_after_its_timeout() -> None:
    async def main(here: End, there: End) -> None:
        for timeout in (0, 0.001):
            with pytest.raises(ChannelTimeout, match=f"within {timeout} s"):
                await here.recv_async(timeout)
        with pytest.raises(ChannelTimeout):
            await here.request_async(1, 0.001)
        fill(here)
        with pytest.raises(ChannelTimeout):
            await here.send_async("x", 0.001)

    run(main)


def test_the_end_ends_a_loop_and_a_death_does_not() -> None:
    async def main(here: End, there: End) -> None:
        there.send(1)
        there.close()
        assert [message async for message in here] == [1]
        with pytest.raises(EndOfChannel):
            await here.recv_async()
        with pytest.raises(BrokenChannel):
            await here.send_async(1)

    async def death(here: End, there: End) -> None:
        lost(there)
        with pytest.raises(PeerDied):
            async for _ in here:
                pass

    run(main)
    run(death)


def test_the_end_wakes_a_task_that_waits() -> None:
    async def main(here: End, there: End) -> None:
        receiving = asyncio.create_task(here.recv_async())
        await asyncio.sleep(0)
        there.close()
        with pytest.raises(EndOfChannel):
            await receiving

    run(main)


def test_tasks_take_turns_in_making_requests() -> None:
    here, there = channel()

    def reply() -> None:
        for message in there:
            there.send(message * 2)

    async def ask() -> list[int]:
        return await asyncio.gather(*(here.request_async(number) for number in range(20)))

    thread = threading.Thread(target=reply)
    thread.start()
    assert asyncio.run(ask()) == [number * 2 for number in range(20)]
    here.close()
    thread.join()
    there.close()


def test_a_cancelled_request_does_not_shift_the_replies() -> None:
    here, there = channel()

    async def run() -> None:
        task = asyncio.ensure_future(here.request_async("slow"))
        while not there.poll():
            await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        there.send("late")
        there.send("on time")
        assert await here.request_async("fast", timeout=PATIENCE) == "on time"

    asyncio.run(run())
    here.close()
    there.close()
