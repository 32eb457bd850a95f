"""One end of a channel as the wire sees it: messages, a goodbye, and what silence means.

Before each packet stand its kind and the pid of its sender. So the other end knows
whom to ask about, should nothing more come: a process that closed its end has said
goodbye, and one that died has not.

An `End` knows nothing of threads, timeouts of users, or who owns it: that is `_port`.
"""

from __future__ import annotations

import contextlib
import copy
import os
import struct
from typing import TYPE_CHECKING, Any, Final

from mpkit._errors import BrokenChannel, EndOfChannel, PeerDied
from mpkit._link import Link, LinkDown, Malformed, discard
from mpkit._parcel import PLAIN
from mpkit._platform import processes, stdlib
from mpkit._wait import Deadline

if TYPE_CHECKING:
    import weakref

    from mpkit._codec import Codec

_HEADER = struct.Struct("=ci")
#: Where in a packet the message begins.
START: Final = _HEADER.size
_MESSAGE: Final = b"m"
_GOODBYE: Final = b"g"

#: Seconds to wait to learn how a child of ours died, once its end is gone. The kernel
#: closes a dying process' descriptors some microseconds before it can be waited for.
OBITUARY: Final = 0.2


class End:
    """A link that carries a channel's messages. One thread at a time receives."""

    def __init__(
        self,
        link: Link,
        codec: Codec,
        peer_pid: int | None = None,
        ended: EndOfChannel | None = None,
        send_closed: bool = False,
        kept: tuple[list[bytes], bytes] = ([], b""),
        due: int = 0,
    ) -> None:
        self.link = link
        link.keep(*kept)
        self.codec = codec
        self.label: str = codec.label
        #: The process that sent last; None before anything came.
        self.peer_pid: int | None = peer_pid
        #: Why nothing more will be received.
        self.ended: EndOfChannel | None = ended
        self.send_closed: bool = send_closed
        #: How many messages were received, and how many will have been with the last reply
        #: that is due.
        self.got: int = 0
        self.due: int = due
        #: The multiprocessing.Process (or its Popen) to which this one gave the other end.
        self.peer: weakref.ref[Any] | None = None
        self.settle()
        #: What a message of the one who sent last begins with; nothing begins so.
        self._usual = b"\0"

    def settle(self) -> None:
        """Be the end of this process, which may be a child that was just forked."""
        #: What every message begins with, and what one that is plain does.
        self.header: bytes = _HEADER.pack(_MESSAGE, os.getpid())
        self.plain_header: bytes = self.header + PLAIN

    def facts(self) -> tuple[Any, ...]:
        """Return what makes the same end over another link: what moves besides that."""
        kept, due = self.link.kept(), max(0, self.due - self.got)
        return self.codec, self.peer_pid, self.ended, self.send_closed, kept, due

    def say_goodbye(self) -> None:
        """Say that no more will be sent. Never blocks; if nobody listens, so be it.

        When it returns it has been said, also if another thread was just about to say it.
        """
        self.send_closed = True
        with contextlib.suppress(LinkDown, OSError):
            self.link.send_last(_HEADER.pack(_GOODBYE, os.getpid()))

    def fill(self, deadline: Deadline | None) -> bool:
        """Have a message first in the link's inbox; False if the deadline passed.

        Raises the end: EndOfChannel after a goodbye, PeerDied without one. Raises
        BrokenChannel for what is not a packet of a channel.
        """
        # What is in the inbox comes first: who was interrupted may have put it back.
        if self.ended is not None and not self.link.inbox:
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
        if not data.startswith(self._usual):
            self._look_at(data, fds)
        return True

    def _look_at(self, data: bytes, fds: list[int]) -> None:
        """Note who sent a packet, the first one in the inbox; raise if it is no message."""
        kind = data[:1]
        if (
            len(data) < _HEADER.size
            or kind not in (_MESSAGE, _GOODBYE)
            or (kind == _GOODBYE and fds)
        ):
            self.link.receive()
            discard(fds)
            raise BrokenChannel(self.label, f"{data[:16]!r} is not a message")
        pid = _HEADER.unpack_from(data)[1]
        self.peer_pid = pid if pid > 0 else None
        if kind == _GOODBYE:
            self.ended = EndOfChannel(self.label)
            del self.link.inbox[0]  # no sooner: a signal handler may raise in between
            raise copy.copy(self.ended)
        self._usual = data[: _HEADER.size]

    def _who_died(self) -> tuple[int | None, str | None]:
        """Return the pid of the process at the other end, and how it died, if known."""
        peer = self.peer and self.peer()
        pid = self.peer_pid or stdlib.pid_of(peer)
        if pid is None or pid == os.getpid():
            return pid, None
        if processes.lives(pid):
            # Who sent last has passed the end on: it was another one that died. (Or he closed
            # it inside a packet of a stream, after which no goodbye can follow.)
            return None, None
        exitcode = processes.exitcode_of_child(pid, OBITUARY)
        if exitcode is None and stdlib.pid_of(peer) == pid:
            # It was waited for already; or only the fork server can wait for it.
            exitcode = stdlib.known_exitcode(peer, OBITUARY)
        return pid, None if exitcode is None else processes.exit_reason(exitcode)
