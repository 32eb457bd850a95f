"""Ten guests, four seats.

The seats need not be handed to anybody: every process that runs this line shares them.
A guest that raises, or is killed, gives his seat back.
"""

from __future__ import annotations

import random
import time

import mpkit


def guest(number: int) -> None:
    with mpkit.limit(4):
        print(f"guest {number} sits down", flush=True)
        time.sleep(random.uniform(0.01, 0.03))
        print(f"guest {number} leaves", flush=True)


def main() -> None:
    guests = [mpkit.start(guest, number) for number in range(10)]
    for job in guests:
        job.result()


if __name__ == "__main__":
    main()
