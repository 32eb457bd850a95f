"""The result of a task goes to a callback, which runs in the main process.

A callback that raises is reported, and the pool goes on.
"""

from __future__ import annotations

import os

import mpkit


def work(number: int) -> tuple[int, int]:
    return os.getpid(), number * 10


def tell(result: tuple[int, int]) -> None:
    worker, value = result
    print(f"callback in {os.getpid()}: process {worker} returned {value}")


def main() -> None:
    print(f"main process {os.getpid()}")
    with mpkit.TaskPool(1) as pool:
        pool.apply_async(work, args=(5,), callback=tell)


if __name__ == "__main__":
    main()
