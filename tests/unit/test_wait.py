"""The one way to block, within one process."""

from __future__ import annotations

import asyncio
import math
import os
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import pytest

from mpkit import Signal, _wait, channel, wait
from mpkit._wait import Deadline
from tests.support import PATIENCE, until

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    os.close(reader)
    os.close(writer)


def test_a_deadline_passes_after_its_timeout() -> None:
    deadline = Deadline(0.01)
    assert deadline.timeout == 0.01
    until(deadline.passed)
    assert deadline.left() == 0.0


def test_no_timeout_is_for_ever() -> None:
    assert Deadline(None).left() is None
    assert Deadline(math.inf).left() is None
    assert not Deadline(None).passed()


def test_zero_has_passed_at_once() -> None:
    assert Deadline(0).passed()


@pytest.mark.parametrize("timeout", [-1, -0.001, math.nan, -math.inf])
def test_a_negative_timeout_is_refused(timeout: float) -> None:
    with pytest.raises(ValueError, match="timeout"):
        Deadline(timeout)


@pytest.mark.parametrize("timeout", ["1", True, [], 1j])
def test_what_is_no_number_of_seconds_is_refused(timeout: Any) -> None:
    with pytest.raises(TypeError, match="timeout"):
        Deadline(timeout)


def test_poll_returns_what_is_readable(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    assert _wait.poll([reader], 0) == []
    assert _wait.poll([reader], 0.001) == []
    os.write(writer, b"!")
    assert _wait.poll([reader]) == [reader]
    assert _wait.poll([reader], 10**12) == [reader]  # longer than poll() can count


@pytest.mark.parametrize("timeout", [0.0, 0.001, 0.0004, 1e-9])
def test_poll_does_not_give_up_early(pipe: tuple[int, int], timeout: float) -> None:
    deadline = Deadline(timeout)
    _wait.poll([pipe[0]], timeout)
    assert deadline.passed()


def test_wait_returns_all_that_are_ready_in_order() -> None:
    signals = [Signal() for _ in range(5)]
    for index in (3, 1):
        signals[index].set()
    assert wait(*signals) == [signals[1], signals[3]]
    assert wait(*reversed(signals), timeout=PATIENCE) == [signals[3], signals[1]]


def test_wait_gives_up_after_its_timeout() -> None:
    assert wait(Signal(), timeout=0) == []
    assert wait(Signal(), timeout=0.01) == []


def test_waiting_for_nothing_returns_at_once() -> None:
    assert wait() == []


@pytest.mark.parametrize("thing", [None, 7, "text", object(), threading.Event()])
def test_what_cannot_be_waited_for_is_refused(thing: object) -> None:
    with pytest.raises(TypeError, match="Signals, Channels, Jobs and Tasks"):
        wait(Signal(), thing, timeout=0)


def test_wait_wakes_for_any_kind_of_thing() -> None:
    signal, future = Signal(), Future[int]()
    here, there = channel()
    for act, ready in [
        (signal.set, signal),
        (lambda: future.set_result(1), future),
        (lambda: there.send(1), here),
    ]:
        things = [thing for thing in (signal, future, here) if not wait(thing, timeout=0)]
        got: list[Any] = []
        thread = threading.Thread(target=lambda: got.extend(wait(*things, timeout=PATIENCE)))  # noqa: B023
        thread.start()
        act()
        thread.join()
        assert got == [ready]
    here.close()
    there.close()


def test_the_end_of_a_channel_is_something_to_wait_for() -> None:
    here, there = channel()
    there.close()
    assert wait(here, timeout=PATIENCE) == [here]
    assert wait(here, timeout=PATIENCE) == [here]
    here.close()


def test_the_same_thing_twice_is_ready_twice() -> None:
    signal = Signal()
    signal.set()
    assert wait(signal, signal) == [signal, signal]


def test_hundreds_of_channels_take_one_wait() -> None:
    pairs = [channel() for _ in range(150)]
    pairs[77][1].send("here")
    ends = [here for here, _ in pairs]
    assert wait(*ends, timeout=PATIENCE) == [ends[77]]
    for pair in pairs:
        for end in pair:
            end.close()


def test_a_future_that_is_done_after_a_wait_gave_up_harms_nobody() -> None:
    """Its bell was closed with the wait, and is not rung."""
    future = Future[int]()
    assert wait(future, timeout=0.001) == []
    reader, writer = os.pipe()  # takes the numbers of the bell
    future.set_result(1)
    os.close(writer)
    assert os.read(reader, 1) == b""
    os.close(reader)
    assert wait(future) == [future]


def test_futures_of_many_threads_ring_once_each() -> None:
    for _ in range(50):
        futures = [Future[int]() for _ in range(4)]
        threads = [threading.Thread(target=one.set_result, args=(1,)) for one in futures]
        for thread in threads:
            thread.start()
        assert wait(*futures, timeout=PATIENCE)
        for thread in threads:
            thread.join()


def test_readable_and_writable_suspend_only_their_task(pipe: tuple[int, int]) -> None:
    reader, writer = pipe

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            waiting = [group.create_task(_wait.readable([reader])) for _ in range(3)]
            await asyncio.sleep(0)
            assert not any(task.done() for task in waiting)
            assert await _wait.writable(writer, PATIENCE)
            os.write(writer, b"!")
        assert all(task.result() for task in waiting)

    asyncio.run(main())


def test_readable_gives_up_and_can_be_cancelled_without_a_trace(pipe: tuple[int, int]) -> None:
    reader, writer = pipe

    async def main() -> None:
        before = os.listdir("/dev/fd")
        assert not await _wait.readable([reader], 0)
        assert not await _wait.readable([reader], 0.001)
        task = asyncio.create_task(_wait.readable([reader]))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert os.listdir("/dev/fd") == before
        os.write(writer, b"!")
        assert await _wait.readable([reader])

    asyncio.run(main())
