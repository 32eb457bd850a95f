"""`apply_async` returns at once; `get` blocks: with the standard library."""

from __future__ import annotations

import multiprocessing
import time


def work(number: int) -> int:
    time.sleep(0.02)
    return number * 10


def main() -> None:
    pool = multiprocessing.Pool(4)
    tasks = [pool.apply_async(work, (number,)) for number in range(10)]
    print("submitted:", len(tasks))
    for task in tasks:
        print(task.get())
    pool.close()  # takes no more
    pool.join()  # waits for those there are


if __name__ == "__main__":
    main()
