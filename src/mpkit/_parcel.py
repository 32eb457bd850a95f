"""Messages: a pickle stream, the large buffers beside it, and what moves along.

A small message is one packet of a `Link`. Whatever is larger (the stream itself, or
buffers beside it) is written to anonymous memory whose descriptor rides on the
packet. The kernel frees it with its last descriptor and mapping, whoever dies. The
receiver's objects lie in that memory: they are not copied again, and may be written to.

A `Parcel` is a message on its way. What it carries (the ends of channels) changes its
owner when the parcel was sent, and not before.
"""

from __future__ import annotations

import os
import pickle
import struct
import threading
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from mpkit import _fork, _pickling, _platform
from mpkit._link import MOST_DESCRIPTORS, PACKET, Malformed, discard

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

T = TypeVar("T")


class Movable(Protocol):
    """Something that belongs to one process at a time, and moves with the parcel."""

    def _descriptor(self) -> int:
        """Return the descriptor to copy."""
        ...

    def _moved(self, where: str) -> None:
        """The copy is on its way: let go of the original."""


class _Packing(threading.local):
    """What `pack` and `unpack` are working on in this thread."""

    parcel: Parcel | None = None
    arrived: _fork.Descriptors | None = None


_packing = _Packing()


def current_parcel() -> Parcel | None:
    """Return the parcel that is being packed in this thread: what ``__reduce__`` may ask."""
    return _packing.parcel


def claim(index: int, take: Callable[[int], T]) -> T:
    """Give a descriptor that came with the parcel being unpacked to ``take``, which owns it.

    No child is forked meanwhile: ``take`` makes it known to those that come later.
    """
    arrived = _packing.arrived
    if arrived is None or index >= len(arrived) or arrived[index] < 0:
        raise Malformed(f"a channel end came without its descriptor ({_PERHAPS})")
    return arrived.give(index, take)


#: The kernel drops those for which a process has no room.
_PERHAPS: Final = "has this process too many open files?"


_INLINE: Final = b"\x00"
_SEGMENT: Final = b"\x01"
#: A segment begins with the number of its parts, and the length of each.
_COUNT = struct.Struct("=Q")
#: Buffers start at multiples of this many bytes: a cache line, and what SIMD code likes.
_ALIGNED = 64


class Parcel:
    """One message, packed: immutable bytes, buffers of the caller's, and what moves along."""

    def __init__(self) -> None:
        self.stream: bytes = b""
        self.buffers: list[pickle.PickleBuffer] = []
        self._movables: list[Movable] = []
        # Descriptors: of what is carried, then of the segment if there is one.
        self._copies = _fork.Descriptors()
        self._in_segment = False

    def carry(self, thing: Movable) -> int:
        """Take ``thing`` along; return the index by which the receiver can `claim` it."""
        if len(self._movables) >= MOST_DESCRIPTORS - 1:  # one is the segment's
            raise ValueError(f"a message can carry at most {MOST_DESCRIPTORS - 1} channel ends")
        self._copies.keep_copy(thing._descriptor())
        self._movables.append(thing)
        return len(self._movables) - 1

    @property
    def bulky(self) -> bool:
        """Whether it takes descriptors to send it (without a header)."""
        return bool(self.buffers or self._copies) or len(self.stream) >= PACKET

    def own(self) -> None:
        """Copy the buffers, so that the caller may change the originals."""
        self.buffers = [pickle.PickleBuffer(bytes(buffer.raw())) for buffer in self.buffers]

    def seal(self, header: bytes = b"") -> tuple[bytes, list[int]]:
        """Return the packet and its descriptors, for `Link.send`. They stay ours, until `close`.

        ``header`` is put before the message, for the receiver to take off.
        """
        if not self._in_segment:
            if not self.buffers and len(header) + len(self.stream) < PACKET:
                return header + _INLINE + self.stream, self._copies
            self._copies.append(_write_segment(self.stream, self.buffers))
            self._in_segment = True
            self.stream, self.buffers = b"", []
        return header + _SEGMENT, self._copies

    def depart(self, where: str) -> None:
        """What is carried belongs to ``where`` from now on."""
        for thing in self._movables:
            thing._moved(where)
        self._movables.clear()

    def close(self) -> None:
        """Close our copies of what is carried. The packet, if it was sent, has its own."""
        self._copies.close()


def pack(message: object, what: str) -> Parcel:
    """Pickle ``message``; raises `NotPicklable`, naming ``what``, before anything is sent."""
    parcel, outer = Parcel(), _packing.parcel
    _packing.parcel = parcel
    try:
        parcel.stream, parcel.buffers = _pickling.dumps(message, what)
    except BaseException:
        parcel.close()
        raise
    finally:
        _packing.parcel = outer
    return parcel


def unpack(data: bytes, fds: list[int]) -> Any:
    """Rebuild the message of a packet (without its header). Raises what unpickling raises.

    Raises `Malformed` if this is not a packet that `Parcel.seal` made.
    """
    arrived, outer = _fork.owned(fds), _packing.arrived
    _packing.arrived = arrived
    try:
        stream, buffers = _open(data, fds)
        return pickle.loads(stream, buffers=buffers)
    finally:
        _packing.arrived = outer
        arrived.close()


def unpack_stream(data: bytes, fds: list[int]) -> memoryview:
    """As `unpack`, for a message that is not a pickle."""
    try:
        stream, _ = _open(data, fds)
    finally:
        discard(fds)
    return stream


def _open(data: bytes, fds: list[int]) -> tuple[memoryview, list[memoryview]]:
    if data[:1] == _INLINE:
        return memoryview(data)[1:], []
    if data[:1] != _SEGMENT:
        raise Malformed(f"{data[:16]!r} is no packet of a message")
    if not fds:
        raise Malformed(f"a packet came without its descriptors ({_PERHAPS})")
    return _read_segment(fds[-1])


def _layout(lengths: Sequence[int]) -> Iterator[slice]:
    """Yield where each part of a segment lies."""
    start = _COUNT.size * (1 + len(lengths))
    for length in lengths:
        start = -(-start // _ALIGNED) * _ALIGNED
        yield slice(start, start + length)
        start += length


def _write_segment(stream: bytes, buffers: Sequence[pickle.PickleBuffer]) -> int:
    parts = [memoryview(stream), *(buffer.raw() for buffer in buffers)]
    lengths = [part.nbytes for part in parts]
    places = list(_layout(lengths))
    fd = _platform.anonymous_file(max(1, places[-1].stop))
    try:
        table = struct.pack(f"={1 + len(lengths)}Q", len(lengths), *lengths)
        _write_all(fd, memoryview(table), 0)
        for place, part in zip(places, parts, strict=True):
            _write_all(fd, part, place.start)
        _platform.seal(fd)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _write_all(fd: int, part: memoryview, offset: int) -> None:
    # write(), not a mapping: the kernel fills fresh pages in one go, without a fault for
    # each. It takes 2 GiB at most in a call.
    while part:
        written = os.pwrite(fd, part, offset)
        part = part[written:]
        offset += written


def _read_segment(fd: int) -> tuple[memoryview, list[memoryview]]:
    """Map a segment and return its parts, which keep the mapping alive."""
    size = os.fstat(fd).st_size
    if size < _COUNT.size:
        raise Malformed(f"a segment of {size} bytes is too short")
    if not _platform.is_sound(fd):
        raise Malformed(f"a segment of {size} bytes has holes, or may lose what it has")
    whole = _contents(fd, size)
    (count,) = _COUNT.unpack_from(whole)
    if not 1 <= count < size // _COUNT.size:
        raise Malformed(f"a segment of {size} bytes cannot have {count} parts")
    lengths = struct.unpack_from(f"={count}Q", whole, _COUNT.size)
    places = list(_layout(lengths))
    if places[-1].stop > size:
        raise Malformed(f"a segment of {size} bytes cannot hold {sum(lengths)}")
    stream, *buffers = [whole[place] for place in places]
    return stream, buffers


#: Bytes from which a segment is mapped. A smaller one is read: that costs the same, and
#: leaves neither a mapping nor a descriptor behind.
_MAPPED: Final = 1024 * 1024


def _contents(fd: int, size: int) -> memoryview:
    """Return what is in a segment, to be read and written."""
    mapped = _platform.private_map(fd, size) if size >= _MAPPED else None
    if mapped is not None:
        return memoryview(mapped)
    whole = memoryview(bytearray(size))
    done = 0
    while done < size and (count := os.preadv(fd, [whole[done:]], done)):
        done += count
    return whole
