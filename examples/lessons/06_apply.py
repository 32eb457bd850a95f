"""`apply` is synchronous: ten tasks take ten times as long as one, whatever the workers."""

from __future__ import annotations

import time

import mpkit


def work(number: int) -> int:
    time.sleep(0.02)
    return number * 10


def main() -> None:
    began = time.perf_counter()
    with mpkit.TaskPool(4) as pool:
        for number in range(10):
            print(pool.apply(work, (number,)))  # the result itself
    print("one after the other:", time.perf_counter() - began >= 10 * 0.02)


if __name__ == "__main__":
    main()
