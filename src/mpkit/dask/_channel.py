"""A typed two-way channel between two processes of a cluster, whose end arrives.

One end is a `Channel`, as in mpkit; what it says and hears is in `_link`.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
import sys
import threading
import uuid
from typing import TYPE_CHECKING, Any, Generic, Literal, overload

from mpkit import _codec
from mpkit._line import Place
from mpkit._messages import Messages, RecvT
from mpkit._wait import Deadline
from mpkit.dask import _message, _node
from mpkit.dask._client import client_of
from mpkit.dask._link import Link
from mpkit.dask._loop import client_for
from mpkit.dask._port import Port

if sys.version_info >= (3, 13):  # where it knows defaults
    from typing import TypeVar
else:
    from typing_extensions import TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    from distributed import Client
    from typing_extensions import TypeForm

    from mpkit._codec import CodecName

SendT = TypeVar("SendT", contravariant=True, default=Any)
S = TypeVar("S")
R = TypeVar("R")

_numbers = itertools.count(1)


class Channel(Port, Messages[RecvT], Generic[SendT, RecvT]):
    """One end of a two-way channel between two processes of a cluster: tasks, jobs, clients.

    What dies without a goodbye is told at once by its connection, which goes directly from one
    process to the other; a machine that is cut off, within the 30 seconds of Dask's
    ``distributed.comm.timeouts.tcp``. A process that just stands still (SIGSTOP, or a C function
    that keeps the GIL) is not dead: `recv` waits for it, or until its timeout, or until the
    scheduler gives the worker up (``distributed.scheduler.worker-ttl``, five minutes).

    `channel` makes both ends. Each *moves* once, before its first use: by being an argument of
    `mpkit.dask.start` or of a task, or in a message of another channel. Then every use of it
    here is `ChannelMoved`. Messages arrive whole, once, and in the order they were sent; any number of
    threads may send and receive. Sending blocks while the other end has 4 MiB unread. Large
    buffers are frames of their own, which are copied when they are sent and not when they are
    received.

    One of the two processes has to be able to connect to the other: workers can, and a client
    to a worker where it is in the same network. Two clients need that, too.

    ===========================  ====================================================
    when                         then
    ===========================  ====================================================
    you closed this end          `ChannelClosed`, from every method
    you gave it away             `ChannelMoved`
    the other end was closed     `EndOfChannel` from `recv`, after all its messages;
                                 a ``for`` loop ends; `BrokenChannel` from `send`
    its process died             `PeerDied` from `recv` and from the ``for`` loop
    the job that it was for      `PeerDied`. Of a task that never begins nobody is told, as
    never began                  with Dask's own ``client.submit``: give `recv` a timeout.
    ===========================  ====================================================

    Example:
        >>> from distributed import Client, LocalCluster
        >>> import mpkit.dask as mpkit
        >>> cluster = LocalCluster(n_workers=1, processes=False, dashboard_address=":0")
        >>> with cluster, Client(cluster):
        ...     here, there = mpkit.channel(send=str, recv=int)
        ...     job = mpkit.start(lambda end: end.send(len(end.recv())), there)
        ...     here.request("abc", timeout=30)
        ...     list(here)
        ...     here.close()
        3
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
            RuntimeError: this is a coroutine in the event loop of the client or worker, which
                cannot wait for itself: use `send_async`.

        """
        deadline = Deadline(timeout)
        frames = self._packed(message)
        if self._wait_for(lambda: self._put(frames), deadline) is None:
            raise self._no_room(timeout)

    def recv(self, timeout: float | None = None) -> RecvT:
        """Return the next message, blocking until there is one.

        Args:
            timeout: seconds to wait; None waits for ever, 0 does not wait.

        Raises:
            ChannelTimeout: no message arrived in time. Nothing was consumed.
            EndOfChannel: the other end was closed, and nothing is left to receive.
            PeerDied: its process died without closing it, and nothing is left.
            BrokenChannel: what arrived is not a message, or the client was closed.
            MessageTypeError: a msgspec channel got a message of another type.
            ChannelClosed: this end was closed or moved.
            RuntimeError: this is a coroutine in the event loop of the client or worker, which
                cannot wait for itself: use `recv_async`.
            Exception: whatever unpickling the message raises. It was consumed, and the
                channel goes on with the next one.

        """
        message: RecvT = self._unpacked(self._wait_for(self._get, Deadline(timeout)), timeout)
        return message

    def request(self, message: SendT, timeout: float | None = None) -> RecvT:
        """Send ``message`` and return the reply to it.

        As `mpkit.Channel.request`: any number of threads and tasks may do so at once, for a peer
        that sends one message for each that it gets, in their order. The reply to a request that
        was given up is dropped by the next one. Arguments and errors are those of `send` and
        `recv`; ``timeout`` (seconds) is for both together.

        Raises:
            RuntimeError: this thread would wait for itself. Nothing was sent.

        """
        deadline, line = Deadline(timeout), self._requesting
        if line.has(threading.get_ident()):
            raise RuntimeError(f"{self._link.label}: this thread is making a request already")
        place = Place()
        try:
            if not line.join(place, deadline):
                raise self._nothing_came(timeout)
            frames = self._packed(message)
            if self._wait_for(lambda: self._put(frames, due=True), deadline) is None:
                raise self._no_room(timeout)
            reply: RecvT = self._unpacked(self._wait_for(self._reply, deadline), timeout)
            return reply
        finally:
            line.leave(place)

    def poll(self, timeout: float | None = 0.0) -> bool:
        """Tell whether `recv` would return, or raise the end, without blocking.

        Args:
            timeout: seconds to wait for that; None waits for ever.

        Raises:
            ChannelClosed: this end was closed or moved.

        """
        return self._wait_for(self._looked, Deadline(timeout)) is not None

    async def send_async(self, message: SendT, timeout: float | None = None) -> None:
        """As `send`, for asyncio: it suspends the calling task only.

        A task that is cancelled while it waits for room has sent nothing.
        """
        deadline = Deadline(timeout)
        frames = self._packed(message)
        if await self._wait_for_async(lambda: self._put(frames), deadline) is None:
            raise self._no_room(timeout)

    async def recv_async(self, timeout: float | None = None) -> RecvT:
        """As `recv`, for asyncio: it suspends the calling task only.

        A task that is cancelled while it waits has consumed nothing.
        """
        frames = await self._wait_for_async(self._get, Deadline(timeout))
        message: RecvT = self._unpacked(frames, timeout)
        return message

    async def request_async(self, message: SendT, timeout: float | None = None) -> RecvT:
        """As `request`, for asyncio: it suspends the calling task only.

        The reply to a request that was cancelled is dropped, like that to one that timed out.
        """
        deadline, line = Deadline(timeout), self._requesting
        place = Place(asyncio.get_running_loop())
        try:
            if not await line.join_async(place, deadline):
                raise self._nothing_came(timeout)
            frames = self._packed(message)
            put: Callable[[], Any] = lambda: self._put(frames, due=True)  # noqa: E731
            if await self._wait_for_async(put, deadline) is None:
                raise self._no_room(timeout)
            frames_ = await self._wait_for_async(self._reply, deadline)
            reply: RecvT = self._unpacked(frames_, timeout)
            return reply
        finally:
            line.leave(place)

    def close_send(self) -> None:
        """Say that no more comes from here, and go on receiving. Doing so twice does nothing.

        Raises:
            ChannelClosed: this end was closed or moved.

        """
        self._begin()
        self._link.say_no_more()

    @property
    def closed(self) -> bool:
        """Whether this end was closed or moved away."""
        return self._gone is not None


@overload
def channel(
    *, codec: Literal["pickle"] = "pickle", client: Client | str | None = None
) -> tuple[Channel[Any, Any], Channel[Any, Any]]: ...


# What follows takes any type. This is for type checkers that know no TypeForm.
@overload
def channel(
    send: type[S], recv: type[R], *, codec: CodecName = "pickle", client: Client | str | None = None
) -> tuple[Channel[S, R], Channel[R, S]]: ...


@overload
def channel(
    send: TypeForm[S],
    recv: TypeForm[R],
    *,
    codec: CodecName = "pickle",
    client: Client | str | None = None,
) -> tuple[Channel[S, R], Channel[R, S]]: ...


def channel(
    send: Any = _codec.UNKNOWN,
    recv: Any = _codec.UNKNOWN,
    *,
    codec: CodecName = "pickle",
    client: Client | str | None = None,
) -> tuple[Channel[Any, Any], Channel[Any, Any]]:
    """Return both ends of a new channel, typed from the first one's point of view.

    Args:
        send: what the first end sends and the second receives, as for `mpkit.channel`.
        recv: what the first end receives and the second sends.
        codec: ``"pickle"``, or ``"msgspec"``, which checks each message against its type.
        client: of which cluster, or its scheduler's address; the current one if it is not given.
            The scheduler needs mpkit, too, as that is where the ends find each other.

    Raises:
        RuntimeError: there is no current client, or the scheduler has no mpkit.
        OSError: there is no scheduler at the address; as `SchedulerLost`, it has gone.
        ValueError: there is no such codec, or the client was closed.
        TypeError: msgspec was asked for without the types; or this is no client.
        ImportError: msgspec was asked for and is not installed.

    Example:
        >>> from distributed import Client, LocalCluster
        >>> cluster = LocalCluster(n_workers=1, processes=False, dashboard_address=":0")
        >>> with cluster, Client(cluster) as client:
        ...     left, right = channel(send=str, recv=int, client=client)
        ...     left.send("ping")
        ...     right.recv(timeout=30)
        ...     left.close(), right.close()
        'ping'
        (None, None)

    """
    name = f"end of channel {next(_numbers)} of process {os.getpid()} on {socket.gethostname()}"
    ours = _message.make_codec(codec, f"left {name}", send, recv)
    theirs = _message.make_codec(codec, f"right {name}", recv, send)
    given = client_for(client) if isinstance(client, str) else client
    _node.have_broker(client_of(given))
    place, number = _node.here(given), uuid.uuid4().hex
    left = Channel[Any, Any](Link(number, 0, ours.label), ours, place)
    right = Channel[Any, Any](Link(number, 1, theirs.label), theirs, place)
    left._attach()
    right._attach()
    return left, right
