"""Requests over a channel: who gets which reply, whoever asks, gives up or is interrupted."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from mpkit import (
    BrokenChannel,
    Channel,
    ChannelClosed,
    ChannelTimeout,
    NotPicklable,
    channel,
    start,
)
from mpkit._line import Line, Place
from mpkit._wait import Deadline
from tests.support import PATIENCE, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

End = Channel[Any, Any]
Pair = tuple[End, End]


@pytest.fixture
def pair(socket_kind: str) -> Iterator[Pair]:
    ends = channel()
    yield ends
    for end in ends:
        end.close()


@contextlib.contextmanager
def echoing(end: End) -> Iterator[None]:
    """Have a thread send back what comes, until the other end is closed."""

    def echo() -> None:
        for message in end:
            end.send(message)

    thread = threading.Thread(target=echo)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def blocking(end: End, message: object) -> Any:
    return end.request(message, PATIENCE)


def in_a_loop(end: End, message: object) -> Any:
    """As `blocking`, by a task of an event loop that only this thread has."""
    return asyncio.run(end.request_async(message, PATIENCE))


WAYS = pytest.mark.parametrize("second", [blocking, in_a_loop])


@WAYS
@pytest.mark.parametrize("first", [blocking, in_a_loop])
def test_threads_and_event_loops_take_turns(
    pair: Pair, first: Callable[[End, str], str], second: Callable[[End, str], str]
) -> None:
    here, there = pair
    with ThreadPoolExecutor(2) as threads:
        one = threads.submit(first, here, "one")
        assert there.recv(PATIENCE) == "one"
        two = threads.submit(second, here, "two")
        until(lambda: len(here._requesting._places) == 2)
        assert not there.poll(0.01)
        there.send("reply to one")
        assert there.recv(PATIENCE) == "two"
        there.send("reply to two")
        assert one.result(PATIENCE) == "reply to one"
        assert two.result(PATIENCE) == "reply to two"


def test_whoever_asks_at_once_gets_his_own_replies(pair: Pair) -> None:
    here, there = pair

    def ask(who: int) -> None:
        for number in range(50):
            assert here.request((who, number), PATIENCE) == (who, number)

    async def ask_async(who: int, task: int) -> None:
        for number in range(10):
            message = (who, task, number)
            assert await here.request_async(message, PATIENCE) == message

    async def tasks(who: int) -> None:
        await asyncio.gather(*(ask_async(who, task) for task in range(5)))

    with echoing(there):
        with ThreadPoolExecutor(4) as threads:
            done = [threads.submit(ask, who) for who in (0, 1)]
            done += [threads.submit(asyncio.run, tasks(who)) for who in (2, 3)]
            for each in done:
                each.result(PATIENCE)
        here.close()


@WAYS
def test_who_gives_up_in_line_hands_on_his_turn(
    pair: Pair, second: Callable[[End, str], str]
) -> None:
    here, there = pair
    line = here._requesting
    with ThreadPoolExecutor(2) as threads:
        one = threads.submit(blocking, here, "one")
        assert there.recv(PATIENCE) == "one"
        with pytest.raises(ChannelTimeout, match=r"within 0\.01 s"):
            here.request("given up", 0.01)
        with pytest.raises(ChannelTimeout, match=r"within 0\.01 s"):
            asyncio.run(here.request_async("given up", 0.01))
        asyncio.run(cancelled_in_line(here))
        two = threads.submit(second, here, "two")
        until(lambda: len(line._places) == 2)
        there.send(1)
        assert there.recv(PATIENCE) == "two"
        there.send(2)
        assert [one.result(PATIENCE), two.result(PATIENCE)] == [1, 2]
    assert not line._places


async def cancelled_in_line(end: End) -> None:
    task = asyncio.create_task(end.request_async("given up"))
    while len(end._requesting._places) < 2:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@WAYS
def test_a_close_ends_the_requests_of_all_who_wait(
    pair: Pair, second: Callable[[End, str], str]
) -> None:
    here, there = pair
    with ThreadPoolExecutor(2) as threads:
        one = threads.submit(blocking, here, "one")
        assert there.recv(PATIENCE) == "one"
        two = threads.submit(second, here, "two")
        until(lambda: len(here._requesting._places) == 2)
        here.close()
        for each in (one, two):
            with pytest.raises(ChannelClosed):
                each.result(PATIENCE)


def test_an_event_loop_that_was_closed_does_not_keep_the_others_waiting() -> None:
    line, now, loop = Line(), Deadline(0), asyncio.new_event_loop()
    first, dead, last = Place(), Place(loop), Place()
    assert line.join(first, now)
    task = loop.create_task(line.join_async(dead, Deadline(None)))
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    assert not line.join(last, now)
    line.leave(first)
    assert last.sleep(now)
    line.leave(last)
    assert not line._places
    assert not task.done()


class Asks:
    """Makes a request while it is pickled."""

    def __init__(self, end: End) -> None:
        self.end = end

    def __reduce__(self) -> Any:
        return str, (self.end.request("inner", PATIENCE),)


def test_a_request_in_the_middle_of_one_is_refused(pair: Pair) -> None:
    here, there = pair
    for ask in (here.request, lambda message: asyncio.run(here.request_async(message))):
        with pytest.raises((RuntimeError, NotPicklable), match="is making a request already"):
            ask(Asks(here))
    assert not there.poll()
    there.send("at last")
    assert here.request("outer", PATIENCE) == "at last"


class Tick(BaseException):
    """Raised by what stands for a signal handler."""


def interrupted(step: int, call: Callable[[], object]) -> bool:
    """Have something raise where a handler can, the ``step``-th time; tell whether it did.

    Handlers run as a function of Python begins, and when one of C has returned.
    """
    left = step

    def look(frame: FrameType, event: str, argument: object) -> None:
        nonlocal left
        if event in ("call", "c_return") and not is_in_finalizer(frame):
            left -= 1
            if left < 0:
                sys.setprofile(None)
                raise Tick

    sys.setprofile(look)
    try:
        call()
    except Tick:
        return True
    finally:
        sys.setprofile(None)
    return False


def is_in_finalizer(frame: FrameType | None) -> bool:
    """Tell whether Python itself drops what is raised here (the other one is WeakSet's)."""
    while frame and frame.f_code.co_name not in ("__del__", "_remove"):
        frame = frame.f_back
    return frame is not None


@pytest.mark.parametrize("timeout", [None, PATIENCE])
def test_wherever_a_handler_raises_the_next_request_gets_its_own_reply(
    pair: Pair, timeout: float | None
) -> None:
    here, there = pair
    with echoing(there), here:
        step = 0
        while interrupted(step, lambda: here.request("interrupted", timeout)):
            assert here.request(step, PATIENCE) == step
            step += 1
        assert step > 30
        assert not here._requesting._places


def test_the_next_one_gets_his_turn_wherever_a_handler_raises() -> None:
    line, now, step = Line(), Deadline(0), 1  # the first step is that of `leave` below
    while True:
        first, second = Place(), Place()
        assert line.join(first, now)
        assert not line.join(second, now)

        def leave(first: Place = first) -> None:
            try:
                line.leave(first)
            except Tick:
                line.leave(first)
                raise

        done = not interrupted(step, leave)
        assert second.sleep(now)
        line.leave(second)
        assert not line._places
        if done:
            break
        step += 1
    assert step > 3


def test_a_request_that_was_not_sent_has_no_reply(pair: Pair) -> None:
    here, there = pair
    with pytest.raises(NotPicklable):
        here.request(threading.Lock(), PATIENCE)
    count = 0
    with contextlib.suppress(ChannelTimeout):
        while True:
            here.send(b"x" * 1000, timeout=0)
            count += 1
    with pytest.raises(ChannelTimeout, match=r"could not take a message within 0\.01 s"):
        here.request("no room", 0.01)
    with pytest.raises(ChannelTimeout, match=r"could not take a message within 0\.01 s"):
        asyncio.run(here.request_async("no room", 0.01))
    for _ in range(count):
        there.recv(PATIENCE)
    there.send("the reply")
    assert here.request("in time", PATIENCE) == "the reply"


def test_a_request_to_nobody_is_none() -> None:
    here, there = channel()
    there.close()
    with here, pytest.raises(BrokenChannel):
        here.request("anybody?", PATIENCE)


def ask(end: End, message: str) -> Any:
    with end:
        return end.request(message, PATIENCE)


def receive_all(end: End, count: int) -> list[Any]:
    with end:
        return [end.recv(PATIENCE) for _ in range(count)]


@pytest.mark.usefixtures("start_method")
def test_what_is_due_of_given_up_requests_moves_along() -> None:
    here, there = channel()
    for _ in range(2):
        with pytest.raises(ChannelTimeout):
            here.request("slow", 0.001)
    there.send("late")
    assert here.recv(PATIENCE) == "late"
    there.send("late, too")
    there.send("on time")
    assert start(ask, here, "fast").result(PATIENCE) == "on time"
    assert receive_all(there, 3) == ["slow", "slow", "fast"]
    here.close()


def test_what_is_due_moves_through_a_channel_too(pair: Pair) -> None:
    here, there = pair
    carrier, receiver = channel()
    with pytest.raises(ChannelTimeout):
        here.request("slow", 0.001)
    there.send("late")
    there.send("on time")
    with carrier, receiver:
        carrier.send(here)
        assert ask(receiver.recv(PATIENCE), "fast") == "on time"


def too_large_to_leave_at_once(end: End) -> bytes:
    """Return a message for which there is less room than it needs; skip what leaves whole."""
    if end._end.link.whole_packets:
        pytest.skip("packets leave whole")
    end._end.link._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    return os.urandom(100_000)


@pytest.mark.parametrize("way", ["send_async", "request_async"])
def test_a_message_that_leaves_in_parts_leaves_whole(pair: Pair, way: str) -> None:
    """Over a stream: once a part of it is out, no matter what, the rest has to follow."""
    here, there = pair
    message = too_large_to_leave_at_once(here)

    async def main() -> None:
        task = asyncio.create_task(getattr(here, way)(message))
        assert await there.recv_async(PATIENCE) == message
        there.send("the reply")
        assert await task == ("the reply" if way == "request_async" else None)

    asyncio.run(main())


def test_a_request_that_is_cancelled_half_sent_is_counted(pair: Pair) -> None:
    here, there = pair
    message = too_large_to_leave_at_once(here)

    async def main() -> None:
        task = asyncio.create_task(here.request_async(message))
        while not here._end.due:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        task = asyncio.create_task(here.request_async("fast", PATIENCE))
        assert await there.recv_async(PATIENCE) == message
        there.send("late")
        assert await there.recv_async(PATIENCE) == "fast"
        there.send("on time")
        assert await task == "on time"

    asyncio.run(main())
