"""The queue of those who wait for a slot, as it lies in the semaphore's file.

An entry of the file's table holds a ticket, and which bell to ring. It *stands* while
its owner holds a record lock on a byte that belongs to the entry. So an entry ends with
its process, and the kernel knows whose it is: a pid that was given to somebody else
deceives nobody, and what the dead leave in the table is overwritten when there is need.

Entries are made by who holds the JOIN lock, and cleared by their owners. Who makes one
writes it before he locks it. So if an entry reads the same before and after its lock was
seen, then that was the lock of the ticket's owner.

Here is only what can be done to the queue; who rings whom is written in `_waiter`.
"""

from __future__ import annotations

import contextlib
import os
import struct
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from mpkit import _platform, _runtime
from mpkit._slotfile import (
    COUNT,
    COUNT_AT,
    FIRST,
    FIRST_AT,
    NOBODY,
    PLACES,
    SOMEBODY,
    TICKET,
    TICKET_AT,
    WAITED_FOR,
)

if TYPE_CHECKING:
    import mmap
    from collections.abc import Iterator

    from mpkit._bells import Bell

#: ticket, token of the bell, pid.
_ENTRY: Final = struct.Struct("<QQq8x")
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
    """The queue in the file that is open as ``fd`` and mapped as ``content``.

    Not safe for threads: `Slots` has a mutex.
    """

    def __init__(self, fd: int, content: mmap.mmap, path: str) -> None:
        self._fd = fd
        self._map = content
        self._path = path
        self._table = len(content)  # it comes after what is mapped
        #: The tickets of this process by row: the kernel does not tell us of our own locks.
        self._own: dict[int, int] = {}

    def enter(self, place: Place, bell: Bell) -> None:
        """Take the last place in the queue. The caller has the JOIN lock."""
        pid = os.getpid()
        row = self._free_row()
        # The clock is for a file that was laid out anew.
        ticket = max(self.last() + 1, time.monotonic_ns())
        TICKET.pack_into(self._map, TICKET_AT, ticket)
        # Ours before it is there: an entry that its process does not know of would keep
        # all behind it waiting.
        place.ticket, place.row = ticket, row
        self._own[row] = ticket
        try:
            os.pwrite(self._fd, _ENTRY.pack(ticket, bell.token, pid), self._at(row))
        except OSError as error:
            raise _runtime.unusable(self._path, error) from error
        if row >= self._count():
            COUNT.pack_into(self._map, COUNT_AT, row + 1)
        # Taken back under JOIN only, when no entry stands: so while his entry stands,
        # whoever releases a slot reads it. (His failing to lock a slot and the other's
        # unlocking it take the same lock inside the kernel, which orders this write and
        # that read.)
        if self._map[WAITED_FOR] == NOBODY:
            self._map[WAITED_FOR] = SOMEBODY
        _platform.lock_byte(self._fd, PLACES + row)

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
            with contextlib.suppress(OSError):  # the disk is full, and it never was written
                os.pwrite(self._fd, _CLEARED, self._at(row))
            _platform.unlock_byte(self._fd, PLACES + row)
            del self._own[row]

    def last(self) -> int:
        """Return the ticket of who joined last."""
        ticket: int = TICKET.unpack_from(self._map, TICKET_AT)[0]
        return ticket

    def before(self, ticket: int) -> tuple[int, Entry] | None:
        """Return the nearest entry that stands before ``ticket``, and the pid of its owner."""
        ahead = [entry for entry in self.entries() if entry.ticket < ticket]
        return next(self._standing(sorted(ahead, reverse=True)), None)

    def after(self, ticket: int) -> Entry | None:
        """Return the nearest entry that stands behind ``ticket``."""
        behind = [entry for entry in self.entries() if entry.ticket > ticket]
        return next((entry for _, entry in self._standing(sorted(behind))), None)

    def lead(self, place: Place, bell: Bell) -> None:
        """Note that a place of ours is the first one."""
        FIRST.pack_into(self._map, FIRST_AT, place.row, place.ticket, bell.token, os.getpid())

    def first(self) -> Entry:
        """Return who noted to be first last, whether he still stands or not."""
        row, ticket, token, pid = FIRST.unpack_from(self._map, FIRST_AT)
        return Entry(ticket, row, token, pid)

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
        COUNT.pack_into(self._map, COUNT_AT, 0)
        self._map[WAITED_FOR] = NOBODY
        return True

    def waiting(self) -> list[int]:
        """Return the pids of those who wait, one for each place, in order of arrival."""
        return [pid for pid, _ in self._standing(sorted(self.entries()))]

    def entries(self) -> list[Entry]:
        """Return all entries, those of the dead among them, in no order."""
        table = os.pread(self._fd, self._count() * _ENTRY.size, self._table)
        table = table[: len(table) - len(table) % _ENTRY.size]
        return [
            Entry(ticket, row, token, pid)
            for row, (ticket, token, pid) in enumerate(_ENTRY.iter_unpack(table))
            if ticket
        ]

    def abandon(self) -> None:
        """Forget our places, in a forked child: they are its parent's."""
        self._own.clear()

    def _standing(self, entries: list[Entry]) -> Iterator[tuple[int, Entry]]:
        for entry in entries:
            owner = self._locked(entry.row)
            if owner and self._read(entry.row) == (entry.ticket, entry.token, entry.pid):
                yield owner, entry

    def _locked(self, row: int) -> int:
        """Return the pid of who holds an entry's lock; 0 if nobody does."""
        if row in self._own:
            return os.getpid()
        lock = _platform.foreign_lock(self._fd, PLACES + row, 1)
        # In another container, whose processes have no pid here, it is 0 or -1.
        return 0 if lock is None else lock[0] if lock[0] > 0 else -1

    def _locks(self) -> bool:
        return _platform.foreign_lock(self._fd, PLACES, 0) is not None

    def _read(self, row: int) -> tuple[int, ...]:
        found = os.pread(self._fd, _ENTRY.size, self._at(row))
        return _ENTRY.unpack(found) if len(found) == _ENTRY.size else ()

    def _count(self) -> int:
        count: int = COUNT.unpack_from(self._map, COUNT_AT)[0]
        return count

    def _at(self, row: int) -> int:
        return self._table + row * _ENTRY.size
