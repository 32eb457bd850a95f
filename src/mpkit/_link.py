"""Packets with descriptors over one local socket.

A `Link` is one end of a socket pair that keeps packets apart (``SOCK_SEQPACKET``): a
packet arrives whole or not at all, so there is no half message to recover from, no
length that could lie, and no lock that a dead process could hold. A packet has at
most `PACKET` bytes, and descriptors may ride on it.

Where the system has no such socket (macOS), a `_StreamLink` puts lengths in front.
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
import struct
from multiprocessing.reduction import DupFd
from typing import TYPE_CHECKING, Any, Final

from mpkit import _fork, _platform, _wait

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mpkit._wait import Deadline

#: Bytes that a packet may have. A socket buffer of Linux' default size holds three.
PACKET: Final = 64 * 1024

#: Descriptors that may ride on a packet; the kernel takes 253 (SCM_MAX_FD).
MOST_DESCRIPTORS: Final = 250

_ANCILLARY = socket.CMSG_SPACE(MOST_DESCRIPTORS * array.array("i").itemsize)
# macOS has neither; Python ignores SIGPIPE anyway.
_NOSIGNAL: Final = getattr(socket, "MSG_NOSIGNAL", 0)
_CLOEXEC: Final = getattr(socket, "MSG_CMSG_CLOEXEC", 0)


class LinkDown(Exception):
    """Nobody is at the other end any more."""


class Malformed(Exception):
    """What arrived was not sent by a `Link`, or is not what it should carry."""


class Link:
    """One end of a socket pair. Every forked child closes its copy, unless it travels.

    One thread at a time may send and one may receive. ``close`` wakes both.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self.fd: int = sock.fileno()

    @staticmethod
    def pair() -> tuple[Link, Link]:
        """Return both ends of a new connection."""
        with _fork.guard:
            here, there = _platform.socket_pair()
            ends = _new(here), _new(there)
        return ends

    @staticmethod
    def adopt(fd: int) -> Link:
        """Return the link whose descriptor arrived from another process."""
        with _fork.guard:
            return _new(socket.socket(fileno=fd))

    def send(self, data: bytes, fds: Sequence[int], deadline: Deadline | None = None) -> bool:
        """Send one packet, whole; False if the deadline passed first and nothing was sent.

        Raises LinkDown if nobody can receive it.
        """
        flags = _NOSIGNAL | (socket.MSG_DONTWAIT if deadline else 0)
        while True:
            try:
                self._socket.sendmsg([data], _rights(fds), flags)
            except BlockingIOError:
                assert deadline is not None
                if deadline.passed():
                    return False
                _wait.poll_writable(self.fd, deadline.left())
            except (BrokenPipeError, ConnectionError) as error:
                raise LinkDown from error
            else:
                return True

    def receive(self, deadline: Deadline | None = None) -> tuple[bytes, list[int]] | None:
        """Return the next packet and its descriptors; None if the deadline passed first.

        Raises LinkDown once the other end is gone and all its packets were received, and
        Malformed for what is not a packet.
        """
        flags = _CLOEXEC | (socket.MSG_DONTWAIT if deadline else 0)
        while True:
            try:
                data, ancillary, how, _ = self._socket.recvmsg(PACKET, _ANCILLARY, flags)
            except BlockingIOError:
                assert deadline is not None
                if deadline.passed():
                    return None
                _wait.poll([self.fd], deadline.left())
            except ConnectionResetError:
                # The other end was closed with packets of *ours* unread. The kernel says
                # so once, and before it hands out what the other end had sent us.
                continue
            else:
                fds = _descriptors(ancillary) if ancillary else []
                if data and not how & socket.MSG_TRUNC:
                    return data, fds
                discard(fds)
                if not data:  # no packet of ours is empty
                    raise LinkDown
                raise Malformed(f"a packet has more than {PACKET} bytes")

    def enlarge(self) -> None:
        """Make room for one more small packet in a full buffer, as far as the system allows."""
        size = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        # Linux reports twice what was asked for, and doubles what is asked for.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)

    def shut(self) -> None:
        """Send and receive no more; whoever waits on this end, here or there, wakes."""
        with contextlib.suppress(OSError):  # the other end is gone already
            self._socket.shutdown(socket.SHUT_RDWR)

    def shut_sending(self) -> None:
        """Send no more: the other end receives what was sent, and then the end."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def shut_receiving(self) -> None:
        """Receive no more: from now on the other end cannot send."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RD)

    def close(self) -> None:
        """Give the descriptor back. What was sent can still be received."""
        self._socket.close()

    def __del__(self) -> None:
        self.close()  # without the socket's warning: nobody has to wait for a job

    @property
    def closed(self) -> bool:
        """Tell whether this process has closed (its copy of) this end."""
        return self._socket.fileno() < 0

    def __reduce__(self) -> tuple[Any, ...]:
        # Only while a process is being spawned, with the link among its arguments.
        return _arrive, (DupFd(self.fd),)

    def _before_fork(self) -> None:
        """Nothing to decide: the arguments of the new process say what travels."""

    def _after_fork_in_parent(self) -> None:
        if _fork.travels(self):
            self.close()

    def _after_fork_in_child(self) -> None:
        if not _fork.travels(self):
            self.close()


class _StreamLink(Link):
    """A link over a stream: the length of each packet stands before it.

    It never reads beyond a packet, so the descriptor is readable whenever there is more.
    """

    _HEAD = struct.Struct("!I")

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self._arriving = bytearray()
        self._fds: list[int] = []

    def send(self, data: bytes, fds: Sequence[int], deadline: Deadline | None = None) -> bool:
        left = memoryview(self._HEAD.pack(len(data)) + data)
        rights = _rights(fds)
        while left:
            try:
                sent = self._socket.sendmsg([left], rights, _NOSIGNAL | socket.MSG_DONTWAIT)
            except BlockingIOError:
                if deadline and deadline.passed():
                    if rights or len(left) == len(data) + self._HEAD.size:
                        return False
                    self.shut()  # half a packet is out: there is no way back
                    raise LinkDown from None
                _wait.poll_writable(self.fd, deadline.left() if deadline else None)
            except ConnectionError as error:
                raise LinkDown from error
            else:
                left, rights = left[sent:], []
        return True

    def receive(self, deadline: Deadline | None = None) -> tuple[bytes, list[int]] | None:
        while True:
            missing = self._missing()
            if not missing:
                data, fds = bytes(self._arriving[self._HEAD.size :]), self._fds
                self._arriving, self._fds = bytearray(), []
                return data, fds
            try:
                part, ancillary, _, _ = self._socket.recvmsg(
                    missing, _ANCILLARY, _CLOEXEC | socket.MSG_DONTWAIT
                )
            except BlockingIOError:
                if deadline and deadline.passed():
                    return None
                _wait.poll([self.fd], deadline.left() if deadline else None)
            except ConnectionError as error:
                raise LinkDown from error
            else:
                if not part:
                    raise LinkDown
                self._arriving += part
                self._fds += _descriptors(ancillary)

    def close(self) -> None:
        super().close()
        discard(self._fds)  # of a packet that never came whole
        self._fds = []

    def _missing(self) -> int:
        have = len(self._arriving)
        if have < self._HEAD.size:
            return self._HEAD.size - have
        (length,) = self._HEAD.unpack_from(self._arriving)
        if not 0 < length <= PACKET:
            raise Malformed(f"a packet cannot have {length} bytes")
        return int(length) + self._HEAD.size - have


def _new(sock: socket.socket) -> Link:
    link = Link(sock) if _platform.HAS_PACKETS else _StreamLink(sock)
    _fork.know(link)
    return link


def _arrive(copy: Any) -> Link:
    return Link.adopt(copy.detach())


def _rights(fds: Sequence[int]) -> list[tuple[int, int, array.array[int]]]:
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []


def discard(fds: Sequence[int]) -> None:
    """Close descriptors that came with a packet and that nobody took."""
    for fd in fds:
        if fd >= 0:
            os.close(fd)


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return list(fds)
