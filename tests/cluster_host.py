"""A program that starts the processes of Dask clusters, which are forked from it.

So each of them has imported all that it needs, and starts at once. It reads orders from
its standard input and writes answers to its standard output, a line of JSON each; see
`tests.cluster`. When its input ends, so does it, and then the kernel kills what it has
started (see `mpkit._lifeline`).
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import signal
import sys
import traceback
from typing import Any

import dask
import distributed
import distributed.diskutils  # and what else would be imported when it is first used
import distributed.shuffle

import mpkit
from mpkit._lifeline import Lifeline

#: How a child is waited for: for its end, or for what a signal does to it.
WAITS = {"end": 0, "stop": os.WUNTRACED, "continue": os.WCONTINUED}


def main() -> None:
    mpkit.TaskPool
    reader, writer = os.pipe()
    # What was forked with a buffered reader would share what it has read ahead.
    orders = os.fdopen(0, "rb", buffering=0)
    for line in iter(orders.readline, b""):
        order = json.loads(line)
        if order["what"] == "answer":
            answer(1)
        elif order["what"] == "wait":
            _, status = os.waitpid(order["pid"], WAITS[order["until"]])
            answer(1, status=status)
        elif os.fork() == 0:
            os.close(writer)
            be_server(Lifeline(reader, None), order)


def answer(fd: int, **facts: Any) -> None:
    """Write a line, which is short enough to be whole whoever else writes."""
    os.write(fd, json.dumps(facts).encode() + b"\n")


def be_server(lifeline: Lifeline, order: dict[str, Any]) -> None:
    """Be a scheduler, a worker or a nanny, and then end."""
    try:
        lifeline.hold()
        fd = os.dup(1)
        null = os.open(os.devnull, os.O_RDWR)
        log = os.open(order["log"], os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
        for taken, instead in ((0, null), (1, log), (2, log)):
            os.dup2(instead, taken)
        # Processes that nobody has started together have no common secret.
        multiprocessing.current_process().authkey = os.urandom(32)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # of who stops the tests
        dask.config.set(order["config"])
        asyncio.run(serve(fd, order))
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


async def serve(fd: int, order: dict[str, Any]) -> None:
    kinds = {
        "scheduler": distributed.Scheduler,
        "worker": distributed.Worker,
        "nanny": distributed.Nanny,
    }
    try:
        server = await kinds[order["what"]](**order["options"])
    except Exception:
        answer(fd, error=traceback.format_exc()[-2000:])
        raise
    address = getattr(server, "worker_address", None) or server.address
    answer(fd, pid=os.getpid(), address=address, log=order["log"])
    os.close(fd)
    await server.finished()


if __name__ == "__main__":
    sys.exit(main())
