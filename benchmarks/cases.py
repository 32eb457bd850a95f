"""All rows of the table."""

from __future__ import annotations

from benchmarks import arrays, beginnings, clusters, limits, pools, primitives
from benchmarks.registry import Case

CASES: list[Case] = [
    *pools.CASES,
    *arrays.CASES,
    *beginnings.CASES,
    *limits.CASES,
    *primitives.CASES,
    *clusters.CASES,
]


def run(name: str, library: str, count: int) -> float:
    """Return the seconds that a library takes for a case, here in this process."""
    (case,) = (case for case in CASES if case.name == name)
    return case.runs[library](count)
