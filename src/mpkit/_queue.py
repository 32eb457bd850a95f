"""The queue of those who wait for a slot, as it lies in the semaphore's file.

An entry of the file's table holds a ticket, and which bell to ring. It *stands* while
its owner holds a record lock on a byte that belongs to the entry. So an entry ends with
its process, and the kernel knows whose it is: a pid that was given to somebody else
deceives nobody, and what the dead leave in the table is overwritten when there is need.

Entries are made by who holds the JOIN lock, and cleared by their owners. Who makes one
writes it before he locks it. So if an entry reads the same before and after its lock was
seen, then that was the lock of the ticket's owner. Most queues are short: their entries
lie in the mapped part of the file, and cost no system call to be read.

Here is only what can be done to the queue; who rings whom is written in `_waiter`.
"""

from __future__ import annotations

import contextlib
import os
import struct
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from mpkit import _runtime
from mpkit._platform import files, processes
from mpkit._slotfile import (
    COUNT,
    ENTRY,
    FIRST,
    MAPPED,
    NEVER,
    NOBODY,
    PLACES,
    SINCE,
    SOMEBODY,
    TABLE,
    TICKET,
    WAITED_FOR,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mpkit._bells import Bell

#: How long, in seconds, the first one lets himself be overtaken. Some hundred times what it
#: costs to hand a slot over, so that doing that in order costs little.
HUNGRY_AFTER = 0.005

#: ticket, token of the bell, pid.
_ENTRY: Final = struct.Struct("=QQQ8x")
_CLEARED: Final = bytes(8)


class Entry(NamedTuple):
    """One who waits, or did when he was killed."""

    ticket: int
    row: int
    token: int
    pid: int


class Place:
    """A place in the queue, of this process."""

    def __init__(self) -> None:
        self.ticket = 0
        self.row = -1


class Queue:
    """The queue in the file that is open as ``fd``; its beginning is mapped as ``words``.

    Not safe for threads: `Slots` has a mutex.
    """

    def __init__(self, fd: int, words: memoryview[int], rest: int, path: str) -> None:
        self._fd = fd
        self._words = words
        #: Where in the file the entries lie that are not mapped, since they may be many.
        self._rest = rest
        self._path = path
        #: The tickets of this process by row: the kernel does not tell us of our own locks.
        self._own: dict[int, int] = {}

    def enter(self, place: Place, bell: Bell) -> None:
        """Take the last place in the queue. The caller has the JOIN lock."""
        pid = os.getpid()
        row = self._free_row()
        # The clock is for a file that was laid out anew.
        ticket = max(self.last() + 1, time.monotonic_ns())
        self._words[TICKET] = ticket
        # Ours before it is there: an entry that its process does not know of would keep
        # all behind it waiting.
        place.ticket, place.row = ticket, row
        self._own[row] = ticket
        self._write(Entry(ticket, row, bell.token, pid))
        if row >= self._count():
            self._words[COUNT] = row + 1
        # Taken back under JOIN only, when no entry stands: so while his entry stands,
        # whoever releases a slot reads it. (His failing to lock a slot and the other's
        # unlocking it take the same lock inside the kernel, which orders this write and
        # that read.)
        if self._words[WAITED_FOR] == NOBODY:
            self._words[WAITED_FOR] = SOMEBODY
        files.lock_byte(self._fd, PLACES + row)

    def _free_row(self) -> int:
        count = self._count()
        # To look for what the dead left takes a call for each entry: not every time.
        thorough = count & (count - 1) == 0
        taken: set[int] = set() if thorough else {entry.row for entry in self.entries()}
        candidates = (row for row in range(count) if row not in taken)
        return next((row for row in candidates if not self._locked(row)), count)

    def leave(self, place: Place) -> None:
        """Clear one's entry; again is fine."""
        row = place.row
        if self.holds(place):
            if self._words[FIRST + 1] == place.ticket:
                self._words[SINCE] = NEVER
            self._clear(row)
            files.unlock_byte(self._fd, PLACES + row)
            del self._own[row]

    def last(self) -> int:
        """Return the ticket of who joined last."""
        return self._words[TICKET]

    def before(self, ticket: int) -> tuple[int, Entry] | None:
        """Return the nearest entry that stands before ``ticket``, and the pid of its owner."""
        ahead = [entry for entry in self.entries() if entry.ticket < ticket]
        return next(self._standing(sorted(ahead, reverse=True)), None)

    def after(self, ticket: int) -> Entry | None:
        """Return the nearest entry that stands behind ``ticket``."""
        behind = [entry for entry in self.entries() if entry.ticket > ticket]
        return next((entry for _, entry in self._standing(sorted(behind))), None)

    def lead(self, place: Place, bell: Bell) -> None:
        """Note that a place of ours is the first one, and has been waiting for long from now."""
        words = self._words
        words[FIRST], words[FIRST + 1] = place.row, place.ticket
        words[FIRST + 2], words[FIRST + 3] = bell.token, os.getpid()
        words[SINCE] = time.monotonic_ns()

    def is_hungry(self) -> bool:
        """Tell whether the first one has been overtaken for long enough."""
        # What he is not if he is stopped: then nobody would get in until he goes on.
        return time.monotonic_ns() - self._words[SINCE] > HUNGRY_AFTER * 1e9 and not (
            processes.is_stopped(self._words[FIRST + 3])
        )

    def listen(self, bell: Bell | None) -> None:
        """Note by which bell we are called who are first; None if we need none."""
        self._words[FIRST + 2] = 0 if bell is None else bell.token

    def first(self) -> Entry:
        """Return who noted to be first last, whether he still stands or not."""
        row, ticket, token, pid = self._words[FIRST : FIRST + 4].tolist()
        return Entry(ticket, row, token, pid)

    def left(self, entry: Entry) -> bool:
        """Tell whether the owner of an entry has cleared it; not if he died."""
        found = self._read(entry.row) if entry.ticket else None
        return found is None or found.ticket != entry.ticket

    def stands(self, entry: Entry) -> bool:
        """Tell whether an entry has an owner: that one, or one who came after him."""
        own = self._own.get(entry.row)
        return bool(self._locked(entry.row)) if own is None else own == entry.ticket

    def holds(self, place: Place) -> bool:
        """Tell whether a place is one of this process, and of this queue."""
        return self._own.get(place.row) == place.ticket

    def forget_dead(self) -> bool:
        """Clear the table if no entry stands, and tell so. The caller has the JOIN lock."""
        if self._own or self._locks():
            return False
        self._words[COUNT] = 0
        self._words[WAITED_FOR] = NOBODY
        return True

    def waiting(self) -> list[int]:
        """Return the pids of those who wait, one for each place, in order of arrival."""
        return [pid for pid, _ in self._standing(sorted(self.entries()))]

    def entries(self) -> list[Entry]:
        """Return all entries, those of the dead among them, in no order."""
        count = self._count()
        end = TABLE + min(count, MAPPED) * ENTRY
        words = self._words[TABLE:end].tolist()
        if count > MAPPED:
            rest = os.pread(self._fd, (count - MAPPED) * _ENTRY.size, self._rest)
            for fields in _ENTRY.iter_unpack(rest[: len(rest) - len(rest) % _ENTRY.size]):
                words += (*fields, 0)
        return [
            Entry(words[at], at // ENTRY, words[at + 1], words[at + 2])
            for at in range(0, len(words), ENTRY)
            if words[at]
        ]

    def abandon(self) -> None:
        """Forget our places, in a forked child: they are its parent's."""
        self._own.clear()

    def _standing(self, entries: list[Entry]) -> Iterator[tuple[int, Entry]]:
        for entry in entries:
            owner = self._locked(entry.row)
            if owner and self._read(entry.row) == entry:
                yield owner, entry

    def _locked(self, row: int) -> int:
        """Return the pid of who holds an entry's lock; 0 if nobody does."""
        if row in self._own:
            return os.getpid()
        lock = files.foreign_lock(self._fd, PLACES + row, 1)
        # In another container, whose processes have no pid here, it is 0 or -1.
        return 0 if lock is None else lock[0] if lock[0] > 0 else -1

    def _locks(self) -> bool:
        return files.foreign_lock(self._fd, PLACES, 0) is not None

    def _read(self, row: int) -> Entry | None:
        if row < MAPPED:
            at = TABLE + row * ENTRY
            ticket, token, pid, _ = self._words[at : at + ENTRY].tolist()
            return Entry(ticket, row, token, pid)
        found = os.pread(self._fd, _ENTRY.size, self._at(row))
        if len(found) < _ENTRY.size:
            return None
        ticket, token, pid = _ENTRY.unpack(found)
        return Entry(ticket, row, token, pid)

    def _write(self, entry: Entry) -> None:
        if entry.row < MAPPED:
            at = TABLE + entry.row * ENTRY
            self._words[at + 1], self._words[at + 2] = entry.token, entry.pid
            self._words[at] = entry.ticket
            return
        packed = _ENTRY.pack(entry.ticket, entry.token, entry.pid)
        try:
            os.pwrite(self._fd, packed, self._at(entry.row))
        except OSError as error:
            raise _runtime.unusable(self._path, error) from error

    def _clear(self, row: int) -> None:
        if row < MAPPED:
            self._words[TABLE + row * ENTRY] = 0
        else:
            with contextlib.suppress(OSError):  # the disk is full, and it never was written
                os.pwrite(self._fd, _CLEARED, self._at(row))

    def _count(self) -> int:
        return self._words[COUNT]

    def _at(self, row: int) -> int:
        return self._rest + (row - MAPPED) * _ENTRY.size
