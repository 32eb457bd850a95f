"""A hundred small tasks: through a `TaskPool`, and through one process each.

    python examples/pool_vs_processes.py [--tasks 100] [--start-method spawn]

Starting a process costs milliseconds, a task in a pool costs microseconds. So what is
small belongs into a pool, and a process of its own is for a companion that stays.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time

import mpkit


def square(number: int) -> int:
    return number * number


def by_pool(tasks: int) -> list[int]:
    with mpkit.TaskPool(4) as pool:
        return pool.map(square, range(tasks))


def by_processes(tasks: int) -> list[int]:
    jobs = [mpkit.start(square, number) for number in range(tasks)]
    return [job.result() for job in jobs]


def main() -> None:
    parser = argparse.ArgumentParser(description="A pool against one process for each task.")
    parser.add_argument("--start-method", choices=multiprocessing.get_all_start_methods())
    parser.add_argument("--tasks", type=int, default=100)
    args = parser.parse_args()
    multiprocessing.set_start_method(args.start_method)

    began = time.perf_counter()
    squares = by_pool(args.tasks)
    pool_took = time.perf_counter() - began

    began = time.perf_counter()
    assert by_processes(args.tasks) == squares
    processes_took = time.perf_counter() - began

    print(f"{args.tasks} small tasks with a pool of 4 workers: {pool_took * 1000:8.1f} ms")
    print(f"{args.tasks} small tasks with a process each:      {processes_took * 1000:8.1f} ms")
    print(f"the pool was {processes_took / pool_took:.1f} times as fast")


if __name__ == "__main__":
    main()
