"""Ten guests, four seats: with the standard library.

The semaphore has to be handed to each process. (A guest who is killed on his seat never
gives it back.)
"""

from __future__ import annotations

import multiprocessing
import random
import time
from multiprocessing.synchronize import Semaphore


def guest(number: int, seats: Semaphore) -> None:
    with seats:
        print(f"guest {number} sits down", flush=True)
        time.sleep(random.uniform(0.01, 0.03))
        print(f"guest {number} leaves", flush=True)


def main() -> None:
    seats = multiprocessing.Semaphore(4)
    guests = [multiprocessing.Process(target=guest, args=(n, seats)) for n in range(10)]
    for process in guests:
        process.start()
    for process in guests:
        process.join()


if __name__ == "__main__":
    main()
