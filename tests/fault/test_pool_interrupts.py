"""Ctrl-C in every place in which a program waits for a pool: one traceback, nothing left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.fault.interrupted import BUSY, PLACES, begin
from tests.support import PATIENCE, exists, settled, until

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(("how", "place"), PLACES)
def test_ctrl_c_ends_the_program_with_one_traceback_and_leaves_nothing(
    how: str, place: str, start_method: str, tmp_path: Path
) -> None:
    """The tasks would take ten minutes; a terminal sends the signal to all processes of it."""
    ran, pids = begin(how, place, start_method, tmp_path)
    with ran:
        try:
            assert len(pids) >= 2
            if place not in BUSY:
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
