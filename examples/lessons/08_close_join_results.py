"""Leave the pool first, read the results later.

Leaving the `with` is close and join: it finishes the work. Nothing is dropped silently.
"""

from __future__ import annotations

import time

import mpkit


def work(number: int) -> int:
    time.sleep(0.02)
    return number * 10


def main() -> None:
    with mpkit.TaskPool(4) as pool:
        tasks = [pool.apply_async(work, (number,)) for number in range(10)]
    print("all ready:", all(task.ready() for task in tasks))
    print([task.get() for task in tasks])


if __name__ == "__main__":
    main()
