"""Somebody forgets `close` and `join`."""

from __future__ import annotations

import multiprocessing
import time

import mpkit


def work(number: int) -> int:
    time.sleep(1)
    return number * 10


def with_the_standard_library() -> None:
    with multiprocessing.Pool(2) as pool:
        tasks = [pool.apply_async(work, (number,)) for number in range(4)]
    print("Pool: are all ready?", all(task.ready() for task in tasks))
    try:
        print("Pool, the last:", tasks[-1].get(timeout=0.2))
    except multiprocessing.TimeoutError:
        print("Pool, the last: get still waits")


def with_mpkit() -> None:
    with mpkit.TaskPool(2) as pool:
        tasks = [pool.apply_async(work, (number,)) for number in range(4)]
    print("TaskPool: are all ready?", all(task.ready() for task in tasks))
    print("TaskPool, the last:", tasks[-1].get())


if __name__ == "__main__":
    with_the_standard_library()
    with_mpkit()
