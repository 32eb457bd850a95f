"""Threads that use a pool together, and locks that others hold while it starts processes."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Any

import mpkit
from tests import poolwork
from tests.support import PATIENCE

if TYPE_CHECKING:
    from pathlib import Path

PRINTING = """
import io, logging, multiprocessing, os, sys, threading
import mpkit

class Slow(io.RawIOBase):
    # Its writer is in the middle of it, with the lock of the buffer above, as long as we like.
    def __init__(self, fd):
        self.fd = fd
    def writable(self):
        return True
    def write(self, data):
        if threading.current_thread().name == "printer":
            inside.set()
            go_on.wait()
        return os.write(self.fd, data)

def printer():
    while True:
        asked.wait()
        asked.clear()
        print("x" * 20_000)

def before_fork():
    inside.clear()
    asked.set()
    inside.wait(30)

def speak(number):
    print("worker", number, flush=True)
    print("worker", number, file=sys.stderr, flush=True)
    logging.getLogger().error("worker %s", number)
    return number

if __name__ == "__main__":
    multiprocessing.set_start_method("fork")
    inside, go_on, asked = threading.Event(), threading.Event(), threading.Event()
    sys.stdout = io.TextIOWrapper(io.BufferedWriter(Slow(1)), line_buffering=True)
    logging.basicConfig(stream=sys.stdout)
    threading.Thread(target=printer, name="printer", daemon=True).start()
    # From now on every fork comes while that thread prints.
    os.register_at_fork(before=before_fork, after_in_parent=go_on.set)
    with mpkit.TaskPool(1) as pool:
        said = pool.map(speak, [1, 2])
        pool.submit(os._exit, 3).exception()
        go_on.clear()
        said += pool.map(speak, [3, 4])  # its replacement
    os.write(2, f"{said}".encode())
    os._exit(0)
"""


def test_a_worker_that_is_forked_while_a_thread_prints_can_print_too(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PRINTING)
    ran = subprocess.run(
        [sys.executable, str(program)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    assert ran.stderr.endswith("[1, 2, 3, 4]"), ran.stderr
    assert "worker 4" in ran.stdout


def test_any_number_of_threads_submit_cancel_kill_and_close_at_once(
    start_method: str, tmp_path: Path
) -> None:
    """Every task ends, and none has run twice."""
    log = str(tmp_path / "log")
    tasks: list[mpkit.Task[Any]] = []
    pool = mpkit.TaskPool(2)

    def submit(first: int) -> None:
        try:
            for number in range(first, first + 500):
                tasks.append(pool.submit(poolwork.note, log, number))
        except mpkit.PoolClosed:
            pass

    def meddle() -> None:
        while not pool._closed:
            if tasks:
                task = random.choice(tasks)
                random.choice([task.cancel, task.cancel, task.cancel, task.kill])()

    def close() -> None:
        while len(tasks) < 800:
            pass
        pool.close()
        pool.close()

    threads = [threading.Thread(target=submit, args=(first,)) for first in (0, 500, 1000)]
    threads += [threading.Thread(target=meddle) for _ in range(3)]
    threads += [threading.Thread(target=close) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert pool.join(PATIENCE)
    ran = poolwork.notes(log)
    assert len(ran) == len(set(ran))
    for task in tasks:
        try:
            assert str(task.result(0)) in ran
        except (CancelledError, mpkit.WorkerDied):
            pass


def test_terminate_from_any_number_of_threads_while_others_submit() -> None:
    for _ in range(5):
        pool = mpkit.TaskPool(2)
        tasks: list[mpkit.Task[Any]] = []

        def submit(pool: mpkit.TaskPool, tasks: list[mpkit.Task[Any]]) -> None:
            try:
                while True:
                    tasks.append(pool.submit(abs, -1))
            except mpkit.PoolClosed:
                pass

        def end(pool: mpkit.TaskPool) -> None:
            pool.terminate()
            pool.close()
            pool.join(PATIENCE)

        threads = [threading.Thread(target=submit, args=(pool, tasks)) for _ in range(3)]
        threads += [threading.Thread(target=end, args=(pool,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert pool.join(PATIENCE)
        assert all(task.done() for task in tasks)
