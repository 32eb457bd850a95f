"""What unpickling a message raises, and what was received and not taken, is not lost."""

from __future__ import annotations

import asyncio
import os
import pickle
from typing import TYPE_CHECKING, Any

import pytest

from mpkit import Channel, ChannelTimeout, channel, start
from tests.support import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterator

End = Channel[Any, Any]
Pair = tuple[End, End]


@pytest.fixture
def pair(socket_kind: str) -> Iterator[Pair]:
    ends = channel()
    yield ends
    for end in ends:
        end.close()


def receive_all(end: End, count: int) -> list[Any]:
    with end:
        return [end.recv(PATIENCE) for _ in range(count)]


class InterruptedIn:
    """Its unpickling is interrupted in one process, as by Ctrl-C; then it is put back."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def __reduce__(self) -> Any:
        return unpickle, (self.pid,)


def unpickle(pid: int) -> str:
    if pid == os.getpid():
        raise KeyboardInterrupt
    return "put back"


@pytest.mark.usefixtures("start_method")
def test_what_was_received_and_not_taken_moves_along() -> None:
    here, there = channel()
    there.send(InterruptedIn(os.getpid()))
    there.send("next")
    with pytest.raises(KeyboardInterrupt):
        here.recv(PATIENCE)
    assert start(receive_all, here, 2).result(PATIENCE) == ["put back", "next"]
    there.close()


class Raises:
    """Its unpickling raises."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        return raise_it, (pickle.dumps(self.error),)


def raise_it(error: bytes) -> None:
    raise pickle.loads(error)


ERRORS = pytest.mark.parametrize(
    "error",
    [ChannelTimeout("it", "was late", 1.0), StopIteration(7), StopAsyncIteration(7), EOFError()],
    ids=lambda error: type(error).__name__,
)


def is_it(error: BaseException, came: BaseException) -> bool:
    """Tell whether ``came`` is the error, or, out of an iterator or a coroutine, wraps it."""
    if isinstance(came, RuntimeError) and came.__cause__:
        came = came.__cause__
    return (type(came), came.args) == (type(error), error.args)


@ERRORS
def test_what_unpickling_raises_comes_out_of_every_way_to_receive(
    pair: Pair, error: Exception
) -> None:
    here, there = pair
    for receive in (here.recv, here.request, here.__iter__().__next__):
        there.send(Raises(error))
        there.send("next")
        with pytest.raises(Exception) as caught:
            receive(*(["a request"] if receive == here.request else []))
        assert is_it(error, caught.value)
        if receive in (here.recv, here.request):
            assert type(caught.value) is type(error)
        assert here.recv(PATIENCE) == "next"


@ERRORS
def test_what_unpickling_raises_comes_out_in_asyncio_too(pair: Pair, error: Exception) -> None:
    here, there = pair

    async def main() -> None:
        for receive in (here.recv_async, lambda: here.request_async(1), here.__anext__):
            there.send(Raises(error))
            there.send("next")
            with pytest.raises(Exception) as caught:
                await receive()
            assert is_it(error, caught.value)
            assert await here.recv_async(PATIENCE) == "next"

    asyncio.run(main())


@ERRORS
def test_no_error_of_unpickling_ends_a_loop(pair: Pair, error: Exception) -> None:
    here, there = pair
    there.send(Raises(error))
    there.send("next")
    got: list[Any] = []

    async def loop() -> None:
        async for message in here:
            got.append(message)

    with pytest.raises(Exception) as caught:
        asyncio.run(loop())
    assert is_it(error, caught.value)
    there.send(Raises(error))
    there.close()
    with pytest.raises(Exception) as caught:
        got.extend(here)
    assert is_it(error, caught.value)
    assert list(here) == []
    assert got == ["next"]
