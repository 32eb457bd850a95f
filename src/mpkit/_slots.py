"""The slots of one semaphore, as the kernel keeps them.

A semaphore is a small file, and a slot is a *POSIX record lock* on one byte of it. So
a slot is free the moment its holder is dead, a forked child does not inherit it, and
F_GETLK names the holder. Record locks have three hazards, and `Slots` is the one place
that deals with them:

* They belong to the process, so threads are told apart here, under a mutex.
* Closing *any* descriptor of the file drops them all. So there is one `Slots` for a
  path in a process, with the one descriptor; `use` and `leave` count who shares it.
* A forked child has the descriptor but no lock. It takes the USE lock anew, and holds
  nothing (`_after_fork_in_child`).

Besides its slots the file has two more bytes to lock: USE is shared by all who have the
file open, so that who gets it exclusively is alone and may lay the file out, or remove
it. JOIN is held for the moment in which a waiter joins the queue (see `_queue`).

The file's content is mapped: how many slots, whether somebody waits, and who holds
each slot since when. The last is a note for `Slots.notes` only, the truth is the lock.
"""

from __future__ import annotations

import errno
import mmap
import multiprocessing
import os
import struct
import threading
import time
from collections.abc import Hashable
from typing import TYPE_CHECKING, Final, TypeAlias

from mpkit import _fork, _platform, _runtime
from mpkit._errors import LimitMismatch

if TYPE_CHECKING:
    from collections.abc import Callable

#: Who holds a slot within this process: the ident of a thread, or an asyncio task.
Owner: TypeAlias = Hashable

#: The most slots that a semaphore can have: each process keeps a list of them.
MOST_SLOTS: Final = 1_000_000

# Locks lie beside the content, not on it: a slot's is at its number.
_USE: Final = 1 << 30
_JOIN: Final = _USE + 1

# magic, slots, last ticket, somebody waits; then the notes: pid, since, process name.
_MAGIC: Final = b"mpkit\0s1"
_HEADER: Final = struct.Struct("<8sQQB")
_TICKET: Final = struct.Struct("<Q")
_TICKET_AT: Final = 16
_WAITED_FOR: Final = 24
_NOTE: Final = struct.Struct("<qd48s")
_NOTES_AT: Final = 64
#: Beyond these many slots nobody notes who holds one: the file would grow too large.
_NOTED: Final = 1024

# Whether somebody waits, at _WAITED_FOR.
NOBODY: Final = 0
SOMEBODY: Final = 1
#: Somebody waits and was overtaken for too long: who comes now has to queue up as well.
HUNGRY: Final = 2


class Slots:
    """The one descriptor that this process has of a semaphore's file.

    Owned by all `Semaphore` objects of the same path in this process; safe for threads.
    """

    def __init__(self, path: str, slots: int, place: str) -> None:
        self.path = path
        self.slots = slots
        self.place = place
        self.users = 0  # under _fork.guard
        # Re-entrant, since a signal handler or a finalizer may release a slot.
        self._mutex = threading.RLock()
        # Invariant: each slot is in exactly one of `_free` (not held by this process;
        # the most recently released last) and `_held`, or being moved under `_mutex`.
        self._free = list(range(slots - 1, -1, -1))
        self._held: dict[Owner, list[int]] = {}
        self._pid = os.getpid()
        self._name: bytes | None = None
        self._fd, self._map = _open(path, slots, place)

    def take(self, owner: Owner, *, overtake: bool = True) -> bool:
        """Take a free slot for ``owner`` if there is one. Never blocks.

        Unless told to ``overtake``, it leaves the slot to those who wait, once they
        have waited for too long.
        """
        if not overtake and self._map[_WAITED_FOR] == HUNGRY:
            return False
        free = self._free
        missed: list[int] = []
        slot = -1
        with self._mutex:
            try:
                # A slot leaves the list before it is locked: a signal handler that takes
                # one here in between must not find it.
                for _ in range(len(free)):
                    slot = free.pop()
                    if _platform.lock_byte(self._fd, slot):
                        break
                    missed.append(slot)
                    slot = -1
                if slot < 0:
                    return False
                if not os.fstat(self._fd).st_nlink and not self._held:
                    # A cleaner deleted the file: others may already meet on a new one.
                    # (What is still held keeps us here, or it would be given up.)
                    raise _Deleted
                if slot < _NOTED:
                    self._note(slot)
                self._held.setdefault(owner, []).append(slot)
            except _Deleted:
                self._abandon(slot)
                free.extend(missed)
                missed.clear()
                self._reopen()
                return self.take(owner)
            except BaseException:
                if slot >= 0 and slot not in missed:
                    self._abandon(slot)
                raise
            finally:
                if missed:
                    free.extend(reversed(missed))
        return True

    def give(self, owner: Owner) -> bool:
        """Give back a slot of ``owner``, else any that this process holds.

        Returns False if it holds none. The caller then rings the queue if `waited_for`.
        """
        with self._mutex:
            held = self._held
            if owner not in held:
                if not held:
                    return False
                owner = next(iter(held))
            mine = held[owner]
            slot = mine.pop()
            try:
                if not mine:
                    del held[owner]
            finally:
                _platform.unlock_byte(self._fd, slot)
                self._free.append(slot)
        return True

    def holds(self, owner: Owner) -> int:
        """Return how many slots ``owner`` holds."""
        return len(self._held.get(owner, ()))

    @property
    def waited_for(self) -> int:
        """Whether somebody waits: NOBODY, SOMEBODY or HUNGRY.

        It may say so when all who waited are dead, but never the other way round: the
        queue sets it before it looks for a free slot, and who releases one reads it
        after that. (Both lock the file's list of locks in the kernel in between, which
        orders them on every processor.)
        """
        return self._map[_WAITED_FOR]

    @waited_for.setter
    def waited_for(self, state: int) -> None:
        self._map[_WAITED_FOR] = state

    def joining(self, join: Callable[[int], None], *, block: bool = True) -> None:
        """Call ``join`` with the next ticket, while nobody else of any process joins."""
        with self._mutex:
            if not (_lock(self._fd, _JOIN) if block else _platform.lock_byte(self._fd, _JOIN)):
                return
            try:
                (last,) = _TICKET.unpack_from(self._map, _TICKET_AT)
                # The clock is for a file that was laid out anew while some still queued.
                ticket = max(last + 1, time.monotonic_ns())
                _TICKET.pack_into(self._map, _TICKET_AT, ticket)
                join(ticket)
            finally:
                _platform.unlock_byte(self._fd, _JOIN)

    def foreign(self) -> dict[int, int]:
        """Return which slots other processes hold, and the pid of each, as the kernel knows."""
        found: dict[int, int] = {}
        ranges = [(0, self.slots)]
        while ranges:
            start, end = ranges.pop()
            lock = _platform.foreign_lock(self._fd, start, end - start)
            if lock is None:
                continue
            pid, first, count = lock
            # The kernel merges a process's neighbouring locks, tells of any lock in the
            # range, not of the first one, and counts 0 for "to the end".
            first, last = max(first, start), min(first + count if count else end, end)
            found.update(dict.fromkeys(range(first, last), pid))
            ranges += [(a, b) for a, b in ((start, first), (last, end)) if a < b]
        return found

    def own(self) -> set[int]:
        """Return which slots this process holds."""
        with self._mutex:
            return {slot for slots in self._held.values() for slot in slots}

    def note(self, slot: int) -> tuple[int, float, str]:
        """Return who noted to hold ``slot`` last: pid, since when, process name."""
        if slot >= _NOTED:
            return 0, 0.0, ""
        pid, since, name = _NOTE.unpack_from(self._map, _NOTES_AT + slot * _NOTE.size)
        return pid, since, name.rstrip(b"\0").decode(errors="replace")

    def _note(self, slot: int) -> None:
        name = self._name
        if name is None:
            name = self._name = multiprocessing.current_process().name.encode()[:48]
        _NOTE.pack_into(self._map, _NOTES_AT + slot * _NOTE.size, self._pid, time.time(), name)

    def _abandon(self, slot: int) -> None:
        """Give back a slot that was locked but not handed out."""
        _platform.unlock_byte(self._fd, slot)
        self._free.append(slot)

    def _reopen(self) -> None:
        """Go to the file that is at our path now; we hold nothing of this one."""
        with _fork.guard:
            old_fd, old_map = self._fd, self._map
            self._fd, self._map = _open(self.path, self.slots, self.place)
            old_map.close()
            os.close(old_fd)

    def close(self) -> None:
        """Let go of the file, and remove it if nobody else has it open."""
        # Alone: nobody holds a slot or waits, so a file made anew by a Semaphore that
        # still travels as a pickle loses nothing.
        if _platform.lock_byte(self._fd, _USE) and _runtime.leads_to(self.path, self._fd):
            os.unlink(self.path)
        self._map.close()  # which closes a descriptor too, and with it drops the locks
        os.close(self._fd)

    def busy(self) -> bool:
        """Tell whether this process holds a slot."""
        return bool(self._held)

    def _before_fork(self) -> None:
        """Nothing to decide."""

    def _after_fork_in_parent(self) -> None:
        """Nothing to let go of."""

    def _after_fork_in_child(self) -> None:
        self._mutex = threading.RLock()
        self._free = list(range(self.slots - 1, -1, -1))
        self._held = {}
        self._pid = os.getpid()
        self._name = None
        # If somebody was alone with the file meanwhile, because our parent was killed, he
        # removed it, and the next `take` finds out; or laid it out for himself.
        if not _platform.lock_byte(self._fd, _USE, shared=True) or (
            _HEADER.unpack_from(self._map)[1] != self.slots
        ):
            self._reopen()


class _Deleted(Exception):
    """The file was deleted underneath."""


def _open(path: str, slots: int, place: str) -> tuple[int, mmap.mmap]:
    """Open the file at ``path``, or lay it out; return its descriptor and its content."""
    while True:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _runtime.unusable(path, error) from error
        try:
            content = _enter(fd, path, slots, place)
        except BaseException:
            os.close(fd)
            raise
        if content is not None:
            return fd, content
        os.close(fd)


def _enter(fd: int, path: str, slots: int, place: str) -> mmap.mmap | None:
    """Share the USE lock and map the content; None if the file is not the right one any more."""
    size = _NOTES_AT + min(slots, _NOTED) * _NOTE.size
    if _platform.lock_byte(fd, _USE):
        # Written, not just made long: a mapped page for which the disk has no room is SIGBUS.
        # The magic comes last, in case we are killed here.
        try:
            os.ftruncate(fd, size)
            os.pwrite(fd, bytes(size), 0)
            os.pwrite(fd, _HEADER.pack(_MAGIC, slots, 0, NOBODY), 0)
        except OSError as error:
            raise _runtime.unusable(path, error) from error
        _platform.lock_byte(fd, _USE, shared=True)
    else:
        _lock(fd, _USE, shared=True)  # who has it exclusively lays the file out just now
    if not _runtime.leads_to(path, fd):
        return None
    header = os.pread(fd, _HEADER.size, 0)
    if len(header) < _HEADER.size or not header.startswith(_MAGIC):
        return None  # he who laid it out was killed in the middle
    existing = _HEADER.unpack(header)[1]
    if existing != slots:
        raise LimitMismatch(place, slots, existing)
    return mmap.mmap(fd, size)


def _lock(fd: int, offset: int, *, shared: bool = False) -> bool:
    """Wait for a lock that others hold for a few system calls only."""
    while True:
        try:
            return _platform.lock_byte(fd, offset, shared=shared, block=True)
        except OSError as error:
            # The kernel sees processes, not threads: two that wait for each other's lock
            # in different threads are no deadlock, and over at once.
            if error.errno != errno.EDEADLK:
                raise


#: By path; under `_fork.guard`.
_all: dict[str, Slots] = {}
_users: dict[str, int] = {}


def use(path: str, slots: int, place: str) -> Slots:
    """Return this process's `Slots` of ``path``; each call is to be matched by a `leave`."""
    with _fork.guard:
        # Counted first: a finalizer may run anywhere in here and leave the same path.
        _users[path] = _users.get(path, 0) + 1
        try:
            found = _all.get(path)
            if found is None:
                found = Slots(path, slots, place)
                _all[path] = found
                _fork.know(found)
            elif found.slots != slots:
                raise LimitMismatch(place, slots, found.slots)
        except BaseException:
            leave(path)
            raise
    return found


def leave(path: str) -> None:
    """Undo a `use`. The last one closes the file, unless a slot is still held."""
    with _fork.guard:
        _users[path] -= 1
        if _users[path]:
            return
        del _users[path]
        found = _all.get(path)
        if found is not None and not found.busy():
            del _all[path]
            found.close()
