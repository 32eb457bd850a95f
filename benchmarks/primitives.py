"""What signals and channels are measured by."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from typing import Any

from benchmarks.registry import Case, case

WAKE = case("set, another process wakes and answers", "µs", count=2_000, quick=300)
BEREAVED = case("set() after 50 of 100 waiters were killed, its own time", "µs", count=3, quick=1)
ROUND_TRIP = case("small message, there and back", "µs", count=5_000, quick=500)
LARGE = case("16 MB array, one way", "MB/s", count=30, quick=5, size=16_000_000)


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


def _pours(here: Any, there: Any, count: int) -> float:
    import numpy

    array = numpy.ones(LARGE.size // 8)
    process = multiprocessing.Process(target=_swallow, args=(there,))
    process.start()
    here.send(array)
    began = time.perf_counter()
    for _ in range(count):
        here.send(array)
    here.send(None)
    here.recv()
    seconds = time.perf_counter() - began
    process.join()
    return seconds


@ROUND_TRIP.run("mpkit")
def _(count: int) -> float:
    import mpkit

    return _talks(*mpkit.channel(), count)


@ROUND_TRIP.run("multiprocessing")
def _(count: int) -> float:
    return _talks(*multiprocessing.Pipe(), count)


@LARGE.run("mpkit")
def _(count: int) -> float:
    import mpkit

    return _pours(*mpkit.channel(), count)


@LARGE.run("multiprocessing")
def _(count: int) -> float:
    return _pours(*multiprocessing.Pipe(), count)


CASES: list[Case] = [WAKE, BEREAVED, ROUND_TRIP, LARGE]
