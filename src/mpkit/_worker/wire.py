"""What parent and worker say to each other: a closed set of messages, each one packet.

Parent to worker: `Run`, and the end of the link: leave. Worker to parent: `Ready`,
`InitFailed`, `FinalizerFailed`, `Done` (also as a record of its journal), and `WAKE`; and to a caller who waits,
back through the link by which it was asked, a ring. Both sides import this
file, so they cannot disagree. A call inside a message is what `packing.pack` made, an outcome
what `Parcel.seal` did; descriptors ride on the packet, which then has one task.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mpkit._link import PACKET, Malformed

if TYPE_CHECKING:
    from collections import deque


# Plain tuples and classes: each NamedTuple would take every process that is spawned 0.1 ms to define.

#: One task on its way to a worker: its number, and its packed call or chunk.
Load = tuple[int, bytes]
Loads = Sequence[Load]

#: Run these tasks in this order, and report each before the next begins: the loads; whether they
#: are asked for, by a caller who waits: ring back for each then, too (`encode_ring`); the number of
#: the packet, of those to one worker: see `journal`; and a common function (of `packing.Each`), if
#: the loads are chunks that it is called with.
Run = tuple[Loads, bool, int, bytes]


class Ready:
    """The worker has run its initializer."""


class InitFailed:
    """The initializer raised, and the worker leaves; ``error`` is a packed failure."""

    __match_args__ = ("error",)

    def __init__(self, error: bytes) -> None:
        self.error = error


class Declined:
    """The worker was about to begin with a task of a packet, and saw that it was taken back."""

    __match_args__ = ("packet", "place")

    def __init__(self, packet: int, place: int) -> None:
        self.packet = packet
        self.place = place


#: That a task has ended: its number; when it began and ended, in seconds of `time.monotonic`,
#: which all processes of a machine share; the worker's memory in bytes, or 0 if nobody asked; the
#: kind of the outcome, as `_outcome` has them; and what was sent, in which the outcome follows behind `DONE_SIZE` bytes.
Done = tuple[int, float, float, int, bytes, bytes]


class FinalizerFailed:
    """The finalizer raised, and the worker leaves all the same; ``error`` is a packed failure."""

    __match_args__ = ("error",)

    def __init__(self, error: bytes) -> None:
        self.error = error


Report = Ready | InitFailed | list[Done] | Declined | FinalizerFailed

#: A packet that says nothing: there is something to read in the journal.
WAKE = b"w"

_RUN, _ASK, _READY, _INIT_FAILED, _DONE, _DECLINED = b"r", b"a", b"y", b"i", b"d", b"n"
_FINALIZER_FAILED = b"f"
_COUNT = struct.Struct("=cHQH")
_LOAD = struct.Struct("=QI")
_DONE_HEADER = struct.Struct("=cQddQ")
#: Without the kind of the message, which is known by then.
_DONE_WHOLE = struct.Struct(_DONE_HEADER.format.replace("c", "x") + "c")
#: Bytes before the outcome in a `Done`, and its kind is the last of them.
DONE_SIZE = _DONE_WHOLE.size

#: Bytes that the loads of one packet may have together.
ROOM = PACKET - _COUNT.size
#: Bytes that each of them takes besides its call.
PER_LOAD = _LOAD.size


_RING = struct.Struct("=Q")


def encode_ring(task: int) -> bytes:
    """Return the packet that tells a caller that its task is reported, or was taken back."""
    return _RING.pack(task)


def encode_run(loads: Loads, *, asked: bool = False, number: int = 0, common: bytes = b"") -> bytes:
    """Return the packet of a `Run`."""
    kind = _ASK if asked else _RUN
    parts = [_COUNT.pack(kind, len(loads), number, len(common)), common]
    for task, call in loads:
        parts += _LOAD.pack(task, len(call)), call
    return b"".join(parts)


def encode_ready() -> bytes:
    """Return the packet of a `Ready`."""
    return _READY


def init_failed_header() -> bytes:
    """Return what comes before the error in the packet of an `InitFailed`."""
    return _INIT_FAILED


def finalizer_failed_header() -> bytes:
    """Return what comes before the error in the packet of a `FinalizerFailed`."""
    return _FINALIZER_FAILED


def done_header(task: int, began: float, ended: float, resident: int) -> bytes:
    """Return what comes before the outcome, and its kind, in the packet of a `Done`."""
    return _DONE_HEADER.pack(_DONE, task, began, ended, resident)


def decode_for_worker(data: bytes) -> Run:
    """Return the message in a packet that the parent sent."""
    kind, count, number, size = _COUNT.unpack_from(data)
    loads: list[tuple[int, bytes]] = []
    offset = _COUNT.size + size
    common = data[_COUNT.size : offset]
    for _ in range(count):
        task, length = _LOAD.unpack_from(data, offset)
        begin = offset + PER_LOAD
        offset = begin + length
        loads.append((task, data[begin:offset]))
    return loads, kind == _ASK, number, common


_DECLINED_WHOLE = struct.Struct("=cQQ")
assert _DECLINED_WHOLE.size < DONE_SIZE  # by which they are told apart


def encode_declined(packet: int, index: int) -> bytes:
    """Return the record of a `Declined`."""
    return _DECLINED_WHOLE.pack(_DECLINED, packet, index)


def decode_records(records: deque[bytes]) -> list[Done] | Declined:
    """Take the first records of a journal that are of one kind; return what they say.

    The first one is not empty. Those that are say nothing, and end what is taken.
    """
    if records[0].startswith(_DECLINED):
        return Declined(*_DECLINED_WHOLE.unpack(records.popleft())[1:])
    unpack = _DONE_WHOLE.unpack_from
    try:
        dones: list[Any] = [(*unpack(data), data) for data in records]
    except struct.error:  # some are shorter, and something else
        its = itertools.takewhile(lambda data: len(data) >= DONE_SIZE, records)
        dones = [(*unpack(data), data) for data in its]
    if len(dones) == len(records):  # as mostly
        records.clear()
    else:
        for _ in dones:
            records.popleft()
    return dones


def decode_done(data: bytes) -> Done:
    """Return a record, or a packet, that says that a task has ended."""
    number, began, ended, resident, kind = _DONE_WHOLE.unpack_from(data)
    return number, began, ended, resident, kind, data


def decode_for_parent(data: bytes) -> Report:
    """Return the message in a packet that a worker sent; raises Malformed if it is none."""
    if data.startswith(_DONE) and len(data) >= DONE_SIZE:
        return [decode_done(data)]
    if data == _READY:
        return Ready()
    if data.startswith(_INIT_FAILED):
        return InitFailed(data[1:])
    if data.startswith(_FINALIZER_FAILED):
        return FinalizerFailed(data[1:])
    raise Malformed(f"{data[:16]!r}")
