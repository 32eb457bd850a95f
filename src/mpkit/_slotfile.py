"""The file of a semaphore: what lies where, and how it is opened.

Beside the slots' locks the file has two more bytes to lock. USE is shared by all who
have the file open, so that who gets it exclusively is alone, and may lay the file out or
remove it. JOIN is held for the moment in which somebody joins the queue (see `_waiter`).

The file's content is mapped: how many slots, whether somebody waits and who is first, and
who holds each slot since when. That is for looking only; the truth about a slot is its lock.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import multiprocessing
import os
import struct
import sys
import time
from typing import Final

from mpkit import _runtime
from mpkit._errors import LimitMismatch, RuntimeDirectoryError
from mpkit._platform import files

# For each acquire: to look it up costs as much as to call it.
_now = time.time

# Locks lie beside the content, not on it: a slot's is at its number.
USE: Final = 1 << 30
JOIN: Final = USE + 1
#: An entry of the queue has the lock at this plus its index. Nothing lies behind these.
PLACES: Final = USE + (1 << 20)

# magic, slots, last ticket, whether somebody waits, place. What is read and written while
# others do is in words of 8 bytes, each of which is whole at any moment.
MAGIC: Final = b"mpkit\0s4"
#: With what it begins in any format, those of versions to come included.
FAMILY: Final = MAGIC[:-1]
HEADER: Final = struct.Struct("<8sQQQ208s")
PLACE_SIZE: Final = 208
TICKET: Final = 2
WAITED_FOR: Final = 3
#: Who is first in the queue: index, ticket, bell, pid.
FIRST: Final = 30
#: How many entries the queue's table has.
COUNT: Final = 34
#: Since when he waits who is first, in nanoseconds of `time.monotonic_ns`; NEVER if nobody is.
SINCE: Final = 35
#: The first entries of the queue's table, of `ENTRY` words each; then come the notes.
TABLE: Final = 36
ENTRY: Final = 4
MAPPED: Final = 64
FIRST_NOTE: Final = TABLE + MAPPED * ENTRY
# A note says of a slot: pid, since when, process name.
NOTE: Final = struct.Struct("=Qd48s")
NOTE_WORDS: Final = 8
#: Beyond these many slots nobody notes who holds one: the file would grow too large.
NOTED: Final = 1024

# Whether somebody waits, at WAITED_FOR.
NOBODY: Final = 0
SOMEBODY: Final = 1
#: At SINCE.
NEVER: Final = (1 << 64) - 1


class Notes:
    """Who holds which slot since when, in the mapped ``content``: each holder notes it."""

    _pid: int
    # A name, and the note in which it stands. One object: threads have no lock here, and
    # a signal handler may raise between any two steps.
    _signed: tuple[str | None, bytes]

    def __init__(self, content: mmap.mmap) -> None:
        self._content = content
        self._words = memoryview(content).cast("Q")
        self._times = memoryview(content).cast("d")
        self.forget()

    def write(self, slot: int) -> None:
        """Note that this process holds ``slot``, one of the `NOTED`, from now on."""
        at = FIRST_NOTE + slot * NOTE_WORDS
        if self._words[at] != self._pid:
            self._sign(at)
        self._times[at + 1] = _now()

    def _sign(self, at: int) -> None:
        name = multiprocessing.current_process().name
        known, note = self._signed
        if name != known:
            note = NOTE.pack(self._pid, 0.0, name.encode(errors="replace")[:48])
            self._signed = name, note
        self._content[at * 8 : (at + NOTE_WORDS) * 8] = note

    def forget(self) -> None:
        """Begin anew, in a forked child: it is somebody else."""
        self._signed = None, b""
        self._pid = os.getpid()

    def close(self) -> None:
        """Let go of the content."""
        self._words.release()
        self._times.release()


def read_note(content: bytes | mmap.mmap, slot: int) -> tuple[int, float, str]:
    """Return who noted to hold ``slot`` last: pid, since when, process name."""
    pid, since, name = NOTE.unpack_from(content, (FIRST_NOTE + slot * NOTE_WORDS) * 8)
    return pid, since, name.rstrip(b"\0").decode(errors="replace")


def open_file(path: str, slots: int, place: str) -> tuple[int, mmap.mmap]:
    """Open the file at ``path``, or lay it out; return its descriptor and its content.

    If a file was deleted from there underneath its users, then it is theirs: all who
    come meet them on it, until the last one is gone. (Only where the system tells of
    them, which macOS does not.)
    """
    while True:
        fd = _open(path)
        try:
            alone = files.lock_byte(fd, USE)
            theirs = _open_namesake(path, fd) if alone else -1
            if theirs >= 0:
                # Ours was laid out by nobody; who has opened it meanwhile waits for USE.
                remove_file(path, fd)
                os.close(fd)
                fd, alone = theirs, files.lock_byte(theirs, USE)
            content = None
            if theirs < 0:
                content = _enter(fd, path, slots, place, alone=alone)
            elif not alone:
                content = _adopt(fd, path, slots, place)
        except BaseException:
            os.close(fd)
            raise
        if content is not None:
            return fd, content
        os.close(fd)


def remove_file(path: str, fd: int) -> None:
    """Remove the file that is open as ``fd``, but not another one that is at ``path`` by now."""
    if _runtime.leads_to(path, fd):
        with contextlib.suppress(FileNotFoundError):  # a cleaner of temporary files was quicker
            os.unlink(path)


def _open(path: str) -> int:
    while True:
        try:
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:  # the folder was deleted underneath
            _runtime.restore(os.path.dirname(path))
        except OSError as error:
            raise _runtime.unusable(path, error) from error


def _open_namesake(path: str, fd: int) -> int:
    """Open the file that was deleted from ``path`` and is in use; -1 if there is none.

    The caller is alone with the file that is there now.
    """
    users = files.lockers(USE)
    users.pop(os.fstat(fd).st_ino, None)
    for there in os.scandir(os.path.dirname(path)) if users else ():
        users.pop(there.inode(), None)  # most users have files that were not deleted
    pids = {pid for found in users.values() for pid in found if pid > 0} - {os.getpid()}
    opened = (files.open_deleted(path, pid, os.O_RDWR) for pid in pids)
    return next((theirs for theirs in opened if theirs >= 0), -1)


def _adopt(fd: int, path: str, slots: int, place: str) -> mmap.mmap | None:
    """Share the USE lock of a deleted file with its users; None if it is not to be used."""
    lock_soon(fd, USE, shared=True)
    # Looked at after locking, as he who makes a file looks for us after making it: of two
    # who do both at once, one at least sees the other, and begins anew.
    return None if os.path.lexists(path) else _map(fd, path, slots, place)


def _enter(fd: int, path: str, slots: int, place: str, *, alone: bool) -> mmap.mmap | None:
    """Share the USE lock and map the content; None if the file is not the right one any more."""
    if alone:
        # Written, not just made long: a mapped page for which the disk has no room is SIGBUS.
        # The magic comes last, in case we are killed here.
        size = size_of(slots)
        try:
            os.ftruncate(fd, size)
            os.pwrite(fd, bytes(size), 0)
            os.pwrite(fd, NEVER.to_bytes(8, sys.byteorder), SINCE * 8)
            os.pwrite(
                fd,
                HEADER.pack(MAGIC, slots, 0, NOBODY, place.encode(errors="replace")[:PLACE_SIZE]),
                0,
            )
        except OSError as error:
            raise _runtime.unusable(path, error) from error
        files.lock_byte(fd, USE, shared=True)
    else:
        lock_soon(fd, USE, shared=True)  # who has it exclusively lays the file out just now
    return _map(fd, path, slots, place) if _runtime.leads_to(path, fd) else None


def _map(fd: int, path: str, slots: int, place: str) -> mmap.mmap | None:
    header = os.pread(fd, HEADER.size, 0)
    if header.startswith(FAMILY) and not header.startswith(MAGIC):
        base = os.path.dirname(os.path.dirname(path))
        raise RuntimeDirectoryError(base, f"has {place} in use by another version of mpkit")
    if len(header) < HEADER.size or not header.startswith(MAGIC):
        return None  # he who laid it out was killed in the middle
    existing = HEADER.unpack(header)[1]
    if existing != slots:
        raise LimitMismatch(place, slots, existing)
    return mmap.mmap(fd, size_of(slots))


def size_of(slots: int) -> int:
    """Return how many bytes of the file are mapped."""
    return (FIRST_NOTE + min(slots, NOTED) * NOTE_WORDS) * 8


def held_by_others(fd: int, slots: int) -> dict[int, int]:
    """Return which slots other processes hold, and the pid of each, as the kernel knows."""
    found: dict[int, int] = {}
    ranges = [(0, slots)]
    while ranges:
        start, end = ranges.pop()
        lock = files.foreign_lock(fd, start, end - start)
        if lock is None:
            continue
        # The kernel merges a process's neighbouring locks, tells of any lock in the
        # range, not of the first one, and counts 0 for "to the end".
        pid, first, count = lock
        last = min(first + count, end) if count else end
        first = max(first, start)
        found.update(dict.fromkeys(range(first, last), pid))
        ranges += [(a, b) for a, b in ((start, first), (last, end)) if a < b]
    return found


def lock_soon(fd: int, offset: int, *, shared: bool = False) -> bool:
    """Wait for a lock that others hold for a few system calls only."""
    while True:
        try:
            return files.lock_byte(fd, offset, shared=shared, block=True)
        except OSError as error:
            # The kernel sees processes, not threads: two that wait for each other's lock
            # in different threads are no deadlock, and over at once.
            if error.errno != errno.EDEADLK:
                raise
