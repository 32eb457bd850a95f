"""How the throughput of a channel depends on the size of a message, as a picture."""

from __future__ import annotations

import multiprocessing
import statistics
import sys
import time
from typing import Any

from benchmarks.primitives import pour
from benchmarks.table import pyplot

#: 1 B to 1 GB.
SIZES = [10**power for power in range(10)] + [3 * 10**power for power in range(9)]
#: What is sent in a measurement, and the most and least messages for that.
BYTES, MOST, LEAST = 1_000_000_000, 3000, 1


def curve(path: str, rounds: int) -> None:
    """Measure and draw: bytes a second over the size of a message, sender to reader."""
    figures: dict[str, dict[int, float]] = {"mpkit.channel": {}, "multiprocessing.Pipe": {}}
    for size in sorted(SIZES):
        print(f"messages of {size:,} bytes", file=sys.stderr)
        taken: dict[str, list[float]] = {name: [] for name in figures}
        for _ in range(rounds if size < 10**9 else 1):
            for name in figures:
                taken[name].append(_rate(name, size))
        for name, rates in taken.items():
            figures[name][size] = statistics.median(rates)
    print("| bytes | mpkit MB/s | Pipe MB/s | ratio |\n|--:|--:|--:|--:|")
    for size in sorted(SIZES):
        ours, theirs = (rates[size] / 1e6 for rates in figures.values())
        print(f"| {size:,} | {ours:,.3g} | {theirs:,.3g} | {ours / theirs:.2f}x |")
    _draw(path, figures)


def _rate(name: str, size: int) -> float:
    import numpy

    import mpkit

    ends: Any = mpkit.channel() if name == "mpkit.channel" else multiprocessing.Pipe()
    count = max(LEAST, min(MOST, BYTES // size))
    # A sum of single bytes takes ten times as long as their journey.
    array = numpy.ones(size, "u1") if size % 8 else numpy.ones(size // 8)
    return size * count / pour(*ends, array, count)


def _draw(path: str, figures: dict[str, dict[int, float]]) -> None:
    plots = pyplot()
    figure, axes = plots.subplots(figsize=(7, 4.5), layout="constrained")
    for name, rates in figures.items():
        axes.loglog(list(rates), [rate / 1e6 for rate in rates.values()], marker=".", label=name)
    axes.set_xlabel("bytes of a NumPy array")
    axes.set_ylabel("MB/s, sender to a receiver that reads every byte")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path)


def thresholds(rounds: int) -> None:
    """Print what the limits of `mpkit._pickling` and `mpkit._segment` were chosen by."""
    import numpy

    import mpkit
    from mpkit import _pickling, _segment

    def set_out_of_band(size: int) -> None:
        for module in (_pickling, _segment):
            module.OUT_OF_BAND = size  # type: ignore[attr-defined]

    def set_mapped(size: int) -> None:
        _segment.MAPPED = size  # type: ignore[misc]

    print("\n100 arrays in a message, each of (bytes): µs in the stream, beside it")
    here, there = mpkit.channel()
    for power in range(10, 17):
        arrays = [numpy.ones(2**power // 8) for _ in range(100)]
        print(2**power, *_compared(here, there, arrays, set_out_of_band, [2**40, 256], rounds))
    set_out_of_band(16 * 1024)
    print("\nan array of (bytes), summed by who receives it: µs if it is read, if it is mapped")
    for power in range(16, 25):
        array = numpy.ones(2**power // 8)
        print(2**power, *_compared(here, there, array, set_mapped, [2**40, 0], rounds))


def _compared(
    here: Any, there: Any, message: Any, choose: Any, choices: list[int], rounds: int
) -> list[int]:
    """Return the median time of a message, there and read, with each choice in turn."""
    times: dict[int, list[float]] = {choice: [] for choice in choices}
    for number in range(rounds * 20):
        choice = choices[number % len(choices)]
        choose(choice)
        for _ in range(5):
            began = time.perf_counter()
            here.send(message)
            received = there.recv()
            for array in received if isinstance(received, list) else [received]:
                array.sum()
            del received
            times[choice].append(time.perf_counter() - began)
    return [round(statistics.median(taken) * 1e6) for taken in times.values()]
