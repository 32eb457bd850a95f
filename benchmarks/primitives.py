"""What signals and channels are measured by."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

from benchmarks.registry import Case, case

WAKE = case("set, another process wakes and answers", "µs", count=2_000, quick=300)
BEREAVED = case("set() after 50 of 100 waiters were killed, its own time", "µs", count=3, quick=1)
ROUND_TRIP = case("small message, there and back", "µs", count=5_000, quick=500)
# On two cores the time is that of waking a core, which differs from run to run by more than
# one library does from another. On one core it is that of the library.
SAME_CORE = case("small message, there and back on one core", "µs", count=5_000, quick=500)
ONE_WAY = case("small message, one way", "µs", count=20_000, quick=2_000)
LARGE = [
    case("1 MB array, to who reads it", "MB/s", count=500, quick=100, size=1_000_000),
    case("16 MB array, to who reads it", "MB/s", count=50, quick=10, size=16_000_000),
    case("100 MB array, to who reads it", "MB/s", count=20, quick=8, size=100_000_000),
]
DEATH = case("SIGKILL, until the other end learns of it", "µs", count=20, quick=5)


def _answer(ping: Any, pong: Any, count: int) -> None:
    for _ in range(count):
        ping.wait()
        ping.clear()
        pong.set()


def _wakes(ping: Any, pong: Any, count: int) -> float:
    process = multiprocessing.Process(target=_answer, args=(ping, pong, count + 1))
    process.start()

    def once() -> None:
        ping.set()
        pong.wait()
        pong.clear()

    once()
    began = time.perf_counter()
    for _ in range(count):
        once()
    seconds = time.perf_counter() - began
    process.join()
    return seconds


@WAKE.run("mpkit")
def _(count: int) -> float:
    import mpkit

    return _wakes(mpkit.Signal(), mpkit.Signal(), count)


@WAKE.run("multiprocessing")
def _(count: int) -> float:
    return _wakes(multiprocessing.Event(), multiprocessing.Event(), count)


#: Seconds after which a set() is taken to hang.
HANGS_AFTER = 5


def _await(event: Any, ready: Any) -> None:
    os.nice(19)  # so that fifty who wake do not take the core from the one who is timed
    ready.send(None)
    event.wait()


def _time_set(event: Any, result: list[float]) -> None:
    # Its own time: on two cores those who were woken run before it goes on.
    began = time.thread_time()
    event.set()
    result.append(time.thread_time() - began)


def _set_after_deaths(make: Callable[[], Any], count: int) -> float:
    """Return the seconds that the processor was busy with set()."""
    fork = multiprocessing.get_context("fork")
    taken: list[float] = []
    for _ in range(count):
        event, (ours, theirs) = make(), fork.Pipe()
        processes = [fork.Process(target=_await, args=(event, theirs)) for _ in range(100)]
        for process in processes:
            process.start()
        for _ in processes:
            ours.recv()
        time.sleep(0.3)  # until the last of them is inside wait()
        for process in processes[:50]:
            process.kill()
            process.join()
        setter = threading.Thread(target=_time_set, args=(event, taken), daemon=True)
        setter.start()
        setter.join(HANGS_AFTER)
        for process in processes:
            process.kill()
            process.join()
        if setter.is_alive():
            raise TimeoutError(f"set() hangs (for {HANGS_AFTER} s at least)")
    return sum(taken)


@BEREAVED.run("mpkit")
def _(count: int) -> float:
    import mpkit

    return _set_after_deaths(mpkit.Signal, count)


@BEREAVED.run("multiprocessing")
def _(count: int) -> float:
    return _set_after_deaths(multiprocessing.get_context("fork").Event, count)


def _echo(end: Any) -> None:
    while (message := end.recv()) is not None:
        end.send(message)


def _swallow(end: Any) -> None:
    while (message := end.recv()) is not None:
        if not isinstance(message, int):
            int(message.sum())  # reads every byte
    end.send(None)


def _talks(here: Any, there: Any, count: int) -> float:
    process = multiprocessing.Process(target=_echo, args=(there,))
    process.start()
    here.send(0)
    here.recv()
    began = time.perf_counter()
    for number in range(count):
        here.send(number)
        here.recv()
    seconds = time.perf_counter() - began
    here.send(None)
    process.join()
    return seconds


def pour(here: Any, there: Any, message: Any, count: int) -> float:
    """Return the seconds that it takes to send ``message`` to who reads it, so many times."""
    process = multiprocessing.Process(target=_swallow, args=(there,))
    process.start()
    for _ in range(min(count, WARM)):
        here.send(message)
    began = time.perf_counter()
    for _ in range(count):
        here.send(message)
    here.send(None)
    here.recv()
    seconds = time.perf_counter() - began
    process.join()
    return seconds


#: How many messages are sent before the time begins: what is kept is warm then.
WARM = 6


def _wait_to_be_killed(end: Any) -> None:
    end.send(None)
    signal.pause()


def _bereaves(make: Callable[[], Any], count: int) -> float:
    """Return the seconds from SIGKILL to the end that the peer's messages have then."""
    seconds = 0.0
    for _ in range(count):
        here, there = make()
        process = multiprocessing.Process(target=_wait_to_be_killed, args=(there,))
        process.start()
        there.close()  # without which a Pipe never tells
        here.recv()
        began = time.perf_counter()
        process.kill()
        try:
            here.recv()
        except (EOFError, OSError):
            seconds += time.perf_counter() - began
        process.join()
    return seconds


def _mpkit() -> Any:
    import mpkit

    return mpkit.channel()


@ONE_WAY.run("mpkit")
def _(count: int) -> float:
    return pour(*_mpkit(), 1, count)


@ONE_WAY.run("multiprocessing")
def _(count: int) -> float:
    return pour(*multiprocessing.Pipe(), 1, count)


@ROUND_TRIP.run("mpkit")
def _(count: int) -> float:
    return _talks(*_mpkit(), count)


@ROUND_TRIP.run("multiprocessing")
def _(count: int) -> float:
    return _talks(*multiprocessing.Pipe(), count)


@SAME_CORE.run("mpkit")
def _(count: int) -> float:
    _stay_on_a_core()
    return _talks(*_mpkit(), count)


@SAME_CORE.run("multiprocessing")
def _(count: int) -> float:
    _stay_on_a_core()
    return _talks(*multiprocessing.Pipe(), count)


def _stay_on_a_core() -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def _array(size: int) -> Any:
    import numpy

    return numpy.ones(size // 8)


for _case in LARGE:

    @_case.run("mpkit")
    def _(count: int, size: int = _case.size) -> float:
        return pour(*_mpkit(), _array(size), count)

    @_case.run("multiprocessing")
    def _(count: int, size: int = _case.size) -> float:
        return pour(*multiprocessing.Pipe(), _array(size), count)


@DEATH.run("mpkit")
def _(count: int) -> float:
    return _bereaves(_mpkit, count)


@DEATH.run("multiprocessing")
def _(count: int) -> float:
    return _bereaves(multiprocessing.Pipe, count)


CASES: list[Case] = [WAKE, BEREAVED, ONE_WAY, ROUND_TRIP, SAME_CORE, *LARGE, DEATH]
