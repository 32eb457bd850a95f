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
import copy
import itertools
import os
import threading
from multiprocessing.context import get_spawning_popen
from multiprocessing.reduction import DupFd
from typing import TYPE_CHECKING, Any, Generic, Literal, Self, overload

from typing_extensions import TypeVar

from mpkit import _closing, _codec, _fork, _parcel, _platform, _wait
from mpkit._end import End
from mpkit._errors import (
    BrokenChannel,
    ChannelClosed,
    ChannelMoved,
    ChannelTimeout,
    EndOfChannel,
    NotPicklable,
    PeerDied,
)
from mpkit._link import Link
from mpkit._wait import Deadline

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence
    from types import TracebackType

    from mpkit._codec import CodecName

SendT = TypeVar("SendT", contravariant=True, default=Any)
RecvT = TypeVar("RecvT", covariant=True, default=Any)
S = TypeVar("S")
R = TypeVar("R")

_numbers = itertools.count(1)

#: The ends of all channels that are not garbage. Where a channel becomes garbage in a
#: cycle, its socket would otherwise be finalized, and closed, before the goodbye is sent.
_ends: set[End] = set()


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

    def __init__(self, end: End) -> None:
        """Not for users: `channel` makes channels."""
        self._end = end
        _ends.add(end)
        #: Why this end cannot be used any more; one that moved is not closed twice.
        self._gone: ChannelClosed | None = None
        self._owner = os.getpid()
        # Each is held by one thread of this process, and shared with no other process.
        self._sending = threading.Lock()
        self._receiving = threading.Lock()
        self._requesting = threading.Lock()
        with _fork.guard:
            _fork.know(self)
        _closing.close_at_exit(self)

    def __repr__(self) -> str:
        return f"<{self._end.label}: {self._gone.why if self._gone else 'open'}>"

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
        with (
            contextlib.closing(self._end.pack(message)) as parcel,
            _held(self._sending, deadline, self._no_room),
        ):
            self._check_sendable()
            try:
                sent = self._end.send(parcel, deadline)
            except BrokenChannel:
                self._check()  # a close() of ours ends the connection, too
                raise
            if not sent:
                assert deadline is not None
                raise self._no_room(deadline)
            parcel.depart(f"moved through {self._end.label} to the process at its other end")

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
            packet = self._receive(deadline)
        if packet is None:
            assert deadline is not None
            raise self._nothing_came(deadline)
        # Unpickling runs user code, and user code may raise EOFError or OSError too. It
        # stays outside every try of ours, so that it cannot pass for the end.
        message: RecvT = self._end.unpack(*packet)
        return message

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
        return self._end.ended is not None or bool(_wait.poll([self._end.link.fd], deadline.left()))

    def __iter__(self) -> Iterator[RecvT]:
        """Receive until the other end is closed; `PeerDied` comes out of the loop."""
        while True:
            try:
                with self._receiving:
                    packet = self._receive(None)
            except PeerDied:
                raise
            except EndOfChannel:
                return
            assert packet is not None  # there is no deadline
            yield self._end.unpack(*packet)

    async def send_async(self, message: SendT, timeout: float | None = None) -> None:
        """As `send`, for asyncio: it suspends the calling task only. No thread is used."""
        deadline = Deadline(timeout)
        while True:
            try:
                return self.send(message, 0)
            except ChannelTimeout:
                if deadline.passed():
                    raise self._no_room(deadline) from None
            await _wait.writable(self._end.link.fd, deadline.left())

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
            await _wait.readable([self._end.link.fd], deadline.left())

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
        return self._end.link.fd

    @property
    def closed(self) -> bool:
        """Whether this end was closed or moved away."""
        return self._gone is not None or self._end.link.closed

    def close_send(self) -> None:
        """Say that no more comes from here, and go on receiving."""
        self._check()
        with self._sending:
            self._end.say_goodbye()
            self._end.link.shut_sending()

    def close(self) -> None:
        """Say goodbye and close this end. The other end still receives all that was sent.

        Threads that wait in `send` or `recv` here wake up with `ChannelClosed`. Closing
        twice does nothing.
        """
        if self._gone is None and self._owner == os.getpid():
            self._gone = ChannelClosed(self._end.label)
            self._end.link.shut_receiving()  # who heard our goodbye can send us nothing
            if self._sending.acquire(blocking=False):
                # Otherwise a thread of ours is blocked in send(), so the buffer is full
                # and no goodbye can follow.
                self._end.say_goodbye()
                self._sending.release()
            self._end.link.shut()
            with self._sending, self._receiving:  # when the threads have left it
                self._end.link.close()

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
        if hasattr(self, "_requesting"):  # else it was never finished
            self.close()
            _ends.discard(self._end)

    def _receive(self, deadline: Deadline | None) -> tuple[bytes, list[int]] | None:
        """Return the next packet, or None in time. Holds _receiving."""
        self._check()
        try:
            return self._end.receive(deadline)
        except PeerDied:
            self._check()  # a close() of ours ends the connection, too
            raise

    def _check(self) -> None:
        if self._gone is None and self._end.link.closed:
            self._gone = self._lost_by_fork()
        if self._gone is not None:
            raise copy.copy(self._gone)  # one with a traceback would keep all its frames alive

    def _check_sendable(self) -> None:
        self._check()
        if self._end.send_closed:
            raise ChannelClosed(self._end.label, "sends no more since close_send()")

    def _no_room(self, deadline: Deadline) -> ChannelTimeout:
        return ChannelTimeout(self._end.label, "could not take a message", deadline.timeout or 0.0)

    def _nothing_came(self, deadline: Deadline) -> ChannelTimeout:
        return ChannelTimeout(self._end.label, "had no message", deadline.timeout or 0.0)

    # moving to another process

    def __reduce__(self) -> tuple[Any, ...]:
        self._check()
        if self._receiving.locked() or self._sending.locked():
            raise NotPicklable(self._end.label, "another thread is using it; it cannot move now")
        parcel = _parcel.current_parcel()
        if parcel is not None:
            return _arrive, (parcel.carry(self), *self._end.facts())
        popen = get_spawning_popen()
        if popen is None:
            raise NotPicklable(
                self._end.label,
                "the end of a channel moves by start(), multiprocessing.Process, a pool's "
                "task or another channel, and cannot be copied in other ways",
            )
        copy = DupFd(self._end.link.fd)
        _platform.call_when_launched(popen, lambda: self._moved(f"moved to process {popen.pid}"))
        return _arrive_by_spawn, (copy, *self._end.facts())

    def _descriptor(self) -> int:
        return self._end.link.fd

    def _moved(self, where: str) -> None:
        self._gone = ChannelMoved(self._end.label, where)
        self._end.link.close()  # our copy; the connection lives on elsewhere

    def _lost_by_fork(self) -> ChannelClosed:
        if self._owner == os.getpid():
            return ChannelMoved(self._end.label, "moved to the process that was started with it")
        return ChannelMoved(
            self._end.label, f"stayed with process {self._owner}, from which this one was forked"
        )

    def _ready(self) -> bool:
        return self.poll(0)

    def _watched(self) -> Sequence[int]:
        return [self.fileno()]

    def _carried(self) -> list[object]:
        return [self._end.link]

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
    codecs = _codec.make(codec, send, recv), _codec.make(codec, recv, send)
    here, there = Link.pair()
    name = f"end of channel {next(_numbers)} of process {os.getpid()}"
    return (
        Channel(End(here, codecs[0], f"left {name}")),
        Channel(End(there, codecs[1], f"right {name}")),
    )


def _arrive(index: int, *facts: Any) -> Channel[Any, Any]:
    """Rebuild an end that came inside a parcel."""
    return Channel(End(Link.adopt(_parcel.claim(index)), *facts))


def _arrive_by_spawn(copy: Any, *facts: Any) -> Channel[Any, Any]:
    """Rebuild an end that came as an argument of a spawned process."""
    return Channel(End(Link.adopt(copy.detach()), *facts))


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
