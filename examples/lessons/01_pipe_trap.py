"""The child dies before it answers."""

from __future__ import annotations

import multiprocessing
import os
import signal
from multiprocessing.connection import Connection

import mpkit


def child(parent: Connection | mpkit.Channel[str, str]) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def with_the_standard_library() -> None:
    here, there = multiprocessing.Pipe()
    process = multiprocessing.Process(target=child, args=(there,))
    process.start()
    process.join()  # it is dead, but `there` is still open here
    print("Pipe: is there a message, or the end?", here.poll(timeout=0.2))


def with_mpkit() -> None:
    here, there = mpkit.channel(send=str, recv=str)
    mpkit.start(child, there)
    try:
        here.recv()
    except mpkit.PeerDied as error:
        print("channel:", type(error).__name__)


if __name__ == "__main__":
    with_the_standard_library()
    with_mpkit()
