"""What a pool takes, measured within a process of its own: time, memory, wake-ups.

All but `idle_switches` are run by `harness.alone`, and return a figure and the seconds
that it took, so that `benchmarks.growth` can tell whether ten times as much is feasible.
"""

from __future__ import annotations

import os
import pathlib
import resource
import signal
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Iterable

from benchmarks.harness import program
from benchmarks.libraries import LIBRARIES
from benchmarks.pools import WORKERS, at_once
from benchmarks.work import noop

#: How long an idle pool is watched.
IDLE_SECONDS = 10

#: The variable that names the file for which tasks wait that are to last.
GATE = "BENCHMARKS_GATE"


def queued(library: str, tasks: int) -> tuple[float, float]:
    """Return µs for each of so many tasks that are submitted at once."""
    return manned(library, WORKERS, tasks)


def manned(library: str, workers: int, tasks: int) -> tuple[float, float]:
    """Return µs for each of so many tasks, with so many workers."""
    with LIBRARIES[library](workers, None) as calls:
        # Until each of them is there, as some are started only when they are needed.
        deque(calls.imap(time.sleep, [0.2] * workers), maxlen=0)
        # And until none is expected to take as long as these.
        deque(calls.imap(noop, range(1_000)), maxlen=0)
        taken = at_once(calls, tasks)
    return taken / tasks * 1e6, taken


def kept(library: str, tasks: int) -> tuple[float, float]:
    """Return bytes that this process has more for each task that waits, and its future."""
    with tempfile.TemporaryDirectory() as folder:
        gate = os.environ[GATE] = os.path.join(folder, "open")
        with LIBRARIES[library](WORKERS, None) as calls:
            submit, get = calls.submit, calls.get
            assert submit is not None
            assert get is not None
            get(submit(noop))
            began = time.perf_counter()
            futures = [submit(_wait_at_gate) for _ in range(WORKERS)]
            time.sleep(0.5)
            before = _resident()
            futures += [submit(noop) for _ in range(tasks)]
            time.sleep(0.5)  # threads that feed queues have come as far as they can
            after = _resident()
            pathlib.Path(gate).touch()
            for future in futures:
                get(future)
    return (after - before) / tasks, time.perf_counter() - began


def _wait_at_gate() -> None:
    while not os.path.exists(os.environ[GATE]):
        time.sleep(0.05)


def _resident() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def streamed(library: str, items: int) -> tuple[float, float]:
    """Return the MB that this process has more at most, while results of a generator are read.

    1 at least: less than that is by chance.
    """
    with LIBRARIES[library](WORKERS, None) as calls:
        deque(calls.imap(noop, _generated(1_000)), maxlen=0)
        before = _most_resident()
        began = time.perf_counter()
        deque(calls.imap(noop, _generated(items)), maxlen=0)
        taken = time.perf_counter() - began
    return max((_most_resident() - before) / 1e6, 1.0), taken


def _most_resident() -> int:
    # Not getrusage, which knows of the program from which this one was started.
    status = pathlib.Path("/proc/self/status").read_text(encoding="ascii")
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def _generated(items: int) -> Iterable[int]:
    yield from range(items)


def idle(library: str) -> None:
    """Have a pool that has worked, and does nothing until somebody writes to us."""
    with LIBRARIES[library](WORKERS, None) as calls:
        deque(calls.map(noop, [1, 2], 1), maxlen=0)
        print("ready", flush=True)
        os.read(0, 1)


def idle_switches(library: str) -> int | None:
    """Return how often any thread of an idle pool was woken, in the parent or a worker.

    Seen from outside: who looks at himself wakes for that.
    """
    with program(idle, library) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        if not process.stdout.readline():
            return None
        time.sleep(1)  # the end of what it did last
        before = _switches(process.pid)
        time.sleep(IDLE_SECONDS)
        after = _switches(process.pid)
        process.stdin.write("!")
        process.stdin.close()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
    return sum(count - before.get(thread, 0) for thread, count in after.items())


def _switches(pid: int) -> dict[str, int]:
    """Return the context switches of each thread of a process and of those that it started."""
    counts: dict[str, int] = {}
    for thread in pathlib.Path(f"/proc/{pid}/task").iterdir():
        lines = (thread / "status").read_text().splitlines()
        counts[thread.name] = sum(int(line.split()[1]) for line in lines if "ctxt_switches" in line)
        for child in (thread / "children").read_text().split():
            counts |= _switches(int(child))
    return counts
