"""Both ends of a channel in one process: messages, ends, errors, threads, asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import gc
import os
import pickle
import socket
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from mpkit import (
    BrokenChannel,
    Channel,
    ChannelClosed,
    ChannelMoved,
    ChannelTimeout,
    EndOfChannel,
    Job,
    MessageTypeError,
    NotPicklable,
    PeerDied,
    channel,
    wait,
)
from mpkit._platform import descriptors
from tests.support import PATIENCE, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Pair = tuple[Channel[Any, Any], Channel[Any, Any]]


@pytest.fixture
def pair() -> Iterator[Pair]:
    here, there = channel()
    yield here, there
    here.close()
    there.close()


class Fails:
    """Its unpickling raises."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        return raise_it, (self.error,)


def raise_it(error: BaseException) -> None:
    raise error


def fill(end: Channel[Any, Any]) -> int:
    """Send until nothing more goes in; return how many messages that took."""
    for count in range(1_000_000):
        try:
            end.send(count, timeout=0)
        except ChannelTimeout:
            return count
    raise AssertionError


def lost(end: Channel[Any, Any]) -> None:
    """Lose an end as a killed process does: without a word."""
    end._end.link.close()
    end._gone = ChannelClosed("x")


def test_messages_arrive_in_order_in_both_directions(pair: Pair) -> None:
    here, there = pair
    for number in range(10):
        here.send(number)
        there.send(-number)
    assert [there.recv() for _ in range(10)] == list(range(10))
    assert [here.recv() for _ in range(10)] == [-number for number in range(10)]


@pytest.mark.parametrize("message", [None, b"", "x" * 70_000, {"a": [np.float64(1.5)]}, Ellipsis])
def test_any_message_arrives_equal(pair: Pair, message: object) -> None:
    pair[0].send(message)
    assert pair[1].recv() == message


def test_large_arrays_arrive_writable_and_are_not_the_senders(pair: Pair) -> None:
    here, there = pair
    array = np.arange(1_000_000)
    here.send(array)
    arrived = there.recv()
    arrived += 1
    assert np.array_equal(arrived - 1, array)
    assert array[0] == 0


def test_after_a_close_everything_arrives_and_then_the_end(pair: Pair) -> None:
    here, there = pair
    there.send("unread by here")
    for number in range(3):
        here.send(number)
    here.close()
    assert [there.recv(), there.recv(PATIENCE), there.recv(0)] == [0, 1, 2]
    for _ in range(2):
        with pytest.raises(EndOfChannel, match="was closed, and nothing is left") as caught:
            there.recv()
        assert type(caught.value) is EndOfChannel
    assert list(there) == []


def test_a_loop_ends_with_the_channel(pair: Pair) -> None:
    for number in range(3):
        pair[0].send(number)
    pair[0].close()
    assert list(pair[1]) == [0, 1, 2]


def test_without_a_goodbye_the_end_is_a_death(pair: Pair) -> None:
    here, there = pair
    here.send("last words")
    lost(here)
    got = []
    with pytest.raises(PeerDied, match="died without closing it") as caught:
        for message in there:
            got.append(message)
    assert got == ["last words"]
    assert caught.value.pid == os.getpid()
    with pytest.raises(PeerDied):
        there.recv()


def test_a_goodbye_arrives_even_when_the_buffer_is_full(pair: Pair) -> None:
    here, there = pair
    count = fill(here)
    here.close()
    assert len(list(there)) == count


def test_a_call_in_the_middle_of_a_close_does_not_cut_the_goodbye_off(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever leaves last closes the socket, but not before all was said."""
    here, there = pair
    say_goodbye = here._end.say_goodbye

    def interrupted() -> None:
        with ThreadPoolExecutor(1) as threads, pytest.raises(ChannelClosed):
            threads.submit(here.recv).result(PATIENCE)
        say_goodbye()

    monkeypatch.setattr(here._end, "say_goodbye", interrupted)
    here.close()
    with pytest.raises(EndOfChannel) as caught:
        there.recv(PATIENCE)
    assert type(caught.value) is EndOfChannel


def test_a_close_waits_for_the_goodbye_that_close_send_is_about_to_say(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It shut the connection before that was out, and the other end heard of a death."""
    here, there = pair
    send_last = here._end.link.send_last

    def overtaken(data: bytes) -> None:
        monkeypatch.undo()
        closing.start()
        until(lambda: here._said)
        send_last(data)

    closing = threading.Thread(target=here.close)
    monkeypatch.setattr(here._end.link, "send_last", overtaken)
    here.close_send()
    closing.join(PATIENCE)
    with pytest.raises(EndOfChannel) as caught:
        there.recv(PATIENCE)
    assert type(caught.value) is EndOfChannel


def test_garbage_says_goodbye() -> None:
    here, there = channel()
    here.send(1)
    del here
    gc.collect()
    assert list(there) == [1]
    there.close()


def test_garbage_in_a_cycle_says_goodbye() -> None:
    """Its socket is garbage too then, and must not be closed first."""
    for _ in range(10):
        here, there = channel()
        here.send([])
        here.cycle = here  # type: ignore[attr-defined]
        del here
        gc.collect()
        assert list(there) == [[]]
        there.close()


def test_an_error_keeps_nothing_alive(pair: Pair) -> None:
    here, there = pair

    class Local: ...

    def meet_the_end(end: Channel[Any, Any], _: Local) -> None:
        with pytest.raises((EndOfChannel, ChannelClosed)):
            end.recv()

    local = Local()
    gone = weakref.ref(local)
    here.close()
    meet_the_end(there, local)
    meet_the_end(here, local)
    meet_the_end(there, local)
    del local
    gc.collect()
    assert gone() is None


def test_sending_to_a_closed_end_is_broken(pair: Pair) -> None:
    here, there = pair
    there.close()
    for _ in range(2):
        with pytest.raises(BrokenChannel, match="the other end was closed") as caught:
            here.send(1)
        assert isinstance(caught.value, BrokenPipeError)


USES: dict[str, Callable[[Channel[Any, Any]], object]] = {
    "send": lambda end: end.send(1),
    "recv": lambda end: end.recv(),
    "poll": lambda end: end.poll(),
    "request": lambda end: end.request(1),
    "for": lambda end: list(end),
    "fileno": lambda end: end.fileno(),
    "close_send": lambda end: end.close_send(),
    "wait": lambda end: wait(end, timeout=0),
    "recv_async": lambda end: asyncio.run(end.recv_async()),
    "send_async": lambda end: asyncio.run(end.send_async(1)),
    "moving": lambda end: channel()[0].send(end),
}


@pytest.mark.parametrize("use", USES)
def test_a_closed_end_says_so(pair: Pair, use: str) -> None:
    pair[0].close()
    assert pair[0].closed
    with pytest.raises(ChannelClosed, match="left end of channel .* was closed in this process"):
        USES[use](pair[0])
    pair[0].close()


@pytest.mark.parametrize("use", USES)
def test_an_end_that_moved_says_where(pair: Pair, use: str) -> None:
    carrier, receiver = channel()
    here, there = pair
    carrier.send(["an end", here])
    assert here.closed
    with pytest.raises(ChannelMoved, match="moved through left end of channel"):
        USES[use](here)
    here.close()  # nobody is harmed
    arrived = receiver.recv()[1]
    arrived.send("from there")
    assert there.recv() == "from there"
    arrived.close()
    carrier.close()
    receiver.close()


def test_half_a_close_ends_one_direction(pair: Pair) -> None:
    here, there = pair
    here.send(1)
    here.close_send()
    here.close_send()
    with pytest.raises(ChannelClosed, match="sends no more since close_send"):
        here.send(2)
    assert list(there) == [1]
    there.send("still")
    assert here.recv() == "still"
    there.close()
    assert list(here) == []


def test_a_message_that_cannot_be_pickled_is_not_sent(pair: Pair) -> None:
    here, there = pair
    with pytest.raises(NotPicklable, match="the message of type list for left end"):
        here.send([sys._getframe()])
    here.send("next")
    assert there.recv() == "next"


def test_what_cannot_be_pickled_is_named_also_behind_an_end_that_can_move(pair: Pair) -> None:
    here, _ = pair
    end, other = channel()
    with pytest.raises(NotPicklable, match=r"inside it: \[1\]\['a'\], which is <frame at"):
        here.send([end, {"a": sys._getframe()}])
    other.send("still here")
    assert end.recv(PATIENCE) == "still here"
    end.close()
    other.close()


@pytest.mark.parametrize("error", [EOFError("mine"), BlockingIOError(), BrokenPipeError("b")])
def test_an_error_in_unpickling_is_the_users_and_the_channel_goes_on(
    pair: Pair, error: Exception
) -> None:
    here, there = pair
    here.send([np.zeros(50_000), Fails(error)])
    here.send("next")
    here.send(Fails(error))
    here.send("last")
    with pytest.raises(type(error)):
        there.recv()
    assert there.recv() == "next"
    loop = iter(there)
    with pytest.raises(type(error)):
        next(loop)
    assert there.recv() == "last"


@pytest.mark.parametrize(
    "junk",
    [
        b"x",
        b"GET / HTTP/1.1\r\n\r\n",
        b"m\0\0\0\0\x07",
        b"m\0\0\0\0\x01",
        b"g\0\0\0\0",  # a goodbye, if nothing came along with it
    ],
)
def test_what_is_no_message_is_broken_and_the_next_one_arrives(pair: Pair, junk: bytes) -> None:
    here, there = pair
    reader, writer = os.pipe()
    here._end.link.send(junk, [writer])
    os.close(writer)
    here.send("next")
    with pytest.raises(BrokenChannel):
        there.recv()
    assert there.recv() == "next"
    assert os.read(reader, 1) == b""  # what came along was closed
    os.close(reader)


def test_receiving_gives_up_after_its_timeout(pair: Pair) -> None:
    for timeout in (0, 0.001):
        with pytest.raises(ChannelTimeout, match=f"had no message within {timeout} s"):
            pair[0].recv(timeout)
    with pytest.raises(ValueError, match="timeout"):
        pair[0].recv(-1)


def test_sending_gives_up_after_its_timeout_and_sends_nothing(pair: Pair) -> None:
    here, there = pair
    count = fill(here)
    with pytest.raises(ChannelTimeout, match="could not take a message within 0.001 s"):
        here.send("late", timeout=0.001)
    with pytest.raises(ChannelTimeout):
        here.send(np.zeros(100_000), timeout=0)
    assert [there.recv() for _ in range(count)] == list(range(count))
    here.send("next")
    assert there.recv() == "next"


def test_a_message_that_its_timeout_cut_in_two_breaks_the_channel_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As can be over a stream only, where the system makes no more room."""
    monkeypatch.setattr(descriptors, "HAS_PACKETS", False)
    here, there = channel()
    here._end.link._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    with pytest.raises(BrokenChannel, match="the time was over when a part of the message"):
        here.send(b"x" * 100_000, timeout=0.01)
    with pytest.raises(BrokenChannel):
        here.send("next")
    with pytest.raises(EndOfChannel):
        there.recv(PATIENCE)
    here.close()
    there.close()


def test_poll_tells_of_messages_and_of_the_end(pair: Pair) -> None:
    here, there = pair
    assert not there.poll()
    assert not there.poll(0.001)
    here.send(1)
    assert there.poll()
    assert there.poll(None)
    assert there.recv() == 1
    assert not there.poll()
    here.close()
    assert there.poll(PATIENCE)
    assert list(there) == []
    assert there.poll()


def test_a_request_returns_the_reply(pair: Pair) -> None:
    """Each of several threads gets the reply to its own."""
    here, there = pair

    def serve() -> None:
        for number in there:
            there.send(number * 2)

    serving = threading.Thread(target=serve)
    serving.start()
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(here.request, range(200))) == list(range(0, 400, 2))
    here.close()
    serving.join(PATIENCE)


def test_a_request_without_a_reply_gives_up(pair: Pair) -> None:
    with pytest.raises(ChannelTimeout):
        pair[0].request(1, timeout=0.001)


def test_any_number_of_threads_may_use_an_end(pair: Pair) -> None:
    """Row p06 of the table of faults."""
    here, there = pair
    size, senders, each = 20_000, 4, 100

    def send(name: int) -> None:
        for number in range(each):
            here.send((name, number, b"%d" % (number % 10) * size))

    def receive(_: int) -> list[tuple[int, int, bytes]]:
        return [there.recv(PATIENCE) for _ in range(each)]

    with ThreadPoolExecutor(2 * senders) as threads:
        results = [threads.submit(receive, index) for index in range(senders)]
        list(threads.map(send, range(senders)))
        got = [message for result in results for message in result.result()]
    assert all(data == b"%d" % (number % 10) * size for _, number, data in got)
    names = sorted((name, number) for name, number, _ in got)
    assert names == [(name, number) for name in range(senders) for number in range(each)]


@pytest.mark.parametrize("wait_in", ["recv", "send", "for", "poll"])
def test_a_close_wakes_the_thread_that_waits(pair: Pair, wait_in: str) -> None:
    """Row p23 of the table of faults."""
    here, _ = pair
    if wait_in == "send":
        fill(here)
    caught: list[BaseException] = []

    def block() -> None:
        try:
            if wait_in == "poll":
                here.poll(None)
            USES["recv" if wait_in == "poll" else wait_in](here)
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=block)
    thread.start()
    if wait_in != "poll":
        until(lambda: taken(here._sending) or taken(here._receiving))
    here.close()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert [type(error) for error in caught] == [ChannelClosed]


def taken(lock: Any) -> bool:
    """Tell whether another thread has a lock."""
    if lock.acquire(blocking=False):
        lock.release()
        return False
    return True


def test_a_thread_that_uses_an_end_keeps_it_from_moving(pair: Pair) -> None:
    here, there = pair
    carrier, receiver = channel()
    thread = threading.Thread(target=here.recv)
    thread.start()
    until(lambda: taken(here._receiving))
    with pytest.raises(NotPicklable, match="another thread or task is using it"):
        carrier.send(here)
    there.send(1)
    thread.join(PATIENCE)
    carrier.send(here)
    receiver.recv().close()
    carrier.close()
    receiver.close()


@pytest.mark.parametrize("copying", [copy.copy, copy.deepcopy, pickle.dumps])
def test_an_end_cannot_be_copied(pair: Pair, copying: Callable[[object], object]) -> None:
    with pytest.raises(NotPicklable, match="cannot be copied"):
        copying(pair[0])
    pair[0].send(1)
    assert pair[1].recv() == 1


def test_an_end_moves_with_what_it_has_not_received(pair: Pair) -> None:
    """And with its end, its codec and its name."""
    carrier, receiver = channel()
    here, there = pair
    here.send(1)
    here.send(2)
    assert there.recv() == 1
    here.close()
    carrier.send(there)
    arrived = receiver.recv()
    assert arrived._end.label == there._end.label
    assert list(arrived) == [2]
    carrier.send(arrived)
    assert list(receiver.recv()) == []
    carrier.close()
    receiver.close()


def test_an_end_stays_when_its_message_could_not_be_sent(pair: Pair) -> None:
    carrier, receiver = channel()
    fill(carrier)
    with pytest.raises(ChannelTimeout):
        carrier.send(pair[0], timeout=0)
    receiver.close()
    with pytest.raises(BrokenChannel):
        carrier.send(pair[0])
    pair[0].send("still here")
    assert pair[1].recv() == "still here"
    carrier.close()


def test_an_end_cannot_be_sent_to_itself(pair: Pair) -> None:
    """It would be in its own inbox, of which nobody would ever hear."""
    here, there = pair
    with pytest.raises(NotPicklable, match="right end .* at which it would have to arrive"):
        here.send(["an end", there])
    with pytest.raises(NotPicklable):
        asyncio.run(here.request_async(there))
    here.send("next")
    assert there.recv() == "next"
    here.send(here)
    arrived = there.recv()
    there.send("to whom it was sent by itself")
    assert arrived.recv() == "to whom it was sent by itself"
    arrived.close()


def test_many_ends_move_in_one_message() -> None:
    carrier, receiver = channel()
    pairs = [channel() for _ in range(100)]
    carrier.send([there for _, there in pairs])
    for (here, _), there in zip(pairs, receiver.recv(), strict=True):
        here.send("hello")
        assert there.recv() == "hello"
        here.close()
        there.close()
    carrier.close()
    receiver.close()


def test_an_end_is_named_in_its_repr(pair: Pair) -> None:
    text = repr(pair[0])
    assert text.startswith("<left end of channel ")
    assert text.endswith(f"of process {os.getpid()}: open>")
    pair[0].close()
    assert "was closed in this process" in repr(pair[0])


def test_a_msgspec_channel_checks_what_arrives() -> None:
    pytest.importorskip("msgspec")
    here, there = channel(int, dict[str, int], codec="msgspec")
    here.send(7)
    assert there.recv() == 7
    here.send("seven")  # type: ignore[arg-type]
    here.send(8)
    with pytest.raises(MessageTypeError, match="Expected `int`, got `str`"):
        there.recv()
    assert there.recv() == 8
    there.send({"a": 1})
    assert here.recv() == {"a": 1}
    there.send({"a": "b" * 100_000})  # type: ignore[dict-item]
    with pytest.raises(MessageTypeError, match=r"\$\[\.\.\.\]"):
        here.recv()
    here.close()
    there.close()


def test_the_reply_to_a_request_that_was_given_up_is_not_taken_for_the_next(pair: Pair) -> None:
    here, there = pair
    with pytest.raises(ChannelTimeout):
        here.request("slow", timeout=0.001)
    there.send("late")
    there.send("on time")
    assert here.request("fast", timeout=PATIENCE) == "on time"


def test_a_late_reply_may_be_received_before_the_next_request(pair: Pair) -> None:
    here, there = pair
    with pytest.raises(ChannelTimeout):
        here.request("slow", timeout=0.001)
    there.send("late")
    assert here.recv() == "late"
    there.send("on time")
    assert here.request("fast", timeout=PATIENCE) == "on time"


def test_a_late_reply_that_cannot_be_unpickled_is_dropped_like_any_other(pair: Pair) -> None:
    here, there = pair
    with pytest.raises(ChannelTimeout):
        here.request("slow", timeout=0.001)
    there.send(Explosive())
    there.send("on time")
    assert here.request("fast", timeout=PATIENCE) == "on time"


def explode() -> None:
    raise EOFError("while it was unpickled")


class Explosive:
    def __reduce__(self) -> tuple[Any, ...]:
        return explode, ()


def test_an_end_that_is_polled_does_not_move(pair: Pair) -> None:
    here, there = pair
    carrier, receiver = channel()
    with carrier, receiver:
        thread = threading.Thread(target=lambda: here.poll(PATIENCE))
        thread.start()
        until(lambda: here._watchers)
        with pytest.raises(NotPicklable, match="is using it"):
            carrier.send(here)
        there.send(1)
        thread.join()
        carrier.send(here)
        receiver.recv().close()


def test_an_end_that_is_packed_cannot_be_used_until_it_is_known_whether_it_moves() -> None:
    here, there = channel()
    end, peer = channel()
    with contextlib.suppress(ChannelTimeout):
        while True:
            here.send(b"x" * 30_000, timeout=0)
    sending = threading.Thread(target=here.send, args=(end,))
    sending.start()
    until(lambda: end.closed)
    with pytest.raises(ChannelMoved, match="is about to move to another process"):
        end.recv(0)
    assert sending.is_alive()
    while not isinstance(moved := there.recv(PATIENCE), Channel):
        pass
    sending.join()
    peer.send("for the new owner")
    assert moved.recv(PATIENCE) == "for the new owner"


def test_an_end_that_found_no_room_to_move_can_be_used_again() -> None:
    here, _there = channel()
    end, peer = channel()
    with contextlib.suppress(ChannelTimeout):
        while True:
            here.send(b"x" * 30_000, timeout=0)
    with pytest.raises(ChannelTimeout):
        here.send(end, timeout=0)
    with pytest.raises(NotPicklable):
        here.send([end, threading.Lock()])
    peer.send("still yours")
    assert end.recv(PATIENCE) == "still yours"


def test_a_closed_end_is_no_context() -> None:
    here, there = channel()
    here.close()
    with pytest.raises(ChannelClosed):
        here.__enter__()
    there.close()


@pytest.mark.parametrize(("kind", "maker"), [(Channel, "channel"), (Job, "start")])
def test_who_makes_one_by_its_class_is_told_what_does(kind: Any, maker: str) -> None:
    with pytest.raises(TypeError, match=rf"mpkit\.{maker}\("):
        kind()


@pytest.mark.parametrize("kind", [Channel, Job])
def test_a_class_cannot_be_waited_for(kind: Any) -> None:
    with pytest.raises(TypeError, match="wait\\(\\) takes"):
        wait(kind)
