"""A child computes and sets an event; the parent waits for it: with the standard library.

The value needs a road of its own, here shared memory. (If the child dies, the parent
waits for ever.)
"""

from __future__ import annotations

import multiprocessing
import time
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event


def compute(done: Event, result: Synchronized[int]) -> None:
    time.sleep(0.05)
    result.value = sum(range(1_000))
    done.set()


def main() -> None:
    done = multiprocessing.Event()
    result: Synchronized[int] = multiprocessing.Value("q")
    process = multiprocessing.Process(target=compute, args=(done, result))
    process.start()
    print("waiting ...")
    done.wait()
    print("done:", done.is_set())
    print("result:", result.value)
    process.join()


if __name__ == "__main__":
    main()
