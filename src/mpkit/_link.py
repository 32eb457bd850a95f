"""Packets with descriptors over one local socket.

A `Link` is one end of a socket pair that keeps packets apart (``SOCK_SEQPACKET``): a
packet arrives whole or not at all, so there is no half message to recover from, no
length that could lie, and no lock that a dead process could hold. A packet has at
most `PACKET` bytes, and descriptors may ride on it.

A signal handler may raise between any two calls of Python code, and what a call has
returned is lost then. So what was received is put into the `inbox` by C code: no handler
can come between the system call and the list. (``list.extend(map(recvmsg, ...))``.)

Where the system has no such socket (macOS), a `_StreamLink` puts lengths in front.
"""

from __future__ import annotations

import array
import contextlib
import errno
import os
import socket
from multiprocessing.reduction import DupFd
from typing import TYPE_CHECKING, Any, Final

from mpkit import _fork, _platform, _wait
from mpkit._frames import PACKET as PACKET
from mpkit._frames import Arriving, framed
from mpkit._frames import Malformed as Malformed
from mpkit._frames import Packet as Packet

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mpkit._wait import Deadline

#: Descriptors that may ride on a packet; the kernel takes 253 (SCM_MAX_FD).
MOST_DESCRIPTORS: Final = 250

_ANCILLARY = socket.CMSG_SPACE(MOST_DESCRIPTORS * array.array("i").itemsize)
# macOS has neither; Python ignores SIGPIPE anyway.
_NOSIGNAL: Final = int(getattr(socket, "MSG_NOSIGNAL", 0))
_CLOEXEC: Final = int(getattr(socket, "MSG_CMSG_CLOEXEC", 0))
# As plain numbers: to combine those of the enum takes longer than all else here.
_DONTWAIT: Final = int(socket.MSG_DONTWAIT)
_TRUNCATED: Final = int(socket.MSG_TRUNC)

# For map(), each a sequence of one.
_SEND: Final = (_NOSIGNAL | _DONTWAIT,)
_BLOCKING: Final = (_CLOEXEC,)
_NOW: Final = (_CLOEXEC | _DONTWAIT,)
_ROOM: Final = (_ANCILLARY,)

#: What the kernel says when the connection is no more, or we have closed it. All else
#: (no memory, say) is not about the other end; nor is what a signal handler raises.
_GONE: Final = frozenset(
    {errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN, errno.ECONNABORTED, errno.ESHUTDOWN}
    | {errno.EBADF}
)


class LinkDown(Exception):
    """Nobody is at the other end any more."""


class Link:
    """One end of a socket pair. Every forked child closes its copy, unless it travels.

    One thread at a time may receive; and send, though a signal handler may do so meanwhile.
    ``shut`` wakes both.
    """

    #: Whether packets are sent and received in one step each.
    whole_packets = True

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(True)  # whatever socket.setdefaulttimeout() was given
        self._socket = sock
        self.fd: int = sock.fileno()
        #: Whether this process has closed (its copy of) this end.
        self.closed: bool = False
        #: Packets that were received and not taken yet: more than none if somebody who
        #: was about to take one was interrupted.
        self.inbox: list[Packet] = []
        self._raw: list[tuple[bytes, Any, int, Any]] = []

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
            os.set_inheritable(fd, False)  # it is while a spawned process begins
            return _new(socket.socket(fileno=fd))

    def send(
        self,
        data: bytes,
        fds: Sequence[int],
        deadline: Deadline | None = None,
        receipt: list[int] | None = None,
    ) -> bool:
        """Send one packet, whole; False if the deadline passed first and nothing was sent.

        The ``receipt`` is no longer empty when it was sent, also if a signal handler
        raises just then. Raises LinkDown if nobody can receive it.
        """
        receipt = [] if receipt is None else receipt
        rights = _rights(fds)
        while not self._sent([data], rights, receipt):
            if not _may_wait(self.fd, deadline):
                return False
        return True

    def _sent(self, parts: list[bytes], rights: Any, receipt: list[int]) -> bool:
        try:
            receipt.extend(map(self._socket.sendmsg, (parts,), (rights,), _SEND))
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno in _GONE:
                raise LinkDown from error
            raise
        return True

    def receive(self, deadline: Deadline | None = None) -> Packet | None:
        """Return the next packet and its descriptors; None if the deadline passed first.

        Raises LinkDown once the other end is gone and all its packets were received, and
        Malformed for what is not a packet.
        """
        if not self.fill(deadline):
            return None
        packet = self.inbox[0]
        del self.inbox[0]
        return packet

    def fill(self, deadline: Deadline | None = None) -> bool:
        """As `receive`, but leave the packet in the inbox, and tell whether there is one."""
        while not self.inbox:
            if self._raw:
                self._sort()
            elif not self._read(deadline):
                if deadline is not None and deadline.passed():
                    return False
                _wait.poll([self.fd], deadline.left() if deadline else None)
        return True

    def _read(self, deadline: Deadline | None) -> bool:
        """Read once; False if there is nothing to read now."""
        return self._received(PACKET, _NOW if deadline else _BLOCKING)

    def _received(self, size: int, flags: tuple[int]) -> bool:
        try:
            self._raw.extend(map(self._socket.recvmsg, (size,), _ROOM, flags))
        except BlockingIOError:
            return False
        except OSError as error:
            # The other end was closed with packets of *ours* unread. The kernel says so
            # once, and before it hands out what the other end had sent us.
            if error.errno == errno.ECONNRESET:
                return True
            if error.errno in _GONE:
                raise LinkDown from error
            raise
        return True

    def _sort(self) -> None:
        """Move what was read to the inbox."""
        data, ancillary, how, _ = self._raw[0]
        if not data or how & _TRUNCATED:
            fds = _descriptors(ancillary)
            self._raw.clear()
            discard(fds)
            if not data:  # no packet of ours is empty
                raise LinkDown
            raise Malformed(f"a packet has more than {PACKET} bytes")
        if ancillary:
            owner, fds = _fork.owned([]), _descriptors(ancillary)
            packets = [(data, owner)]
            # In one step, for signal handlers come only between calls.
            owner += fds
            self.inbox += packets
        else:
            self.inbox += [(data, [])]
        del self._raw[0]

    def poll(self, deadline: Deadline) -> bool:
        """Tell whether a packet, or the end, can be received, or will be in time.

        Without `whole_packets` it reads, so it is for who may receive just now.
        """
        return bool(self.inbox or self._raw or _wait.poll([self.fd], deadline.left()))

    @property
    def busy(self) -> bool:
        """Whether it holds descriptors that were received and not taken: then it cannot move."""
        return bool(self._raw) or any(fds for _, fds in self.inbox)

    def kept(self) -> tuple[list[bytes], bytes]:
        """Return what was received and not taken: packets, and a part of one."""
        return [data for data, _ in self.inbox], b""

    def keep(self, packets: list[bytes], begun: bytes) -> None:
        """Take over what was `kept`, in the process to which it moved."""
        self.inbox += [(data, []) for data in packets]

    def flush(self) -> bool:
        """Send what is left of a packet that was begun; tell whether nothing is."""
        return True

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
        self.closed = True
        self._socket.close()
        for raw in self._raw:
            discard(_descriptors(raw[1]))
        for _, fds in self.inbox:
            discard(fds)
        self.inbox, self._raw = [], []

    def __del__(self) -> None:
        if hasattr(self, "_raw"):  # else it was never finished
            self.close()  # without the socket's warning: nobody has to wait for a job

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
    """A link over a stream (see `_frames`). What is half done stays here, to go on with."""

    whole_packets = False

    def __init__(self, sock: socket.socket) -> None:
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
        receipt = [] if receipt is None else receipt
        packet, rights = framed(data), _rights(fds)
        while not receipt:
            if not self._flushed(deadline):
                return False
            # The receipt is what both look at, so that it tells of no half done step.
            self._leaving = packet, receipt
            if not self._sent([packet], rights, receipt) and not _may_wait(self.fd, deadline):
                return False
        # Of who has no time to wait at all, the rest leaves before the next packet.
        patient = deadline is None or deadline.timeout
        if patient and not self._flushed(deadline):
            self.shut()  # half a packet is out: there is no way back
            raise LinkDown
        return True

    def flush(self) -> bool:
        packet, sent = self._leaving
        while sent and (left := packet[sum(sent) :]):
            if not self._sent([left], [], sent):
                return False
        return True

    def _flushed(self, deadline: Deadline | None) -> bool:
        while not self.flush():
            if not _may_wait(self.fd, deadline):
                return False
        return True

    def poll(self, deadline: Deadline) -> bool:
        try:
            return self.fill(deadline)
        except (LinkDown, Malformed):  # that is something to receive, too
            return True

    def _read(self, deadline: Deadline | None) -> bool:
        return self._received(self._arriving.missing(), _NOW)

    def _sort(self) -> None:
        part, ancillary, _, _ = self._raw[0]
        if not part:
            raise LinkDown
        owner, packets = _fork.owned([]), list[Packet]()
        arriving = self._arriving.plus(part, _descriptors(ancillary))
        if not arriving.missing():
            data, fds = arriving.packet()
            packets, arriving = [(data, owner if fds else fds)], Arriving()
            owner += fds  # from here on without a call, as above
        self.inbox += packets
        self._arriving = arriving
        del self._raw[0]

    @property
    def busy(self) -> bool:
        return super().busy or bool(self._arriving.fds)

    def kept(self) -> tuple[list[bytes], bytes]:
        return super().kept()[0], self._arriving.begun

    def keep(self, packets: list[bytes], begun: bytes) -> None:
        super().keep(packets, begun)
        self._arriving = Arriving(begun)

    def close(self) -> None:
        super().close()
        fds, self._arriving = list(self._arriving.fds), Arriving()
        discard(fds)  # of a packet that never came whole


def _may_wait(fd: int, deadline: Deadline | None) -> bool:
    """Wait until ``fd`` takes data; False if the deadline has passed."""
    if deadline is not None and deadline.passed():
        return False
    _wait.poll_writable(fd, deadline.left() if deadline else None)
    return True


def _new(sock: socket.socket) -> Link:
    link = Link(sock) if _platform.HAS_PACKETS else _StreamLink(sock)
    _fork.know(link)
    return link


def _arrive(copy: Any) -> Link:
    return Link.adopt(copy.detach())


def _rights(fds: Sequence[int]) -> list[tuple[int, int, array.array[int]]]:
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []


def discard(fds: list[int]) -> None:
    """Close descriptors that came with a packet and that nobody took."""
    if fds:
        _fork.owned(fds).close()


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    if not _CLOEXEC:
        for fd in fds:
            os.set_inheritable(fd, False)
    return list(fds)
