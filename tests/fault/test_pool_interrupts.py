"""Ctrl-C in every place in which a program waits for a pool: one traceback, nothing left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.support import PATIENCE, exists, settled, until

if TYPE_CHECKING:
    from pathlib import Path

PROGRAM = """
import asyncio, multiprocessing, sys, threading, time
import mpkit

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

def in_a_block(place):
    pool, began = new_pool()
    with pool:
        if place == "map":
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

PLACES = [
    *(("in_a_block", place) for place in ("map", "map_async", "imap", "imap_unordered", "apply")),
    *(("in_a_block", place) for place in ("result", "wait", "join", "the end of the block")),
    ("without_a_block", "map"),
    *(("asyncio", place) for place in ("await", "async for", "the end of the block")),
]


@pytest.mark.parametrize(("how", "place"), PLACES)
def test_ctrl_c_ends_the_program_with_one_traceback_and_leaves_nothing(
    how: str, place: str, start_method: str, tmp_path: Path
) -> None:
    """The tasks would take ten minutes; a terminal sends the signal to all processes of it."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    with subprocess.Popen(
        [sys.executable, "-Wdefault", str(program), how, place, start_method],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as ran:
        try:
            assert ran.stdout is not None
            pids = [int(word) for word in ran.stdout.readline().split()]
            assert len(pids) >= 2
            # Also the workers: to end one that still imports may have Python warn of a file.
            until(lambda: all(map(settled, [ran.pid, *pids])))
            os.killpg(ran.pid, signal.SIGINT)
            _, said = ran.communicate(timeout=PATIENCE)
        finally:
            ran.kill()
    assert ran.returncode == -signal.SIGINT, said
    # That of asyncio.run has two parts: its coroutine was cancelled, and then it raised.
    assert said.count("Traceback") - said.count("During handling of") == 1, said
    assert "\nKeyboardInterrupt\n" in said
    assert said.count("ResourceWarning") == (how == "without_a_block"), said
    until(lambda: not any(exists(pid) for pid in pids))


BUSY_STARTING = """
import multiprocessing, os, sys
import mpkit

def init(began):
    began.set()
    os.read(0, 1)  # until the program is gone

if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1])
    began = mpkit.Signal()
    with mpkit.TaskPool(4, init, (began,)) as pool:
        began.wait()
        print(*(worker.pid for worker in pool.stats().workers), flush=True)
        pool.map(abs, range(8))
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_ctrl_c_while_workers_start_has_one_traceback(method: str, tmp_path: Path) -> None:
    """Whether they ignore it already or not. (The fork server's begin as it forks them.)"""
    program = tmp_path / "program.py"
    program.write_text(BUSY_STARTING)
    with subprocess.Popen(
        [sys.executable, str(program), method],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as ran:
        try:
            assert ran.stdout is not None
            pids = [int(word) for word in ran.stdout.readline().split()]
            until(lambda: settled(ran.pid))
            os.killpg(ran.pid, signal.SIGINT)
            _, said = ran.communicate(timeout=PATIENCE)
        finally:
            ran.kill()
    assert ran.returncode == -signal.SIGINT, said
    assert said.count("Traceback") == 1, said
    until(lambda: not any(exists(pid) for pid in pids))
