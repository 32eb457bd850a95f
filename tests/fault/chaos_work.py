"""What the workers of `pool_chaos` run, and the witness of it: a file of what was run where."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import signal
import struct
import sys
import time
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Kinds of tasks, and how many of each there are among a hundred.
KINDS = {
    "quick": 60.0,
    "slow": 20.0,
    "large argument": 4.0,
    "large result": 4.0,
    "raises": 3.0,
    "flaky": 3.0,
    "no memory": 2.0 if sys.platform == "linux" else 0.0,
    "SIGKILL": 1.0,
    "SIGSEGV": 1.0,
    "exits": 1.0,
    "out of memory": 0.5,
    "SIGSTOP": 0.3,
    "stuck": 0.2,
}
#: Those that return, unless somebody kills them.
INNOCENT = {"quick", "slow", "large argument", "large result"}
#: Those that raise, and what.
RAISES = {"raises": "LookupError", "no memory": "MemoryError"}
#: Those that end their worker ("flaky" only now and then), and those that never end.
FATAL = {"SIGKILL", "SIGSEGV", "exits", "out of memory", "flaky"}
ENDLESS = {"SIGSTOP", "stuck"}

BEGAN, ENDED = 0, 1
_NOTE = struct.Struct("=QII")
_LARGE = 300_000
#: What tasks that are to be killed for want of memory may have together.
_MEMORY = 32 * 2**20


class Place(NamedTuple):
    """Where the witness writes, and the control group in which memory is short, if any."""

    log: str
    group: str | None


def work(number: int, kind: str, place: Place, ballast: bytes = b"") -> int | bytes:
    """Do what such a task does."""
    _note(place, number, BEGAN)
    value = _act(number, kind, place, ballast)
    _note(place, number, ENDED)
    return value


def value_of(number: int, kind: str) -> int | bytes:
    """Return what a task of this kind returns."""
    if kind == "large result":
        return bytes([number % 251]) * _LARGE
    return number * number + (_LARGE if kind == "large argument" else 0)


def ballast_of(kind: str) -> bytes:
    """Return what a task of this kind is given besides its number."""
    return bytes(_LARGE) if kind == "large argument" else b""


def _act(number: int, kind: str, place: Place, ballast: bytes) -> int | bytes:
    match kind:
        case "slow":
            time.sleep(random.Random(number).uniform(0, 0.02))
        case "large result":
            return bytes([number % 251]) * _LARGE
        case "raises":
            raise LookupError(number)
        case "flaky" if os.getpid() % 2:
            os.kill(os.getpid(), signal.SIGKILL)
        case "no memory":
            _exceed_the_limit()
        case "SIGKILL" | "SIGSEGV":
            os.kill(os.getpid(), getattr(signal, kind))
        case "exits":
            os._exit(3)
        case "out of memory":
            _be_killed_for_want_of_memory(place.group)
        case "SIGSTOP":
            while True:
                os.kill(os.getpid(), signal.SIGSTOP)
        case "stuck":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            while True:
                signal.pause()
    return number * number + len(ballast)


def _exceed_the_limit() -> None:
    """Raise MemoryError."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _MEMORY, hard))
    try:
        bytes(2 * _MEMORY)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _be_killed_for_want_of_memory(group: str | None) -> None:
    """Have the kernel's OOM killer kill this process; where that cannot be had, do as it does."""
    if group is not None:
        with open(os.path.join(group, "cgroup.procs"), "w") as file:
            file.write(str(os.getpid()))
    hoard = [os.urandom(2**20) for _ in range(2 * _MEMORY // 2**20)]
    assert hoard
    os.kill(os.getpid(), signal.SIGKILL)


def _note(place: Place, number: int, event: int) -> None:
    # With O_APPEND a short write is whole, and where no other is, whoever is killed.
    fd = os.open(place.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, _NOTE.pack(number, os.getpid(), event))
    os.close(fd)


class Witness:
    """What the file says: how often each task began and ended, and in which processes."""

    def __init__(self, place: Place) -> None:
        self.began: Counter[int] = Counter()
        self.ended: Counter[int] = Counter()
        self.pids: defaultdict[int, set[int]] = defaultdict(set)
        with open(place.log, "rb") as file:
            for number, pid, event in _NOTE.iter_unpack(file.read()):
                (self.ended if event == ENDED else self.began)[number] += 1
                self.pids[number].add(pid)


@contextlib.contextmanager
def short_of_memory() -> Iterator[str | None]:
    """Make a control group whose processes the kernel kills early; None if that is not allowed."""
    for root, limit in (
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
        ("/sys/fs/cgroup", "memory.max"),
    ):
        group = os.path.join(root, f"mpkit-test-{os.getpid()}")
        try:
            os.mkdir(group)
        except OSError:
            continue
        try:
            with open(os.path.join(group, limit), "r+") as file:
                file.write(str(_MEMORY))
        except OSError:
            os.rmdir(group)
            continue
        try:
            yield group
        finally:
            os.rmdir(group)
        return
    yield None
