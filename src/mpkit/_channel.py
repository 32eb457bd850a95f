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
import sys
import threading
import weakref
from typing import TYPE_CHECKING, Any, Generic, Literal, overload

from mpkit import _codec, _links
from mpkit._end import End
from mpkit._line import Place
from mpkit._messages import Messages, RecvT
from mpkit._port import NOTHING, Port
from mpkit._wait import Deadline

if sys.version_info >= (3, 13):  # where it knows defaults
    from typing import TypeVar
else:
    from typing_extensions import TypeVar

if TYPE_CHECKING:
    from typing_extensions import TypeForm

    from mpkit._codec import CodecName

SendT = TypeVar("SendT", contravariant=True, default=Any)
S = TypeVar("S")
R = TypeVar("R")

_numbers = itertools.count(1)


class Channel(Port, Messages[RecvT], Generic[SendT, RecvT]):
    """One end of a two-way channel between two processes.

    `channel` makes both ends. Each belongs to one process at a time: given to
    `mpkit.start`, to ``multiprocessing.Process``, to a pool's task or sent through
    another channel, it *moves* there, and every use of it here is `ChannelMoved`.

    Messages arrive whole, once, and in the order they were sent. Any number of threads
    may send and receive. Sending blocks while the socket's buffer is full (about 200 KiB
    on Linux). A message above 128 KiB travels as shared memory, and takes 16 to 60 KB of
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
                process died. (Or, on macOS, a part of it was out when the time was over, and
                no room could be made for the rest. Then the channel is at its end.)
            ChannelClosed: this end was closed or moved.
            OSError: the system has no memory or descriptors left for it. Nothing was sent.

        """
        deadline = None if timeout is None else Deadline(timeout)
        if self._gone is not None:
            self._check()
        parcel = self._end.codec.pack(message)
        try:
            if not self._send(parcel, deadline):
                raise self._no_room(timeout)
        finally:
            if not parcel.plain:
                parcel.close()

    def recv(self, timeout: float | None = None) -> RecvT:
        """Return the next message, blocking until there is one.

        Args:
            timeout: seconds to wait; None waits for ever, 0 does not wait.

        Raises:
            ChannelTimeout: no message arrived in time. Nothing was consumed.
            EndOfChannel: the other end was closed, and nothing is left to receive.
            PeerDied: its process died without closing it, and nothing is left.
            BrokenChannel: what arrived is not a message, or this process has no descriptor
                free to take it (``ulimit -n``), which loses it.
            MemoryError: no memory is free to take it, which loses it.
            MessageTypeError: a msgspec channel got a message of another type.
            ChannelClosed: this end was closed or moved.
            Exception: whatever unpickling the message raises. It was consumed, and the
                channel goes on with the next one.

        What a signal handler raises, as Ctrl-C does, comes out of it, and no message is lost:
        the next call returns it. Unless that comes while the message is being unpickled, and is an
        Exception (not a KeyboardInterrupt), or the message had the end of a channel which was
        taken out of it already.

        """
        message: RecvT = self._receive(timeout)
        if message is NOTHING:
            raise self._nothing_came(timeout)
        return message

    def request(self, message: SendT, timeout: float | None = None) -> RecvT:
        """Send ``message`` and return the reply to it.

        Any number of threads, and tasks of any event loops (`request_async`), may do so at
        once: they take turns. For a peer that sends one message for each that it gets, in
        their order: so the reply to a request that was given up (it timed out, or a signal
        handler raised) is received and dropped by the next one, also if the end has moved
        meanwhile. Arguments and errors are those of `send` and `recv`; ``timeout`` (seconds)
        is for both together.

        Raises:
            RuntimeError: this thread would wait for itself: it is in a signal handler, say, in
                the middle of a request. Nothing was sent.

        Example:
            >>> import threading
            >>> here, there = channel(send=str, recv=int)
            >>> serving = threading.Thread(target=lambda: there.send(len(there.recv())))
            >>> serving.start()
            >>> here.request("abc", timeout=5)
            3
            >>> serving.join()
            >>> here.close(), there.close()
            (None, None)

        """
        deadline, line = Deadline(timeout), self._requesting
        if line.has(threading.get_ident()):
            raise RuntimeError(f"{self._end.label}: this thread is making a request already")
        place = Place()
        try:
            if not line.join(place, deadline):
                raise self._nothing_came(timeout)
            self._check_sendable()
            with contextlib.closing(self._end.codec.pack(message)) as parcel:
                number = self._ask(parcel, deadline)
            if not number:
                raise self._no_room(timeout)
            reply: RecvT = self._reply(number, deadline)
            if reply is NOTHING:
                raise self._nothing_came(timeout)
            return reply
        finally:
            try:
                line.leave(place)
            except BaseException:  # a signal handler's, perhaps before it did anything
                line.leave(place)
                raise

    def poll(self, timeout: float | None = 0.0) -> bool:
        """Tell whether `recv` would return, or raise the end, without blocking.

        Args:
            timeout: seconds to wait for that; None waits for ever.

        Raises:
            ChannelClosed: this end was closed or moved.

        Example:
            >>> here, there = channel(send=str, recv=int)
            >>> there.poll()
            False
            >>> here.close()
            >>> there.poll(timeout=5)
            True
            >>> there.close()

        """
        return self._poll(Deadline(timeout))

    async def send_async(self, message: SendT, timeout: float | None = None) -> None:
        """As `send`, for asyncio: it suspends the calling task only. No thread is used.

        A task that is cancelled while it waits for room has sent nothing. (Over a stream, as on
        macOS, a message of which a part was out already goes out whole, with what is sent next.)
        """
        deadline = Deadline(timeout)
        self._check_sendable()
        with contextlib.closing(self._end.codec.pack(message)) as parcel:
            while not self._send(parcel, Deadline(0)):
                if deadline.passed():
                    raise self._no_room(timeout)
                await self._wait_async(deadline, to_send=True)
        await self._flush_async()

    async def _flush_async(self) -> None:
        while not self._flushed():
            await self._wait_async(Deadline(None), to_send=True)

    async def recv_async(self, timeout: float | None = None) -> RecvT:
        """As `recv`, for asyncio: it suspends the calling task only. No thread is used.

        A task that is cancelled while it waits has consumed nothing.
        """
        deadline = Deadline(timeout)
        message: RecvT
        while (message := self._receive(0)) is NOTHING:
            if deadline.passed():
                raise self._nothing_came(timeout)
            await self._wait_async(deadline)
        return message

    async def request_async(self, message: SendT, timeout: float | None = None) -> RecvT:
        """As `request`, for asyncio: it suspends the calling task only. No thread is used.

        The reply to a request that was cancelled is dropped, like that to one that timed out.
        """
        import asyncio  # noqa: PLC0415  who awaits has it; nobody else should pay for it

        deadline, line = Deadline(timeout), self._requesting
        place = Place(asyncio.get_running_loop())
        try:
            if not await line.join_async(place, deadline):
                raise self._nothing_came(timeout)
            self._check_sendable()
            with contextlib.closing(self._end.codec.pack(message)) as parcel:
                while not (number := self._ask(parcel, Deadline(0))):
                    if deadline.passed():
                        raise self._no_room(timeout)
                    await self._wait_async(deadline, to_send=True)
            await self._flush_async()
            reply: RecvT
            while (reply := self._reply(number, Deadline(0))) is NOTHING:
                if deadline.passed():
                    raise self._nothing_came(timeout)
                await self._wait_async(deadline)
            return reply
        finally:
            try:
                line.leave(place)
            except BaseException:
                line.leave(place)
                raise

    def fileno(self) -> int:
        """Return the descriptor, for `select` and `selectors`: readable when `recv` is.

        Raises ChannelClosed if this end was closed or moved.
        """
        self._check()
        return self._end.link.fd

    def close_send(self) -> None:
        """Say that no more comes from here, and go on receiving. Doing so twice does nothing.

        Raises:
            ChannelClosed: this end was closed or moved.

        Example:
            >>> here, there = channel(send=int, recv=int)
            >>> here.send(20)
            >>> here.send(22)
            >>> here.close_send()
            >>> there.send(sum(there))
            >>> here.recv(timeout=5)
            42
            >>> here.close(), there.close()
            (None, None)

        """
        self._check()
        with self._sending:
            self._end.say_goodbye()
            self._end.link.shut_sending()

    @property
    def closed(self) -> bool:
        """Whether this end was closed or moved away."""
        return self._gone is not None or self._end.link.closed


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
    send: Any = _codec.UNKNOWN, recv: Any = _codec.UNKNOWN, *, codec: CodecName = "pickle"
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
    name = f"end of channel {next(_numbers)} of process {os.getpid()}"
    ours = _codec.make(codec, f"left {name}", send, recv)
    theirs = _codec.make(codec, f"right {name}", recv, send)
    here, there = _links.pair()
    left, right = Channel[Any, Any](End(here, ours)), Channel[Any, Any](End(there, theirs))
    left._twin, right._twin = weakref.ref(right), weakref.ref(left)
    return left, right
