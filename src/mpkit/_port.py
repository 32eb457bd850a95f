"""One end of a channel as its process has it: who owns it, whose turn it is, and its end.

A `Port` belongs to one process, in which any number of threads may use it. What a user
sees of it is `Channel`; how messages look on the wire is in `_end`.
"""

from __future__ import annotations

import copy
import os
import threading
import weakref
from multiprocessing.context import get_spawning_popen
from multiprocessing.reduction import DupFd
from typing import TYPE_CHECKING, Any, Self

from mpkit import _closing, _fork, _parcel, _platform, _wait
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
from mpkit._link import Link, Packet
from mpkit._wait import Deadline

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, Lock
    from collections.abc import Sequence

    from mpkit._parcel import Parcel

#: For map(), as the first argument of acquire().
BLOCK = (True,)
_ONE = (None,)

#: The ends of all channels that are not garbage. Where a channel becomes garbage in a
#: cycle, its socket would otherwise be finalized, and closed, before the goodbye is sent.
_ends: set[End] = set()


class Port(_fork.Bearer):
    """An end of a channel, without the types."""

    def __init__(self, end: End) -> None:
        """Not for users: `channel` makes channels."""
        self._end = end
        _ends.add(end)
        #: Why this end cannot be used any more; one that moved is not closed twice.
        self._gone: ChannelClosed | None = None
        self._owner = os.getpid()
        self._make_locks()
        #: Whether close() has said all that there is to say.
        self._said = False
        #: Messages that were unpacked when a signal handler kept them from their receiver.
        self._returned: list[Any] = []
        #: One for each thread or task that waits for something to happen.
        self._watchers: list[None] = []
        #: How many messages were received, and how many will have been with the last reply
        #: that is due.
        self._got, self._due = 0, 0
        #: Whose turn it is to make a request, of an event loop's tasks.
        self._turns: weakref.WeakKeyDictionary[AbstractEventLoop, Lock] = (
            weakref.WeakKeyDictionary()
        )
        #: The other end, while that is in this process, too.
        self._twin: weakref.ref[Port] | None = None
        with _fork.guard:
            _fork.know(self)
        _closing.close_at_exit(self)

    def _make_locks(self) -> None:
        # Each is held by one thread of this process, and shared with no other process.
        # Re-entrant: a signal handler may use the channel whose call it interrupts.
        self._sending = threading.RLock()
        self._receiving = threading.RLock()
        self._requesting = threading.RLock()

    def __repr__(self) -> str:
        return f"<{self._end.label}: {self._gone.why if self._gone else 'open'}>"

    def _send(self, parcel: Parcel, deadline: Deadline | None) -> bool:
        # How signal handlers are kept out of what must not be torn: see `_take`.
        turn, receipt = list[bool](), list[int]()
        try:
            turn += map(self._sending.acquire, BLOCK, (_wait.for_lock(deadline),))
            self._check_sendable()
            return turn[0] and self._end.send(parcel, deadline, receipt)
        except BrokenChannel:
            self._check()  # a close() of ours ends the connection, too
            raise
        finally:
            if True in turn:
                self._sending.release()
            if receipt:
                parcel.depart(f"moved through {self._end.label} to the process at its other end")
            if self._gone is not None:
                self._let_go()

    def _receive(self, timeout: float | None, *, unpack: bool = True) -> Any:
        """Return the next message; None without unpacking it, if it is not wanted."""
        deadline = None if timeout is None else Deadline(timeout)
        taken, message = list[Packet](), list[Any]()
        opened = map(self._end.unpack if unpack else self._end.discard, taken)
        opening, came = False, 0
        try:
            self._take(deadline, taken, message)
            if taken:
                came = len(taken[0][1])
                # Unpickling runs user code, and user code may raise EOFError or OSError too.
                # It stays outside every try that could take it for the end.
                opening = True
                message += opened
            elif not message:
                raise self._nothing_came(timeout)
            return message[0]
        except BaseException as error:
            if message:
                self._returned[:0] = message
                self._got -= 1
            elif taken and not (
                opening and (isinstance(error, Exception) or len(taken[0][1]) < came)
            ):
                self._end.link.inbox[:0] = taken
                self._got -= 1
            raise

    def _take(self, deadline: Deadline | None, taken: list[Packet], message: list[Any]) -> None:
        """Put the next packet into ``taken``, or what was unpacked already into ``message``.

        A signal handler may raise after any call, and what the call has returned is lost
        then. So C code puts what must not be lost into lists (``+= map(...)``), and what
        is to be done in one step is done without a call (``+=``, ``del``, ``in``).
        """
        turn = list[bool]()
        try:
            turn += map(self._receiving.acquire, BLOCK, (_wait.for_lock(deadline),))
            if turn[0] and self._returned:
                message += self._returned[:1]
                del self._returned[0]
                self._got += 1
            elif turn[0] and self._fill(deadline):
                inbox = self._end.link.inbox
                taken += inbox[:1]
                del inbox[0]
                self._got += 1
        finally:
            if True in turn:
                self._receiving.release()
            if self._gone is not None:
                self._let_go()

    def _fill(self, deadline: Deadline | None) -> bool:
        """Have a message in the inbox; False if none came in time. Holds _receiving."""
        self._check()
        try:
            return self._end.fill(deadline)
        except PeerDied:
            self._check()  # a close() of ours ends the connection, too
            raise

    def _flushed(self) -> bool:
        """Tell whether all that was sent is out: over a stream, half a packet may be left."""
        with self._sending:
            return self._gone is not None or self._end.link.flush()

    def _expect_one(self) -> int:
        """Return which message is the reply to what was just sent, counted as ``_got``."""
        self._due = max(self._due, self._got) + 1
        return self._due

    def _poll(self, deadline: Deadline) -> bool:
        self._check()
        if self._returned or self._end.ended is not None:
            return True
        link, turn = self._end.link, list[bool]()
        try:
            self._watchers += _ONE
            if link.whole_packets:
                return link.poll(deadline)
            turn += map(self._receiving.acquire, BLOCK, (_wait.for_lock(deadline),))
            return turn[0] and link.poll(deadline)
        finally:
            del self._watchers[:1]
            if True in turn:
                self._receiving.release()

    async def _wait_async(self, deadline: Deadline, *, to_send: bool = False) -> None:
        """Wait until it may go on, for asyncio."""
        fd, left = self._end.link.fd, deadline.left()
        try:
            self._watchers += _ONE
            await (_wait.writable(fd, left) if to_send else _wait.readable([fd], left))
        finally:
            del self._watchers[:1]

    def _was_closed(self) -> bool:
        """Tell whether the other end said goodbye: unpickling may raise what it likes."""
        return type(self._end.ended) is EndOfChannel

    def close(self) -> None:
        """Say goodbye and close this end. The other end still receives all that was sent.

        Threads that wait in `send` or `recv` here wake up with `ChannelClosed`. Closing
        twice does nothing. Safe in a signal handler.
        """
        if self._gone is None and self._owner == os.getpid():
            self._gone = ChannelClosed(self._end.label)
            link = self._end.link
            link.shut_receiving()  # who heard our goodbye can send us nothing
            # A packet goes out whole beside those that other threads send.
            if link.whole_packets:
                self._end.say_goodbye()
            elif self._sending.acquire(blocking=False):
                self._end.say_goodbye()
                self._sending.release()
            link.shut()
            self._said = True
            self._let_go()

    def _let_go(self) -> None:
        """Give the descriptor of a closed end back, when all threads have left it."""
        # A call that was interrupted by the signal handler in which we are comes here later.
        # So does a thread that leaves while close() has not said all.
        if self._said and not (_platform.owns(self._sending) or _platform.owns(self._receiving)):
            with self._sending, self._receiving:
                self._end.link.close()

    def __del__(self) -> None:
        if hasattr(self, "_requesting"):  # else it was never finished
            self.close()
            _ends.discard(self._end)

    def _check(self) -> None:
        if self._gone is None and self._end.link.closed:
            self._gone = self._lost_by_fork()
        if self._gone is not None:
            raise copy.copy(self._gone)  # one with a traceback would keep all its frames alive

    def _check_sendable(self) -> None:
        self._check()
        if self._end.send_closed:
            raise ChannelClosed(self._end.label, "sends no more since close_send()")

    def _no_room(self, timeout: float | None) -> ChannelTimeout:
        return ChannelTimeout(self._end.label, "could not take a message", timeout or 0.0)

    def _nothing_came(self, timeout: float | None) -> ChannelTimeout:
        return ChannelTimeout(self._end.label, "had no message", timeout or 0.0)

    # moving to another process

    def __reduce__(self) -> tuple[Any, ...]:
        self._check()
        if self._in_use():
            raise NotPicklable(
                self._end.label, "another thread or task is using it; it cannot move now"
            )
        parcel = _parcel.current_parcel()
        if parcel is not None:
            return type(self)._arrive, (parcel.carry(self), *self._end.facts())
        popen = get_spawning_popen()
        if popen is None:
            raise NotPicklable(
                self._end.label,
                "the end of a channel moves by start(), multiprocessing.Process, a pool's "
                "task or another channel, and cannot be copied in other ways",
            )
        copy = DupFd(self._end.link.fd)
        _platform.pass_once(popen)
        _platform.call_when_launched(popen, lambda: self._moved_to(popen))
        return type(self)._arrive_by_spawn, (copy, *self._end.facts())

    @classmethod
    def _arrive(cls, index: int, *facts: Any) -> Self:
        """Rebuild an end that came inside a parcel."""
        return cls(End(_parcel.claim(index, Link.adopt), *facts))

    @classmethod
    def _arrive_by_spawn(cls, copy: Any, *facts: Any) -> Self:
        """Rebuild an end that came as an argument of a spawned process."""
        return cls(End(Link.adopt(copy.detach()), *facts))

    def _in_use(self) -> bool:
        """Tell whether others are at it, who would keep a part, or what cannot move with it."""
        for lock in (self._sending, self._receiving):
            if not lock.acquire(blocking=False):
                return True
            lock.release()
        return bool(self._watchers or self._returned) or self._end.link.busy

    def _moved_to(self, process: Any) -> None:
        """It went to a Process, or its Popen: the other end may want to know how that ends."""
        twin = self._twin and self._twin()
        if twin:
            twin._end.peer = weakref.ref(process)
        self._moved(f"moved to process {process.pid}")

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
        return self._poll(Deadline(0))

    def _watched(self) -> Sequence[int]:
        self._check()
        end = self._end
        here = self._returned or end.link.inbox or end.ended is not None
        return [] if here else [end.link.fd]

    def _carried(self) -> list[object]:
        return [self._end.link]

    def _before_fork(self) -> None:
        # Two owners would take messages from each other.
        if _fork.travels(self) and self._in_use():
            _fork.stay(self, self._end.link)

    def _after_fork_in_parent(self) -> None:
        # The link closes itself, and `_check` finds out.
        twin = self._twin and self._twin()
        if twin and _fork.travels(self):
            twin._end.peer = weakref.ref(_fork.traveller())

    def _after_fork_in_child(self) -> None:
        # A thread of the parent may hold any of these, and it is not here to let go.
        self._make_locks()
        self._watchers = []
        if _fork.travels(self):
            self._owner = os.getpid()
