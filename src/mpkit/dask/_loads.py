"""Calls as they are sent to a cluster: pickled by who makes them, what is large known by its content."""

from __future__ import annotations

import hashlib
import weakref
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from mpkit._errors import NotPicklable
from mpkit._reader import Foreign
from mpkit._worker import packing
from mpkit.dask._message import leaving

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mpkit._call import Call
    from mpkit._parcel import Parcel
    from mpkit._worker.packing import Each, Part

#: Bytes from which an argument is sent to the cluster by itself, once for all calls that have it.
#: (Below that it costs as much to have it sent, and to hear that it is there, as to send it again.)
LARGE: Final = 2**20


#: Who reads calls.
WORKERS: Final = Foreign()


class Large:
    """Many bytes, by what they are: there is one for all calls that have equal ones."""

    def __init__(self, digest: bytes, data: bytes) -> None:
        self.digest = digest
        self.data = data


#: Those that some call has, or the cluster.
_larges: weakref.WeakValueDictionary[bytes, Large] = weakref.WeakValueDictionary()


class Packed(NamedTuple):
    """A call; see `_packet.Load`, which has places in the place of what is `Large`."""

    head: bytes
    stream: bytes | Large = b""
    buffers: Sequence[bytes | Large] = ()
    common: bytes = b""

    @property
    def size(self) -> int:
        """How many bytes it has in a packet."""
        parts = [self.head, self.stream, *self.buffers]
        return sum(len(part) for part in parts if isinstance(part, bytes))

    @property
    def larges(self) -> list[Large]:
        """What of it does not lie in the packet."""
        return [part for part in (self.stream, *self.buffers) if isinstance(part, Large)]


def pack(call: Call) -> Packed:
    """Pickle a call. Raises NotPicklable, naming what cannot travel."""
    with leaving():
        head, parcel = packing.pack(call, WORKERS)
    return _packed(f"{call.what}(...)", head, parcel)


def pack_chunk(each: Each, chunk: list[Any]) -> Packed:
    """Pickle the call of a function, which is pickled, with a chunk."""
    with leaving():
        head, parcel, common = each.pack(chunk)
    return _packed(f"an item for {each.what}", head, parcel, common)


def pack_part(part: Part) -> Packed:
    """Return a part of a chunk that is pickled."""
    head, parcel = part.seal()
    return _packed("a part of a map", head, parcel)


def pack_shared(thing: object) -> list[bytes]:
    """Pickle what all tasks may read. Raises NotPicklable."""
    from mpkit import _pickling  # noqa: PLC0415  rarely needed

    stream, buffers = _pickling.dumps(thing, "what the pool shares (shared=)", reader=WORKERS)
    return [stream, *(bytes(buffer.raw()) for buffer in buffers)]


def _packed(what: str, head: bytes, parcel: Parcel | None, common: bytes = b"") -> Packed:
    if parcel is None:
        return Packed(head, common=common)
    if parcel.movables:
        parcel.close()  # they stay here
        raise NotPicklable(
            what,
            "the end of a channel of this machine does not move over a cluster: mpkit.dask.channel "
            "makes those that do",
        )
    buffers = [_copied(buffer.raw()) for buffer in parcel.buffers]
    return Packed(head, _copied(memoryview(parcel.stream)), buffers, common)


def _copied(data: memoryview) -> bytes | Large:
    """Return a copy, as the caller may change his; and but one of what is large."""
    if data.nbytes < LARGE:
        return bytes(data)
    # Of those that nobody can forge the one that processors have instructions for.
    digest = hashlib.sha256(data).digest()
    known = _larges.get(digest)
    if known is None:
        known = _larges[digest] = Large(digest, bytes(data))
    return known
