"""`apply` is synchronous: ten tasks take ten times as long: with the standard library."""

from __future__ import annotations

import multiprocessing
import time


def work(number: int) -> int:
    time.sleep(0.02)
    return number * 10


def main() -> None:
    began = time.perf_counter()
    with multiprocessing.Pool(4) as pool:
        for number in range(10):
            print(pool.apply(work, (number,)))  # the result itself
    print("one after the other:", time.perf_counter() - began >= 10 * 0.02)


if __name__ == "__main__":
    main()
