"""How long it takes until somebody learns of an end: ``python -m benchmarks.endings``.

It prints three tables, of medians and maxima, by start method:

- from the last moment of a worker to the moment in which the caller has the error of the
  task that it ran, in ms. The worker notes the time until it can no more, in a file that both
  have mapped;
- from the Ctrl-C at a terminal to the moment in which no process of the program is left, in
  ms, for each place in which the program may be. All of them have its standard output, which
  ends with the last of them;
- the same from the SIGKILL of the program alone, which can tell nobody.

The rows of ``python -m benchmarks`` compare libraries. This is about promises of mpkit alone:
below a second, and below two seconds after a Ctrl-C. `docs/faults.md` has the figures.
"""

from __future__ import annotations

import argparse
import contextlib
import mmap
import os
import platform
import resource
import signal
import statistics
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mpkit
from tests.fault.chaos_work import short_of_memory
from tests.fault.interrupted import BUSY, PLACES, begin
from tests.support import settled, until

METHODS = ("fork", "forkserver", "spawn")
_TIME = struct.Struct("=d")

#: Milliseconds, by what is a row and by the start method.
Figures = dict[str, dict[str, list[float]]]


def remember(path: str) -> None:
    """Map the file in which a worker notes the time: the initializer."""
    with open(path, "r+b") as file:
        mpkit.worker_state()["clock"] = mmap.mmap(file.fileno(), _TIME.size)


def stamp() -> None:
    _TIME.pack_into(mpkit.worker_state()["clock"], 0, time.monotonic())


def be_killed(number: int) -> None:
    stamp()
    os.kill(os.getpid(), number)
    signal.pause()


def leave(leave: Callable[[int], object]) -> None:
    stamp()
    leave(3)


def raise_an_error() -> None:
    stamp()
    raise LookupError("no such thing")


def starve(group: str) -> None:
    """Take memory until the kernel kills this process for it."""
    Path(group, "cgroup.procs").write_text(str(os.getpid()))
    hoard: list[bytes] = []
    while True:
        stamp()
        hoard.append(os.urandom(2**20))


@contextlib.contextmanager
def endings() -> Iterator[dict[str, tuple[Callable[..., Any], tuple[Any, ...]]]]:
    """Yield what a task may do: an exception, to compare with, and all sudden ends."""
    with short_of_memory() as group:
        ways: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
            "an exception": (raise_an_error, ()),
            "`sys.exit`": (leave, (sys.exit,)),
            "`os._exit`": (leave, (os._exit,)),
            "SIGKILL": (be_killed, (signal.SIGKILL,)),
            "SIGTERM": (be_killed, (signal.SIGTERM,)),
            "SIGSEGV": (be_killed, (signal.SIGSEGV,)),
        }
        if group is not None:
            ways["killed for want of memory"] = starve, (group,)
        yield ways


def deaths(rounds: int) -> Figures:
    """Measure how long a caller waits for the error of a task whose worker has ended."""
    figures: Figures = {}
    with tempfile.NamedTemporaryFile() as file, endings() as ways:
        file.truncate(_TIME.size)
        clock = mmap.mmap(file.fileno(), _TIME.size)
        for method in METHODS:
            with mpkit.TaskPool(2, remember, (file.name,), context=method) as pool:
                for number in range(rounds):
                    print(f"{method}: round {number + 1} of {rounds}", file=sys.stderr)
                    for way, (function, arguments) in ways.items():
                        pool.map(abs, range(8), 1)  # both workers are there
                        error = pool.submit(function, *arguments).exception()
                        taken = time.monotonic() - _TIME.unpack_from(clock)[0]
                        assert error is not None
                        figures.setdefault(way, {}).setdefault(method, []).append(1000 * taken)
    return figures


def interruptions(rounds: int) -> Figures:
    """Measure how long a program goes on after a Ctrl-C."""
    figures: Figures = {}
    for number in range(rounds):
        for how, place in PLACES:
            print(f"Ctrl-C: round {number + 1} of {rounds}: {how}: {place}", file=sys.stderr)
            for method in METHODS:
                row = f"{place} ({how.replace('_', ' ')})"
                taken = 1000 * ending(how, place, method, os.killpg, signal.SIGINT)
                figures.setdefault(row, {}).setdefault(method, []).append(taken)
    return figures


def orphanings(rounds: int) -> Figures:
    """Measure how long workers go on when their program is killed."""
    figures: Figures = {}
    for number in range(rounds):
        print(f"SIGKILL: round {number + 1} of {rounds}", file=sys.stderr)
        for row, place in {"idle": "idle", "busy": "map"}.items():
            for method in METHODS:
                taken = 1000 * ending("in_a_block", place, method, os.kill, signal.SIGKILL)
                figures.setdefault(row, {}).setdefault(method, []).append(taken)
    return figures


def ending(
    how: str, place: str, method: str, send: Callable[[int, int], object], number: int
) -> float:
    """Return the seconds from a signal to a program, or its group, to the end of all of it."""
    with tempfile.TemporaryDirectory() as folder:
        ran, pids = begin(how, place, method, Path(folder))
        if place not in BUSY:
            until(lambda: all(map(settled, [ran.pid, *pids])))
        began = time.monotonic()
        send(ran.pid, number)
        ran.communicate()
        return time.monotonic() - began


def table(head: str, figures: Figures) -> str:
    lines = [f"| {head} | {' | '.join(METHODS)} |", "|---|--:|--:|--:|"]
    for row, by_method in figures.items():
        cells = [
            f"{statistics.median(by_method[method]):.3g} ({max(by_method[method]):.3g})"
            for method in METHODS
        ]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.endings",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=20, help="how often each end (20)")
    rounds = parser.parse_args().rounds
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    died, interrupted = deaths(rounds), interruptions(max(1, rounds // 4))
    orphaned = orphanings(rounds)
    print(f"Python {platform.python_version()}, {platform.system()}: median (maximum), in ms\n")
    print(table("from the end of a worker to the error", died), end="\n\n")
    print(table("from Ctrl-C to the end of all processes", interrupted), end="\n\n")
    print(table("from the SIGKILL of the program to the end of its workers, which are", orphaned))


if __name__ == "__main__":
    main()
