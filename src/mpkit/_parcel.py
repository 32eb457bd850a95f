"""Messages: a pickle stream, the large buffers beside it, and what moves along.

A small message is one packet of a `Link`. A larger one is written, with its buffers, to
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
from mpkit._platform import descriptors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from mpkit._reader import Reader
    from mpkit._segment import Loan

T = TypeVar("T")


class Movable(Protocol):
    """Something that belongs to one process at a time, and moves with the parcel."""

    def _descriptor(self) -> int:
        """Return the descriptor to copy."""
        ...

    def _leave(self) -> None:
        """It was packed: nobody must use it any more."""

    def _remain(self) -> None:
        """It was not sent after all. Not for one that has moved."""

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
        raise Malformed("a channel end came without its descriptor")
    return arrived.give(index, take)


#: A packet begins with its kind, and with how many descriptors of what it carries there
#: are. Then follow: the stream; or how many bytes of the segment beside it are used, and
#: padding.
_STREAM: Final = b"\x00"
_SEGMENT: Final = b"\x01"
_HEAD = struct.Struct("=cB")
_SEGMENT_HEAD = struct.Struct("=cBQ")
#: How the packet of a `Parcel.plain` begins.
PLAIN: Final = _HEAD.pack(_STREAM, 0)

#: Bytes of a packet that are left to those who put something before a message (the pool does
#: so with the name of a function), and around that (the pool needs 36).
MOST_HEAD: Final = 320
_FOR_OTHERS: Final = MOST_HEAD + 64
MOST_INLINE: Final = PACKET - _FOR_OTHERS - _HEAD.size

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

    # Most have nothing but a stream: what they do not need is made when it is.
    stream: bytes = b""
    #: Whether it is a stream that fits into a packet, and nothing else. Then there is nothing
    #: to close, either.
    plain: bool = False
    buffers: Sequence[pickle.PickleBuffer] = ()
    #: What is carried.
    movables: Sequence[Movable] = ()
    #: Descriptors of what is carried.
    _copies: _fork.Descriptors | None = None
    _segment: Loan | None = None
    _used: int = 0
    #: Whether its receiver believes what a pickle says.
    trusting: bool = True

    def carry(self, thing: Movable) -> int:
        """Take ``thing`` along; return the index by which the receiver can `claim` it."""
        if len(self.movables) >= MOST_DESCRIPTORS - 1:  # one is the segment's
            raise ValueError(f"a message can carry at most {MOST_DESCRIPTORS - 1} channel ends")
        if self._copies is None:
            self._copies = _fork.Descriptors()
        self._copies.keep_copy(thing._descriptor())
        self.movables = (*self.movables, thing)
        thing._leave()
        return len(self.movables) - 1

    def own(self) -> None:
        """Copy the buffers, so that the caller may change the originals."""
        if self.buffers and self._segment is None and len(_early) < _MOST_EARLY:
            # To where they have to go anyway, unless many wait to be sent: each has a
            # descriptor. (Threads may exceed the bound by one each.)
            try:
                self.seal()
                _early.add(self)
            except OSError as error:
                if error.errno not in _segment.SCARCE:  # it is a signal handler's
                    raise
        self.buffers = [pickle.PickleBuffer(bytes(buffer.raw())) for buffer in self.buffers]

    def seal(self, header: bytes = b"") -> tuple[bytes, Sequence[int]]:
        """Return the packet and its descriptors, for `Link.send`. They stay ours, until `close`.

        ``header``, of few bytes, is put before the message, for the receiver to take off.
        Raises OSError, which says what ran out, if there are no descriptors or there is no memory: then
        nothing has changed, and it can be tried again.
        """
        if self.plain:
            return header + PLAIN + self.stream, ()
        copies: Sequence[int] = self._copies or ()
        if not self.buffers and self._segment is None and len(self.stream) <= MOST_INLINE:
            return header + _HEAD.pack(_STREAM, len(copies)) + self.stream, copies
        if self._segment is None:
            self._segment, self._used = _segment.write(self._parts(), reuse=self.trusting)
            self.stream, self.buffers = b"", ()
        head = header + _SEGMENT_HEAD.pack(_SEGMENT, len(copies), self._used)
        padding = min(max(self._used // _PER_PADDING, _LEAST_PADDING), _MOST_PADDING)
        return head + _PADDING[:padding], [*copies, self._segment.fd]

    def _parts(self) -> list[memoryview]:
        return [memoryview(self.stream), *(buffer.raw() for buffer in self.buffers)]

    @property
    def size(self) -> int:
        """How many bytes the message has, in the packet and beside it."""
        return self._used or sum(part.nbytes for part in self._parts())

    @property
    def alone(self) -> bool:
        """Whether it is a stream, of any length, and nothing else."""
        return not self.buffers and self._copies is None

    def depart(self, where: str) -> None:
        """What is carried belongs to ``where`` from now on."""
        for thing in self.movables:
            thing._moved(where)
        self.movables = ()

    def close(self) -> None:
        """Close our copies of what is carried. The packet, if it was sent, has its own.

        What was not sent stays with us.
        """
        for thing in self.movables:
            thing._remain()
        self.movables = ()
        if self._copies is not None:
            self._copies.close()
        if self._segment is not None:
            self._segment.close()
            _early.discard(self)


#: The parcels that have a segment before they are sent, by `own`.
_early: weakref.WeakSet[Parcel] = weakref.WeakSet()
#: Half of what is kept, so that the other half is there for what is sent at once.
_MOST_EARLY: Final = _segment.MOST_KEPT // 2


#: What has no parts, and is pickled in one way only: none of our picklers is needed for that.
_ATOMS: Final = frozenset({type(None), bool, int, float, str})


def are_atoms(things: Iterable[object]) -> bool:
    """Tell whether `dump_atoms` is for a list (of tuples) of these."""
    try:
        return _ATOMS.issuperset(map(type, things))
    except Exception:  # noqa: BLE001  a class whose metaclass has no hash, or one that raises
        return False


def dump_atoms(message: object) -> bytes:
    """Return the stream of a message, in a third of the time that `pack` takes."""
    return pickle.dumps(message, 5)


def of(stream: bytes) -> Parcel:
    """Return a message that is this stream, and nothing else."""
    parcel = Parcel()
    parcel.stream, parcel.plain = stream, len(stream) <= MOST_INLINE
    return parcel


def pack(
    message: object,
    what: str | Callable[[], str],
    names: Sequence[str] = (),
    reader: Reader | None = None,
) -> Parcel:
    """Pickle ``message``; raises `NotPicklable`, naming ``what``, before anything is sent.

    ``names`` are what that calls the elements of ``message``, and ``reader`` is who will unpickle it.
    Raises OSError if descriptors ran out for what it carries.
    """
    if type(message) in _ATOMS:
        return of(dump_atoms(message))
    parcel, outer = Parcel(), _packing.parcel
    _packing.parcel = parcel
    try:
        stream, buffers = _pickling.dumps(message, what, names, parcel.close, None, reader)
    except BaseException:
        parcel.close()
        raise
    finally:
        _packing.parcel = outer
    parcel.stream = stream
    if buffers:
        parcel.buffers = buffers
    elif parcel._copies is None and len(stream) <= MOST_INLINE:
        parcel.plain = True
    return parcel


def unpack(data: bytes, fds: list[int], start: int = 0) -> Any:
    """Rebuild the message of a packet, whose header ends at ``start``. Raises what unpickling raises.

    Raises `Malformed` if this is not a packet that `Parcel.seal` made. Takes the descriptors,
    unless it is interrupted (by what is no Exception) before one was claimed: then that can
    be done again.
    """
    if not fds and data.startswith(PLAIN, start):  # as most, and who made it has claims to nothing
        return pickle.loads(data[start + _HEAD.size :])
    outer = _packing.arrived
    arrived = _fork.owned(fds) if fds else None
    _packing.arrived = arrived
    try:
        stream, *buffers = _open(memoryview(data)[start:], fds)
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


def size_of(data: bytes, start: int = 0) -> int:
    """Return how many bytes the message of a packet has, in the packet and beside it."""
    if data[start : start + 1] != _SEGMENT or len(data) < start + _SEGMENT_HEAD.size:
        return max(0, len(data) - start - _HEAD.size)
    used: int = _SEGMENT_HEAD.unpack_from(data, start)[2]
    return used


def unpack_stream(data: bytes, fds: list[int], start: int = 0) -> memoryview:
    """As `unpack`, for a message that is not a pickle, of a peer who is not trusted.

    Nothing that the peer still has can change what is returned.
    """
    arrived = _fork.owned(fds)
    try:
        stream, *buffers = _open(memoryview(data)[start:], arrived, copy=True)
        if buffers or len(arrived) != (data[start : start + 1] == _SEGMENT):
            raise Malformed("a packet has more than its stream, which is all that it may have")
    finally:
        arrived.close()
    return stream


def _open(data: memoryview, fds: list[int], *, copy: bool = False) -> list[memoryview]:
    """Return the stream and the buffers of a packet, whose descriptors are all there."""
    kind = bytes(data[:1])
    if kind == _STREAM and len(data) >= _HEAD.size:
        _check_count(len(fds), data[1])
        return [data[_HEAD.size :]]
    if kind == _SEGMENT and len(data) >= _SEGMENT_HEAD.size:
        _, carried, used = _SEGMENT_HEAD.unpack_from(data)
        _check_count(len(fds), carried + 1)
        return _segment.read(fds[-1], used, copy=copy)
    raise Malformed(f"{bytes(data[:16])!r} is no packet of a message")


def _check_count(arrived: int, sent: int) -> None:
    if arrived < sent:
        # The kernel drops those for which a process has no room, and the packet is taken by
        # then. To look before each packet would make small messages a fifth slower.
        most = descriptors.most_open()
        raise Malformed(
            f"a message is lost: {arrived} of its {sent} descriptors arrived, since this process "
            f"had too many open files to receive it (it may have {most}: ulimit -n)"
        )
    if arrived > sent:
        raise Malformed(f"a packet came with {arrived} descriptors instead of {sent}")
