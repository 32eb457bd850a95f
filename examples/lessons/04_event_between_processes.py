"""A child computes and sets an event; the parent waits for it, then reads the result.

`wait` takes the event *and* the child: one that dies does not leave us waiting. And the
value comes by a road of its own, the job's result.
"""

from __future__ import annotations

import time

import mpkit


def compute(done: mpkit.Signal) -> int:
    time.sleep(0.05)
    total = sum(range(1_000))
    done.set()
    return total


def main() -> None:
    done = mpkit.Signal()
    job = mpkit.start(compute, done)
    print("waiting ...")
    mpkit.wait(done, job)
    print("done:", done.is_set())
    print("result:", job.result())


if __name__ == "__main__":
    main()
