"""The child dies before it sets the event."""

from __future__ import annotations

import multiprocessing
import os
import signal
from multiprocessing.synchronize import Event

import mpkit


def compute(done: Event | mpkit.Signal) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    done.set()
    return 1


def with_the_standard_library() -> None:
    done = multiprocessing.Event()
    process = multiprocessing.Process(target=compute, args=(done,))
    process.start()
    process.join()
    print("Event: did wait see it?", done.wait(timeout=0.2))


def with_mpkit() -> None:
    done = mpkit.Signal()
    job = mpkit.start(compute, done)
    mpkit.wait(done, job)
    try:
        print(job.result())
    except mpkit.WorkerDied as error:
        print("Signal and job: the child", error.reason)


if __name__ == "__main__":
    with_the_standard_library()
    with_mpkit()
