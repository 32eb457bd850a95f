"""What one end of a channel has sent and not yet received: changed by any thread, under its lock.

Who sends stops at `WINDOW` bytes that the other end has not taken out. Dask itself would go on,
and keep all of it in memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from mpkit._errors import BrokenChannel, ChannelMoved, EndOfChannel
from mpkit.dask import _message
from mpkit.dask._node import dask

if TYPE_CHECKING:
    from mpkit._wait import Deadline
    from mpkit.dask._message import Frames
    from mpkit.dask._node import Node

#: Bytes that one end may have sent and the other not yet received with `recv`. (Arbitrary: enough
#: for a network on which a byte takes 10 ms and 3 Gbit/s are to be had.)
WINDOW: Final = 4 * 1024 * 1024

MESSAGE: Final = "m"
TAKEN: Final = "t"
NO_MORE: Final = "n"
CLOSED: Final = "c"

#: Bytes up to which a message is a part of Dask's own message; larger ones are frames beside it.
_SMALL: Final = 32 * 1024


class State:
    """The state of an end. What begins with an underscore is for `_link` alone."""

    def __init__(self, channel: str, seat: int, label: str) -> None:
        self.channel = channel
        self.seat = seat
        self.label = label
        #: Guards all that follows. Re-entrant, for signal handlers.
        self.changed: threading.Condition = threading.Condition(threading.RLock())
        self._futures: dict[asyncio.Future[None], asyncio.AbstractEventLoop] = {}
        self._outbox: deque[Frames] = deque()
        self._inbox: deque[Frames] = deque()
        #: Bytes that were sent, and of these the ones that the other end has taken out.
        self._sent = self._sent_taken = 0
        #: Bytes that were taken out here, and of these the ones that the other end knows of.
        self._taken = self._taken_told = 0
        #: How many messages were received.
        self.got: int = 0
        #: Why nothing more will be received, and why nothing more can be sent.
        self.ended: EndOfChannel | BrokenChannel | ChannelMoved | None = None
        self.broken: BrokenChannel | ChannelMoved | None = None
        #: What this end has to say, and has said, of its own end.
        self.no_more: bool = False
        self.closing: bool = False
        self._no_more_said = False
        self._abandoned = False
        #: Whether the end stays at its place; and whether the scheduler has been told.
        self.settled: bool = False
        self._settled_told = False
        #: Whether the scheduler has given it its place; whether it is connected to the other end;
        #: and whether all was said and heard.
        self.seated: bool = False
        self.met: bool = False
        self.over: bool = False
        self._node: Node | None = None
        #: By which the event loop is told that there is something to say.
        self._wake: asyncio.Event | None = None

    @property
    def attached(self) -> bool:
        """Whether it has taken its place."""
        return self._node is not None

    def attach(self, node: Node) -> None:
        """Take the place of this end, on this node. Only the first call does anything."""
        with self.changed:
            if self._node is not None:
                return
            self._node = node
            self._live_on()
        node.loop.call_soon_threadsafe(self._begin)

    def settle(self) -> None:
        """Stay here: this is where the end is used."""
        if not self.settled:
            self.settled = True
            self._ring()

    def abandon(self) -> None:
        """Leave as one who dies: it will never come to where it was to go."""
        self._abandoned = True
        self._ring()

    def put(self, frames: Frames) -> bool:
        """Send a message; False if the other end has too much unread."""
        if self._sent - self._sent_taken >= WINDOW:
            return False
        self._sent += _message.size_of(frames)
        self._outbox.append(frames)
        self._ring()
        return True

    def get(self) -> Frames | None:
        """Return the next message, or None."""
        if not self._inbox:
            return None
        frames = self._inbox.popleft()
        self._taken += _message.size_of(frames)
        self.got += 1
        if self._taken - self._taken_told >= WINDOW // 4:
            self._ring()
        return frames

    @property
    def has_message(self) -> bool:
        """Whether `get` would return one."""
        return bool(self._inbox)

    def say_no_more(self) -> None:
        """Say that no more will be sent."""
        with self.changed:
            self.no_more = True
            self._ring()

    def close(self) -> None:
        """Say that no more will be sent or received, and end when the other one has heard it."""
        with self.changed:
            self.no_more = self.closing = True
            self._inbox.clear()
            self._ring()
            self._tell()

    def says_goodbye(self) -> bool:
        """Tell whether somebody is there to whom an end that was closed has still to say so."""
        return not self.over and (self.met or not self._outbox)

    def wait(self, deadline: Deadline) -> None:
        """Wait for a change; the caller has the lock."""
        left = deadline.left()
        self.changed.wait(None if left is None else min(left, threading.TIMEOUT_MAX))

    def wait_until_seated(self) -> None:
        """Wait until the scheduler has given it its place, or will not."""
        with self.changed:
            while not (self.seated or self.over):
                self.changed.wait()

    def future(self) -> asyncio.Future[None]:
        """Return what is done at the next change, in the running loop; the caller has the lock."""
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        self._futures[future] = loop
        return future

    def forget(self, future: asyncio.Future[None]) -> None:
        """Have nobody wait for it any more."""
        with self.changed:
            self._futures.pop(future, None)

    def in_own_loop(self) -> bool:
        """Tell whether this thread is the one that the connection needs."""
        node = self._node
        try:
            return node is not None and asyncio.get_running_loop() is node.loop
        except RuntimeError:
            return False

    def _ring(self) -> None:
        """Have the coroutine look what there is to say."""
        node, wake = self._node, self._wake
        if node is not None and wake is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: `over` soon, or never
                node.loop.call_soon_threadsafe(wake.set)

    def _tell(self) -> None:
        """Tell all who wait of a change; the caller has the lock."""
        self.changed.notify_all()
        futures, self._futures = self._futures, {}
        for future, loop in futures.items():
            with contextlib.suppress(RuntimeError):  # closed: nobody waits there any more
                loop.call_soon_threadsafe(_finish, future)

    def _live_on(self) -> None:
        """Have a reference to this, whoever else has none."""
        raise NotImplementedError

    def _begin(self) -> None:
        """Begin to talk, in the event loop."""
        raise NotImplementedError

    def _items(self) -> list[tuple[Any, ...]]:
        """Return what there is to say."""
        items: list[tuple[Any, ...]] = []
        if self._taken > self._taken_told and not self.closing:
            self._taken_told = self._taken
            items.append((TAKEN, self._taken))
        while self._outbox:
            items.append((MESSAGE, _sealed(self._outbox.popleft())))
        if self.closing:
            items.append((CLOSED,))
            self._no_more_said = True
        elif self.no_more and not self._no_more_said:
            items.append((NO_MORE,))
            self._no_more_said = True
        return items

    def _take(self, kind: str, what: Any = None) -> None:
        if kind == MESSAGE:
            frames = _opened(what)
            if self.closing:
                return
            self._inbox.append(frames)
        elif kind == TAKEN:
            self._sent_taken = int(what)
        elif kind == NO_MORE:
            self.ended = EndOfChannel(self.label)
        elif kind == CLOSED:
            self._end(EndOfChannel(self.label))
        else:
            raise ValueError(f"{kind!r} is nothing that is said on a channel")

    def _end(self, why: EndOfChannel | BrokenChannel | ChannelMoved) -> None:
        """Note that nothing more can be sent or received, if that was not known yet."""
        if self.ended is None:
            self.ended = why
        if self.broken is None:
            if isinstance(why, (BrokenChannel, ChannelMoved)):
                self.broken = why
            else:
                reason = getattr(why, "reason", None)
                told = f" ({reason})" if reason else ""
                self.broken = BrokenChannel(
                    self.label, f"the other end was closed, or its process died{told}"
                )
        self._outbox.clear()


def _sealed(frames: Frames) -> Any:
    if len(frames) == 1 and len(frames[0]) <= _SMALL:
        return bytes(frames[0])
    return dask("distributed.protocol").Serialized({}, list(frames))


def _opened(what: Any) -> Frames:
    if isinstance(what, bytes):
        return (what,)
    frames = tuple(getattr(what, "frames", ()))
    if not frames:
        raise ValueError("a message without frames")
    return frames


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
