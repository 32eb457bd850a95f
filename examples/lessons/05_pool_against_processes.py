"""A hundred tiny tasks: by a pool of four, and by a hundred processes.

`map` takes any iterable, and gives the results back in its order.
"""

from __future__ import annotations

import time

import mpkit

TASKS = 100


def tiny(number: int) -> int:
    return number + 1


def main() -> None:
    began = time.perf_counter()
    with mpkit.TaskPool(4) as pool:
        by_pool = pool.map(tiny, range(TASKS))
    print(f"pool:      {time.perf_counter() - began:.3f} s")

    began = time.perf_counter()
    jobs = [mpkit.start(tiny, number) for number in range(TASKS)]
    by_processes = [job.result() for job in jobs]
    print(f"processes: {time.perf_counter() - began:.3f} s")
    print("same results:", by_pool == by_processes)


if __name__ == "__main__":
    main()
