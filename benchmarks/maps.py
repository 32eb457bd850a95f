"""Try how `mpkit._pool.gather` cuts maps, without any process.

``python -m benchmarks.maps [--workers N ...] [--tasks N]`` runs maps of the workloads of
`benchmarks.workloads` with the real `Gather`, on workers that only pretend to work, and
prints the makespan over the optimum, and how many parts there were for each worker: in four
chunks for each worker, item by item, and in slices with several values of ``PARTS``.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import math
from collections import deque
from typing import Any

from benchmarks.workloads import WORKLOADS, Workload
from mpkit._engine.feeds import Feeds
from mpkit._pool import gather
from mpkit._pool import progress as progress_
from mpkit._pool.gather import Gather, Slice
from mpkit._task.options import Options
from mpkit._task.task import Task
from mpkit._worker import chunks

Part = Task[tuple[list[int], float]]

#: Seconds from the end of a part until its worker has the next one.
BETWEEN = 2e-4

#: What is compared: how many parts of what is left a slice is, or how chunks are made.
PARTS = [1, 2, 4, 8, 16, 32]


class Pretence:
    """A backend whose workers take as long as a workload says, by a clock that jumps."""

    submit_part = None

    def __init__(self, workers: int, lengths: list[float], size: int, *, sliced: bool) -> None:
        self.workers = workers
        self.feeds = Feeds()
        self.parts = 0
        self._lengths = lengths
        self._size = size
        self._sliced = sliced
        self._waiting: deque[tuple[Slice, Part]] = deque()

    def submit(self, part: Slice) -> Part:
        task: Part = Task("a part", Options())
        self._waiting.append((part, task))
        self.parts += 1
        return task

    def run(self) -> float:
        """Return the seconds that the map takes."""
        sizes = [
            min(self._size, len(self._lengths) - first)
            for first in range(0, len(self._lengths), self._size)
        ]
        meter = progress_.meter(None, None)
        whole: Gather[int] = Gather(self, self.submit, sizes, meter)  # type: ignore[arg-type]
        whole.whole = Task("a map", Options())
        whole.begin()
        now, free, order = 0.0, self.workers, itertools.count()
        ends: list[tuple[float, int, Part, tuple[list[int], float]]] = []
        while self._waiting or ends:
            while self._waiting and free:
                part, task = self._waiting.popleft()
                done, seconds = self._work(part)
                free -= 1
                outcome = [0] * done, seconds / done
                heapq.heappush(ends, (now + seconds + BETWEEN, next(order), task, outcome))
            now, _, task, outcome = heapq.heappop(ends)
            free += 1
            task.set_running_or_notify_cancel()
            task.set_result(outcome)
        assert len(whole.whole.result(0)) == len(self._lengths)
        return now

    def _work(self, part: Slice) -> tuple[int, float]:
        """Return how many items a worker does of a part, and how long that takes."""
        first = part.chunk * self._size
        seconds, limit = 0.0, part.seconds if self._sliced else math.inf
        for done, item in enumerate(range(first + part.start, first + part.stop), 1):
            seconds += self._lengths[item]
            if seconds >= limit:
                break
        return done, seconds


def measure(workers: int, tasks: int, workload: Workload) -> dict[str, tuple[float, float]]:
    """Return, for each way, the makespan over the optimum and the parts for each worker."""
    lengths = workload(tasks)
    optimum = max(sum(lengths) / workers, max(lengths))
    size = chunks.default_size(tasks, workers)
    ways: dict[str, tuple[int, int | None]] = {"chunks": (size, None), "items": (1, None)}
    ways |= {str(parts): (size, parts) for parts in PARTS}
    outcomes = {}
    for name, (length, parts) in ways.items():
        before, gather.PARTS = gather.PARTS, parts or gather.PARTS
        pretence = Pretence(workers, lengths, length, sliced=parts is not None)
        outcomes[name] = pretence.run() / optimum, pretence.parts / workers
        gather.PARTS = before
    return outcomes


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.maps",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 8, 64])
    parser.add_argument("--tasks", type=int, default=2000)
    options = parser.parse_args()
    names = ["chunks", "items", *map(str, PARTS)]
    print(f"| tasks | workers | {' | '.join(names)} |")
    print(f"|---|--:|{'--:|' * len(names)}")
    for (name, workload), workers in itertools.product(WORKLOADS.items(), options.workers):
        outcomes: dict[str, Any] = measure(workers, options.tasks, workload)
        cells = [f"{ratio:.3g} ({parts:.0f})" for ratio, parts in outcomes.values()]
        print(f"| {name} | {workers} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
