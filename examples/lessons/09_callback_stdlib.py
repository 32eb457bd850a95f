"""The result of a task goes to a callback in the main process: with the standard library.

(A callback that raises ends the thread that all results come through.)
"""

from __future__ import annotations

import multiprocessing
import os


def work(number: int) -> tuple[int, int]:
    return os.getpid(), number * 10


def tell(result: tuple[int, int]) -> None:
    worker, value = result
    print(f"callback in {os.getpid()}: process {worker} returned {value}")


def main() -> None:
    print(f"main process {os.getpid()}")
    with multiprocessing.Pool(1) as pool:
        pool.apply_async(work, args=(5,), callback=tell)
        pool.close()
        pool.join()


if __name__ == "__main__":
    main()
