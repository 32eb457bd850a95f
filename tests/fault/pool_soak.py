"""An hour's worth of small tasks, with a look at the memory of everybody: ``make soak``.

``python -m tests.fault.pool_soak <start method> <tasks>`` prints a line for every half a
million tasks, and JSON at the end. Each round of tasks is counted by a mapped file that
has one byte for each, which the task itself increments.
"""

from __future__ import annotations

import json
import mmap
import multiprocessing
import os
import sys
import tempfile
import time
from typing import Any

import mpkit
from mpkit import worker_state

WORKERS = 2
ROUND = 20_000
#: Rounds between two looks.
LOOK = 25


def begin(path: str) -> None:
    """Map the file of counters: the initializer of each worker."""
    with open(path, "r+b") as file:
        worker_state()["counters"] = mmap.mmap(file.fileno(), ROUND)


def count(number: int) -> int:
    counters: Any = worker_state()["counters"]
    counters[number] += 1
    return number + 1


def round_of(pool: mpkit.TaskPool, turn: int) -> int:
    """Run one round in one of the ways that there are; return the sum of its results."""
    match turn % 4:
        case 0:
            tasks = [pool.submit(count, number) for number in range(ROUND)]
            return sum(task.result() for task in tasks)
        case 1:
            return sum(pool.map(count, range(ROUND), 1))
        case 2:
            return sum(pool.imap_unordered(count, range(ROUND), 1))
        case _:
            return sum(pool.starmap(count, ((number,) for number in range(ROUND)), 1))


def memory(pid: int) -> tuple[int, int]:
    """Return the private memory of a process in bytes (Linux), and its descriptors."""
    with open(f"/proc/{pid}/status") as file:
        found = next(line for line in file if line.startswith("RssAnon:"))
    return int(found.split()[1]) * 1024, len(os.listdir(f"/proc/{pid}/fd"))


def look(pool: mpkit.TaskPool) -> dict[str, Any]:
    workers = [memory(worker.pid) for worker in pool.stats().workers]
    parent, descriptors = memory(os.getpid())
    return {
        "parent": parent,
        "descriptors": descriptors,
        "workers": [resident for resident, _ in workers],
        "their descriptors": [count for _, count in workers],
    }


def main(method: str, tasks: int) -> None:
    multiprocessing.set_start_method(method)
    looks: list[dict[str, Any]] = []
    began = time.monotonic()
    with tempfile.NamedTemporaryFile() as file:
        file.truncate(ROUND)
        counters = mmap.mmap(file.fileno(), ROUND)
        with mpkit.TaskPool(WORKERS, initializer=begin, initargs=(file.name,)) as pool:
            for turn in range(-(-tasks // ROUND)):
                counters[:] = bytes(ROUND)
                assert round_of(pool, turn) == ROUND * (ROUND + 1) // 2
                assert counters[:] == b"\1" * ROUND, "some task ran twice, or never"
                if turn % LOOK == LOOK - 1:
                    looks.append(look(pool))
                    print((turn + 1) * ROUND, looks[-1], file=sys.stderr, flush=True)
        counters.close()
    seconds = time.monotonic() - began
    print(json.dumps({"tasks": (turn + 1) * ROUND, "seconds": round(seconds), "looks": looks}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
