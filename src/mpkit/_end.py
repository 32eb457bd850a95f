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
from mpkit._link import Link, LinkDown, Malformed, Packet, discard
from mpkit._wait import Deadline

if TYPE_CHECKING:
    import weakref

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
        kept: tuple[list[bytes], bytes] = ([], b""),
    ) -> None:
        self.link = link
        link.keep(*kept)
        self.codec = codec
        self.label = label
        #: The process that sent last; None before anything came.
        self.peer_pid: int | None = peer_pid
        #: Why nothing more will be received.
        self.ended: EndOfChannel | None = ended
        self.send_closed: bool = send_closed
        #: The multiprocessing.Process (or its Popen) to which this one gave the other end.
        self.peer: weakref.ref[Any] | None = None

    def facts(self) -> tuple[Any, ...]:
        """Return what makes the same end over another link: what moves besides that."""
        kept = self.link.kept()
        return self.codec, self.label, self.peer_pid, self.ended, self.send_closed, kept

    def pack(self, message: object) -> Parcel:
        """Pack a message; raises before anything is sent."""
        return self.codec.pack(message, self.label)

    def send(self, parcel: Parcel, deadline: Deadline | None, receipt: list[int]) -> bool:
        """Send a packed message; False if the deadline passed and nothing was sent.

        The ``receipt`` is as for `Link.send`. Raises BrokenChannel if nobody can receive it.
        """
        data, fds = parcel.seal(_HEADER.pack(_MESSAGE, os.getpid()))
        try:
            return self.link.send(data, fds, deadline, receipt)
        except LinkDown:
            raise BrokenChannel(
                self.label, "the other end was closed, or its process died"
            ) from None

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

    def fill(self, deadline: Deadline | None) -> bool:
        """Have a message first in the link's inbox; False if the deadline passed.

        Raises the end: EndOfChannel after a goodbye, PeerDied without one. Raises
        BrokenChannel for what is not a packet of a channel.
        """
        if self.ended is not None:
            raise copy.copy(self.ended)  # one with a traceback would keep all its frames alive
        try:
            if not self.link.fill(deadline):
                return False
        except LinkDown:
            self.ended = PeerDied(self.label, *self._who_died())
            raise copy.copy(self.ended) from None
        except Malformed as error:
            raise BrokenChannel(self.label, str(error)) from None
        data, fds = self.link.inbox[0]
        kind = data[:1]
        if (
            len(data) < _HEADER.size
            or kind not in (_MESSAGE, _GOODBYE)
            or (kind == _GOODBYE and fds)
        ):
            self.link.receive()
            discard(fds)
            raise BrokenChannel(self.label, f"{data[:16]!r} is not a message")
        _, self.peer_pid = _HEADER.unpack_from(data)
        if kind == _GOODBYE:
            self.ended = EndOfChannel(self.label)
            del self.link.inbox[0]  # no sooner: a signal handler may raise in between
            raise copy.copy(self.ended)
        return True

    def unpack(self, packet: Packet) -> Any:
        """Return the message of a packet. Raises whatever unpickling it raises."""
        data, fds = packet
        try:
            return self.codec.unpack(data[_HEADER.size :], fds, self.label)
        except Malformed as error:
            raise BrokenChannel(self.label, str(error)) from None

    def discard(self, packet: Packet) -> None:
        """Close what came with a packet that nobody wants."""
        discard(packet[1])

    def _who_died(self) -> tuple[int | None, str | None]:
        """Return the pid of the process at the other end, and how it died, if known."""
        peer = self.peer and self.peer()
        pid = self.peer_pid or _platform.pid_of(peer)
        if pid is None or pid == os.getpid():
            return pid, None
        if _platform.lives(pid):
            # Who sent last has passed the end on: it was another one that died.
            return None, None
        exitcode = _platform.exitcode_of_child(pid, OBITUARY)
        if exitcode is None and _platform.pid_of(peer) == pid:
            exitcode = _platform.known_exitcode(peer)  # it was waited for already
        return pid, None if exitcode is None else _platform.exit_reason(exitcode)
