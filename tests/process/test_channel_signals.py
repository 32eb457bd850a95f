"""Signal handlers that raise, send, receive or close in the middle of a channel's calls."""

from __future__ import annotations

import contextlib
import random
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from mpkit import _wait
from mpkit._channel import Channel, channel
from mpkit._errors import ChannelClosed, ChannelTimeout, EndOfChannel
from mpkit._platform import descriptors
from tests.support import PATIENCE, Spawn, finish, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Pair = tuple[Channel[Any, Any], Channel[Any, Any]]


@pytest.fixture
def pair() -> Iterator[Pair]:
    ends = channel()
    yield ends
    for end in ends:
        end.close()


def fill(end: Channel[Any, Any]) -> int:
    """Send until nothing more goes in; return how many messages that took."""
    count = 0
    with contextlib.suppress(ChannelTimeout):
        while True:
            end.send(b"x" * 1000, timeout=0)
            count += 1
    return count


@contextlib.contextmanager
def interrupted(lock: Any, handle: Callable[[], object]) -> Iterator[None]:
    """Have a handler call ``handle`` when the main thread, having ``lock``, is blocked."""
    main = threading.get_native_id()

    def blocked() -> bool:
        if _free(lock):
            return False
        with open(f"/proc/self/task/{main}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] == "S"

    def alarm() -> None:
        until(blocked)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGALRM)

    before = signal.signal(signal.SIGALRM, lambda *_: handle())
    thread = threading.Thread(target=alarm)
    thread.start()
    try:
        yield
    finally:
        thread.join()
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("timeout", [None, PATIENCE])
@pytest.mark.parametrize(
    "error",
    [TimeoutError("alarm"), KeyboardInterrupt(), ChannelTimeout("it", "was late", 1.0)],
    ids=lambda error: type(error).__name__,
)
def test_what_a_handler_raises_is_no_death(
    pair: Pair, error: BaseException, timeout: float | None
) -> None:
    """The idiom of an alarm that raises TimeoutError, which is an OSError."""
    here, there = pair

    def fail() -> None:
        raise error

    with pytest.raises(type(error)), interrupted(here._receiving, fail):
        here.recv(timeout)
    count = fill(here)
    with pytest.raises(type(error)), interrupted(here._sending, fail):
        here.send("no room", timeout)

    there.send("still here")
    assert here.recv(PATIENCE) == "still here"
    assert [there.recv(PATIENCE) for _ in range(count)] == [b"x" * 1000] * count
    here.send("and so am I")
    assert there.recv(PATIENCE) == "and so am I"


def test_a_default_timeout_of_sockets_is_none_of_ours() -> None:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(0.01)
    try:
        here, there = channel()
    finally:
        socket.setdefaulttimeout(before)
    with here, there:
        thread = threading.Thread(target=lambda: (_wait.poll([], 0.1), there.send("late")))
        thread.start()
        assert here.recv() == "late"
        thread.join()


class Tick(BaseException):
    """Raised by a handler at a moment of nobody's choosing."""


def count_up(end: Channel[int, Any], count: int) -> None:
    for number in range(count):
        end.send(number)


@pytest.mark.parametrize("timeout", [None, PATIENCE])
def test_no_message_is_lost_or_comes_twice_however_often_it_is_interrupted(
    spawn: Spawn, pair: Pair, timeout: float | None
) -> None:
    here, there = pair
    sender = spawn(count_up, there, 5000)
    chance, got, ticking = random.Random(1), list[int](), False

    def tick(signum: int, frame: object) -> None:
        if ticking:
            raise Tick

    before = signal.signal(signal.SIGALRM, tick)
    try:
        while True:
            message = None
            try:
                ticking = True
                signal.setitimer(signal.ITIMER_REAL, chance.uniform(5e-6, 60e-6))
                message = here.recv(timeout)
                ticking = False
            except EndOfChannel:
                ticking = False
                break
            except Tick:
                ticking = False
            if message is not None:
                got.append(message)
    finally:
        ticking = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    finish(sender)
    assert got == list(range(5000))


@pytest.mark.parametrize("blocked_in", ["recv", "send"])
def test_a_handler_may_close_the_end_that_it_interrupts(pair: Pair, blocked_in: str) -> None:
    here, there = pair
    fill(here)
    lock = here._receiving if blocked_in == "recv" else here._sending
    with pytest.raises(ChannelClosed), interrupted(lock, here.close):
        here.recv() if blocked_in == "recv" else here.send("no room")
    assert here._end.link.closed
    assert set(there) == {b"x" * 1000}  # and then the end, which is not a death


def test_a_handler_may_use_the_end_that_it_interrupts(pair: Pair) -> None:
    here, there = pair
    got: list[str] = []

    def talk() -> None:
        here.send("by the handler")
        there.send("first")
        got.append(here.recv(PATIENCE))
        there.send("second")

    with interrupted(here._receiving, talk):
        got.append(here.recv())
    assert got == ["first", "second"]
    assert there.recv() == "by the handler"


WHOLE = pytest.mark.skipif(
    not descriptors.HAS_PACKETS, reason="after half a packet no goodbye can follow"
)


@WHOLE
def test_a_close_while_a_thread_is_blocked_in_send_is_no_death(pair: Pair) -> None:
    here, there = pair
    fill(here)
    caught: list[BaseException] = []

    def send() -> None:
        try:
            here.send("no room")
        except ChannelClosed as error:
            caught.append(error)

    thread = threading.Thread(target=send)
    thread.start()
    until(lambda: not _free(here._sending))
    here.close()
    thread.join()
    assert len(caught) == 1
    assert set(there) == {b"x" * 1000}


def _free(lock: Any) -> bool:
    if lock.acquire(blocking=False):
        lock.release()
        return True
    return False


def exit_while_a_thread_sends(end: Channel[Any, Any]) -> None:
    fill(end)

    def send() -> None:
        with contextlib.suppress(ChannelClosed):
            end.send("no room")

    threading.Thread(target=send, daemon=True).start()
    until(lambda: not _free(end._sending))


@WHOLE
def test_a_normal_exit_while_a_thread_is_blocked_in_send_is_no_death(
    spawn: Spawn, pair: Pair
) -> None:
    here, there = pair
    process = spawn(exit_while_a_thread_sends, there)
    finish(process)
    assert set(here) == {b"x" * 1000}


class Precious:
    """A message of which the unpickling is interrupted, the first time."""

    def __reduce__(self) -> Any:
        return unpickle_precious, ()


while_unpickling: list[Callable[[], object]] = []


def unpickle_precious() -> str:
    if while_unpickling:
        while_unpickling.pop()()
        raise KeyboardInterrupt
    return "precious"


def test_an_interrupted_message_comes_before_the_end_that_another_thread_has_seen(
    pair: Pair,
) -> None:
    here, there = pair
    here.send(Precious())
    here.close()

    def see_the_end() -> None:
        with ThreadPoolExecutor(1) as pool, pytest.raises(EndOfChannel):
            pool.submit(there.recv).result(PATIENCE)

    while_unpickling.append(see_the_end)
    with pytest.raises(KeyboardInterrupt):
        there.recv()
    assert there.recv(PATIENCE) == "precious"
    with pytest.raises(EndOfChannel):
        there.recv()
