"""Reports of workers, in memory that they share with the parent.

By socket a report costs a worker one system call, and the parent two, at each of which its
threads take turns: for a short task that is more than all else. So a worker writes what is
small into its journal, and says by socket only what is large, or that there is something to
read, if the parent sleeps.

A record is there once the count of bytes that were written says so, which is one store of
eight bytes: a worker that is killed has reported a task or it has not. Nobody waits for
anybody: a worker has never more tasks than its journal has room for reports.

    0   number of the parent's sleep, or 0 while it is awake
    8   bytes written by the worker of slot 0, of slot 1, ...
    …   whether the parent is to be woken for what a caller has asked for, likewise
    …   the packet that the worker has, and how many of its tasks it has begun, likewise
    …   the packet of which the parent takes back what the worker has not begun, and from which
        task on, likewise
    …   the journals: records of four bytes of length, and so many bytes

The last two of these are how a task is had back that lies behind a long one in a packet which
its worker has taken. Each of them notes what it is about to do and then looks at the note of
the other. So at least one of them sees the other's: if the parent does not see that the worker
has begun, the worker sees that it must not. If both see both, the task is the worker's, which
says what it does: it declines.
"""

from __future__ import annotations

import mmap
import os
import struct
import threading
from multiprocessing.reduction import DupFd
from typing import Any, Final

from mpkit import _fork
from mpkit._platform import memory
from mpkit._platform.memory import KEEPS_ORDER

#: Bytes of a record at most. (Arbitrary: the result of a short task is mostly much shorter.)
MOST_BYTES: Final = 400

_LENGTH: Final = struct.Struct("=I")
#: In place of a length: what follows is at the start of the journal.
_TURN: Final = 0xFFFF_FFFF

#: The report of each task that a worker may have, of the few that are about itself, and twice
#: what may be lost where a record does not fit at the end. What it is asked for besides, past the
#: supervisor, is while half of it is free. (What `schedule` calls "most in a
#: packet" is not imported for that, as a worker needs nothing else of it. A test looks after it.)
_SIZE: Final = 256 * 1024

#: Which of the words of a slot: as above, in that order.
_WRITTEN, _WANTED, _BEGUN, _TAKEN_BACK, _KINDS = range(5)

#: Bytes of counts that are compared at a time, where most are as they were.
_BLOCK: Final = 8 * 16

#: More than there are tasks in a packet.
_MOST_TASKS: Final = 1 << 16

_turnstile = threading.Lock()


def _renew_turnstile() -> None:
    global _turnstile
    _turnstile = threading.Lock()


# Some thread of the parent may have held it, which is not in the child to let go.
os.register_at_fork(after_in_child=_renew_turnstile)


def _fence() -> None:
    """Have the stores and loads before this take effect before those after it.

    Processors may do them in another order. To release a lock comes after what was done with it,
    to take one before, and the one before the other.
    """
    with _turnstile:
        pass
    if not KEEPS_ORDER:  # where it is kept, any lock is a fence
        with _turnstile:
            pass


def _place(kind: int, slot: int, slots: int) -> int:
    """Return which of all words that is; that of the parent's sleep is the first."""
    return 1 + kind * slots + slot


class Journal:
    """What a worker writes to. Its parent makes it, and gives it to the worker's process."""

    def __init__(self, shared: mmap.mmap, fd: int, slot: int, slots: int) -> None:
        self._shared = shared
        self._fd = fd
        self._slot = slot
        self._slots = slots
        self._written = 0
        self._woken = 0

    def __reduce__(self) -> Any:
        # Only while a process is being spawned, with this among its arguments.
        return _arrive, (DupFd(self._fd), self._slot, self._slots)

    def begin(self) -> None:
        """Make ready to write, in the worker."""
        view = memoryview(self._shared)
        self._counts = view[: _size_of_counts(self._slots)].cast("Q")
        self._count, self._wanted, self._begun, self._taken_back = (
            _place(kind, self._slot, self._slots) for kind in range(_KINDS)
        )
        self._start = _start(self._slot, self._slots)

    def begin_task(self, packet: int, index: int) -> bool:
        """Begin with a task of a packet; False if it was taken back, as all behind it were."""
        counts = self._counts
        counts[self._begun] = packet * _MOST_TASKS + index + 1
        with _turnstile:  # as `_fence`, for one call less
            pass
        if not KEEPS_ORDER:
            _fence()
        taken_back = counts[self._taken_back]
        if not taken_back:  # as with most workers, ever
            return True
        of, first = divmod(taken_back, _MOST_TASKS)
        return of != packet or index < first

    def write(self, record: bytes, *, asked: bool = False) -> bool:
        """Add a record; tell whether the parent sleeps, and is to be woken, once for each sleep.

        It is not for what a caller has ``asked`` for, who reads it himself, unless it wants that.
        """
        size = _LENGTH.size + len(record)
        place = self._written % _SIZE
        if place + size > _SIZE:
            if place + _LENGTH.size <= _SIZE:
                _LENGTH.pack_into(self._shared, self._start + place, _TURN)
            self._written += _SIZE - place
            place = 0
        begin = self._start + place
        self._shared[begin : begin + size] = _LENGTH.pack(size - _LENGTH.size) + record
        self._written += size
        counts = self._counts
        if not KEEPS_ORDER:
            _fence()
        counts[self._count] = self._written
        with _turnstile:  # as in `begin_task`
            pass
        if not KEEPS_ORDER:
            _fence()
        sleep = counts[0]
        if not sleep or sleep == self._woken or (asked and not counts[self._wanted]):
            return False
        self._woken = sleep
        return True


def _arrive(copy: Any, slot: int, slots: int) -> Journal:
    (fd,) = fds = _fork.owned([copy.detach()])
    shared = memory.shared_map(fd, _start(slots, slots), whole=False)
    fds.close()
    if shared is None:
        raise MemoryError("a worker has no room for the map by which it reports")
    return Journal(shared, -1, slot, slots)


def _size_of_counts(slots: int) -> int:
    return 8 * _place(_KINDS, 0, slots)


def _start(slot: int, slots: int) -> int:
    """Return where a journal begins; behind the last one the memory ends."""
    head = -(-_size_of_counts(slots) // 4096) * 4096
    return head + slot * _SIZE


class Journals:
    """The journals of all workers, as their parent has them.

    For the supervisor's thread only, but `written`, `crowded`, `since` and `answer`. What is
    `read`, or was an `answer`, is so under a lock that both have: that of the worker's inbox.
    """

    def __init__(self, slots: int, *, forks: bool) -> None:
        self._slots = slots
        size = _start(slots, slots)
        self._file = _fork.owned([])
        if forks:
            self._shared: mmap.mmap | None = mmap.mmap(-1, size)
        else:
            with _fork.guard:
                self._file.keep([memory.anonymous_file(size)])
            self._shared = memory.shared_map(self._file[0], size, whole=False)
        if self._shared is None:
            raise MemoryError(f"there is no room for a map of {size:,} bytes")
        view = memoryview(self._shared)
        self._counts = view[: _size_of_counts(slots)].cast("Q")
        self._written = view[8 * _place(_WRITTEN, 0, slots) : 8 * _place(_WRITTEN, slots, slots)]
        self._records = view
        self._seen = bytes(8 * slots)
        #: How much was read of each; and the last task of which a caller has read the report himself.
        self._read: list[tuple[int, int]] = [(0, 0)] * slots
        self._free = list(range(slots))
        #: Where the first journal begins.
        self._head = _start(0, slots)
        self._sleeps = 0

    def open(self) -> int | None:
        """Return a free slot, for a worker that is about to be started; None if there is none."""
        if not self._free:
            return None
        slot = self._free.pop()
        self._read[slot] = 0, 0
        for kind in range(_KINDS):
            self._counts[_place(kind, slot, self._slots)] = 0
        # Or a worker that has written as much as the one before it would have written nothing.
        place = 8 * slot
        self._seen = self._seen[:place] + bytes(8) + self._seen[place + 8 :]
        return slot

    def journal(self, slot: int) -> Journal:
        """Return what the worker of a slot gets."""
        assert self._shared is not None
        fd = self._file[0] if self._file else -1
        return Journal(self._shared, fd, slot, self._slots)

    def give_back(self, slot: int) -> None:
        """The worker of this slot is dead, and its journal was read."""
        self._free.append(slot)

    def read(self, slot: int) -> list[bytes]:
        """Return the records that were not read."""
        written = self.written(slot)
        read, task = self._read[slot]
        records = self._between(slot, read, written)
        self._read[slot] = written, task
        return records

    def written(self, slot: int) -> int:
        """Return how much a worker has written."""
        written = self._counts[1 + slot]  # as `_place` says
        if not KEEPS_ORDER:  # or records that it counts are seen as they were before
            _fence()
        return written

    def crowded(self, slot: int) -> bool:
        """Tell whether so much is unread that nobody is to ask for more past the supervisor."""
        return self._counts[1 + slot] - self._read[slot][0] > _SIZE // 2

    def since(self, slot: int, read: int) -> tuple[bytes, int]:
        """Return the record behind ``read``, or b"" if it is being written over.

        And where that ends, if it is the last one; else that is ``read``.
        """
        written = self.written(slot)
        first, size, end = read % _SIZE, written - read, written
        begin = self._head + slot * _SIZE + first
        if first + _LENGTH.size <= _SIZE and _LENGTH.unpack_from(self._records, begin)[0] == (
            size - _LENGTH.size
        ):  # there is one, as mostly, and where it should be
            record = bytes(self._records[begin + _LENGTH.size : begin + size])
        else:
            records = self._between(slot, read, written)
            record = records[0] if records else b""
            end = written if len(records) == 1 else read
        # Behind what is written now there may be a part of another one.
        written_over = self.written(slot) - read > _SIZE - 2 * (MOST_BYTES + _LENGTH.size)
        return (b"" if written_over else record), end

    def answer(self, slot: int, task: int, since: int, until: int) -> bool:
        """Take it that a caller has read all that is there, which is the report of his task.

        False if that is not all, or the supervisor has read it. It is one store, after which
        the `answered` is that task, and nobody else will see the report.
        """
        if self._read[slot][0] != since or self.written(slot) != until:
            return False
        self._read[slot] = until, task
        return True

    def answered(self, slot: int) -> int:
        """Return the task of the last `answer`, or 0."""
        return self._read[slot][1]

    def _between(self, slot: int, read: int, written: int) -> list[bytes]:
        records: list[bytes] = []
        start, unpack = _start(slot, self._slots), _LENGTH.unpack_from
        while read < written:
            first = read % _SIZE
            # As far as it goes on without a turn: to copy all of it costs as much as one record.
            piece = bytes(self._records[start + first : start + min(first + written - read, _SIZE)])
            place, end = 0, len(piece) - _LENGTH.size
            while place <= end:
                (length,) = unpack(piece, place)
                if length == _TURN:
                    break
                begin = place + _LENGTH.size
                place = begin + length
                records.append(piece[begin:place])
            read += len(piece)
        return records

    def take_back(self, slot: int, packet: int) -> int:
        """Have a worker begin with no other task of the packet that it has.

        Returns the first that it will not begin. The one before that it has begun, or it
        declines that, and says so: all others behind it are the parent's.
        """
        taken_back = packet * _MOST_TASKS + self._begun(slot, packet)
        self._counts[_place(_TAKEN_BACK, slot, self._slots)] = taken_back
        _fence()
        return self._begun(slot, packet)

    def _begun(self, slot: int, packet: int) -> int:
        of, count = divmod(self._counts[_place(_BEGUN, slot, self._slots)], _MOST_TASKS)
        return count if of == packet else 0

    def want(self, slot: int, wanted: bool) -> None:
        """Be woken, or not, for what a caller has asked the worker of this slot for."""
        self._counts[_place(_WANTED, slot, self._slots)] = wanted

    def unread(self, slot: int) -> bool:
        """Tell whether there is something to read."""
        return self._read[slot][0] < self._counts[_place(_WRITTEN, slot, self._slots)]

    def changed(self) -> list[int]:
        """Return the slots of those who have written since this was last asked."""
        now, seen = bytes(self._written), self._seen
        if now == seen:
            return []
        self._seen = now
        return [
            place // 8
            for block in range(0, len(now), _BLOCK)
            if now[block : block + _BLOCK] != seen[block : block + _BLOCK]
            for place in range(block, min(block + _BLOCK, len(now)), 8)
            if now[place : place + 8] != seen[place : place + 8]
        ]

    def fall_asleep(self) -> bool:
        """Have the next one who writes wake us; False if somebody has written meanwhile."""
        self._sleeps += 1
        self._counts[0] = self._sleeps
        _fence()
        if bytes(self._written) == self._seen:
            return True
        self._counts[0] = 0
        return False

    def wake_up(self) -> None:
        """Have nobody wake us."""
        self._counts[0] = 0

    def close(self) -> None:
        """Give the memory back."""
        for view in (self._counts, self._written, self._records):
            view.release()
        if self._shared is not None:
            self._shared.close()
        self._file.close()
