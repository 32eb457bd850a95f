"""Messages: a pickle stream, the large buffers beside it, and what moves along.

A small message is one packet of a `Link`, with its buffers. A larger one is written to
a segment of memory (see `_segment`) whose descriptor rides on the packet. The receiver's
objects lie in that memory: they are not copied again, and may be written to.

A `Parcel` is a message on its way. What it carries (the ends of channels) changes its
owner when the parcel was sent, and not before.
"""

from __future__ import annotations

import pickle
import struct
import threading
import weakref
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from mpkit import _fork, _pickling, _segment
from mpkit._link import MOST_DESCRIPTORS, PACKET, Malformed
from mpkit._pickling import OUT_OF_BAND

if TYPE_CHECKING:
    from collections.abc import Callable

    from mpkit._segment import Loan

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


#: A packet begins with its kind, and with how many descriptors of what it carries there
#: are. Then follow: the stream; or a segment's contents; or how many bytes of the segment
#: beside it are used, and padding.
_STREAM: Final = b"\x00"
_PARTS: Final = b"\x01"
_SEGMENT: Final = b"\x02"
_HEAD = struct.Struct("=cB")
_SEGMENT_HEAD = struct.Struct("=cBQ")
_NOTHING_ELSE: Final = _HEAD.pack(_STREAM, 0)

#: Bytes of a packet that are left to those who put something before a message, or around
#: it (the pool needs 36).
_FOR_OTHERS: Final = 64
_MOST_INLINE: Final = PACKET - _FOR_OTHERS - _HEAD.size

#: A message in a segment takes room in the socket's buffer, too: it is padded with its
#: size divided by `_PER_PADDING`, within these bounds. So the kernel stops a sender whose
#: messages nobody reads: a buffer of Linux' default size (208 KiB) takes 4 messages of 1 MB
#: and more, or about 11 smaller ones, for all of which segments are kept. (Measured: 16,000
#: bytes of padding cost 2 µs, 60,000 cost 5 µs.)
_PER_PADDING: Final = 16
_LEAST_PADDING: Final = 16_000
_MOST_PADDING: Final = 60_000
_PADDING: Final = bytes(_MOST_PADDING)


class Parcel:
    """One message, packed: immutable bytes, buffers of the caller's, and what moves along."""

    def __init__(self, *, trusting: bool = True) -> None:
        """Make an empty one; ``trusting`` is whether its receiver is a pickle's."""
        self.stream: bytes = b""
        self.buffers: list[pickle.PickleBuffer] = []
        self._trusting = trusting
        self._movables: list[Movable] = []
        # Descriptors of what is carried.
        self._copies = _fork.Descriptors()
        self._segment: Loan | None = None
        self._used = 0

    def carry(self, thing: Movable) -> int:
        """Take ``thing`` along; return the index by which the receiver can `claim` it."""
        if len(self._movables) >= MOST_DESCRIPTORS - 1:  # one is the segment's
            raise ValueError(f"a message can carry at most {MOST_DESCRIPTORS - 1} channel ends")
        self._copies.keep_copy(thing._descriptor())
        self._movables.append(thing)
        return len(self._movables) - 1

    @property
    def bulky(self) -> bool:
        """Whether it takes descriptors to send it."""
        return bool(self._copies) or self._segment is not None or not self._fits()

    def own(self) -> None:
        """Copy the buffers, so that the caller may change the originals."""
        if (
            self.buffers
            and self._segment is None
            and not self._fits()
            and len(_early) < _MOST_EARLY
        ):
            # To where they have to go anyway, unless many wait to be sent: each has a
            # descriptor. (Threads may exceed the bound by one each.)
            try:
                self.seal()
                _early.add(self)
            except OSError as error:
                if error.errno not in _segment.SCARCE:  # it is a signal handler's
                    raise
        self.buffers = [pickle.PickleBuffer(bytes(buffer.raw())) for buffer in self.buffers]

    def seal(self, header: bytes = b"") -> tuple[bytes, list[int]]:
        """Return the packet and its descriptors, for `Link.send`. They stay ours, until `close`.

        ``header``, of few bytes, is put before the message, for the receiver to take off.
        Raises OSError, which says what ran out, if there are no descriptors or there is no memory: then
        nothing has changed, and it can be tried again.
        """
        carried = len(self._copies)
        if self._segment is None and self._fits():
            if self.buffers:
                joined = _segment.join(self._parts())
                return header + _HEAD.pack(_PARTS, carried) + joined, self._copies
            head = _HEAD.pack(_STREAM, carried) if carried else _NOTHING_ELSE
            return header + head + self.stream, self._copies
        if self._segment is None:
            self._segment, self._used = _segment.write(self._parts(), reuse=self._trusting)
            self.stream, self.buffers = b"", []
        head = header + _SEGMENT_HEAD.pack(_SEGMENT, carried, self._used)
        padding = min(max(self._used // _PER_PADDING, _LEAST_PADDING), _MOST_PADDING)
        return head + _PADDING[:padding], [*self._copies, self._segment.fd]

    def _fits(self) -> bool:
        """Tell whether the message fits into its packet."""
        if not self.buffers:
            return len(self.stream) <= _MOST_INLINE
        most = (len(self.buffers) + 1) * OUT_OF_BAND  # saves the work for most that do not fit
        return most <= 2 * _MOST_INLINE and _segment.length(self._parts()) <= _MOST_INLINE

    def _parts(self) -> list[memoryview]:
        return [memoryview(self.stream), *(buffer.raw() for buffer in self.buffers)]

    def depart(self, where: str) -> None:
        """What is carried belongs to ``where`` from now on."""
        for thing in self._movables:
            thing._moved(where)
        self._movables.clear()

    def unload(self) -> None:
        """Let go of all that was packed: the message is about to be packed anew."""
        self.close()
        self._movables.clear()

    def close(self) -> None:
        """Close our copies of what is carried. The packet, if it was sent, has its own."""
        self._copies.close()
        if self._segment is not None:
            self._segment.close()
            _early.discard(self)


#: The parcels that have a segment before they are sent, by `own`.
_early: weakref.WeakSet[Parcel] = weakref.WeakSet()
#: Half of what is kept, so that the other half is there for what is sent at once.
_MOST_EARLY: Final = _segment.MOST_KEPT // 2


def pack(message: object, what: str) -> Parcel:
    """Pickle ``message``; raises `NotPicklable`, naming ``what``, before anything is sent.

    Raises OSError if descriptors ran out for what it carries.
    """
    parcel, outer = Parcel(), _packing.parcel
    _packing.parcel = parcel
    try:
        parcel.stream, parcel.buffers = _pickling.dumps(message, what, start_anew=parcel.unload)
    except BaseException:
        parcel.close()
        raise
    finally:
        _packing.parcel = outer
    return parcel


def unpack(data: bytes, fds: list[int]) -> Any:
    """Rebuild the message of a packet (without its header). Raises what unpickling raises.

    Raises `Malformed` if this is not a packet that `Parcel.seal` made. Takes the descriptors,
    unless it is interrupted (by what is no Exception) before one was claimed: then that can
    be done again.
    """
    outer, arrived = _packing.arrived, _fork.owned(fds) if fds else None
    _packing.arrived = arrived
    try:
        stream, *buffers = _open(data, fds)
        message = pickle.loads(stream, buffers=buffers)
    except BaseException as error:
        if arrived is not None and (isinstance(error, Exception) or -1 in arrived):
            arrived.close()
        raise
    finally:
        _packing.arrived = outer
    if arrived is not None:
        arrived.close()
    return message


def unpack_stream(data: bytes, fds: list[int]) -> memoryview:
    """As `unpack`, for a message that is not a pickle, of a peer who is not trusted.

    Nothing that the peer still has can change what is returned.
    """
    arrived = _fork.owned(fds)
    try:
        stream, *buffers = _open(data, arrived, copy=True)
        if buffers or len(arrived) != (data[:1] == _SEGMENT):
            raise Malformed("a packet has more than its stream, which is all that it may have")
    finally:
        arrived.close()
    return stream


def _open(data: bytes, fds: list[int], *, copy: bool = False) -> list[memoryview]:
    """Return the stream and the buffers of a packet, whose descriptors are all there."""
    rest = memoryview(data)[_HEAD.size :]
    if data[:1] in (_STREAM, _PARTS) and len(data) >= _HEAD.size:
        kind, carried = _HEAD.unpack_from(data)
        _check_count(len(fds), carried)
        # What is built from parts may be written to, and lies at the start of memory.
        return [rest] if kind == _STREAM else _segment.split(memoryview(bytearray(rest)))
    if data[:1] == _SEGMENT and len(data) >= _SEGMENT_HEAD.size:
        _, carried, used = _SEGMENT_HEAD.unpack_from(data)
        _check_count(len(fds), carried + 1)
        return _segment.read(fds[-1], used, copy=copy)
    raise Malformed(f"{data[:16]!r} is no packet of a message")


def _check_count(arrived: int, sent: int) -> None:
    if arrived < sent:
        raise Malformed(f"a packet came without its descriptors ({_PERHAPS})")
    if arrived > sent:
        raise Malformed(f"a packet came with {arrived} descriptors instead of {sent}")
