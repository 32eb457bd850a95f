"""Tries each part of mpkit for a moment, with processes that are killed: for `_doctor`.

That is done by programs of its own, one for each start method. Where something is broken, they
may hang, and are killed.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from mpkit import _lifeline, _runtime
from mpkit._channel import Channel, channel
from mpkit._errors import EndOfChannel, PeerDied, WorkerDied
from mpkit._limit import Semaphore, limit
from mpkit._platform import processes
from mpkit._pool.pool import TaskPool
from mpkit._process import start
from mpkit._signal import Signal

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from mpkit._process import Job

#: Seconds to wait for what takes some milliseconds.
PATIENCE: Final = 20.0

#: Seconds that all trials of a start method may take. (They take one or two.)
MOST_SECONDS: Final = 60.0

#: How a program is begun that tries everything.
_TRY: Final = "import sys; from mpkit import _selftest; _selftest.main(sys.argv[1])"


#: More than travels inside a packet.
_LARGE: Final = 1 << 20


@dataclass(frozen=True)
class Trial:
    """How a part of mpkit did under a start method."""

    start_method: str
    part: str
    seconds: float
    problem: str | None


def run(methods: list[str]) -> list[Trial]:
    """Try everything under each start method, all of them at once, and leave nothing."""
    base = _runtime.base_directory()
    made = list(_missing(base))
    with contextlib.ExitStack() as stack:
        begun = [(method, stack.enter_context(_trying(method))) for method in methods]
        found = [trial for method, program in begun for trial in _results(method, program)]
    _runtime.sweep(base)  # what one has left that was killed
    for folder in made:
        with contextlib.suppress(OSError):  # somebody else uses it by now; or nobody made it
            os.rmdir(folder)
    return found


def _missing(path: str) -> Iterator[str]:
    """Yield the directories that would have to be made for a path, itself first."""
    while not os.path.lexists(path):
        yield path
        path = os.path.dirname(path)


@contextlib.contextmanager
def _trying(method: str) -> Generator[subprocess.Popen[str]]:
    """Start a program that tries everything; it is gone at the end."""
    reader, lifeline = os.pipe()
    try:
        try:
            program = subprocess.Popen(
                [sys.executable, "-c", _TRY, method],
                stdin=reader,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,  # so that what it has started can be killed with it
            )
        finally:
            os.close(reader)
        try:
            yield program
        finally:
            if program.returncode is None:
                _kill(program)
                program.communicate()
    finally:
        os.close(lifeline)


def _kill(program: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(program.pid, signal.SIGKILL)


def _results(method: str, program: subprocess.Popen[str]) -> Iterator[Trial]:
    """Yield what a program has found; and what became of the parts of which it has not told."""
    ending = None
    try:
        output, errors = program.communicate(timeout=MOST_SECONDS)
    except subprocess.TimeoutExpired:
        _kill(program)
        output, errors = program.communicate()
        ending = f"it did not end within {MOST_SECONDS:g} s"
    told: set[str] = set()
    for line in output.splitlines():
        with contextlib.suppress(ValueError):  # of a line that was being written
            result: dict[str, Any] = json.loads(line)
            told.add(result["part"])
            yield Trial(method, **result)
    if ending is None:
        ending = f"the program that tried it {processes.exit_reason(program.returncode)}"
        last = errors.strip().rpartition("\n")[2]
        ending += f": {last}" if last else ""
    for part in TRIALS:
        if part not in told:
            yield Trial(method, part, 0.0, ending)
            ending = "was not tried"


class Wrong(Exception):
    """Something is not as it is promised."""


def main(method: str) -> None:
    """Try everything under a start method; write a line of JSON for each part."""
    _lifeline.Lifeline(os.dup(0), None).hold()  # who wants to know may be killed
    multiprocessing.set_start_method(method)
    for part, trial in TRIALS.items():
        began = time.monotonic()
        problem = None
        try:
            trial()
        except Exception as error:  # noqa: BLE001  it is what is to be told
            problem = f"{type(error).__name__}: {error}"
        line = {"part": part, "seconds": time.monotonic() - began, "problem": problem}
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()


def check(fact: bool, otherwise: str) -> None:
    """Raise Wrong unless something is as it should be."""
    if not fact:
        raise Wrong(otherwise)


def _ends(job: Job[None]) -> None:
    """Kill a job, and wait for its end."""
    job.kill()
    check(job.join(PATIENCE), "a process that was killed did not end")


def _one() -> Semaphore:
    """Return the limit of this line, which all processes share."""
    return limit(1)


def _hold_limit(inside: Signal, never: Signal) -> None:
    with _one():
        inside.set()
        never.wait()


def _hold_semaphore(semaphore: Semaphore, inside: Signal, never: Signal) -> None:
    with semaphore:
        inside.set()
        never.wait()


def _try_limit() -> None:
    inside, never = Signal(), Signal()
    _try_slot(_one(), start(_hold_limit, inside, never), inside)


def _try_semaphore() -> None:
    inside, never, semaphore = Signal(), Signal(), Semaphore(1)
    _try_slot(semaphore, start(_hold_semaphore, semaphore, inside, never), inside)


def _try_slot(semaphore: Semaphore, holder: Job[None], inside: Signal) -> None:
    try:
        check(inside.wait(PATIENCE), "a process did not get a free slot")
        check(not semaphore.acquire(block=False), "two processes had one slot")
        pids = [found.pid for found in semaphore.holders()]
        check(pids == [holder.pid], f"{pids} were said to hold the slot, not [{holder.pid}]")
    finally:
        _ends(holder)
    check(semaphore.acquire(timeout=PATIENCE), "the slot of a killed process did not become free")
    semaphore.release()


def _wait_for(go: Signal, ready: Signal) -> bool:
    ready.set()
    return go.wait(PATIENCE)


def _try_signal() -> None:
    go = Signal()
    begun = [Signal(), Signal()]
    jobs = [start(_wait_for, go, ready) for ready in begun]
    try:
        check(all(ready.wait(PATIENCE) for ready in begun), "a signal did not wake who waited")
        jobs[0].kill()
        jobs[0].join(PATIENCE)
        go.set()
        check(jobs[1].result(PATIENCE), "a signal did not wake who waited beside a killed process")
    finally:
        for job in jobs:
            job.kill()
            job.join(PATIENCE)


def _echo(there: Channel[bytes, bytes]) -> None:
    for message in there:
        there.send(message)
    there.send(b"the end came")
    there.close()
    os.kill(os.getpid(), signal.SIGKILL)


def _die(there: Channel[bytes, bytes]) -> None:
    there.recv()
    os.kill(os.getpid(), signal.SIGKILL)


def _try_channel() -> None:
    here, there = channel(bytes, bytes)
    echo = start(_echo, there)
    with here:
        for message in (b"small", bytes(_LARGE)):
            same = here.request(message, timeout=PATIENCE) == message
            check(same, f"a message of {len(message)} bytes came back as another")
        here.close_send()
        check(here.recv(PATIENCE) == b"the end came", "the last message was not the last")
        try:
            here.recv(PATIENCE)
        except PeerDied:
            raise Wrong("a goodbye was taken for a death") from None
        except EndOfChannel:
            pass
        else:
            raise Wrong("something came after the end")
    _ends(echo)
    here, there = channel(bytes, bytes)
    dying = start(_die, there)
    with here:
        here.send(b"die", PATIENCE)
        try:
            here.recv(PATIENCE)
        except PeerDied:
            pass
        except EndOfChannel:
            raise Wrong("a death was taken for a goodbye") from None
    _ends(dying)


def _crash() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _try_start() -> None:
    job = start(pow, 2, 10)
    check(job.result(PATIENCE) == 1024, "2 to the power of 10 was not 1024")
    job.join(PATIENCE)
    crashed = start(_crash)
    error = crashed.exception(PATIENCE)
    killed = isinstance(error, WorkerDied) and "SIGKILL" in error.reason
    check(killed, f"a process that was killed ended as {error!r}")
    crashed.join(PATIENCE)


def _try_pool() -> None:
    with TaskPool(2) as pool:
        squares = pool.map_async(abs, range(-20, 0)).get(PATIENCE)
        check(squares == list(range(20, 0, -1)), f"a map returned {squares}")
        error = pool.submit(_crash).exception(PATIENCE)
        check(isinstance(error, WorkerDied), f"a task that was killed ended as {error!r}")
        again = pool.submit(pow, 2, 10).result(PATIENCE)
        check(again == 1024, "after a crash, 2 to the power of 10 was not 1024")


#: What is tried, in this order.
TRIALS: Final[dict[str, Callable[[], None]]] = {
    "limit": _try_limit,
    "Semaphore": _try_semaphore,
    "Signal": _try_signal,
    "Channel": _try_channel,
    "start": _try_start,
    "TaskPool": _try_pool,
}
