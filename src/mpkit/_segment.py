"""The memory beside a message: filled here, lent to whoever receives it, and used again.

New memory costs more than the copy into it, since the kernel has to find every page. So
a sender keeps some segments, mapped and warm, and uses one again when all who had it
have let go. The kernel says when that is, and nobody else is asked:

* What is sent is not our own descriptor of the segment, but one of a *new open file*
  (through /proc/self/fd), which has a shared `flock`. Such a lock lasts exactly as long
  as the open file: while it is in a socket unread, while anybody has a descriptor of it,
  and while anybody maps it, forks and processes that are stopped included. The kernel
  drops it when the last of them is gone, whichever way.
* So if an exclusive lock can be had through our own descriptor, nobody has the segment.

Whoever has it is trusted not to unlock it by hand. For a peer that is not trusted, and
where the system has no memfd or no /proc, each segment is used once.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import struct
import sys
from typing import TYPE_CHECKING, Any, Final

from mpkit import _fork
from mpkit._link import Malformed
from mpkit._pickling import OUT_OF_BAND
from mpkit._platform import descriptors, memory

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

#: How many segments a process keeps. Python before 3.13 has two descriptors for each.
MOST_KEPT: Final = 16

#: How many bytes they have together: half a GiB, and not more than a 16th of the memory.
#: Messages of 100 MB make full use of five: what a socket takes (see `_parcel`), and
#: the one at work on either side.
MOST_BYTES: Final = min(512 * 1024 * 1024, memory.memory() // 16)

#: A segment is not used for a message of less than half its size, since to keep that
#: message would take all of it; unless the segment is so small that it does not matter.
SMALL: Final = 1024 * 1024

#: A segment begins with the number of its parts, and the length of each.
_COUNT = struct.Struct("=Q")
#: Parts start at multiples of this many bytes: a cache line, and what SIMD code likes.
_ALIGNED = 64
#: Bytes to copy at a time into a mapping: meanwhile no other thread runs. NumPy, if somebody has
#: imported it, lets others run (so the supervisor of a pool sends one array while its caller copies
#: the next). Then it is as long as no signal handler has to run. (Arbitrary.)
_AT_A_TIME = 4 * 1024 * 1024
_AT_A_TIME_BESIDE = 64 * 1024 * 1024


class Loan:
    """A descriptor that others are to have, of a segment, say. A forked child closes its copy."""

    def __init__(self, fd: int) -> None:
        """Own ``fd``. The caller holds `_fork.guard` since it was made."""
        self.fd = fd
        _fork.know(self)

    def close(self) -> None:
        """Give the descriptor back. Those who have received it have their own."""
        with _fork.guard:
            self._close()

    def _close(self, close: Callable[[int], None] = os.close) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            close(fd)  # also when this module has lost its globals, at the end

    def __del__(self) -> None:
        # Without the guard: this runs anywhere, and whoever has it may wait for what we hold.
        self._close()

    def _before_fork(self) -> None:
        """Nothing to decide: no child keeps it."""

    def _after_fork_in_parent(self) -> None:
        """Nothing to let go of."""

    def _after_fork_in_child(self) -> None:
        self.close()


class _Segment(Loan):
    """Memory of our own, filled by one thread at a time, while nobody else has it."""

    def __init__(self, fd: int) -> None:
        super().__init__(fd)
        #: Bytes that it has, and that are there: whoever writes to them needs no memory.
        self.size = 0
        #: When it was lent last, by the number of loans.
        self.lent = 0
        self._mapped: mmap.mmap | None = None

    def fill(self, used: int, placed: Sequence[tuple[memoryview, slice]]) -> None:
        """Write parts to their places, of which the last ends at ``used``."""
        if used > self.size:
            self._unmap()
            os.ftruncate(self.fd, used)
            write: Callable[[memoryview, int], object] = self._append
        else:
            write = self._overwrite if self._map() else self._append
        for part, place in placed:
            write(part, place.start)
        self.size = max(self.size, used)

    def _append(self, part: memoryview, offset: int) -> None:
        # write(), not a mapping: the kernel fills fresh pages in one go, without a fault
        # for each, and says so where it has none. It takes 2 GiB at most in a call.
        while part:
            written = os.pwrite(self.fd, part, offset)
            part = part[written:]
            offset += written

    def _overwrite(self, part: memoryview, offset: int) -> None:
        # Into a mapping: twice as fast as write(), where the pages are there.
        mapped = self._mapped
        assert mapped is not None
        numpy: Any = sys.modules.get("numpy") if len(part) > _AT_A_TIME else None
        beside = hasattr(numpy, "copyto")  # or it is being imported
        step = _AT_A_TIME_BESIDE if beside else _AT_A_TIME
        for start in range(0, len(part), step):
            piece, first = part[start : start + step], offset + start
            if beside:
                place = numpy.frombuffer(mapped, "u1", len(piece), first)
                numpy.copyto(place, numpy.frombuffer(piece, "u1"))
            else:
                mapped[first : first + len(piece)] = piece

    def _map(self) -> bool:
        if self._mapped is None:
            self._mapped = memory.shared_map(self.fd, self.size)
        return self._mapped is not None

    def _unmap(self) -> None:
        mapped, self._mapped = self._mapped, None
        if mapped is not None:
            try:  # without contextlib, which this module may have lost, at the end
                mapped.close()
            except BufferError:
                """In a forked child it is in use for ever by a thread that is not there."""

    def lend(self) -> Loan | None:
        """Return another open file of it, which has a lock; None where there can be none."""
        if not memory.HAS_MEMFD:
            return None
        with _fork.guard:
            try:
                loan = Loan(os.open(f"/proc/self/fd/{self.fd}", os.O_RDONLY | os.O_CLOEXEC))
                fcntl.flock(loan.fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:  # no /proc, no descriptor left, no locks
                return None
        return loan

    def is_free(self) -> bool:
        """Tell whether no loan of it is left anywhere."""
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.flock(self.fd, fcntl.LOCK_UN)
        except OSError:
            return False
        return True

    def give_away(self) -> Loan:
        """Return our own descriptor, to be lent; this is the end of the segment here."""
        self._unmap()
        with _fork.guard:
            fd, self.fd = self.fd, -1
            return Loan(fd)

    def _close(self, close: Callable[[int], None] = os.close) -> None:
        self._unmap()
        super()._close(close)


class _Kept:
    """The segments that a process keeps, lent or not. All under `_fork.guard`.

    Signal handlers may send messages too, and interrupt what holds the guard: so a
    segment is taken out before anything is found out about it.
    """

    def __init__(self) -> None:
        self._segments: set[_Segment] = set()
        self._loans = 0

    def take(self, used: int) -> _Segment | None:
        """Take out the free segment that fits ``used`` bytes best; it may have to grow."""
        with _fork.guard:
            for segment in self._by_fit(used):
                if self._took(segment):
                    if segment.is_free():
                        return segment
                    self._segments.add(segment)
        return None

    def put(self, segment: _Segment) -> None:
        """Keep a segment that was just lent, if the bounds allow it."""
        with _fork.guard:
            self._loans += 1
            segment.lent = self._loans
            _fork.know(self)
            self._segments.add(segment)
            if not self._within_bounds():
                self._make_room(segment)

    def clear(self) -> bool:
        """Give back all there is; whoever has a loan keeps it. False if there was nothing."""
        with _fork.guard:
            segments, self._segments = self._segments, set()
            for segment in segments:
                segment.close()
        return bool(segments)

    def sizes(self) -> list[int]:
        """Return how large the segments are."""
        return [segment.size for segment in list(self._segments)]

    def _before_fork(self) -> None:
        """Nothing to decide: no child keeps any."""

    def _after_fork_in_parent(self) -> None:
        """Nothing to let go of."""

    def _after_fork_in_child(self) -> None:
        self._segments = set()  # each closes itself

    def _took(self, segment: _Segment) -> bool:
        try:
            self._segments.remove(segment)
        except KeyError:
            return False
        return True

    def _by_fit(self, used: int) -> list[_Segment]:
        most = max(2 * used, SMALL)
        fitting = [segment for segment in list(self._segments) if segment.size <= most]
        # First those that are large enough, the smallest of them first. Then the others,
        # the largest first: to grow it is cheaper than to begin with nothing. Among equals
        # the latest: it may still be in the processor's cache.
        return sorted(fitting, key=lambda it: (it.size < used, abs(it.size - used), -it.lent))

    def _within_bounds(self) -> bool:
        sizes = self.sizes()
        return len(sizes) <= MOST_KEPT and sum(sizes) <= MOST_BYTES

    def _make_room(self, latest: _Segment) -> None:
        """Drop what is free; then what was lent long ago; then the latest.

        Of those at work the oldest comes back next: to drop it for the latest would be
        the worst choice, unless somebody holds on to it.
        """
        oldest_first = sorted(self._segments, key=lambda it: it.lent)
        long_ago = self._loans - 2 * MOST_KEPT
        unused = [it for it in oldest_first if it is not latest and it.is_free()]
        held = [it for it in oldest_first if it.lent < long_ago]
        for segment in [*unused, *held, latest]:
            if self._took(segment):
                segment.close()
                if self._within_bounds():
                    return


_kept = _Kept()

#: Give back all segments that are kept.
clear = _kept.clear


def length(parts: Sequence[memoryview]) -> int:
    """Return how many bytes of a segment ``parts`` take."""
    end: int = _layout([part.nbytes for part in parts])[-1].stop
    return max(1, end)


def write(parts: Sequence[memoryview], *, reuse: bool = True) -> tuple[Loan, int]:
    """Put ``parts`` into a segment; return it for sending, and how much of it is used.

    With ``reuse`` false it is memory that nobody had before or will have afterwards.
    Raises OSError if there is no memory, or no descriptor for it.
    """
    used, placed = length(parts), _placed(parts)
    try:
        return _filled(used, placed, reuse=reuse), used
    except OSError as error:
        if error.errno not in SCARCE:
            raise
        if not clear():
            raise _explained(error, used) from None
    try:  # once more, with what was given back
        return _filled(used, placed, reuse=False), used
    except OSError as error:
        raise _explained(error, used) from None


def _placed(parts: Sequence[memoryview]) -> list[tuple[memoryview, slice]]:
    """Return the table and the parts, and where they go."""
    lengths = [part.nbytes for part in parts]
    table = memoryview(struct.pack(f"={1 + len(lengths)}Q", len(lengths), *lengths))
    places = [slice(0, len(table)), *_layout(lengths)]
    return list(zip([table, *parts], places, strict=True))


def _filled(used: int, placed: Sequence[tuple[memoryview, slice]], *, reuse: bool) -> Loan:
    segment = _kept.take(used) if reuse else None
    if segment is None:
        with _fork.guard:
            segment = _Segment(memory.anonymous_file(0))
    try:
        segment.fill(used, placed)
        memory.seal(segment.fd)
        loan = segment.lend() if reuse and segment.size <= MOST_BYTES else None
        if loan is None:
            return segment.give_away()
    except BaseException:
        segment.close()
        raise
    _kept.put(segment)
    return loan


#: What the system says where something ran out.
SCARCE: Final = {
    *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.EDQUOT),
    errno.EFBIG,  # memory without a name is a file to the kernel
}


def _explained(error: OSError, size: int) -> OSError:
    if error.errno in (errno.EMFILE, errno.ENFILE):
        most = descriptors.most_open()
        lack = (
            f"no descriptor for the memory of a message (this process may have {most}: ulimit -n)"
        )
    elif error.errno == errno.EFBIG:
        import resource  # noqa: PLC0415  for once in a blue moon

        most, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
        lack = (
            f"no memory for the {size:,} bytes of a message, since files of this process "
            f"may have {most:,} (ulimit -f)"
        )
    else:
        lack = f"no memory for the {size:,} bytes of a message"
    return OSError(error.errno, f"{error.strerror}: {lack}")


def _layout(lengths: Sequence[int]) -> list[slice]:
    """Return where each part of a segment lies."""
    places: list[slice] = []
    start = _COUNT.size * (1 + len(lengths))
    for size in lengths:
        start = -(-start // _ALIGNED) * _ALIGNED
        places.append(slice(start, start + size))
        start += size
    return places


def read(fd: int, used: int, *, copy: bool = False) -> list[memoryview]:
    """Return the parts of a segment, which may be written to, and keep its memory.

    With ``copy`` nothing that the sender still has can change them. Raises Malformed
    for what `write` has not written.
    """
    size = os.fstat(fd).st_size
    if not _COUNT.size <= used <= size:
        raise Malformed(f"a segment of {size} bytes cannot have {used} in use")
    if not memory.is_sound(fd):
        raise Malformed(
            f"a segment of {size} bytes is unreadable, has holes, or may lose what it has"
        )
    return split(_contents(fd, used, copy=copy))


def split(whole: memoryview) -> list[memoryview]:
    """Return the parts of what `join` has joined. Raises Malformed for what it has not."""
    used = len(whole)
    if used < _COUNT.size:
        raise Malformed(f"a segment of {used} bytes cannot have any parts")
    (count,) = _COUNT.unpack_from(whole)
    # All but the first part are buffers, which are not small. So no list is long that
    # has little behind it.
    if not (1 <= count <= 1 + used // OUT_OF_BAND and _COUNT.size * (1 + count) <= used):
        raise Malformed(f"a segment of {used} bytes cannot have {count} parts")
    lengths = struct.unpack_from(f"={count}Q", whole, _COUNT.size)
    places = _layout(lengths)
    if places[-1].stop > used:
        raise Malformed(f"a segment of {used} bytes cannot hold {sum(lengths)}")
    return [whole[place] for place in places]


#: Bytes from which a segment is mapped. A smaller one is read: that leaves neither a mapping
#: nor a descriptor behind, and the segment is free at once. Measured by
#: ``python -m benchmarks --thresholds``: up to half a MB to read is faster, at 1 MB both
#: take the same time, and at 16 MB to map takes half of it.
MAPPED: Final = 1024 * 1024


def _contents(fd: int, size: int, *, copy: bool) -> memoryview:
    """Return what is in a segment, to be read and written."""
    mapped = None if copy or size < MAPPED else memory.private_map(fd, size)
    if mapped is not None:
        return memoryview(mapped)
    whole = memoryview(bytearray(size))
    done = 0
    while done < size and (count := os.preadv(fd, [whole[done:]], done)):
        done += count
    return whole
