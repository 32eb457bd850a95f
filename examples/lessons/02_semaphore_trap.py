"""A guest is killed on the only seat; the next one wants it."""

from __future__ import annotations

import multiprocessing
import os
import signal
from contextlib import AbstractContextManager

import mpkit


def die_on(seat: AbstractContextManager[object]) -> None:
    with seat:
        os.kill(os.getpid(), signal.SIGKILL)


def with_the_standard_library() -> None:
    seats = multiprocessing.Semaphore(1)
    process = multiprocessing.Process(target=die_on, args=(seats,))
    process.start()
    process.join()
    print("Semaphore: is the seat free?", seats.acquire(timeout=0.2))


def with_mpkit() -> None:
    seats = mpkit.Semaphore(1)
    process = multiprocessing.Process(target=die_on, args=(seats,))
    process.start()
    process.join()
    print("mpkit.Semaphore: is the seat free?", seats.acquire())


if __name__ == "__main__":
    with_the_standard_library()
    with_mpkit()
