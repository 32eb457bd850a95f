"""The worker is killed by one of two tasks."""

from __future__ import annotations

import multiprocessing
import os
import signal

import mpkit


def work(number: int) -> int:
    if number == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return number * 10


def with_the_standard_library() -> None:
    with multiprocessing.Pool(1) as pool:
        tasks = [pool.apply_async(work, (number,)) for number in range(2)]
        print("Pool, the second task:", tasks[1].get())
        try:
            print("Pool, the first:", tasks[0].get(timeout=0.2))
        except multiprocessing.TimeoutError:
            print("Pool, the first: get still waits")


def with_mpkit() -> None:
    with mpkit.TaskPool(1) as pool:
        tasks = [pool.apply_async(work, (number,)) for number in range(2)]
        print("TaskPool, the second task:", tasks[1].get())
        try:
            print("TaskPool, the first:", tasks[0].get())
        except mpkit.WorkerDied as error:
            print("TaskPool, the first: its worker", error.reason)


if __name__ == "__main__":
    with_the_standard_library()
    with_mpkit()
