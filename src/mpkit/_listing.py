"""Which limits are in use: what ``python -m mpkit limits`` shows.

It only looks, by asking the kernel who has which locks. Yet it is not for use in other
programs: it opens the files a second time, and closing that drops the locks of the
process that does it (see `_slots`).
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mpkit import _runtime
from mpkit._platform import files, processes
from mpkit._queue import Queue
from mpkit._slotfile import (
    HEADER,
    MAGIC,
    NOTED,
    USE,
    held_by_others,
    read_note,
    size_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True)
class Party:
    """A process that holds a slot or waits for one; ``since`` is in seconds of `time.time`."""

    pid: int
    process: str
    command: str
    since: float | None = None

    @property
    def seconds(self) -> float | None:
        """How long it has held its slot."""
        return None if self.since is None else max(0.0, time.time() - self.since)


@dataclass(frozen=True)
class InUse:
    """A limit that some process has open."""

    #: Its name, or the hash of its call site.
    key: str
    name: str | None
    place: str
    slots: int
    path: str
    #: One of those that have it open.
    user: Party
    holders: list[Party]
    waiting: list[Party]


def limits() -> list[InUse]:
    """Return the limits that are in use, of all programs of this user."""
    found: list[InUse] = []
    for folder in _runtime.folders(_runtime.base_directory()):
        for name in _names(folder.path):
            # It may vanish at any moment, and others may be making it just now.
            with contextlib.suppress(OSError):
                found += _read(os.path.join(folder.path, name))
    # What is held or waited for comes first, then what has a name.
    return sorted(
        found,
        key=lambda limit: (
            not (limit.holders or limit.waiting),
            limit.name is None,
            limit.place,
            limit.path,
        ),
    )


def _names(folder: str) -> list[str]:
    with contextlib.suppress(OSError):
        return [name for name in os.listdir(folder) if name.startswith("sem-")]
    return []


def _read(path: str) -> Iterator[InUse]:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        user = files.foreign_lock(fd, USE, 1)
        content = os.pread(fd, size_of(NOTED), 0)
        if user is None or len(content) < HEADER.size or not content.startswith(MAGIC):
            return
        slots, place = HEADER.unpack_from(content)[1], HEADER.unpack_from(content)[4]
        if len(content) < size_of(slots):
            return
        holders = sorted(held_by_others(fd, slots).items())
        words = memoryview(content[: size_of(slots)]).cast("Q")
        queue = Queue(fd, words, size_of(slots), path)
        folder, file = os.path.split(path)
        key = file.removeprefix("sem-")
        yield InUse(
            key,
            key if os.path.basename(folder) == "named" else None,
            place.rstrip(b"\0").decode(errors="replace"),
            slots,
            path,
            _party(user[0]),
            [_holder(pid, slot, content) for slot, pid in holders],
            [_party(pid) for pid in queue.waiting()],
        )
    finally:
        os.close(fd)


def _holder(pid: int, slot: int, content: bytes) -> Party:
    if slot < NOTED:
        noted, since, name = read_note(content, slot)
        if noted == pid:
            return Party(pid, name, _command(pid), since)
    return _party(pid)


def _party(pid: int) -> Party:
    return Party(pid, "", _command(pid))


def _command(pid: int) -> str:
    return processes.process_name(pid) if pid > 0 else "(in another container)"
