"""Programs that wait for a pool in some place, for `test_pool_interrupts` and `benchmarks.endings`."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

PROGRAM = """
import asyncio, multiprocessing, sys, threading, time
import mpkit
from mpkit._engine import roster

roster.GRACE = 3600.0  # nobody is to need it

def work(began):
    began.set()
    time.sleep(600)

def tell(pool, began):
    began.wait()
    print(*(worker.pid for worker in pool.stats().workers), flush=True)

def new_pool():
    pool = mpkit.TaskPool(2)
    began = mpkit.Signal()
    pool.map(abs, range(8), 1)  # its workers have started
    threading.Thread(target=tell, args=(pool, began), daemon=True).start()
    return pool, began

def call_back(began):
    began.set()
    time.sleep(0.3)

def in_a_block(place):
    pool, began = new_pool()
    with pool:
        if place == "submit":
            pool.submit(work, began)
            while True:
                pool.submit(abs, -1)
        elif place == "a callback":
            pool.apply_async(abs, (-1,), callback=lambda _: call_back(began))
            pool.apply(time.sleep, (600,))
        elif place == "idle":
            began.set()
            threading.Event().wait()
        elif place == "map":
            pool.map(work, [began] * 20, 1)
        elif place == "map_async":
            pool.map_async(work, [began] * 20, 1).get()
        elif place == "imap":
            next(pool.imap(work, [began] * 20))
        elif place == "imap_unordered":
            list(pool.imap_unordered(work, [began] * 20))
        elif place == "apply":
            pool.apply(work, (began,))
        else:
            tasks = [pool.submit(work, began) for _ in range(20)]
            if place == "result":
                tasks[0].result()
            elif place == "wait":
                mpkit.wait(*tasks)
            elif place == "join":
                pool.close()
                pool.join()
            # else the block waits for them

def without_a_block(place):
    pool, began = new_pool()
    pool.map(work, [began] * 20, 1)

async def in_asyncio(place):
    pool, began = new_pool()
    async with pool:
        tasks = [pool.submit(work, began) for _ in range(20)]
        if place == "await":
            await tasks[0]
        elif place == "async for":
            async for _ in pool.imap(work, [began] * 20):
                pass
        # else the block waits for them

if __name__ == "__main__":
    how, place, method = sys.argv[1:]
    multiprocessing.set_start_method(method)
    if how == "asyncio":
        asyncio.run(in_asyncio(place))
    else:
        globals()[how](place)
"""

#: How a program has its pool, and where it is when the signal comes.
PLACES = [
    *(("in_a_block", place) for place in ("submit", "a callback", "idle", "map", "map_async")),
    *(("in_a_block", place) for place in ("imap", "imap_unordered", "apply", "result", "wait")),
    *(("in_a_block", place) for place in ("join", "the end of the block")),
    ("without_a_block", "map"),
    *(("asyncio", place) for place in ("await", "async for", "the end of the block")),
]

#: Places in which not everybody sleeps.
BUSY = {"submit"}


def begin(
    how: str, place: str, method: str, folder: Path
) -> tuple[subprocess.Popen[str], list[int]]:
    """Start a program, in a session of its own; return it and the pids of its workers."""
    program = folder / "program.py"
    program.write_text(PROGRAM)
    ran = subprocess.Popen(
        [sys.executable, "-Wdefault", str(program), how, place, method],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert ran.stdout is not None
    return ran, [int(word) for word in ran.stdout.readline().split()]
