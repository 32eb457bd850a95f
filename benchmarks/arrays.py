"""What large arguments and results are measured by: eight arrays of 32 MB, two workers.

A copy of all of it takes some 0.03 s. The arrays are different ones, as nobody may save
himself a copy because they are equal; and whoever gets one touches each of its pages.
"""

from __future__ import annotations

from typing import Any

from benchmarks.libraries import LIBRARIES, Calls
from benchmarks.pools import in_pool, seconds
from benchmarks.registry import Case, case
from benchmarks.work import BYTES, make, read

HOW_MANY = 8

ARGUMENTS = case(f"{HOW_MANY} arguments of 32 MB", "s", count=3, quick=1)
RESULTS = case(f"{HOW_MANY} results of 32 MB", "s", count=3, quick=1)


def _arrays() -> list[Any]:
    import numpy

    return [numpy.full(BYTES // 8, float(number)) for number in range(HOW_MANY)]


def _sent(calls: Calls, count: int) -> float:
    list(calls.map(read, _arrays(), 1))  # starts the workers, imports NumPy in them
    taken = 0.0
    for _ in range(count):
        # New ones, as joblib keeps what it was given before, and would send it for nothing.
        taken += _sent_once(calls, _arrays())
    return taken


def _sent_once(calls: Calls, arrays: list[Any]) -> float:
    return seconds(lambda: list(calls.map(read, arrays, 1)))


def _received(calls: Calls, count: int) -> float:
    def once() -> None:
        for array in calls.map(make, range(HOW_MANY), 1):
            read(array)

    once()
    return sum(seconds(once) for _ in range(count))


for _library in LIBRARIES:
    in_pool(ARGUMENTS, _library, _sent)
    in_pool(RESULTS, _library, _received)

CASES: list[Case] = [ARGUMENTS, RESULTS]
