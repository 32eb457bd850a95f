"""What signals and channels are measured by."""

from __future__ import annotations

import multiprocessing
import time
from typing import Any

from benchmarks.registry import Case, case

WAKE = case("set, another process wakes and answers", "µs", count=2_000, quick=300)
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


CASES: list[Case] = [WAKE, ROUND_TRIP, LARGE]
