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
from typing import TYPE_CHECKING, Any, Final, Self

from mpkit import _closing, _fork, _links, _parcel, _wait
from mpkit._end import START, End
from mpkit._errors import (
    BrokenChannel,
    ChannelClosed,
    ChannelMoved,
    ChannelTimeout,
    EndOfChannel,
    NotPicklable,
    PeerDied,
)
from mpkit._line import Line
from mpkit._link import LinkDown, Malformed, Packet, discard
from mpkit._platform import stdlib
from mpkit._wait import Deadline

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mpkit._parcel import Parcel

#: What `Port._receive` returns if nothing came in time. That is not told by an exception, as
#: unpickling may raise whatever it likes.
NOTHING: Final = object()

_ONE = (None,)
_BLOCK = (True,)


class _Leaving(ChannelMoved):
    """Raised by an end that is packed. If it is not sent, it can be used again."""


#: The ends of all channels that are not garbage. Where a channel becomes garbage in a
#: cycle, its socket would otherwise be finalized, and closed, before the goodbye is sent.
_ends: set[End] = set()


class Port(_fork.Bearer):
    """An end of a channel, without the types."""

    def __init__(self, end: End | None = None) -> None:
        """Not for users: `channel` makes channels."""
        if not isinstance(end, End):
            raise TypeError("mpkit.channel() makes both ends of a channel; Channel() makes none")
        self._end = end
        _ends.add(end)
        #: Why this end cannot be used any more; one that moved is not closed twice.
        self._gone: ChannelClosed | None = None
        self._owner = os.getpid()
        self._make_locks()
        #: Whether close() has said all that there is to say.
        self._said = False
        #: One for each thread or task that waits for something to happen.
        self._watchers: list[None] = []
        #: The other end, while that is in this process, too.
        self._twin: weakref.ref[Port] | None = None
        #: The multiprocessing.Process that was forked with this end.
        self._taker: weakref.ref[Any] | None = None
        with _fork.guard:
            _fork.know(self)
        _closing.close_at_exit(self)

    def _make_locks(self) -> None:
        # Each is held by one thread of this process, and shared with no other process.
        # Re-entrant: a signal handler may use the channel whose call it interrupts.
        self._sending = threading.RLock()
        self._receiving = threading.RLock()
        #: Those who make a request, one after the other.
        self._requesting = Line()

    def __repr__(self) -> str:
        return f"<{self._end.label}: {self._gone.why if self._gone else 'open'}>"

    def _send(
        self, parcel: Parcel, deadline: Deadline | None, receipt: list[int] | None = None
    ) -> bool:
        """Send a parcel; False if that was not possible in time. The ``receipt`` is `Link.send`'s."""
        end, lock, turn = self._end, self._sending, False
        if parcel.movables:
            self._check_passengers(parcel)
            receipt = [] if receipt is None else receipt
        try:
            if deadline is not None:
                for turn in turns(lock, deadline):
                    break
                if not turn:
                    return False
            with lock:  # once more, or for the first time
                if parcel.plain:
                    data = end.plain_header + parcel.stream
                    return end.link.send(data, (), deadline, receipt)
                data, fds = parcel.seal(end.header)
                return end.link.send(data, fds, deadline, receipt)
        except LinkDown as error:
            self._check_sendable()  # a close() of ours ends the connection, too
            why = str(error) or "the other end was closed, or its process died"
            raise BrokenChannel(end.label, why) from None
        finally:
            if turn:
                lock.release()
            if receipt:
                parcel.depart(f"moved through {end.label} to the process at its other end")
            if self._gone is not None:
                self._let_go()

    def _check_passengers(self, parcel: Parcel) -> None:
        """Refuse what would be in its own inbox, which nobody could read or close.

        It is known of a pair that has not left this process. The kernel finds all such
        circles, but only when it looks for garbage.
        """
        twin = self._twin and self._twin()
        if twin and twin in parcel.movables:
            raise NotPicklable(twin._end.label, "it is the end at which it would have to arrive")

    def _ask(self, parcel: Parcel, deadline: Deadline) -> int:
        """Send a request; return which message is the reply to it, counted as ``end.got``.

        0 if it was not possible in time. The caller has the turn to make requests.
        """
        end, receipt = self._end, list[int]()
        try:
            if not self._send(parcel, deadline, receipt):
                return 0
        finally:
            # A reply is due to what was sent, whatever a signal handler raised since. Here it
            # cannot raise, for there is no call.
            if receipt:
                end.due = (end.due if end.due > end.got else end.got) + 1
        return end.due

    def _reply(self, number: int, deadline: Deadline) -> Any:
        """Return the message of this number, and drop those before; NOTHING if it is not in time."""
        while self._end.got < number - 1:
            if self._receive(deadline.left(), unpack=False) is NOTHING:
                return NOTHING
        return self._receive(deadline.left())

    def _receive(self, timeout: float | None, *, unpack: bool = True) -> Any:
        """Return the next message (None if it is not to be unpacked); NOTHING if none came."""
        deadline = None if timeout is None else Deadline(timeout)
        end, lock, turn, opening, came = self._end, self._receiving, False, False, 0
        packet: Packet | None = None
        try:
            # A signal handler may raise after any call of C code, and what that has
            # returned is lost then: see `_link` for what is done about it.
            try:
                if deadline is not None:
                    for turn in turns(lock, deadline):
                        break
                    if not turn:
                        return NOTHING
                with lock:  # once more, or for the first time
                    if self._gone is not None:
                        self._check()
                    if not end.fill(deadline):
                        return NOTHING
                    inbox = end.link.inbox
                    packet = inbox[0]
                    del inbox[0]
                    end.got += 1
            except PeerDied:
                self._check()  # a close() of ours ends the connection, too
                raise
            finally:
                if turn:
                    lock.release()
                if self._gone is not None:
                    self._let_go()
            data, fds = packet
            if fds:
                came = len(fds)
            # Unpickling runs user code, and user code may raise EOFError or OSError too.
            # It stays outside every try that could take it for the end.
            opening = True
            return end.codec.unpack(data, fds, START) if unpack else discard(fds)
        except Malformed as error:
            raise BrokenChannel(end.label, str(error)) from None
        except BaseException as error:
            if packet is not None and not (
                opening and (isinstance(error, Exception) or len(packet[1]) < came)
            ):
                end.link.inbox[:0] = [packet]
                end.got -= 1
            raise

    def _flushed(self) -> bool:
        """Tell whether all that was sent is out: over a stream, half a packet may be left."""
        with self._sending:
            return self._gone is not None or self._end.link.flush()

    def _poll(self, deadline: Deadline) -> bool:
        self._check()
        if self._end.ended is not None:
            return True
        link, lock, turn = self._end.link, self._receiving, False
        try:
            self._watchers += _ONE
            if link.whole_packets:
                return link.poll(deadline)
            for turn in turns(lock, deadline):
                break
            return turn and link.poll(deadline)
        finally:
            del self._watchers[:1]
            if turn:
                lock.release()

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
            self._end.say_goodbye()
            link.shut()
            self._said = True
            self._let_go()

    def _let_go(self) -> None:
        """Give the descriptor of a closed end back, when all threads have left it."""
        # A call that was interrupted by the signal handler in which we are comes here later.
        # So does a thread that leaves while close() has not said all.
        if self._said and not (stdlib.owns(self._sending) or stdlib.owns(self._receiving)):
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
            if isinstance(self._gone, _Leaving):
                raise ChannelMoved(*self._gone.args)
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
        stdlib.pass_once(popen)
        stdlib.call_when_launched(popen, lambda: self._moved_to(popen))
        return type(self)._arrive_by_spawn, (copy, *self._end.facts())

    @classmethod
    def _arrive(cls, index: int, *facts: Any) -> Self:
        """Rebuild an end that came inside a parcel."""
        return cls(End(_parcel.claim(index, _links.adopt), *facts))

    @classmethod
    def _arrive_by_spawn(cls, copy: Any, *facts: Any) -> Self:
        """Rebuild an end that came as an argument of a spawned process."""
        return cls(End(_links.adopt(copy.detach()), *facts))

    def _in_use(self) -> bool:
        """Tell whether others are at it, who would keep a part, or what cannot move with it."""
        for lock in (self._sending, self._receiving):
            if not lock.acquire(blocking=False):
                return True
            lock.release()
        return bool(self._watchers) or self._end.link.busy

    def _moved_to(self, process: Any) -> None:
        """It went to a Process, or its Popen: the other end may want to know how that ends."""
        twin = self._twin and self._twin()
        if twin:
            twin._end.peer = weakref.ref(process)
        self._moved(f"moved to process {process.pid}")

    def _descriptor(self) -> int:
        return self._end.link.fd

    def _leave(self) -> None:
        self._gone = _Leaving(self._end.label, "is about to move to another process")

    def _remain(self) -> None:
        if isinstance(self._gone, _Leaving):
            self._gone = None

    def _moved(self, where: str) -> None:
        self._gone = ChannelMoved(self._end.label, where)
        self._end.link.close()  # our copy; the connection lives on elsewhere

    def _lost_by_fork(self) -> ChannelClosed:
        if self._owner == os.getpid():
            pid = stdlib.pid_of(self._taker and self._taker())
            where = f"process {pid}" if pid else "the process that was started with it"
            return ChannelMoved(self._end.label, f"moved to {where}")
        return ChannelMoved(
            self._end.label, f"stayed with process {self._owner}, from which this one was forked"
        )

    def _ready(self) -> bool:
        return self._poll(Deadline(0))

    def _watched(self) -> Sequence[int]:
        self._check()
        end = self._end
        here = end.link.inbox or end.ended is not None
        return [] if here else [end.link.fd]

    def _carried(self) -> list[object]:
        return [self._end.link]

    def _before_fork(self) -> None:
        # Two owners would take messages from each other.
        if _fork.travels(self) and self._in_use():
            _fork.stay(self, self._end.link)

    def _after_fork_in_parent(self) -> None:
        # The link closes itself, and `_check` finds out. The process has no pid yet.
        if _fork.travels(self) and self._gone is None and self._taker is None:
            # The first to whom it is given: nobody gets anything by a second time.
            self._taker = weakref.ref(_fork.traveller())
            twin = self._twin and self._twin()
            if twin:
                twin._end.peer = self._taker

    def _after_fork_in_child(self) -> None:
        # A thread of the parent may hold any of these, and it is not here to let go.
        self._make_locks()
        self._watchers = []
        if _fork.travels(self):
            self._owner = os.getpid()
            self._end.settle()


def turns(lock: threading.RLock, deadline: Deadline) -> Iterator[bool]:
    """Return what takes a lock at its only step, and tells whether that was in time."""
    return map(lock.acquire, _BLOCK, (_wait.for_lock(deadline),))
