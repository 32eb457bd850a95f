"""How many cores this process may use, and so how many workers a pool has by default."""

from __future__ import annotations

import math
import os
import sys
from typing import TYPE_CHECKING, Final

from mpkit._platform import LINUX, files

if TYPE_CHECKING:
    from collections.abc import Iterator

#: The setting of how many workers a pool has that is not told.
VARIABLE: Final = "MPKIT_WORKERS"


def default_workers() -> int:
    """Return how many workers a pool has that is not told.

    Raises ValueError if the environment says something that makes no sense.
    """
    asked = from_environment()
    return usable_cores() if asked is None else asked


def from_environment() -> int | None:
    """Return how many workers the environment asks for; None if it does not say."""
    said = os.environ.get(VARIABLE, "").strip()
    if not said:
        return None
    # Not what int() takes besides, as "1_000" and the digits of other scripts.
    if not (said.isascii() and said.isdigit()) or int(said) < 1:
        raise ValueError(
            f"the environment variable {VARIABLE} is how many workers a pool has by default, "
            f"a whole number from 1 on, not {said!r}: set it to one, or remove it"
        )
    return int(said)


def usable_cores(few: int = 1) -> int:
    """Return how many cores this process may use: those it has, or what it has of their time.

    Who asks only whether it may use more than ``few`` does not always have to wait for the latter.
    """
    cores = affinity()
    if cores <= few:
        return cores
    time = cpu_quota()
    return cores if time is None else max(1, min(cores, math.ceil(time)))


def affinity() -> int:
    """Return on how many cores the system lets this process run.

    Or what Python was told in place of that (``PYTHON_CPU_COUNT``, from 3.13 on).
    """
    if sys.version_info >= (3, 13):
        return os.process_cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_quota(root: str = "") -> float | None:
    """Return how many cores' time the control groups of this process have; None is no limit.

    A container that may use "1.5 CPUs" has 1.5, on as many cores as there are. The group of
    this process has a limit, and each one above it has, of which the least holds. What cannot
    be read is no limit. (Linux. ``root`` is for tests.)
    """
    if not LINUX:
        return None
    found = (_limit_of(folder) for folder in _groups(root))
    return min((limit for limit in found if limit is not None), default=None)


def _limit_of(folder: str) -> float | None:
    """Return the limit of one group, as version 2 writes it or as version 1 does."""
    words = _read(f"{folder}/cpu.max").split()
    if not words:
        words = [*_read(f"{folder}/cpu.cfs_quota_us").split()[:1]]
        words += _read(f"{folder}/cpu.cfs_period_us").split()[:1]
    try:  # microseconds of each so many; "max" and -1 are no limit
        quota, period = int(words[0]), int(words[1])
    except (IndexError, ValueError):
        return None
    return quota / period if quota > 0 and period > 0 else None


def _groups(root: str) -> Iterator[str]:
    """Yield the folder of each group that this process is in, and of those above them."""
    paths = dict(_paths(_read(f"{root}/proc/self/cgroup")))
    for line in _read(f"{root}/proc/self/mountinfo").splitlines():
        # 36 35 0:29 /root /mnt/point rw,noatime master:1 - cgroup cgroup rw,cpu
        words = line.split(" ")
        try:
            kind, options = words[(dash := words.index("-", 6)) + 1], words[dash + 3]
        except (ValueError, IndexError):  # not as documented
            continue
        if kind == "cgroup2":
            path = paths.get("")
        elif kind == "cgroup" and "cpu" in options.split(","):
            path = paths.get("cpu")
        else:
            continue
        if path is not None:
            mount, top = files.unescaped(words[4]), files.unescaped(words[3])
            yield from _upwards(f"{root}{mount}", _below(top, path))


def _paths(text: str) -> Iterator[tuple[str, str]]:
    """Yield what /proc/self/cgroup says: controllers, "" for version 2, and their groups."""
    for line in text.splitlines():
        # 4:cpu,cpuacct:/user.slice or 0::/user.slice
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        for controller in controllers.split(","):
            yield controller, path


def _below(top: str, path: str) -> list[str]:
    """Return where a group is below the one that is mounted.

    A container may be shown the names that the groups have outside, and has its own one
    mounted alone: then that is the one.
    """
    names, above = path.strip("/").split("/"), top.strip("/").split("/")
    if above != [""]:
        names = names[len(above) :] if names[: len(above)] == above else []
    return [] if ".." in names else [name for name in names if name]


def _upwards(mount: str, names: list[str]) -> Iterator[str]:
    for count in range(len(names), -1, -1):
        yield "/".join([mount, *names[:count]])


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except OSError:
        return ""
