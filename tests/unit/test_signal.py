"""Signal within one process."""

from __future__ import annotations

import asyncio
import contextlib
import io
import math
import os
import pickle
import secrets
import selectors
import signal as signals
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpkit import _runtime
from mpkit._anyof import wait
from mpkit._signal import Signal
from tests.support import PATIENCE, copied, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import CodeType, FrameType


def a_name() -> str:
    return f"test-{secrets.token_hex(6)}"


def test_a_new_signal_is_clear() -> None:
    signal = Signal()
    assert not signal.is_set()
    assert not signal.wait(timeout=0)
    assert repr(signal).endswith(" clear>")


def test_set_stays_set_until_it_is_cleared() -> None:
    signal = Signal()
    signal.set()
    assert signal.is_set()
    assert signal.wait()
    assert signal.wait(0)
    assert signal.is_set()
    signal.clear()
    assert not signal.is_set()


@given(st.lists(st.sampled_from(["set", "clear", "copy", "look"]), max_size=30))
def test_a_signal_is_a_flag_whatever_is_done_to_it(steps: list[str]) -> None:
    flag, handles = False, [Signal()]
    for step in steps:
        signal = handles[len(handles) // 2]
        if step == "copy":
            handles.append(copied(signal))
        elif step != "look":
            getattr(signal, step)()
            flag = step == "set"
        assert {handle.is_set() for handle in handles} == {flag}
        assert {handle.wait(0) for handle in handles} == {flag}


def test_setting_it_often_is_setting_it_once() -> None:
    signal = Signal()
    for _ in range(100_000):  # more than a pipe holds
        signal.set()
    signal.clear()
    assert not signal.is_set()


def test_set_does_not_block_when_the_pipe_is_full() -> None:
    signal = Signal()
    with pytest.raises(BlockingIOError):
        while True:
            os.write(signal.fileno(), bytes(65536))
    signal.set()
    signal.clear()
    assert not signal.is_set()


def test_set_wakes_all_threads_that_wait() -> None:
    signal, results = Signal(), list[bool]()
    threads = [
        threading.Thread(target=lambda: results.append(signal.wait(PATIENCE))) for _ in range(5)
    ]
    for thread in threads:
        thread.start()
    signal.set()
    for thread in threads:
        thread.join(PATIENCE)
    assert results == [True] * 5


@contextlib.contextmanager
def alarms(
    handler: Callable[[FrameType | None], object], first: float, then: float
) -> Iterator[None]:
    """Have a signal handler interrupt this thread, once or again and again."""
    before = signals.signal(signals.SIGALRM, lambda _, frame: handler(frame))
    try:
        signals.setitimer(signals.ITIMER_REAL, first, then)
        yield
    finally:
        signals.setitimer(signals.ITIMER_REAL, 0)
        signals.signal(signals.SIGALRM, before)


def is_inside(frame: FrameType | None, code: CodeType) -> bool:
    while frame is not None and frame.f_code is not code:
        frame = frame.f_back
    return frame is not None


@pytest.mark.parametrize("method", ["set", "clear", "is_set", "wait"])
def test_set_works_in_a_signal_handler_that_interrupts_any_method(method: str) -> None:
    signal, interrupted = Signal(), 0
    code = getattr(Signal, method).__code__

    def handler(frame: FrameType | None) -> None:
        nonlocal interrupted
        interrupted += is_inside(frame, code)
        signal.set()
        assert signal.is_set()

    with alarms(handler, 0.0002, 0.0002):
        end = time.monotonic() + PATIENCE
        while interrupted < 100:
            assert time.monotonic() < end, f"{method} was interrupted {interrupted} times only"
            if method == "set":
                signal.set()
                assert signal.is_set()
                signal.clear()
            elif method == "wait":
                signal.clear()
                assert signal.wait(PATIENCE)
            else:
                getattr(signal, method)()
        signal.clear()
        assert signal.wait(PATIENCE)  # nothing is broken: the next alarm sets it
    signal.clear()
    assert not signal.is_set()


@pytest.mark.parametrize("number_of_alarms", [1, 10])
@pytest.mark.parametrize(
    "waits", [Signal.wait, lambda signal, timeout: wait(signal, timeout=timeout)]
)
def test_an_interrupted_wait_looks_again_when_its_time_is_up(
    waits: Callable[[Signal, float], object], number_of_alarms: int
) -> None:
    """The handler sets it in time, but returns late."""
    signal, alarmed, set_at = Signal(), 0, math.inf

    def handler(_: FrameType | None) -> None:
        nonlocal alarmed, set_at
        alarmed += 1
        if alarmed == number_of_alarms:
            signals.setitimer(signals.ITIMER_REAL, 0)
            signal.set()
            set_at = time.monotonic()
            until(lambda: time.monotonic() > set_at + 0.05)

    with alarms(handler, 0.0005, 0.0005):
        began = time.monotonic()
        result = waits(signal, 0.05)
        assert result or set_at > began + 0.05


@pytest.mark.parametrize("timeout", [0, 1e-9, 0.0001, 0.001, 0.0015, 0.0123, 0.05])
def test_a_wait_is_never_early(timeout: float) -> None:
    signal = Signal()
    for waits in (signal.wait, lambda timeout: bool(wait(signal, timeout=timeout))):
        for _ in range(3):
            began = time.monotonic()
            assert not waits(timeout)
            assert time.monotonic() - began >= timeout


def test_a_wait_that_is_interrupted_all_the_time_is_never_early() -> None:
    signal, count = Signal(), 0

    def handler(_: FrameType | None) -> None:
        nonlocal count
        count += 1

    with alarms(handler, 0.0005, 0.0005):
        began = time.monotonic()
        assert not signal.wait(0.1)
        assert time.monotonic() - began >= 0.1
    assert count > 1


@pytest.mark.parametrize("timeout", [-1, float("nan"), "1", True])
def test_wait_refuses_what_is_no_timeout(timeout: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="timeout"):
        Signal().wait(timeout)


def test_it_can_be_awaited() -> None:
    signal = Signal()

    async def main() -> bool:
        asyncio.get_running_loop().call_later(0.01, signal.set)
        both = await asyncio.gather(signal, signal)  # type: ignore[call-overload]
        return bool(both == [True, True])

    assert asyncio.run(main())


def test_tasks_that_await_it_need_no_thread_and_share_a_descriptor() -> None:
    signal, count = Signal(), 2000
    woken = list[int]()

    async def one(number: int) -> None:
        assert await signal
        woken.append(number)

    async def main() -> None:
        threads, descriptors = threading.enumerate(), len(os.listdir("/dev/fd"))
        tasks = [asyncio.create_task(one(number)) for number in range(count)]
        await asyncio.sleep(0)  # each runs until it waits
        assert threading.enumerate() == threads
        assert len(os.listdir("/dev/fd")) <= descriptors + 1
        for task in tasks[::2]:
            task.cancel()
        await asyncio.sleep(0)
        assert woken == []
        signal.set()
        await asyncio.wait(tasks)
        assert threading.enumerate() == threads
        assert len(os.listdir("/dev/fd")) == descriptors

    asyncio.run(main())
    assert sorted(woken) == list(range(1, count, 2))


def test_loops_in_several_threads_await_one_signal() -> None:
    signal, results, both = Signal(), list[bool](), threading.Barrier(3)

    async def main() -> bool:
        task = asyncio.ensure_future(signal)
        await asyncio.sleep(0)
        both.wait(PATIENCE)
        return await task

    threads = [
        threading.Thread(target=lambda: results.append(asyncio.run(main()))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    both.wait(PATIENCE)
    signal.set()
    for thread in threads:
        thread.join(PATIENCE)
    assert results == [True, True]


def test_a_task_that_comes_while_others_are_woken_wakes_too() -> None:
    signal = Signal()

    async def again(times: int) -> None:
        for _ in range(times):
            await signal
            signal.clear()
            asyncio.get_running_loop().call_soon(signal.set)

    async def main() -> None:
        tasks = [asyncio.create_task(again(20)) for _ in range(10)]
        await asyncio.sleep(0)
        signal.set()
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*tasks)

    asyncio.run(main())


def test_awaiting_it_can_be_cancelled() -> None:
    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await Signal()

    asyncio.run(main())


def test_it_works_in_selectors_and_in_wait() -> None:
    signal, other = Signal(), Signal()
    with selectors.DefaultSelector() as selector:
        selector.register(signal, selectors.EVENT_READ)
        assert selector.select(0) == []
        signal.set()
        assert len(selector.select(0)) == 1
    assert wait(other, signal, timeout=PATIENCE) == [signal]
    assert wait(other, timeout=0) == []


def test_a_name_leads_to_one_signal() -> None:
    name = a_name()
    first, second = Signal(name=name), Signal(name=name)
    first.set()
    assert second.is_set()
    assert copied(second).is_set()
    assert not Signal(name=a_name()).is_set()
    assert repr(first) == f"<Signal {name!r} set>"


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a b", "ä", "a\0", "a\n", "x" * 201])
def test_names_that_could_be_paths_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="a name is"):
        Signal(name=name)


@pytest.mark.parametrize("name", [b"db", 1, ("a",)])
def test_names_that_are_no_text_are_refused(name: Any) -> None:
    with pytest.raises(TypeError, match="a name is a str"):
        Signal(name=name)


def test_the_file_of_a_signal_goes_with_it_unless_it_was_pickled() -> None:
    signal = Signal()
    path = signal._path
    assert os.path.dirname(path) == _runtime.family_home().path
    del signal
    assert not os.path.exists(path)

    signal = Signal()
    path, pickled = signal._path, pickle.dumps(signal)
    del signal
    assert os.path.exists(path)
    assert pickle.loads(pickled)._path == path


class Event:
    """What a manager's proxy looks like: event-like, but not an Event."""

    def __init__(self) -> None:
        self.event = threading.Event()

    def set(self) -> None:
        self.event.set()

    def clear(self) -> None:
        self.event.clear()

    def is_set(self) -> bool:
        return self.event.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        return self.event.wait(timeout)


@pytest.mark.parametrize("make", [Event, threading.Event])
def test_over_an_event_it_does_what_the_event_does(make: type[Event]) -> None:
    event = make()
    signal = Signal.over(event)
    assert isinstance(signal, Signal)
    assert not signal.wait(0.001)
    signal.set()
    assert event.is_set()
    assert signal.is_set()
    assert signal.wait()
    signal.clear()
    assert not event.is_set()
    with pytest.raises(io.UnsupportedOperation):
        signal.fileno()
    assert "over" in repr(signal)


def test_over_an_event_it_can_be_awaited_and_cancelled() -> None:
    event = threading.Event()
    signal = Signal.over(event)

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await signal
        asyncio.get_running_loop().call_later(0.01, event.set)
        assert await signal

    asyncio.run(main())
