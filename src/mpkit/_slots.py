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

How the file is laid out and opened is in `_slotfile`.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
import time
from collections.abc import Hashable
from typing import TYPE_CHECKING, Final, TypeAlias

from mpkit import _fork, _platform, _runtime
from mpkit._bells import Bells, name_for, ticket_and_owner
from mpkit._errors import LimitMismatch
from mpkit._slotfile import (
    FIRST,
    FIRST_AT,
    HEADER,
    HUNGRY,
    JOIN,
    NOBODY,
    NOTE,
    NOTED,
    NOTES_AT,
    SOMEBODY,
    TICKET,
    TICKET_AT,
    USE,
    WAITED_FOR,
    lock_soon,
    open_file,
)

if TYPE_CHECKING:
    from collections.abc import Generator

#: Who holds a slot within this process: the ident of a thread, or an asyncio task.
Owner: TypeAlias = Hashable

#: The most slots that a semaphore can have: each process keeps a list of them.
MOST_SLOTS: Final = 1_000_000


class Slots:
    """The one descriptor that this process has of a semaphore's file.

    Owned by all `Semaphore` objects of the same path in this process; safe for threads.
    """

    def __init__(self, path: str, slots: int, place: str) -> None:
        self.path = path
        self.slots = slots
        self.place = place
        folder, name = os.path.split(path)
        self.bells = Bells(os.path.join(folder, f"queue-{name}"))
        # Over all below. Re-entrant, since a signal handler or a finalizer may release.
        self._mutex = threading.RLock()
        # Invariant: each slot is in exactly one of `_free` (not held by this process; the
        # most recently released last) and `_held`, or being moved under the mutex.
        self._free: list[int] = []
        self._held: dict[Owner, list[int]] = {}
        self._start_over()
        self._fd, self._map = open_file(path, slots, place)

    def _start_over(self) -> None:
        self._free = list(range(self.slots - 1, -1, -1))
        self._held = {}
        self._pid = os.getpid()
        self._name = b""
        # Whether our descriptor may be of a file that others do not meet on.
        self._stale = False

    def take(self, owner: Owner, *, overtake: bool = True) -> bool:
        """Take a free slot for ``owner`` if there is one. Never blocks.

        Unless told to ``overtake``, it leaves the slot to those who wait, once one of
        them has been overtaken for too long.
        """
        with self._mutex:
            if self._stale:
                self._refresh()
            if not overtake and self._map[WAITED_FOR] == HUNGRY:
                return False
            slot = self._lock_one()
            if slot is None:
                return False
            try:
                if not self._held and not os.fstat(self._fd).st_nlink:
                    self._stale = True  # deleted underneath: others meet on a new file
                else:
                    self._note(slot)
                    self._held.setdefault(owner, []).append(slot)
            except BaseException:
                self._give_back(slot)
                raise
            if self._stale:
                self._give_back(slot)
                return self.take(owner, overtake=overtake)
            return True

    def _lock_one(self) -> int | None:
        """Lock a slot that nobody holds; it is then in neither `_free` nor `_held`."""
        free = self._free
        slot = free.pop() if free else None
        if slot is None or _platform.lock_byte(self._fd, slot):
            return slot
        # Those that others hold go to the bottom: the next one to look begins elsewhere.
        missed = [slot]
        try:
            while free:
                slot = free.pop()
                if _platform.lock_byte(self._fd, slot):
                    return slot
                missed.append(slot)
            return None
        finally:
            free[:0] = missed

    def give(self, owner: Owner) -> bool:
        """Give back a slot of ``owner``, else any that this process holds; False if none."""
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
                self._give_back(slot)
            return True

    def _give_back(self, slot: int) -> None:
        """Unlock a slot, and tell who waits. A waiter that saw us hold it relies on both."""
        try:
            _platform.unlock_byte(self._fd, slot)
            self._free.append(slot)
            if self._map[WAITED_FOR]:
                self.ring()
        except BaseException:  # Ctrl-C in the middle: once more, all of it can be repeated
            _platform.unlock_byte(self._fd, slot)
            if slot not in self._free:
                self._free.append(slot)
            self.ring()
            raise

    def ring(self) -> None:
        """Have the first one who waits look for a free slot."""
        # If the one who said that he is first still stands, he is: nobody joins before
        # him. If he died, it makes no difference whether he is rung (see `_waiter`).
        first = name_for(*FIRST.unpack_from(self._map, FIRST_AT))
        if not (self.bells.ring_one(first) or self.bells.ring()):
            # Nobody waits: say so, unless somebody joins the queue just now. Having the
            # JOIN lock we know that nobody is about to hang up a bell that we cannot see.
            with self.joining(block=False) as ours:
                if ours and not self.bells.names():
                    self._map[WAITED_FOR] = NOBODY

    def holds(self, owner: Owner) -> int:
        """Return how many slots ``owner`` holds."""
        return len(self._held.get(owner, ()))

    def next_ticket(self) -> int:
        """Return the place in the queue of one who is `joining`, and say that he waits."""
        # The clock is for a file that was laid out anew while some still queue.
        last: int = TICKET.unpack_from(self._map, TICKET_AT)[0]
        ticket = max(last + 1, time.monotonic_ns())
        TICKET.pack_into(self._map, TICKET_AT, ticket)
        # Taken back under JOIN only, when no bell hangs: so while his bell hangs, whoever
        # releases a slot reads it. (His failing to lock a slot and the other's unlocking it
        # take the same lock inside the kernel, which orders this write and that read.)
        if self._map[WAITED_FOR] == NOBODY:
            self._map[WAITED_FOR] = SOMEBODY
        return ticket

    def lead(self, name: str) -> None:
        """Note whose bell is the first, to save who releases a slot from reading the queue."""
        with self._mutex:
            self._refresh()
            FIRST.pack_into(self._map, FIRST_AT, *ticket_and_owner(name))

    def nobody_after(self, name: str) -> bool:
        """Tell whether that bell, which was taken down just now, was the last one."""
        with self._mutex:
            if self._stale:
                return False
            last: int = TICKET.unpack_from(self._map, TICKET_AT)[0]
            return last == ticket_and_owner(name)[0]

    @contextlib.contextmanager
    def joining(self, *, block: bool = True) -> Generator[bool]:
        """Hold the JOIN lock: nobody else, of any process, joins the queue meanwhile."""
        with self._mutex:
            self._refresh()
            ours = lock_soon(self._fd, JOIN) if block else _platform.lock_byte(self._fd, JOIN)
            try:
                yield ours
            finally:
                if ours:
                    _platform.unlock_byte(self._fd, JOIN)

    def hunger(self, *, over: bool = False) -> None:
        """Say that the first one who waits is overtaken for too long, or that it is ``over``.

        Only by one whose bell hangs, so that it cannot contradict `ring`.
        """
        with self._mutex:
            if not self._stale:
                self._map[WAITED_FOR] = SOMEBODY if over else HUNGRY

    def all_held(self) -> set[int] | None:
        """Return the pids of the *other* processes that hold slots; None if one is free."""
        with self._mutex:
            foreign = self.foreign()
            taken = foreign.keys() | self.own()
            return set(foreign.values()) if len(taken) >= self.slots else None

    def foreign(self) -> dict[int, int]:
        """Return which slots other processes hold, and the pid of each, as the kernel knows."""
        found: dict[int, int] = {}
        ranges = [(0, self.slots)]
        with self._mutex:
            self._refresh()
            while ranges:
                start, end = ranges.pop()
                lock = _platform.foreign_lock(self._fd, start, end - start)
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

    def own(self) -> list[int]:
        """Return which slots this process holds."""
        with self._mutex:
            return [slot for slots in self._held.values() for slot in slots]

    def note(self, slot: int) -> tuple[int, float, str]:
        """Return who noted to hold ``slot`` last: pid, since when, process name."""
        if slot >= NOTED:
            return 0, 0.0, ""
        with self._mutex:
            self._refresh()
            pid, since, name = NOTE.unpack_from(self._map, NOTES_AT + slot * NOTE.size)
        return pid, since, name.rstrip(b"\0").decode(errors="replace")

    def _note(self, slot: int) -> None:
        if slot < NOTED:
            name = self._name or self._learn_name()
            at = NOTES_AT + slot * NOTE.size
            NOTE.pack_into(self._map, at, self._pid, time.time(), name)

    def _learn_name(self) -> bytes:
        self._name = multiprocessing.current_process().name.encode()[:48]
        return self._name

    def _refresh(self) -> None:
        """Go to the file that is at our path now, if ours is stale. We hold nothing of it."""
        if self._stale:
            with _fork.guard:
                # Closed first: if it is the same file, that would drop the new locks.
                self.close()
                self._fd, self._map = open_file(self.path, self.slots, self.place)
                self._stale = False

    def close(self, *, remove: bool = False) -> None:
        """Let go of the file, and ``remove`` it if nobody else has it open."""
        self._stale = True
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        # Alone: nobody holds a slot or waits. So a file made anew, by a Semaphore that
        # still travels as a pickle, has lost nothing.
        if remove and _platform.lock_byte(fd, USE) and _runtime.leads_to(self.path, fd):
            self.bells.remove()
            os.unlink(self.path)
        self._map.close()  # this closes a descriptor too, and with it drops the locks
        os.close(fd)

    def busy(self) -> bool:
        """Tell whether this process holds a slot."""
        return bool(self._held)

    def _before_fork(self) -> None:
        """Nothing to decide."""

    def _after_fork_in_parent(self) -> None:
        """Nothing to let go of."""

    def _after_fork_in_child(self) -> None:
        self._mutex = threading.RLock()
        self._start_over()
        self.bells.own.clear()
        # Were our parent killed before this, somebody might have been alone with the file,
        # and have removed it or laid it out for himself. Then the next `take` goes there.
        ours = self._fd >= 0 and _platform.lock_byte(self._fd, USE, shared=True)
        self._stale = not ours or HEADER.unpack_from(self._map)[1] != self.slots


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
            found.close(remove=True)
