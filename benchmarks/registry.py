"""A case is one piece of work, and how each library does it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

Run = Callable[[int], float]

#: What a unit is of a second.
UNITS = {"µs": 1e6, "ms": 1e3, "s": 1.0, "MB/s": 0.0, "x the optimum": 1.0}


@dataclass
class Case:
    """One row of the table. A run takes a count and returns seconds for all of it."""

    name: str
    unit: str
    count: int
    #: The count of ``--quick``; 0 leaves the row out there.
    quick: int
    #: Bytes that one of the count moves, where the unit is a throughput.
    size: int = 0
    runs: dict[str, Run] = field(default_factory=dict)
    #: Why the others cannot do it, in a few words.
    unable: dict[str, str] = field(default_factory=dict)
    #: What the main module of the program imports, by library, where that matters.
    imports: dict[str, str] = field(default_factory=dict)

    def run(self, library: str) -> Callable[[Run], Run]:
        """Register how ``library`` does it."""

        def register(function: Run) -> Run:
            self.runs[library] = function
            return function

        return register

    def cannot(self, library: str, why: str) -> None:
        """Register that ``library`` has nothing that does it."""
        self.unable[library] = why

    def figure(self, seconds: float, count: int) -> float:
        """Return the figure for ``count`` of it in ``seconds``, in the case's unit."""
        if self.size:
            return self.size * count / seconds / 1e6
        return seconds / count * UNITS[self.unit]

    @property
    def more_is_better(self) -> bool:
        """Whether the figure is a throughput."""
        return bool(self.size)


def case(name: str, unit: str, count: int, quick: int, size: int = 0) -> Case:
    """Return a new case."""
    return Case(name, unit, count, quick, size)
