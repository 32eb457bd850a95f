"""A typed two-way channel between two processes, whose end always arrives.

A `Channel` is one end of a socket pair (as under ``multiprocessing.Pipe()``, but one
that keeps packets apart). To that it adds:

1. *Types.* ``Channel[Request, Reply]`` here is ``Channel[Reply, Request]`` there.
2. *One owner.* An end given to another process moves there. No forgotten copy in a
   parent or a sibling keeps the other end from learning that nobody is left.
3. *A goodbye.* Closing an end sends one, dying does not: so an end and a death are told
   apart, where a pipe shows the same end-of-file for both.

It adds no thread and no buffer of its own.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import struct
import threading
import weakref
from multiprocessing import util
from multiprocessing.context import get_spawning_popen
from multiprocessing.reduction import DupFd
from typing import TYPE_CHECKING, Any, Generic, Literal, Self, overload

from typing_extensions import TypeVar

from mpkit import _codec, _fork, _parcel, _platform, _wait
from mpkit._errors import (
    BrokenChannel,
    ChannelClosed,
    ChannelMoved,
    ChannelTimeout,
    EndOfChannel,
    NotPicklable,
    PeerDied,
)
from mpkit._link import Link, LinkDown, discard
from mpkit._wait import Deadline

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence
    from types import TracebackType

    from mpkit._codec import Codec, CodecName
    from mpkit._parcel import Parcel

SendT = TypeVar("SendT", contravariant=True, default=Any)
RecvT = TypeVar("RecvT", covariant=True, default=Any)
S = TypeVar("S")
R = TypeVar("R")

#: Before each packet: what it is, and the process that sent it.
_HEADER = struct.Struct("=cI")
_MESSAGE = b"m"
_GOODBYE = b"g"

#: Seconds that `recv` waits to learn how a child of ours died, once its end is gone. The
#: kernel closes a dying process' descriptors some microseconds before it can be waited for.
_OBITUARY = 0.2

_numbers = itertools.count(1)


class Channel(_fork.Bearer, Generic[SendT, RecvT]):
    """One end of a two-way channel between two processes.

    `channel` makes both ends. Each belongs to one process at a time: given to
    `mpkit.start`, to ``multiprocessing.Process``, to a pool's task or sent through
    another channel, it *moves* there, and every use of it here is `ChannelMoved`.

    Messages arrive whole, once, and in the order they were sent. Any number of threads
    may send and receive. Sending blocks while the socket's buffer is full (about 200 KiB
    on Linux; a message above 64 KiB takes no room in it, it travels as shared memory).

    ===========================  ====================================================
    when                         then
    ===========================  ====================================================
    you closed this end          `ChannelClosed`, from every method
    you gave it away             `ChannelMoved`, naming where it went
    the other end was closed     `EndOfChannel` from `recv`, after all its messages;
                                 a ``for`` loop ends; `BrokenChannel` from `send`
    its process died             `PeerDied` from `recv` and from the ``for`` loop
    ===========================  ====================================================

    Example:
        >>> here, there = channel(send=str, recv=int)
        >>> here.send("abc")
        >>> there.send(len(there.recv()))
        >>> here.recv(timeout=5)
        3
        >>> there.close()
        >>> list(here)
        []

    """

    def __init__(self, link: Link, codec: Codec, label: str, peer_pid: int | None = None) -> None:
        """Not for users: `channel` makes channels."""
        self._link = link
        self._codec = codec
        self._label = label
        self._peer_pid = peer_pid
        #: Why this end cannot be used any more; one that moved is not closed twice.
        self._gone: ChannelClosed | None = None
        #: Why nothing more will be received.
        self._ended: EndOfChannel | None = None
        self._send_closed = False
        self._owner = os.getpid()
        # Each is held by one thread of this process, and shared with no other process.
        self._sending = threading.Lock()
        self._receiving = threading.Lock()
        self._requesting = threading.Lock()
        with _fork.guard:
            _fork.know(self)
        _open_ends.add(self)
        _say_goodbye_at_exit()

    def __repr__(self) -> str:
        return f"<{self._label}: {self._gone.why if self._gone else 'open'}>"

    def send(self, message: SendT, timeout: float | None = None) -> None:
        """Send one message, blocking while the other end has too much unread.

        Args:
            message: any picklable object; channel ends inside it move along.
            timeout: seconds to wait; None waits for ever, 0 does not wait.

        Raises:
            NotPicklable: the message cannot travel. Nothing was sent.
            ChannelTimeout: no room in time. Nothing was sent.
            BrokenChannel: nobody can receive it, since the other end was closed or its
                process died.
            ChannelClosed: this end was closed or moved.

        """
        deadline = None if timeout is None else Deadline(timeout)
        self._check_sendable()
        with self._packed(message) as parcel, _held(self._sending, deadline, self._no_room):
            self._check_sendable()
            data, fds = parcel.seal(_HEADER.pack(_MESSAGE, os.getpid()))
            try:
                sent = self._link.send(data, fds, deadline)
            except (LinkDown, OSError) as error:
                raise self._send_failed(error) from None
            if not sent:
                assert deadline is not None
                raise self._no_room(deadline)
            parcel.depart(f"moved through {self._label} to the process at its other end")

    def recv(self, timeout: float | None = None) -> RecvT:
        """Return the next message, blocking until there is one.

        Args:
            timeout: seconds to wait; None waits for ever, 0 does not wait.

        Raises:
            ChannelTimeout: no message arrived in time. Nothing was consumed.
            EndOfChannel: the other end was closed, and nothing is left to receive.
            PeerDied: its process died without closing it, and nothing is left.
            BrokenChannel: what arrived is not a message.
            MessageTypeError: a msgspec channel got a message of another type.
            ChannelClosed: this end was closed or moved.
            Exception: whatever unpickling the message raises. It was consumed, and the
                channel goes on with the next one.

        """
        deadline = None if timeout is None else Deadline(timeout)
        with _held(self._receiving, deadline, self._nothing_came):
            packet = self._next_packet(deadline)
        if packet is None:
            assert deadline is not None
            raise self._nothing_came(deadline)
        # Unpickling runs user code, and user code may raise EOFError or OSError too. It
        # stays outside every try of ours, so that it cannot pass for the end.
        return self._open_packet(*packet)

    def request(self, message: SendT, timeout: float | None = None) -> RecvT:
        """Send ``message`` and return the next message that arrives: the reply.

        Several threads may do so at once: each waits for its turn. Not for channels on
        which the peer also sends unasked. Arguments and errors are those of `send` and
        `recv`; ``timeout`` (seconds) is for both together.
        """
        deadline = Deadline(timeout)
        with _held(self._requesting, deadline, self._nothing_came):
            self.send(message, deadline.left())
            return self.recv(deadline.left())

    def poll(self, timeout: float | None = 0.0) -> bool:
        """Tell whether `recv` would return, or raise the end, without blocking.

        Args:
            timeout: seconds to wait for that; None waits for ever.

        Raises:
            ChannelClosed: this end was closed or moved.

        """
        deadline = Deadline(timeout)
        self._check()
        return self._ended is not None or bool(_wait.poll([self._link.fd], deadline.left()))

    def __iter__(self) -> Iterator[RecvT]:
        """Receive until the other end is closed; `PeerDied` comes out of the loop."""
        while True:
            try:
                with self._receiving:
                    packet = self._next_packet(None)
            except PeerDied:
                raise
            except EndOfChannel:
                return
            assert packet is not None
            yield self._open_packet(*packet)

    async def send_async(self, message: SendT, timeout: float | None = None) -> None:
        """As `send`, for asyncio: it suspends the calling task only. No thread is used."""
        deadline = Deadline(timeout)
        while True:
            try:
                return self.send(message, 0)
            except ChannelTimeout:
                if deadline.passed():
                    raise self._no_room(deadline) from None
            await _wait.writable(self._link.fd, deadline.left())

    async def recv_async(self, timeout: float | None = None) -> RecvT:
        """As `recv`, for asyncio: it suspends the calling task only. No thread is used.

        A task that is cancelled while it waits has consumed nothing.
        """
        deadline = Deadline(timeout)
        while True:
            try:
                return self.recv(0)
            except ChannelTimeout:
                if deadline.passed():
                    raise self._nothing_came(deadline) from None
            await _wait.readable([self._link.fd], deadline.left())

    async def request_async(self, message: SendT, timeout: float | None = None) -> RecvT:
        """As `request`, for asyncio. One request at a time on one channel."""
        deadline = Deadline(timeout)
        await self.send_async(message, deadline.left())
        return await self.recv_async(deadline.left())

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> RecvT:
        try:
            return await self.recv_async()
        except PeerDied:
            raise
        except EndOfChannel:
            raise StopAsyncIteration from None

    def fileno(self) -> int:
        """Return the descriptor, for `select` and `selectors`: readable when `recv` is.

        Raises ChannelClosed if this end was closed or moved.
        """
        self._check()
        return self._link.fd

    @property
    def closed(self) -> bool:
        """Whether this end was closed or moved away."""
        return self._gone is not None

    def close_send(self) -> None:
        """Say that no more comes from here, and go on receiving."""
        self._check()
        with self._sending:
            if not self._send_closed:
                self._send_closed = True
                self._send_goodbye()
                self._link.shut_sending()

    def close(self) -> None:
        """Say goodbye and close this end. The other end still receives all that was sent.

        Threads that wait in `send` or `recv` here wake up with `ChannelClosed`. Closing
        twice does nothing.
        """
        if self._gone is None:
            self._gone = ChannelClosed(self._label)
            if not self._send_closed and self._sending.acquire(blocking=False):
                # Not acquired: a thread of ours is blocked in send(), so the buffer is
                # full and no goodbye can follow.
                self._send_goodbye()
                self._sending.release()
            self._let_go()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # A half-made object has no _gone. At exit the goodbye was said already.
        if getattr(self, "_gone", self) is None and self._owner == os.getpid():
            self.close()

    def _let_go(self) -> None:
        """Wake the threads that use the socket, and give it back when they have left it."""
        self._link.shut()
        with self._sending, self._receiving:
            self._link.close()

    def _send_goodbye(self) -> None:
        data = _HEADER.pack(_GOODBYE, os.getpid())
        with contextlib.suppress(LinkDown, OSError):
            if not self._link.send(data, [], Deadline(0)):
                # The peer has a buffer full of messages to read first. A larger buffer
                # takes one small packet more.
                self._link.enlarge()
                self._link.send(data, [], Deadline(0))

    def _next_packet(self, deadline: Deadline | None) -> tuple[bytes, list[int]] | None:
        """Return the next message's packet, None in time; raise the end. Holds _receiving."""
        self._check()
        if self._ended is not None:
            raise self._ended.with_traceback(None)
        try:
            packet = self._link.receive(deadline)
        except (LinkDown, OSError):
            self._check()  # a close() of ours ends the connection, too
            self._ended = self._obituary()
            raise self._ended from None
        if packet is None:
            return None
        data, fds = packet
        if len(data) < _HEADER.size or data[:1] not in (_MESSAGE, _GOODBYE):
            discard(fds)
            self._ended = PeerDied(self._label, self._peer_pid, "it sent what is not a message")
            raise BrokenChannel(self._label, f"{data[:16]!r} is not a message")
        kind, self._peer_pid = _HEADER.unpack_from(data)
        if kind == _GOODBYE:
            discard(fds)
            self._ended = EndOfChannel(self._label)
            raise self._ended
        return packet

    def _open_packet(self, data: bytes, fds: list[int]) -> RecvT:
        try:
            message: RecvT = self._codec.unpack(data[_HEADER.size :], fds, self._label)
        except _parcel.Malformed as error:
            raise BrokenChannel(self._label, str(error)) from None
        return message

    def _obituary(self) -> PeerDied:
        return PeerDied(self._label, self._peer_pid, _how_it_died(self._peer_pid))

    @contextlib.contextmanager
    def _packed(self, message: object) -> Generator[Parcel]:
        parcel = self._codec.pack(message, self._label)
        try:
            yield parcel
        finally:
            parcel.close()

    def _check(self) -> None:
        settle_departures()
        if self._gone is None and self._link.closed:
            self._gone = self._lost_by_fork()
        if self._gone is not None:
            raise self._gone.with_traceback(None)

    def _check_sendable(self) -> None:
        self._check()
        if self._send_closed:
            raise ChannelClosed(self._label, "sends no more since close_send()")

    def _send_failed(self, error: Exception) -> Exception:
        if self._gone is not None:
            return self._gone
        if isinstance(error, LinkDown):
            return BrokenChannel(self._label, "the other end was closed, or its process died")
        return BrokenChannel(self._label, f"the message could not be sent ({error})")

    def _no_room(self, deadline: Deadline) -> ChannelTimeout:
        return ChannelTimeout(self._label, "could not take a message", deadline.timeout or 0.0)

    def _nothing_came(self, deadline: Deadline) -> ChannelTimeout:
        return ChannelTimeout(self._label, "had no message", deadline.timeout or 0.0)

    # moving to another process

    def __reduce__(self) -> tuple[Any, ...]:
        self._check()
        if self._receiving.locked() or self._sending.locked():
            raise NotPicklable(self._label, "another thread is using it; it cannot move now")
        facts = (self._codec, self._label, self._peer_pid, self._ended, self._send_closed)
        parcel = _parcel.current_parcel()
        if parcel is not None:
            return _arrive, (parcel.carry(self), *facts)
        popen = get_spawning_popen()
        if popen is None:
            raise NotPicklable(
                self._label,
                "the end of a channel moves by start(), multiprocessing.Process, a pool's "
                "task or another channel, and cannot be copied in other ways",
            )
        copy = DupFd(self._link.fd)
        _departing[:] = [(by, end) for by, end in _departing if end is not self]
        _departing.append((popen, self))
        return _arrive_by_spawn, (copy, *facts)

    def _descriptor(self) -> int:
        return self._link.fd

    def _moved(self, where: str) -> None:
        self._gone = ChannelMoved(self._label, where)
        self._let_go_of_copy()

    def _let_go_of_copy(self) -> None:
        """Close our descriptor without ending the connection, which lives on elsewhere."""
        with self._receiving:
            self._link.close()

    def _lost_by_fork(self) -> ChannelClosed:
        if self._owner == os.getpid():
            return ChannelMoved(self._label, "moved to the process that was started with it")
        return ChannelMoved(
            self._label, f"stayed with process {self._owner}, from which this one was forked"
        )

    def _ready(self) -> bool:
        return self.poll(0)

    def _watched(self) -> Sequence[int]:
        return [self.fileno()]

    def _carried(self) -> list[object]:
        return [self._link]

    def _before_fork(self) -> None:
        """Nothing to decide: the arguments of the new process say what travels."""

    def _after_fork_in_parent(self) -> None:
        """Nothing to do: the link closes itself, and `_check` finds out."""

    def _after_fork_in_child(self) -> None:
        # A thread of the parent may hold any of these, and it is not here to let go.
        self._sending = threading.Lock()
        self._receiving = threading.Lock()
        self._requesting = threading.Lock()
        if _fork.travels(self):
            self._owner = os.getpid()


@overload
def channel(
    *, codec: Literal["pickle"] = "pickle"
) -> tuple[Channel[Any, Any], Channel[Any, Any]]: ...


@overload
def channel(
    send: type[S], recv: type[R], *, codec: CodecName = "pickle"
) -> tuple[Channel[S, R], Channel[R, S]]: ...


def channel(
    send: Any = None, recv: Any = None, *, codec: CodecName = "pickle"
) -> tuple[Channel[Any, Any], Channel[Any, Any]]:
    """Return both ends of a new channel, typed from the first one's point of view.

    Args:
        send: what the first end sends and the second receives.
        recv: what the first end receives and the second sends.
        codec: ``"pickle"`` takes any object, and the types are for the type checker
            only. ``"msgspec"`` (the extra of that name) checks each message against
            its type where it is received, for a peer that is not trusted with pickle.

    Raises:
        ValueError: there is no such codec.
        TypeError: msgspec was asked for without the types.
        ImportError: msgspec was asked for and is not installed.

    Example:
        >>> left, right = channel(send=str, recv=int)
        >>> left.send("ping")
        >>> right.recv()
        'ping'
        >>> left.close(), right.close()
        (None, None)

    """
    left_codec = _codec.make(codec, send, recv)
    right_codec = _codec.make(codec, recv, send)
    here, there = Link.pair()
    number = next(_numbers)
    pid = os.getpid()
    return (
        Channel(here, left_codec, f"left end of channel {number} of process {pid}"),
        Channel(there, right_codec, f"right end of channel {number} of process {pid}"),
    )


# an end arrives in another process


def _arrive(index: int, *facts: Any) -> Channel[Any, Any]:
    """Rebuild an end that came inside a parcel."""
    return _adopt(_parcel.claim(index), *facts)


def _arrive_by_spawn(copy: Any, *facts: Any) -> Channel[Any, Any]:
    """Rebuild an end that came as an argument of a spawned process."""
    return _adopt(copy.detach(), *facts)


def _adopt(
    fd: int,
    codec: Codec,
    label: str,
    peer_pid: int | None,
    ended: EndOfChannel | None,
    send_closed: bool,
) -> Channel[Any, Any]:
    end: Channel[Any, Any] = Channel(Link.adopt(fd), codec, label, peer_pid)
    end._ended = ended
    end._send_closed = send_closed
    return end


#: Ends that were pickled for a process that is being spawned, with its ``Popen``. Only
#: when that has copied their descriptors may ours be closed, and it tells nobody.
_departing: list[tuple[Any, Channel[Any, Any]]] = []


def settle_departures() -> None:
    """Let go of the ends whose new process has them by now."""
    for departure in list(_departing):
        popen, end = departure
        if _platform.launched(popen):
            with contextlib.suppress(ValueError):  # another thread was here first
                _departing.remove(departure)
                end._moved(f"moved to process {popen.pid}")


# the goodbye at exit

_open_ends: weakref.WeakSet[Channel[Any, Any]] = weakref.WeakSet()
_registered_in: int | None = None


def _say_goodbye_at_exit() -> None:
    global _registered_in
    if _registered_in is None:
        util.register_after_fork(_open_ends, lambda _: _register())
    if _registered_in != os.getpid():
        _register()


def _register() -> None:
    """Have this process close its ends before it waits for its children, who may read them."""
    global _registered_in
    _registered_in = os.getpid()
    _platform.call_at_exit(_close_all, 10)


def _close_all() -> None:
    for end in list(_open_ends):
        if end._owner == os.getpid():
            end.close()


@contextlib.contextmanager
def _held(
    lock: threading.Lock, deadline: Deadline | None, too_late: Callable[[Deadline], Exception]
) -> Generator[None]:
    left = None if deadline is None else deadline.left()
    if not lock.acquire(timeout=-1 if left is None else left):
        assert deadline is not None
        raise too_late(deadline)
    try:
        yield
    finally:
        lock.release()


def _how_it_died(pid: int | None) -> str | None:
    """Say how a child of ours ended, if it was one and nobody has asked before."""
    if pid is None or pid == os.getpid():
        return None
    exitcode = _platform.exitcode_of_child(pid, _OBITUARY)
    return None if exitcode is None else _platform.exit_reason(exitcode)
