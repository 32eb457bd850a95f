"""The slots of one semaphore, as the kernel keeps them.

A semaphore is a small file, and a slot is a *POSIX record lock* on one byte of it. So
a slot is free the moment its holder is dead, a forked child does not inherit it, and
F_GETLK names the holder. Record locks have three hazards, and `Slots` is the one place
that deals with them:

* They belong to the process, so threads are told apart here, under a mutex.
* Closing *any* descriptor of the file drops them all. So there is one `Slots` for a
  path in a process, with the one descriptor (see `_sharing`).
* A forked child has the descriptor but no lock. It takes the USE lock anew, and holds
  nothing (`_after_fork_in_child`).

How the file is laid out and opened is in `_slotfile`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import threading
from collections.abc import Hashable
from typing import TYPE_CHECKING, Final, TypeAlias

from mpkit import _fork, _presence, _runtime
from mpkit._bells import Bell, Bells
from mpkit._platform import files
from mpkit._queue import Place, Queue
from mpkit._slotfile import (
    FIRST,
    HEADER,
    JOIN,
    NEVER,
    NOTED,
    SINCE,
    USE,
    WAITED_FOR,
    Notes,
    held_by_others,
    lock_soon,
    open_file,
    read_note,
    remove_file,
)

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

# For the calls of each `take` and `give`: to look them up costs as much as some of them.
_lockf = fcntl.lockf
_NOW: Final = fcntl.LOCK_EX | fcntl.LOCK_NB
_WHEN_FREE: Final = fcntl.LOCK_EX
_FREE: Final = fcntl.LOCK_UN
_FINDS_DELETED: Final = files.FINDS_DELETED

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
        self._folder, name = os.path.split(path)
        self.bells = Bells(os.path.join(self._folder, f"queue-{name}"))
        # Over the queue, the bells, and the change to another file. Re-entrant, since a
        # signal handler or a finalizer may release.
        self._mutex = threading.RLock()
        # Invariant: each slot is in exactly one of `_free` (not held by this process; the
        # most recently released last) and `_held`, or belongs to the thread that moves it.
        # Each step of that is one operation of a list or a dict, so it needs no mutex.
        # `_pops` takes the last one off the list: a signal handler, which may raise, can
        # run after a call, but not between the steps of a loop. (It raises IndexError if
        # there is none. `next` would be a call.)
        self._free: list[int] = []
        self._pops: Iterator[int]
        self._held: dict[int, Owner] = {}
        self._start_over()
        self._open()

    def _open(self) -> None:
        self._fd, self._map = open_file(self.path, self.slots, self.place)
        self._words = memoryview(self._map).cast("Q")
        self._notes = Notes(self._map)
        self.queue = Queue(self._fd, self._words, len(self._map), self.path)

    def _start_over(self) -> None:
        self._free = list(range(self.slots - 1, -1, -1))
        self._pops = iter(self._free.pop, None)
        self._held = {}
        #: The ticket of who was rung last.
        self._rung = 0
        # Whether our descriptor may be of a file that others do not meet on.
        self._stale = False
        # Whether that is to be mended, or others do not know yet that we are there.
        self._unready = True

    def take(self, owner: Owner, overtake: bool = True) -> bool:
        """Take a free slot for ``owner`` if there is one. Never blocks.

        Unless told to ``overtake``, it leaves the slot to those who wait, once one of
        them has been overtaken for too long.
        """
        return (self._take_unready if self._unready else self._take)(owner, overtake)

    def take_now(self, owner: Owner) -> bool:
        """As `take`, for who will not wait and look again.

        No two slots are looked at in the same moment. One that was passed may be given back
        while the next one is taken: then all seemed to be taken, and at no moment were.
        """
        return self.take(owner) or (self.slots > 1 and self.take(owner))

    def _take(self, owner: Owner, overtake: bool) -> bool:
        if not overtake and self._words[WAITED_FOR] and self.queue.is_hungry():
            return False
        slot, free = -1, self._free
        missed: list[int] = []
        try:
            while True:
                try:
                    for slot in self._pops:
                        break
                except IndexError:
                    return False
                try:
                    _lockf(self._fd, _NOW, 1, slot)
                    break
                except (BlockingIOError, PermissionError):
                    missed.append(slot)
            if slot < NOTED:
                self._notes.write(slot)
            self._held[slot] = owner
            return True
        except BaseException:  # Ctrl-C in the middle
            if slot not in missed:
                self._put_back(slot, free)
            raise
        finally:
            # Those that others hold go to the bottom: the next one to look begins elsewhere.
            if missed:
                free[:0] = missed

    def take_when_free(self, owner: Owner) -> bool:
        """Sleep until the only slot is free, and take it: the kernel hands it over.

        Only for who is first in the queue. False if it cannot be done: a thread of this
        process holds the slot, and the kernel would give it to us as well; or the kernel
        takes the wait for a deadlock; or the file may be exchanged meanwhile (macOS).
        """
        if self.slots > 1 or not _FINDS_DELETED:
            return False
        slot, free = -1, self._free
        try:
            try:
                # So that no other thread finds it locked for us.
                for slot in self._pops:
                    break
            except IndexError:
                return False
            # Without the mutex, which is not to be held while we sleep: only who is first
            # writes this.
            self.queue.listen(None)
            _lockf(self._fd, _WHEN_FREE, 1, slot)
            if free is self._free:
                self._notes.write(slot)
                self._held[slot] = owner
                return True
            # A signal handler forked us, and here is the child: it has a list of its own.
        except BaseException as error:  # Ctrl-C may come when we have it
            self._put_back(slot, free)
            # EDEADLK: the kernel sees processes, not threads. It may well be no deadlock.
            if isinstance(error, OSError) and error.errno == errno.EDEADLK:
                return False
            raise
        return self._take(owner, True)

    def _take_unready(self, owner: Owner, overtake: bool) -> bool:
        with self._mutex:
            self._get_ready()
            if not self._take(owner, overtake):
                return False
            if _FINDS_DELETED or len(self._held) > 1 or os.fstat(self._fd).st_nlink:
                return True
            self._stale = True  # deleted underneath: others meet on a new file
            self.give(owner)
            return self._take_unready(owner, overtake)

    def _put_back(self, slot: int, free: list[int]) -> None:
        """Let go of a slot that was taken off the list ``free``, if one was, and perhaps locked."""
        if slot < 0:
            return
        self._held.pop(slot, None)
        try:
            _lockf(self._fd, _FREE, 1, slot)
        finally:
            free.append(slot)
        self.ring()  # somebody may have seen that we have it

    def give(self, owner: Owner) -> bool:
        """Give back a slot of ``owner``; False if it holds none."""
        held, slot = self._held, -1
        for slot, who in held.copy().items():
            if who == owner:
                break
        else:
            return False
        try:
            del held[slot]
        except KeyError:  # another thread gave it back
            return self.give(owner)
        # To unlock it, and to tell who waits: a waiter that saw us hold it relies on both.
        try:
            try:
                _lockf(self._fd, _FREE, 1, slot)
            finally:
                self._free.append(slot)
            # If the first one sleeps in the kernel he was woken by that. If he has left,
            # perhaps nobody waits any more, which is to be found out.
            words = self._words
            if words[WAITED_FOR] and (words[FIRST + 2] or words[SINCE] == NEVER):
                self.ring()
        except BaseException:  # Ctrl-C in the middle; to ring once more does no harm
            self.ring()
            raise
        return True

    def give_any(self) -> bool:
        """Give back a slot that this process holds; False if it holds none."""
        return any(self.give(owner) for owner in self._held.copy().values())

    def ring(self) -> None:
        """Have the first one who waits look for a free slot."""
        # Whoever noted last that he is first. If he died or left since, or is writing it
        # just now, it makes no difference whether he is rung: the next one will look
        # after this, and finds what we released (see `_waiter`).
        with self._mutex:
            first = self.queue.first()
            # If it is the one whom we rang last, he may be dead. To ask the kernel each time
            # would take longer than all else.
            dead = first.ticket == self._rung and not self.queue.stands(first)
            if dead or self.queue.left(first):
                # Perhaps nobody waits: say so, unless somebody joins the queue just now.
                # Having the JOIN lock we know that nobody is about to take a place unseen.
                with self._joining(block=False) as ours:
                    if ours:
                        self.queue.forget_dead()
            else:
                self._rung = first.ticket
                # The last thing that is done here: who wakes may have to wait for our core.
                self.bells.ring(first.pid, first.token)

    def holds(self, owner: Owner) -> int:
        """Return how many slots ``owner`` holds."""
        return list(self._held.values()).count(owner)

    def join(self, place: Place) -> Bell:
        """Take the last place in the queue; return a bell to wait with."""
        with self._joining():
            bell = self.bells.borrow()
            try:
                self.queue.enter(place, bell)
            except BaseException:  # Ctrl-C, or the disk is full
                self.leave(place, bell)
                raise
            return bell

    def in_line(self, place: Place) -> bool:
        """Tell whether it is a place of the queue that there is now, and ours."""
        with self._mutex:
            return self.queue.holds(place)

    @contextlib.contextmanager
    def _joining(self, *, block: bool = True) -> Generator[bool]:
        """Hold the JOIN lock: nobody else, of any process, joins the queue meanwhile."""
        with self._mutex:
            self._get_ready()
            ours = lock_soon(self._fd, JOIN) if block else files.lock_byte(self._fd, JOIN)
            try:
                yield ours
            finally:
                if ours:
                    files.unlock_byte(self._fd, JOIN)

    def ahead(self, place: Place) -> int:
        """Return the pid of the nearest one before that place; 0 if it is the first one."""
        with self._mutex:
            found = self.queue.before(place.ticket)
            return found[0] if found else 0

    def lead(self, place: Place, bell: Bell) -> None:
        """Note whose bell is to be rung by who releases a slot."""
        with self._mutex:
            self.queue.lead(place, bell)

    def listen(self, bell: Bell) -> None:
        """Note that it is to be rung again, after `take_when_free`."""
        with self._mutex:
            self.queue.listen(bell)

    def leave(self, place: Place, bell: Bell | None) -> None:
        """Leave the queue, and ring the next one."""
        with self._mutex:
            if not self._stale:
                self.queue.leave(place)
                # Who joined before this is behind us, who joins later does not see us.
                if self.queue.last() != place.ticket:
                    after = self.queue.after(place.ticket)
                    if after is not None:
                        self.bells.ring(after.pid, after.token)
            if bell is not None:
                self.bells.give_back(bell)

    def watch(self, pid: int) -> list[int]:
        """Return what tells of the end of a process, as `_presence.watch`."""
        return _presence.watch(self._folder, pid)

    def all_held(self) -> set[int] | None:
        """Return the pids of the *other* processes that hold slots; None if one is free."""
        with self._mutex:
            foreign = self.foreign()
            taken = foreign.keys() | self.own()
            return set(foreign.values()) if len(taken) >= self.slots else None

    def foreign(self) -> dict[int, int]:
        """Return which slots other processes hold, and the pid of each, as the kernel knows."""
        with self._mutex:
            self._refresh()
            return held_by_others(self._fd, self.slots)

    def own(self) -> list[int]:
        """Return which slots this process holds."""
        return list(self._held)

    def note(self, slot: int) -> tuple[int, float, str]:
        """Return who noted to hold ``slot`` last: pid, since when, process name."""
        if slot >= NOTED:
            return 0, 0.0, ""
        with self._mutex:
            self._refresh()
            return read_note(self._map, slot)

    def _refresh(self) -> None:
        """Go to the file that is at our path now, if ours is stale. We hold nothing of it."""
        if self._stale:
            with _fork.guard:
                # Closed first: if it is the same file, that would drop the new locks.
                self._close_file(remove=False)
                self._open()
                self.bells.ring_own()  # our threads have lost their places
                self._stale = False

    def _get_ready(self) -> None:
        """Be one who can be watched, and whose file others use: before taking anything."""
        self._refresh()
        _presence.show(self._folder)
        self._unready = not _FINDS_DELETED

    def close(self) -> None:
        """Let go of the file, and remove it if nobody else has it open."""
        with _fork.guard:
            self.bells.close()
            self._close_file(remove=True)

    def _close_file(self, *, remove: bool) -> None:
        self._stale = self._unready = True
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        # Alone: nobody holds a slot or waits. So a file made anew, by a Semaphore that
        # still travels as a pickle, has lost nothing.
        if remove and files.lock_byte(fd, USE) and _runtime.leads_to(self.path, fd):
            self.bells.remove()
            remove_file(self.path, fd)
        self._words.release()
        self._notes.close()
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
        self._notes.forget()
        self.bells.forget()
        self.queue.abandon()
        # Were our parent killed before this, somebody might have been alone with the file,
        # and have removed it or laid it out for himself. Then the next `take` goes there.
        ours = self._fd >= 0 and files.lock_byte(self._fd, USE, shared=True)
        self._stale = not ours or HEADER.unpack_from(self._map)[1] != self.slots
