"""A hundred tiny tasks, by a pool and by a hundred processes: with the standard library.

A process has no result, so the second half needs a queue for them; and they come in any
order. (If a worker of the pool is killed, `map` waits for ever.)
"""

from __future__ import annotations

import multiprocessing
import time

TASKS = 100


def tiny(number: int) -> int:
    return number + 1


def report(number: int, results: multiprocessing.SimpleQueue[tuple[int, int]]) -> None:
    results.put((number, tiny(number)))


def main() -> None:
    began = time.perf_counter()
    with multiprocessing.Pool(4) as pool:
        by_pool = pool.map(tiny, range(TASKS))
    print(f"pool:      {time.perf_counter() - began:.3f} s")

    began = time.perf_counter()
    results: multiprocessing.SimpleQueue[tuple[int, int]] = multiprocessing.SimpleQueue()
    processes = [multiprocessing.Process(target=report, args=(n, results)) for n in range(TASKS)]
    for process in processes:
        process.start()
    found = dict(results.get() for _ in processes)
    for process in processes:
        process.join()
    by_processes = [found[number] for number in range(TASKS)]
    print(f"processes: {time.perf_counter() - began:.3f} s")
    print("same results:", by_pool == by_processes)


if __name__ == "__main__":
    main()
