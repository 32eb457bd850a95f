"""One end of a channel as its process has it: how to wait for it, its end, and its moving.

What a user sees of it is `Channel`; what it has to say, and how it says it, is in `_link`.
"""

from __future__ import annotations

import asyncio
import atexit
import copy
import functools
import os
import weakref
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

from mpkit._errors import ChannelClosed, ChannelMoved, ChannelTimeout, EndOfChannel, NotPicklable
from mpkit._line import Line
from mpkit._wait import Deadline
from mpkit.dask import _message, _node
from mpkit.dask._link import Link

if TYPE_CHECKING:
    from collections.abc import Callable

    from mpkit.dask._message import Codec, Frames
    from mpkit.dask._node import Node

T = TypeVar("T")

#: Seconds for which `Channel.close` waits until the other end has heard it. What is left to be
#: said then is said in the background.
_LINGER: Final = 5.0


#: The ends of this process, to be closed at its exit.
_open: weakref.WeakSet[Port] = weakref.WeakSet()


class Port:
    """An end of a channel, without the types."""

    def __init__(
        self, link: Link | None = None, codec: Codec | None = None, place: Node | None = None
    ) -> None:
        """Not for users: `channel` makes channels."""
        if not isinstance(link, Link) or codec is None:
            raise TypeError(
                "mpkit.dask.channel() makes both ends of a channel; Channel() makes none"
            )
        self._link = link
        self._codec = codec
        #: Where this end takes its place; one that has just arrived looks that up.
        self._place: Node | None = place
        #: Why this end cannot be used any more.
        self._gone: ChannelClosed | None = None
        self._owner = os.getpid()
        #: How many messages will have been received with the last reply that is due.
        self._due = 0
        self._requesting = Line()

    def __repr__(self) -> str:
        return f"<{self._link.label}: {self._gone.why if self._gone else 'open'}>"

    def close(self) -> None:
        """Say goodbye and close this end. The other end still receives all that was sent.

        Threads that wait in `send` or `recv` here wake up with `ChannelClosed`. Closing twice does
        nothing. It waits until the other end has got everything, at most 5 seconds, and not for one
        that has not come to its place yet: what is left to be sent is sent in the background, as
        long as this process and its client live.
        """
        if self._say_goodbye():
            self._linger(Deadline(_LINGER))

    def _say_goodbye(self) -> bool:
        """Close this end, and wait for nobody; tell whether there is something to wait for."""
        if self._gone is not None or self._owner != os.getpid():
            return False
        if not self._link.attached:
            self._arrive()
        self._gone = ChannelClosed(self._link.label)
        self._link.close()
        return not self._link.in_own_loop()

    def _linger(self, deadline: Deadline) -> None:
        """Wait until the other end has heard all."""
        with self._link.changed:
            while self._link.says_goodbye() and not deadline.passed():
                self._link.wait(deadline)

    def __del__(self) -> None:
        # One that was only passed on, or never came to where it was going, has no say.
        if not hasattr(self, "_requesting") or self._owner != os.getpid():
            return
        if self._place is not None and self._gone is None:
            self._gone = ChannelClosed(self._link.label)
            self._link.close()

    def _put(self, frames: Frames, *, due: bool = False) -> Literal[True] | None:
        link = self._link
        if link.no_more:
            raise ChannelClosed(link.label, "sends no more since close_send()")
        if link.broken is not None:
            raise copy.copy(link.broken)
        if not link.put(frames):
            return None
        if due:
            self._due = max(self._due, link.got) + 1
        return True

    def _get(self) -> Frames | None:
        frames = self._link.get()
        if frames is None and self._link.ended is not None:
            raise copy.copy(self._link.ended)
        return frames

    def _reply(self) -> Frames | None:
        """Return the last message that is due, and drop those before it."""
        while True:
            frames = self._get()
            if frames is None or self._link.got >= self._due:
                return frames

    def _looked(self) -> Literal[True] | None:
        return True if self._link.has_message or self._link.ended is not None else None

    def _wait_for(self, look: Callable[[], T | None], deadline: Deadline) -> T | None:
        """Return what ``look`` does, when that is not None; None if the deadline passed."""
        self._begin()
        link = self._link
        with link.changed:
            while True:
                self._check()
                found = look()
                if found is not None or deadline.passed():
                    return found
                if link.in_own_loop():
                    raise RuntimeError(
                        f"{link.label}: this would wait for the event loop in which it runs: "
                        "use the method whose name ends with _async"
                    )
                link.wait(deadline)

    async def _wait_for_async(self, look: Callable[[], T | None], deadline: Deadline) -> T | None:
        self._begin()
        link = self._link
        while True:
            with link.changed:
                self._check()
                found = look()
                if found is not None or deadline.passed():
                    return found
                future = link.future()
            try:
                await asyncio.wait({future}, timeout=deadline.left())
            finally:
                link.forget(future)

    def _begin(self) -> None:
        self._check()
        self._arrive()

    def _packed(self, message: object) -> Frames:
        self._check()
        if self._link.no_more:
            raise ChannelClosed(self._link.label, "sends no more since close_send()")
        return self._codec.pack(message)

    def _unpacked(self, frames: Frames | None, timeout: float | None) -> Any:
        if frames is None:
            raise self._nothing_came(timeout)
        return self._codec.unpack(frames)

    def _check(self) -> None:
        if self._gone is not None:
            raise copy.copy(self._gone)
        if self._owner != os.getpid():
            why = f"stayed with process {self._owner}, from which this one was forked"
            raise ChannelMoved(self._link.label, why)

    def _was_closed(self) -> bool:
        return type(self._link.ended) is EndOfChannel

    def _no_room(self, timeout: float | None) -> ChannelTimeout:
        return ChannelTimeout(self._link.label, "could not take a message", timeout or 0.0)

    def _nothing_came(self, timeout: float | None) -> ChannelTimeout:
        return ChannelTimeout(self._link.label, "had no message", timeout or 0.0)

    # moving to another process

    def __dask_tokenize__(self) -> tuple[str, str, int]:
        return "mpkit-channel", self._link.channel, self._link.seat

    def __reduce__(self) -> tuple[Any, ...]:
        link = self._link
        # Dask pickles once more what it could not pickle at the first try.
        if not isinstance(self._gone, _Left):
            self._check()
            if link.settled:
                raise NotPicklable(
                    link.label,
                    "it moves once, before it is used: to a job, a task or through a channel",
                )
            self._gone = _Left(link.label, "was given to another process, which owns it now")
        _message.note_passenger(self)
        return type(self)._arrived, (link.channel, link.seat, link.label, self._codec)

    def _attach(self) -> None:
        """Have the scheduler know where this end is."""
        if not self._link.attached:
            self._place = self._place or _node.here()
            self._link.attach(self._place)
            _open.add(self)
            _register()

    @classmethod
    def _arrived(cls, channel: str, seat: int, label: str, codec: Codec) -> Port:
        """Rebuild an end that has come here."""
        end = cls(Link(channel, seat, label), codec)
        _message.note_arrival(end)
        return end

    def _arrive(self) -> Callable[[], None]:
        """Take the place to which this end has come; return what waits until it has that."""
        # In this order: the scheduler would take one that comes and stays not for the one who
        # has made it, and still has the place.
        self._link.settle()
        self._attach()
        return self._link.wait_until_seated  # which does not keep this end from being dropped

    def _remain(self) -> None:
        """Stay here: it was pickled, and not sent."""
        if isinstance(self._gone, _Left):
            self._gone = None

    def _withdraw(self) -> None:
        """It will not be unpickled where it was sent, if it was not yet: tell the other end."""
        self._link.abandon()


@functools.cache
def _register() -> None:
    """Have ends closed at exit: before Dask closes its clients, since it was imported before."""
    atexit.register(_close_all)


def _close_all() -> None:
    left = [end for end in list(_open) if end._say_goodbye()]
    deadline = Deadline(_LINGER)  # for all of them together
    for end in left:
        end._linger(deadline)


class _Left(ChannelMoved):
    """Of an end that was pickled here."""

    def __reduce__(self) -> tuple[Any, ...]:
        return ChannelMoved, self.args
