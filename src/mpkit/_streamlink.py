"""Packets with descriptors over a stream, where local sockets keep no packets apart (macOS)."""

from __future__ import annotations

import fcntl
import socket
import struct
import termios
from typing import TYPE_CHECKING, Final

from mpkit import _fork, _wait
from mpkit._frames import Arriving, framed
from mpkit._link import (
    ANCILLARY,
    NOW,
    Link,
    LinkDown,
    Malformed,
    Packet,
    descriptors_in,
    discard,
    may_wait,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mpkit._link import Raw
    from mpkit._wait import Deadline

_PEEK: Final = int(socket.MSG_PEEK | socket.MSG_DONTWAIT)


class StreamLink(Link):
    """A link over a stream (see `_frames`). What is half done stays here, to go on with."""

    whole_packets = False

    def __init__(self, sock: socket.SocketType) -> None:
        super().__init__(sock)
        self._arriving = Arriving()
        # A packet, and how many bytes of it were sent each time; it was begun if any were.
        self._leaving: tuple[bytes, list[int]] = b"", []

    def send(
        self,
        data: bytes,
        fds: Sequence[int],
        deadline: Deadline | None = None,
        receipt: list[int] | None = None,
    ) -> bool:
        receipt, packet = [] if receipt is None else receipt, framed(data)
        while not receipt:
            with self._sending:
                if self._said_last:
                    raise LinkDown
                if self.flush():
                    # The receipt is what both look at, so that it tells of no half done step.
                    self._leaving = packet, receipt
                    self._put(packet, fds)
            if not receipt and not may_wait(self.fd, deadline):
                return False
        at_once = deadline is not None and not deadline.timeout
        if not (self._flushed(deadline) or self._pushed() or at_once):
            self.shut()  # there is no way back
            raise LinkDown("the time was over when a part of the message was out")
        return True

    def _pushed(self) -> bool:
        """Get the rest of a packet out without waiting; tell whether it is out."""
        size = self._room()
        self._enlarge()
        if self._room() > size:
            try:
                self.flush()
            finally:  # or there would be no more room to make the next time
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size // 2)
        return self.flush()

    def flush(self) -> bool:
        with self._sending:
            packet, sent = self._leaving
            while sent and (left := packet[sum(sent) :]):
                if not self._put(left, ()):
                    return False
            return True

    def _flushed(self, deadline: Deadline | None) -> bool:
        while not self.flush():
            if not may_wait(self.fd, deadline):
                return False
        return True

    def _put(self, part: bytes, fds: Sequence[int]) -> bool:
        """Send as much of what is leaving as there is room for; False if there is none."""
        try:
            self._leaving[1].extend(self._sendmsgs(part, fds))
        except OSError as error:
            self._check_full(error)
            return False
        return True

    def poll(self, deadline: Deadline) -> bool:
        try:
            # What is there whole stays where it is: with descriptors in the inbox this end
            # could not move. What is not is read, or its first bytes would wake us for ever.
            return self._is_in_socket(deadline) or self.fill(deadline)
        except (LinkDown, Malformed):  # that is something to receive, too
            return True

    def _is_in_socket(self, deadline: Deadline) -> bool:
        """Wait for the start of a packet; tell whether it, and nothing before it, is there."""
        if self.inbox or self._raw is not None or self._arriving.begun:
            return False
        if not _wait.poll([self.fd], deadline.left()):
            return False
        try:
            start = self._socket.recv(self._arriving.missing(), _PEEK)
        except OSError:  # as `_read` knows
            return False
        answer = fcntl.ioctl(self.fd, termios.FIONREAD, struct.pack("i", 0))
        there: int = struct.unpack("i", answer)[0]
        return len(start) + Arriving(start).missing() <= there

    def _read(self, deadline: Deadline | None) -> bool:
        size = self._arriving.missing()
        reads = map(self._socket.recvmsg, (size,), (ANCILLARY,), (NOW,))
        try:
            for self._raw in reads:
                break
        except OSError as error:
            return self._read_nothing(error)
        return True

    def _sort(self, raw: Raw) -> None:
        part, ancillary, _, _ = raw
        if not part:
            raise LinkDown
        packets, owner, fds = list[Packet](), list[int](), list[int]()
        arriving = self._arriving.plus(part, descriptors_in(ancillary))
        if not arriving.missing():
            data, fds = arriving.packet()
            if fds:
                owner = _fork.owned([])
            packets, arriving = [(data, owner)], Arriving()
            owner += fds  # from here on without a call, as above
        self.inbox += packets
        self._arriving = arriving
        self._raw = None

    @property
    def busy(self) -> bool:
        return super().busy or bool(self._arriving.fds) or self._has_a_rest()

    def _has_a_rest(self) -> bool:
        try:
            return not self.flush()
        except LinkDown:
            return False

    def kept(self) -> tuple[list[bytes], bytes]:
        return super().kept()[0], self._arriving.begun

    def keep(self, packets: list[bytes], begun: bytes) -> None:
        super().keep(packets, begun)
        self._arriving = Arriving(begun)

    def close(self) -> None:
        super().close()
        if fds := list(self._arriving.fds):  # of a packet that never came whole
            self._arriving = Arriving()
            discard(fds)
