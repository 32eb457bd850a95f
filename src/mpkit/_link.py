"""Packets with descriptors over one local socket.

A `Link` is one end of a socket pair that keeps packets apart (``SOCK_SEQPACKET``): a
packet arrives whole or not at all, so there is no half message to recover from, no
length that could lie, and no lock that a dead process could hold. A packet has at
most `PACKET` bytes, and descriptors may ride on it.

A signal handler may raise as soon as a call of C code has returned, and what that returned
is lost then. So what must not be lost is had by a step of a loop, or put into a list by C
code (``for x in map(recvmsg, ...): break``, ``list.extend(map(sendmsg, ...))``): after these
no handler runs before it is where it belongs. Nor does one as a function of Python returns.

Where the system has no such socket (macOS), it is a `StreamLink`: `_links` makes what there is.
"""

from __future__ import annotations

import array
import contextlib
import errno
import functools
import os
import select
import socket
import threading
from multiprocessing.reduction import DupFd
from typing import TYPE_CHECKING, Any, Final, Self

from mpkit import _fork, _wait
from mpkit._frames import FRAMED
from mpkit._frames import PACKET as PACKET
from mpkit._frames import Malformed as Malformed
from mpkit._frames import Packet as Packet
from mpkit._platform import descriptors

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mpkit._wait import Deadline

#: Descriptors that may ride on a packet; the kernel takes 253 (SCM_MAX_FD).
MOST_DESCRIPTORS: Final = 250

ANCILLARY = socket.CMSG_SPACE(MOST_DESCRIPTORS * array.array("i").itemsize)
# macOS has neither; Python ignores SIGPIPE anyway.
_NOSIGNAL: Final = int(getattr(socket, "MSG_NOSIGNAL", 0))
_CLOEXEC: Final = int(getattr(socket, "MSG_CMSG_CLOEXEC", 0))
# As plain numbers: to combine those of the enum takes longer than all else here.
_DONTWAIT: Final = int(socket.MSG_DONTWAIT)
_TRUNCATED: Final = int(socket.MSG_TRUNC)
# Not everywhere.
_HUNG_UP: Final = int(getattr(select, "POLLRDHUP", 0))

_SEND: Final = _NOSIGNAL | _DONTWAIT
NOW: Final = _CLOEXEC | _DONTWAIT

#: What recvmsg returns: bytes, ancillary data, flags, an address.
Raw = tuple[bytes, list[tuple[int, int, bytes]], int, Any]

#: What the kernel says when the connection is no more, or we have closed it. All else
#: (no memory, say) is not about the other end; nor is what a signal handler raises.
_GONE: Final = frozenset(
    {errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN, errno.ECONNABORTED, errno.ESHUTDOWN}
    | {errno.EBADF}
)


class LinkDown(Exception):
    """Nobody is at the other end any more; or, if it says so, we had to give the link up."""


class Link:
    """One end of a socket pair. Every forked child closes its copy, unless it travels.

    One thread at a time may receive, though a signal handler may do so meanwhile; any number
    may send. ``shut`` wakes all.
    """

    #: Whether packets are sent and received in one step each.
    whole_packets = True

    def __init__(self, sock: socket.SocketType) -> None:
        sock.setblocking(True)  # whatever socket.setdefaulttimeout() was given
        self._socket = sock
        self.fd: int = sock.fileno()
        #: Whether this process has closed (its copy of) this end.
        self.closed: bool = False
        #: Packets that were received and not taken yet: more than none if somebody who
        #: was about to take one was interrupted.
        self.inbox: list[Packet] = []
        #: What was read and is not in the inbox yet.
        self._raw: Raw | None = None
        self._reads = self._reading(_CLOEXEC)
        self._reads_now = self._reading(NOW)
        # Held while a packet goes out, never while one waits for room. Re-entrant: a
        # signal handler may close a channel whose send() it interrupts.
        self._sending = threading.RLock()
        self._said_last = False

    def _reading(self, flags: int) -> Iterator[Raw]:
        """Return what reads at each step; it never ends but by what it raises."""
        return iter(functools.partial(self._socket.recvmsg, PACKET, ANCILLARY, flags), None)

    @classmethod
    def pair(cls) -> tuple[Self, Self]:
        """Return both ends of a new connection."""
        with _fork.guard:
            here, there = descriptors.socket_pair(FRAMED)
            ends = cls._known(here), cls._known(there)
        return ends

    @classmethod
    def adopt(cls, fd: int) -> Self:
        """Return the link whose descriptor arrived from another process."""
        with _fork.guard:
            os.set_inheritable(fd, False)  # it is while a spawned process begins
            return cls._known(socket.SocketType(fileno=fd))

    @classmethod
    def _known(cls, sock: socket.SocketType) -> Self:
        link = cls(sock)
        _fork.know(link)
        return link

    def send(
        self,
        data: bytes,
        fds: Sequence[int],
        deadline: Deadline | None = None,
        receipt: list[int] | None = None,
    ) -> bool:
        """Send one packet, whole; False if the deadline passed first and nothing was sent.

        A ``receipt`` is no longer empty when it was sent, also if a signal handler raises just
        then. Raises LinkDown if nobody can receive it, and OSError (ETOOMANYREFS) if no more
        descriptors can be on their way.
        """
        while True:
            try:
                with self._sending:
                    if self._said_last:
                        raise LinkDown
                    if receipt is not None:
                        receipt.extend(self._sendmsgs(data, fds))
                    elif fds:
                        self._socket.sendmsg([data], _rights(fds), _SEND)
                    else:
                        self._socket.send(data, _SEND)  # takes half the time of the others
                return True
            except OSError as error:
                self._check_full(error)
            if not may_wait(self.fd, deadline):
                return False

    def send_last(self, data: bytes) -> None:
        """Send a small packet, if there is room; none can be sent any more. Never blocks.

        Once one was sent, it does nothing.
        """
        now = _wait.Deadline(0)
        with self._sending:
            if self._said_last:
                return
            try:
                if not self.send(data, (), now):
                    # The other end has a buffer full of packets to read first.
                    self._enlarge()
                    self.send(data, (), now)
            finally:
                self._said_last = True

    def _sendmsgs(self, data: bytes, fds: Sequence[int]) -> Iterator[int]:
        """Return what sends this at its only step."""
        if fds:
            return map(self._socket.sendmsg, ([data],), (_rights(fds),), (_SEND,))
        return map(self._socket.send, (data,), (_SEND,))

    def _check_full(self, error: OSError) -> None:
        """Raise what hinders us from sending, unless it is that there is no room."""
        if error.errno in _GONE:
            raise LinkDown from error
        if error.errno == errno.ETOOMANYREFS:
            most = descriptors.most_open()
            why = (
                "this user's processes have too many descriptors on their way that nobody has "
                f"received (this one may send while there are at most {most}: ulimit -n)"
            )
            raise OSError(error.errno, f"{error.strerror}: {why}") from None
        if not isinstance(error, BlockingIOError):
            raise error

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
            if self._raw is not None:
                self._sort(self._raw)
            elif not self._read(deadline):
                if deadline is not None and deadline.passed():
                    return False
                _wait.poll([self.fd], deadline.left() if deadline else None)
        return True

    def _read(self, deadline: Deadline | None) -> bool:
        """Read once, if there is something to read; False if there is not."""
        reads = self._reads_now if deadline else self._reads
        try:
            for self._raw in reads:
                data, ancillary, how, _ = self._raw
                if data and not ancillary and not how & _TRUNCATED:  # as most are
                    self.inbox += [(data, [])]
                    self._raw = None
                break
        except OSError as error:
            return self._read_nothing(error)
        return True

    def _read_nothing(self, error: OSError) -> bool:
        if isinstance(error, BlockingIOError):
            return False
        # The other end was closed with packets of *ours* unread. The kernel says so
        # once, and before it hands out what the other end had sent us.
        if error.errno == errno.ECONNRESET:
            return True
        if error.errno in _GONE:
            raise LinkDown from error
        raise error

    def _sort(self, raw: Raw) -> None:
        """Move what was read to the inbox."""
        data, ancillary, how, _ = raw
        if not data or how & _TRUNCATED:
            fds = descriptors_in(ancillary)
            self._raw = None
            discard(fds)
            if not data:  # no packet of ours is empty
                if _ended(self.fd):
                    raise LinkDown
                raise Malformed("a packet is empty")
            raise Malformed(f"a packet has more than {PACKET} bytes")
        if ancillary:
            owner, fds = _fork.owned([]), descriptors_in(ancillary)
            packets: list[Packet] = [(data, owner)]
            # In one step, for signal handlers come only after calls.
            owner += fds
            self.inbox += packets
        else:
            self.inbox += [(data, [])]
        self._raw = None

    def poll(self, deadline: Deadline) -> bool:
        """Tell whether a packet, or the end, can be received, or will be in time.

        Without `whole_packets` it reads, so it is for who may receive just now.
        """
        return bool(self.inbox or self._raw is not None or _wait.poll([self.fd], deadline.left()))

    @property
    def busy(self) -> bool:
        """Whether it holds what cannot move with it, as descriptors that nobody has taken."""
        return self._raw is not None or any(fds for _, fds in self.inbox)

    def kept(self) -> tuple[list[bytes], bytes]:
        """Return what was received and not taken: packets, and a part of one."""
        return [data for data, _ in self.inbox], b""

    def keep(self, packets: list[bytes], begun: bytes) -> None:
        """Take over what was `kept`, in the process to which it moved."""
        self.inbox += [(data, []) for data in packets]

    def flush(self) -> bool:
        """Send what is left of a packet that was begun; tell whether nothing is."""
        return True

    def _enlarge(self) -> None:
        """Make room for one more small packet in a full buffer, as far as the system allows."""
        # Linux reports twice what was asked for, and doubles what is asked for.
        with contextlib.suppress(OSError):  # macOS reports the room that is left; if that is 0
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self._room())

    def _room(self) -> int:
        return self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)

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
        if self._raw is not None:
            discard(descriptors_in(self._raw[1]))
        for _, fds in self.inbox:
            discard(fds)
        self.inbox, self._raw = [], None

    def __del__(self) -> None:
        if hasattr(self, "_said_last"):  # else it was never finished
            self.close()  # without the socket's warning: nobody has to wait for a job

    def __reduce__(self) -> tuple[Any, ...]:
        # Only while a process is being spawned, with the link among its arguments.
        return _arrive, (type(self), DupFd(self.fd))

    def _before_fork(self) -> None:
        """Nothing to decide: the arguments of the new process say what travels."""

    def _after_fork_in_parent(self) -> None:
        if _fork.travels(self):
            self.close()

    def _after_fork_in_child(self) -> None:
        # A thread of the parent may hold it, which is not here to let go.
        self._sending = threading.RLock()
        if not _fork.travels(self):
            self.close()


def _ended(fd: int) -> bool:
    """Tell whether nothing more can come, where to read nothing may be an empty packet, too."""
    if not _HUNG_UP:
        return True
    poller = select.poll()
    poller.register(fd, _HUNG_UP)
    return bool(poller.poll(0))


def may_wait(fd: int, deadline: Deadline | None) -> bool:
    """Wait until ``fd`` takes data; False if the deadline has passed."""
    if deadline is not None and deadline.passed():
        return False
    _wait.poll_writable(fd, deadline.left() if deadline else None)
    return True


def _arrive(kind: type[Link], copy: Any) -> Link:
    return kind.adopt(copy.detach())


def _rights(fds: Sequence[int]) -> list[tuple[int, int, array.array[int]]]:
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []


def discard(fds: list[int]) -> None:
    """Close descriptors that came with a packet and that nobody took."""
    if fds:
        _fork.owned(fds).close()


def descriptors_in(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    if not _CLOEXEC:
        for fd in fds:
            os.set_inheritable(fd, False)
    return list(fds)
