"""Leave the pool first, read the results later: with the standard library.

Both `close` and `join` are needed before the `with` is left: leaving it is `terminate`,
which drops what is not done yet.
"""

from __future__ import annotations

import multiprocessing
import time


def work(number: int) -> int:
    time.sleep(0.02)
    return number * 10


def main() -> None:
    with multiprocessing.Pool(4) as pool:
        tasks = [pool.apply_async(work, (number,)) for number in range(10)]
        pool.close()
        pool.join()
    print("all ready:", all(task.ready() for task in tasks))
    print([task.get() for task in tasks])


if __name__ == "__main__":
    main()
