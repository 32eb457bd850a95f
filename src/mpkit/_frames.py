"""Packets over a stream, which keeps none apart: the length of each stands before it.

For systems without local sockets of packets (macOS). Only bytes, no socket: see `_link`.
"""

from __future__ import annotations

import struct
from typing import Final

#: Bytes that a packet may have. A socket of Linux' default size takes no larger one than of
#: 208 KiB; from half of that on, shared memory is about as fast.
PACKET: Final = 128 * 1024

_HEAD: Final = struct.Struct("!I")

#: Bytes that it may have as it is sent.
FRAMED: Final = PACKET + _HEAD.size

#: Bytes, and the descriptors that ride on them.
Packet = tuple[bytes, list[int]]


class Malformed(Exception):
    """What arrived was not sent by a `Link`, or is not what it should carry."""


class Arriving:
    """What has arrived of a packet."""

    def __init__(self, begun: bytes = b"", fds: tuple[int, ...] = ()) -> None:
        self.begun = begun
        self.fds = fds

    def missing(self) -> int:
        """Return how many bytes to read next, and none beyond; 0 if the packet is whole.

        So the descriptor is readable whenever there is more. Raises Malformed for a
        length that no packet has.
        """
        have = len(self.begun)
        if have < _HEAD.size:
            return _HEAD.size - have
        length: int = _HEAD.unpack_from(self.begun)[0]
        if not 0 < length <= PACKET:
            raise Malformed(f"a packet cannot have {length} bytes")
        return length + _HEAD.size - have

    def plus(self, part: bytes, fds: list[int]) -> Arriving:
        """Return this and what was read then."""
        return Arriving(self.begun + part, (*self.fds, *fds))

    def packet(self) -> Packet:
        """Return the packet, which is whole."""
        return self.begun[_HEAD.size :], list(self.fds)


def framed(data: bytes) -> bytes:
    """Return a packet as it is sent."""
    return _HEAD.pack(len(data)) + data
