"""To ask in the event loop of a client: answers, errors, and askers who leave at any moment."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("distributed")

from mpkit.dask._loop import _Call, ask, ask_async
from tests.support import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterator


class Client(SimpleNamespace):
    """What is asked for in a client here; its loop runs in a thread."""

    __hash__ = object.__hash__


@pytest.fixture
def client() -> Iterator[Any]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield Client(loop=SimpleNamespace(asyncio_loop=loop), status="running", scheduler=None)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(PATIENCE)
    loop.close()


class Undone(list[object]):
    """What was undone, and that it was."""

    def __init__(self) -> None:
        self.told = threading.Event()

    def __call__(self, answer: object) -> None:
        self.append(answer)
        self.told.set()


async def seven() -> int:
    return 7


async def fail() -> int:
    raise KeyError("mine")


def test_a_thread_gets_the_answer_or_the_error(client: Any) -> None:
    undone = Undone()
    assert ask(client, seven, undone) == 7
    with pytest.raises(KeyError, match="mine"):
        ask(client, fail, undone)
    assert undone == []


def test_a_coroutine_of_another_loop_does_too(client: Any) -> None:
    undone = Undone()
    assert asyncio.run(ask_async(client, seven, undone)) == 7
    with pytest.raises(KeyError, match="mine"):
        asyncio.run(ask_async(client, fail, undone))
    assert undone == []


def test_the_thread_of_the_loop_is_told_that_it_would_wait_for_itself(client: Any) -> None:
    async def wrong() -> None:
        ask(client, seven, Undone())

    with pytest.raises(RuntimeError, match="this thread runs the event loop"):
        ask(client, wrong, Undone())


def in_its_loop(client: Any, call: Any) -> None:
    """Run something there, and wait until all that it has set off has been done."""

    async def run() -> None:
        call()
        for _ in range(5):
            await asyncio.sleep(0)

    asyncio.run_coroutine_threadsafe(run(), client.loop.asyncio_loop).result(PATIENCE)


def test_who_leaves_before_the_answer_cancels_the_question(client: Any) -> None:
    undone, asked, cancelled = Undone(), threading.Event(), threading.Event()

    async def wait() -> int:
        asked.set()
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return 7

    call = _Call(client, wait, undone)
    assert asked.wait(PATIENCE)
    call.leave()
    assert cancelled.wait(PATIENCE)
    _Call(client, wait, undone).leave()  # perhaps before it has begun
    in_its_loop(client, lambda: None)
    assert undone == []


def test_who_leaves_in_the_moment_of_the_answer_has_it_undone(client: Any) -> None:
    """Between the end of the question and the news of it."""
    undone, question = Undone(), asyncio.Future[int](loop=client.loop.asyncio_loop)
    calls: list[_Call[int]] = []

    async def wait() -> int:
        answer = await question
        # Behind this in the loop comes that we are done. The leaving is before it.
        client.loop.asyncio_loop.call_soon(calls[0]._leave)
        return answer

    calls.append(_Call(client, wait, undone))
    client.loop.asyncio_loop.call_soon_threadsafe(question.set_result, 7)
    assert undone.told.wait(PATIENCE)
    in_its_loop(client, lambda: None)
    assert undone == [7]


def test_who_leaves_after_the_answer_has_it_undone_once(client: Any) -> None:
    undone = Undone()
    call = _Call(client, seven, undone)
    assert call.answer.result(PATIENCE) == 7
    call.leave()
    assert undone.told.wait(PATIENCE)
    in_its_loop(client, lambda: None)
    assert undone == [7]


def test_an_error_is_nothing_to_undo(client: Any) -> None:
    undone = Undone()
    call = _Call(client, fail, undone)
    assert isinstance(call.answer.exception(PATIENCE), KeyError)
    call.leave()
    in_its_loop(client, lambda: None)
    assert undone == []


def test_a_cancelled_coroutine_of_another_loop_has_left(client: Any) -> None:
    undone = Undone()
    asked = threading.Event()

    async def wait_for_ever() -> int:
        asked.set()
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            return 7  # the answer was there before
        return 8

    async def use() -> None:
        task = asyncio.ensure_future(ask_async(client, wait_for_ever, undone))
        await asyncio.to_thread(asked.wait, PATIENCE)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(use())
    assert undone.told.wait(PATIENCE)
    assert undone == [7]
