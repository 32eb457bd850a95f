"""The callback raises."""

from __future__ import annotations

import multiprocessing
import threading

import mpkit

called = threading.Event()


def work(number: int) -> int:
    return number * 10


def tell(value: int) -> None:
    called.set()
    raise ValueError(f"cannot tell {value}")


def with_the_standard_library() -> None:
    pool = multiprocessing.Pool(1)
    pool.apply_async(work, (1,), callback=tell)
    called.wait()
    try:
        print("Pool, the next task:", pool.apply_async(work, (2,)).get(timeout=0.5))
    except multiprocessing.TimeoutError:
        print("Pool, the next task: get still waits")
    try:
        pool.terminate()
    except AssertionError as error:
        print("Pool, its end:", type(error).__name__)


def with_mpkit() -> None:
    with mpkit.TaskPool(1) as pool:
        pool.apply_async(work, (1,), callback=tell)
        print("TaskPool, the next task:", pool.apply_async(work, (2,)).get())


if __name__ == "__main__":
    with_the_standard_library()
    with_mpkit()
