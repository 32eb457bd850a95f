"""One worker of the pool is killed."""

from __future__ import annotations

import multiprocessing
import os
import signal

import mpkit


def tiny(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number + 1


def with_the_standard_library() -> None:
    with multiprocessing.Pool(2) as pool:
        numbers = pool.map_async(tiny, range(5), chunksize=1)  # map takes no timeout
        try:
            print("Pool:", numbers.get(timeout=0.5))
        except multiprocessing.TimeoutError:
            print("Pool: map still waits")


def with_mpkit() -> None:
    with mpkit.TaskPool(2) as pool:
        try:
            print("TaskPool:", pool.map(tiny, range(5), chunksize=1))
        except mpkit.WorkerDied as error:
            print("TaskPool: a worker", error.reason)
        print("TaskPool: and goes on:", pool.map(tiny, range(3)))


if __name__ == "__main__":
    with_the_standard_library()
    with_mpkit()
