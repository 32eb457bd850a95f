"""How long the tasks of the simulator take: lists of seconds, in the order of submission."""

from __future__ import annotations

import random
from collections.abc import Callable

Workload = Callable[[int], list[float]]


def constant(seconds: float) -> Workload:
    """Return tasks that all take as long."""
    return lambda tasks: [seconds] * tasks


def exponential(mean: float) -> Workload:
    """Return tasks of an exponential distribution."""
    return lambda tasks: _drawn(tasks, lambda chance: chance.expovariate(1 / mean))


def lognormal(median: float, sigma: float, order: str) -> Workload:
    """Return skewed tasks, the shortest first ("up"), the longest ("down"), or in no order."""

    def make(tasks: int) -> list[float]:
        lengths = _drawn(tasks, lambda chance: median * chance.lognormvariate(0, sigma))
        if order != "shuffled":
            lengths.sort(reverse=order == "down")
        return lengths

    return make


def bimodal(short: float, long: float, share: float) -> Workload:
    """Return short tasks, and this share of long ones among them."""
    return lambda tasks: _drawn(tasks, lambda chance: long if chance.random() < share else short)


def fooling(short: float, long: float) -> Workload:
    """Return short tasks, and one long one in their midst.

    A thousand short ones have taught everybody that tasks are short, and then one of a
    packet is not. It stands ninth of 64, so that most of such a packet is behind it.
    """

    def make(tasks: int) -> list[float]:
        lengths = [short] * tasks
        lengths[tasks // 2 // 64 * 64 + 8] = long
        return lengths

    return make


def _drawn(tasks: int, draw: Callable[[random.Random], float]) -> list[float]:
    chance = random.Random(6)
    return [draw(chance) for _ in range(tasks)]


#: By name; what the table has a row for.
WORKLOADS: dict[str, Workload] = {
    "all 1 µs": constant(1e-6),
    "all 100 µs": constant(1e-4),
    "all 10 ms": constant(1e-2),
    "exponential, 1 ms": exponential(1e-3),
    "skewed, shortest first": lognormal(1e-3, 1.6, "up"),
    "skewed, shuffled": lognormal(1e-3, 1.6, "shuffled"),
    "skewed, longest first": lognormal(1e-3, 1.6, "down"),
    "50 µs, and one in 500 of 100 ms": bimodal(5e-5, 0.1, 0.002),
    "1 µs, and a single one of 10 s": fooling(1e-6, 10.0),
}
