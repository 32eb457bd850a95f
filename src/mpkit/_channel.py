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
import weakref
from typing import TYPE_CHECKING, Any, Generic, Literal, Self, overload

from typing_extensions import TypeVar

from mpkit import _codec, _wait
from mpkit._end import End
from mpkit._errors import ChannelTimeout, EndOfChannel
from mpkit._link import Link
from mpkit._port import BLOCK, Port
from mpkit._wait import Deadline

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from typing_extensions import TypeForm

    from mpkit._codec import CodecName

SendT = TypeVar("SendT", contravariant=True, default=Any)
RecvT = TypeVar("RecvT", covariant=True, default=Any)
S = TypeVar("S")
R = TypeVar("R")

_numbers = itertools.count(1)


class Channel(Port, Generic[SendT, RecvT]):
    """One end of a two-way channel between two processes.

    `channel` makes both ends. Each belongs to one process at a time: given to
    `mpkit.start`, to ``multiprocessing.Process``, to a pool's task or sent through
    another channel, it *moves* there, and every use of it here is `ChannelMoved`.

    Messages arrive whole, once, and in the order they were sent. Any number of threads
    may send and receive. Sending blocks while the socket's buffer is full (about 200 KiB
    on Linux). A message above 64 KiB travels as shared memory, and takes 16 to 60 KB of
    that buffer, so that a few large messages may be unread at most.

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
            OSError: the system has no memory or descriptors left for it. Nothing was sent.

        """
        deadline = None if timeout is None else Deadline(timeout)
        self._check_sendable()
        parcel = self._end.pack(message)
        try:
            if not self._send(parcel, deadline):
                raise self._no_room(timeout)
        finally:
            parcel.close()

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

        What a signal handler raises, as Ctrl-C does, comes out of it, and no message is lost:
        the next call returns it. (Unless it is an Exception, not a KeyboardInterrupt, that
        comes while the message is being unpickled.)

        """
        message: RecvT = self._receive(timeout)
        return message

    def request(self, message: SendT, timeout: float | None = None) -> RecvT:
        """Send ``message`` and return the reply to it.

        Several threads may do so at once: each waits for its turn. For a peer that sends
        one message for each that it gets, in their order: so the reply to a request that
        was given up (it timed out, say) is received and dropped by the next one. Arguments
        and errors are those of `send` and `recv`; ``timeout`` (seconds) is for both together.
        """
        deadline = Deadline(timeout)
        turn = list[bool]()
        try:
            turn += map(self._requesting.acquire, BLOCK, (_wait.for_lock(deadline),))
            if not turn[0]:
                raise self._nothing_came(timeout)
            self.send(message, deadline.left())
            return self._reply(self._expect_one(), deadline)
        finally:
            if True in turn:
                self._requesting.release()

    def _reply(self, number: int, deadline: Deadline) -> RecvT:
        while self._got < number - 1:
            self._receive(deadline.left(), unpack=False)  # nobody waits for it any more
        return self.recv(deadline.left())

    def poll(self, timeout: float | None = 0.0) -> bool:
        """Tell whether `recv` would return, or raise the end, without blocking.

        Args:
            timeout: seconds to wait for that; None waits for ever.

        Raises:
            ChannelClosed: this end was closed or moved.

        """
        return self._poll(Deadline(timeout))

    def __iter__(self) -> Iterator[RecvT]:
        """Receive until the other end is closed; `PeerDied` comes out of the loop."""
        while True:
            try:
                message = self.recv()
            except EndOfChannel:
                if self._was_closed():
                    return
                raise
            yield message

    async def send_async(self, message: SendT, timeout: float | None = None) -> None:
        """As `send`, for asyncio: it suspends the calling task only. No thread is used."""
        deadline = Deadline(timeout)
        self._check_sendable()
        with contextlib.closing(self._end.pack(message)) as parcel:
            while not self._send(parcel, Deadline(0)):
                if deadline.passed():
                    raise self._no_room(timeout)
                await self._wait_async(deadline, to_send=True)
        while not self._flushed():
            await self._wait_async(Deadline(None), to_send=True)

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
                    raise self._nothing_came(timeout) from None
            await self._wait_async(deadline)

    async def request_async(self, message: SendT, timeout: float | None = None) -> RecvT:
        """As `request`, for asyncio: tasks of an event loop take turns."""
        import asyncio  # noqa: PLC0415  who awaits has it; nobody else should pay for it

        deadline = Deadline(timeout)
        turn = self._turns.setdefault(asyncio.get_running_loop(), asyncio.Lock())
        try:
            async with asyncio.timeout(timeout):
                await turn.acquire()
        except TimeoutError:
            raise self._nothing_came(timeout) from None
        try:
            await self.send_async(message, deadline.left())
            number = self._expect_one()
            while True:
                try:
                    return self._reply(number, Deadline(0))
                except ChannelTimeout:
                    if deadline.passed():
                        raise self._nothing_came(timeout) from None
                await self._wait_async(deadline)
        finally:
            turn.release()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> RecvT:
        try:
            return await self.recv_async()
        except EndOfChannel:
            if self._was_closed():
                raise StopAsyncIteration from None
            raise

    def fileno(self) -> int:
        """Return the descriptor, for `select` and `selectors`: readable when `recv` is.

        Raises ChannelClosed if this end was closed or moved.
        """
        self._check()
        return self._end.link.fd

    def close_send(self) -> None:
        """Say that no more comes from here, and go on receiving."""
        self._check()
        with self._sending:
            self._end.say_goodbye()
            self._end.link.shut_sending()

    @property
    def closed(self) -> bool:
        """Whether this end was closed or moved away."""
        return self._gone is not None or self._end.link.closed

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


@overload
def channel(
    *, codec: Literal["pickle"] = "pickle"
) -> tuple[Channel[Any, Any], Channel[Any, Any]]: ...


# What follows takes any type. This is for type checkers that know no TypeForm.
@overload
def channel(
    send: type[S], recv: type[R], *, codec: CodecName = "pickle"
) -> tuple[Channel[S, R], Channel[R, S]]: ...


@overload
def channel(
    send: TypeForm[S], recv: TypeForm[R], *, codec: CodecName = "pickle"
) -> tuple[Channel[S, R], Channel[R, S]]: ...


def channel(
    send: Any = None, recv: Any = None, *, codec: CodecName = "pickle"
) -> tuple[Channel[Any, Any], Channel[Any, Any]]:
    """Return both ends of a new channel, typed from the first one's point of view.

    Args:
        send: what the first end sends and the second receives: a class, a union of some
            (``Load | Stop``), None, or what else may stand in an annotation. (For
            anything, say ``object``, or no types at all: mypy takes ``Any`` for a class.)
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
    left = Channel[Any, Any](End(here, codecs[0], f"left {name}"))
    right = Channel[Any, Any](End(there, codecs[1], f"right {name}"))
    left._twin, right._twin = weakref.ref(right), weakref.ref(left)
    return left, right
