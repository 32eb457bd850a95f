"""One end of a channel as the wire sees it: messages, a goodbye, and what silence means.

Before each packet stand its kind and the pid of its sender. So the other end knows
whom to ask about, should nothing more come: a process that closed its end has said
goodbye, and one that died has not.

An `End` knows nothing of threads, timeouts of users, or who owns it: that is `_channel`.
"""

from __future__ import annotations

import contextlib
import copy
import os
import struct
from typing import TYPE_CHECKING, Any, Final

from mpkit import _platform
from mpkit._errors import BrokenChannel, EndOfChannel, PeerDied
from mpkit._link import Link, LinkDown, Malformed, discard
from mpkit._wait import Deadline

if TYPE_CHECKING:
    from mpkit._codec import Codec
    from mpkit._parcel import Parcel

_HEADER = struct.Struct("=cI")
_MESSAGE: Final = b"m"
_GOODBYE: Final = b"g"

#: Seconds to wait to learn how a child of ours died, once its end is gone. The kernel
#: closes a dying process' descriptors some microseconds before it can be waited for.
OBITUARY: Final = 0.2


class End:
    """A link that carries a channel's messages. One thread sends, one receives."""

    def __init__(
        self,
        link: Link,
        codec: Codec,
        label: str,
        peer_pid: int | None = None,
        ended: EndOfChannel | None = None,
        send_closed: bool = False,
    ) -> None:
        self.link = link
        self.codec = codec
        self.label = label
        #: The process that sent last; None before anything came.
        self.peer_pid: int | None = peer_pid
        #: Why nothing more will be received.
        self.ended: EndOfChannel | None = ended
        self.send_closed: bool = send_closed

    def facts(self) -> tuple[Any, ...]:
        """Return what makes the same end over another link: what moves besides that."""
        return self.codec, self.label, self.peer_pid, self.ended, self.send_closed

    def pack(self, message: object) -> Parcel:
        """Pack a message; raises before anything is sent."""
        return self.codec.pack(message, self.label)

    def send(self, parcel: Parcel, deadline: Deadline | None) -> bool:
        """Send a packed message; False if the deadline passed and nothing was sent.

        Raises BrokenChannel if nobody can receive it.
        """
        try:
            data, fds = parcel.seal(_HEADER.pack(_MESSAGE, os.getpid()))
            return self.link.send(data, fds, deadline)
        except LinkDown:
            why = "the other end was closed, or its process died"
        except OSError as error:
            why = f"the message could not be sent ({error})"
        raise BrokenChannel(self.label, why)

    def say_goodbye(self) -> None:
        """Say that no more will be sent. Never blocks; if nobody listens, so be it."""
        if self.send_closed:
            return
        self.send_closed = True
        data = _HEADER.pack(_GOODBYE, os.getpid())
        with contextlib.suppress(LinkDown, OSError):
            if not self.link.send(data, [], Deadline(0)):
                # The peer has a buffer full of messages to read first. A larger buffer
                # takes one small packet more.
                self.link.enlarge()
                self.link.send(data, [], Deadline(0))

    def receive(self, deadline: Deadline | None) -> tuple[bytes, list[int]] | None:
        """Return the next message's packet, for `unpack`; None if the deadline passed.

        Raises the end: EndOfChannel after a goodbye, PeerDied without one. Raises
        BrokenChannel for what is not a packet of a channel.
        """
        if self.ended is not None:
            raise copy.copy(self.ended)  # one with a traceback would keep all its frames alive
        try:
            packet = self.link.receive(deadline)
        except (LinkDown, OSError):
            self.ended = PeerDied(self.label, self.peer_pid, _how_it_died(self.peer_pid))
            raise copy.copy(self.ended) from None
        except Malformed as error:
            raise BrokenChannel(self.label, str(error)) from None
        if packet is None:
            return None
        data, fds = packet
        if len(data) < _HEADER.size or data[:1] not in (_MESSAGE, _GOODBYE):
            discard(fds)
            raise BrokenChannel(self.label, f"{data[:16]!r} is not a message")
        kind, self.peer_pid = _HEADER.unpack_from(data)
        if kind == _GOODBYE:
            discard(fds)
            self.ended = EndOfChannel(self.label)
            raise copy.copy(self.ended)
        return packet

    def unpack(self, data: bytes, fds: list[int]) -> Any:
        """Return the message of a packet. Raises whatever unpickling it raises."""
        try:
            return self.codec.unpack(data[_HEADER.size :], fds, self.label)
        except Malformed as error:
            raise BrokenChannel(self.label, str(error)) from None


def _how_it_died(pid: int | None) -> str | None:
    """Say how a child of ours ended, if it was one and nobody has asked before."""
    if pid is None or pid == os.getpid():
        return None
    exitcode = _platform.exitcode_of_child(pid, OBITUARY)
    return None if exitcode is None else _platform.exit_reason(exitcode)
