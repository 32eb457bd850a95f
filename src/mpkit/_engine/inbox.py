"""The inbox of a worker, as its pool sees it: what was sent, and what can be had back.

Down its link go packets of tasks. We keep a copy of the reading end: a packet is either still
in there, and can be taken back at once, or the worker has it. What the worker has not begun of
that it is told by its journal not to. Back through the link come rings, for callers who wait.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import struct
import termios
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

from mpkit import _fork, _links, _outcome
from mpkit._frames import framed
from mpkit._link import Link, LinkDown, Malformed, discard
from mpkit._platform import descriptors
from mpkit._wait import Deadline, Lookout
from mpkit._worker import wire

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mpkit._worker.journal import Journals
    from mpkit._worker.wire import Done, Load, Loads

#: Of how many packets it is known what was in them. (It may have one, and all that its inbox holds.)
MOST_PACKETS = 128

#: Of how many it is known what may be declined. (It says so before it takes the next packet, and
#: we take back from that one once, until we have looked what it says.)
MOST_DECLINABLE = 8

#: How many rings to read at most that are for others. If there are so many, there may have been
#: no room for one's own. (On Linux there is for some 270, so this is far from it.)
MOST_LATE = 32

_NOW = Deadline(0)

#: As `wire.encode_ring`, from us, for whoever waits.
_NO_ANSWERS = wire.encode_ring(0)


class Inbox:
    """Sends tasks to one worker, and takes them back.

    For the supervisor thread, but what callers use: `hand`, `written`, `has_room`, `answer`,
    `settle` and `recall`.
    """

    def __init__(self, link: Link, reader: Link, journals: Journals) -> None:
        self._link = link
        self._journals = journals
        #: For who waits for an answer.
        self._lookout = Lookout(link.fd)
        with _fork.guard:  # no child is born with a copy that nobody knows of
            self._unread = _links.adopt(os.dup(reader.fd))
        # Numbers of packets of several tasks, and what was in the latest.
        self._numbers = itertools.count(1)
        self._packets: dict[int, list[int]] = {}
        #: Packets of which something was taken back; where in it the task is, and which, that
        #: it may decline, as it was not taken back for certain.
        self._declinable: dict[int, tuple[int, int]] = {}
        # Sizes of packets and their tasks, for a system whose sockets know no packets.
        self._sent: deque[tuple[int, list[int]]] = deque()
        # How much of what lies in the link there was taken back already, and lies there still.
        self._void = 0
        #: What the worker was sent with descriptors, and has not reported.
        self.bulky: set[int] = set()
        # What was in here and was taken out, until the supervisor learns of it; without
        # doubles, as an interruption may have it taken out again. Any thread, hence the lock.
        self._came_back: dict[int, None] = {}
        # Held by any thread that reads what others read, too. A signal handler may be one.
        self._shared = threading.RLock()
        #: Whether a caller waits at the link for an answer, and is to close it if we have ended.
        self._answers = False
        #: Which journal is its worker's, if any.
        self.slot = journals.open()

    def send(self, loads: Loads, fds: Sequence[int], common: bytes = b"") -> bool:
        """Send a packet of tasks; False if there is no room, or the worker is gone.

        Raises OSError if descriptors cannot be sent, since too many are on their way.
        """
        # Only of several can some be taken back, and only what has a journal knows of that.
        number = next(self._numbers) if len(loads) > 1 and self.slot is not None else 0
        packet = wire.encode_run(loads, number=number, common=common)
        # Or who empties the inbox in between would forget a packet that is not noted yet, and
        # that would be taken for the latest that the worker has taken, when it never can.
        with self._shared:
            try:
                sent = self._link.send(packet, fds, _NOW)
            except LinkDown:  # the worker's death will be told by its sentinel
                return False
            if sent and number:
                self._packets[number] = [task for task, _ in loads]
                if len(self._packets) > MOST_PACKETS:
                    del self._packets[next(iter(self._packets))]
        if sent and fds:
            self.bulky.update(task for task, _ in loads)
        if sent and not descriptors.HAS_PACKETS:
            self._sent.append((len(framed(packet)), [task for task, _ in loads]))
        return sent

    def hand(
        self, loads: Sequence[Load], receipt: list[int], *, asked: bool = False, common: bytes = b""
    ) -> None:
        """Send a packet of small tasks, in any thread; the ``receipt`` is as for `Link.send`."""
        if len(loads) == 1 or self.slot is None:
            packet = wire.encode_run(loads, asked=asked, common=common)
            with contextlib.suppress(LinkDown):
                self._link.send(packet, (), _NOW, receipt)
            return
        number = next(self._numbers)
        packet = wire.encode_run(loads, number=number, asked=asked, common=common)
        with self._shared, contextlib.suppress(LinkDown):  # as in `send`
            # Before it is sent, after which a signal handler may raise.
            self._packets[number] = [task for task, _ in loads]
            try:
                self._link.send(packet, (), _NOW, receipt)
            finally:
                if not receipt:
                    self._packets.pop(number, None)
                elif len(self._packets) > MOST_PACKETS:
                    del self._packets[next(iter(self._packets))]

    def written(self) -> int:
        """Return how much is in the worker's journal: where the report will be of the next task."""
        return 0 if self.slot is None else self._journals.written(self.slot)

    def has_room(self) -> bool:
        """Tell whether the worker may be asked for more, of which the supervisor need not have heard."""
        return self.slot is None or not self._journals.crowded(self.slot)

    def answer(self, task: int, since: int) -> tuple[Done, int] | None:
        """Wait until the worker has done a task, in the thread that has asked for that.

        Returns its report, if that is of a result and in the journal, behind what was `written`;
        and where that ends. None too if the task was taken back from here, if the worker has
        ended, and if we may have missed the ring.
        """
        with self._shared:
            slot = self.slot
            if slot is None:
                return None
            self._answers = True
        record, until = b"", 0
        try:
            self._wait_for_ring(task)
        finally:
            with self._shared:
                self._answers = False
                if self.slot is None:
                    self._link.close()
                else:
                    record, until = self._journals.since(slot, since)
        done = wire.decode_done(record) if record else None
        ours = done is not None and done[0] == task and done[4] != _outcome.FAILED
        return (done, until) if done is not None and ours else None

    def _wait_for_ring(self, task: int) -> None:
        """Wait until the worker rings, or does not any more."""
        ring = wire.encode_ring(task)
        self._lookout.look()
        try:
            # The late ones are for who has asked before, and was interrupted. And what is no
            # ring at all some task has written, and may have filled the inbox with.
            for _ in range(MOST_LATE):
                packet = self._link.receive()
                if packet is None or packet[0] in (ring, _NO_ANSWERS):
                    return
                if len(packet[0]) != len(ring):
                    return
        except (LinkDown, Malformed):  # the report may be there all the same
            return

    def settle(self, task: int, since: int, until: int) -> bool:
        """Have nobody else see a report, which was all that is there to be read; tell whether it was."""
        with self._shared:
            return self.slot is not None and self._journals.answer(self.slot, task, since, until)

    def settled(self, task: int) -> bool:
        """Tell whether this task was the last to `settle`."""
        with self._shared:
            return self.slot is not None and self._journals.answered(self.slot) == task

    def reported_since(self) -> list[bytes]:
        """Return the records of the worker that nobody has read."""
        with self._shared:
            return [] if self.slot is None else self._journals.read(self.slot)

    def wants(self, wanted: bool) -> None:
        """Have the worker wake us for what it was asked for, too, or not."""
        if self.slot is not None:
            self._journals.want(self.slot, wanted)

    def shut(self) -> None:
        """Have the worker leave after what it was sent."""
        # The end of the link comes after all packets, whether it is full or not, and cannot
        # be taken back with them.
        self._link.shut_sending()

    def recall(
        self, task: int, tell: Callable[[], None], waits_again: Callable[[int], None]
    ) -> bool:
        """Take everything out, in any thread, and tell whether ``task`` was among it.

        ``tell`` has the supervisor `take_back` what was. ``waits_again`` is called for each
        of those tasks; the supervisor cannot send one again before it was, as it needs the lock.
        """
        if not descriptors.HAS_PACKETS:
            return False
        with self._shared:
            # First, and not last: an interruption may come in between, and then nobody would.
            tell()
            self._empty()
            for other in self._came_back:
                waits_again(other)
            return task in self._came_back

    def take_back(self, *, ended: bool) -> list[int]:
        """Return the tasks that the worker has not begun; it never will.

        Where the link is a stream, nothing before it has ``ended``.
        """
        if not descriptors.HAS_PACKETS:
            return self._left_in_stream() if ended else []
        with self._shared:
            self._empty()
            tasks = list(self._came_back)
            self._came_back.clear()
            tasks = self._take_back_taken() + tasks
        self.bulky.difference_update(tasks)
        return tasks

    def _take_back_taken(self) -> list[int]:
        """Return what the worker has taken and will not begin, when nothing else is here.

        Holds the lock. For the supervisor only: what an interruption came upon would be lost.
        """
        if not self._packets or self.slot is None:
            return []
        number, tasks = self._packets.popitem()  # of those before that nothing is left
        self._packets.clear()
        first = self._journals.take_back(self.slot, number)
        if first:
            self._declinable[number] = first - 1, tasks[first - 1]
            if len(self._declinable) > MOST_DECLINABLE:
                del self._declinable[next(iter(self._declinable))]
        return tasks[first:]

    def declined(self, packet: int, place: int) -> list[int]:
        """Return the task that the worker has declined, unless that is among those that came back."""
        kept, task = self._declinable.pop(packet, (-1, -1))
        return [task] if kept == place else []

    def _empty(self) -> None:
        """Take everything out. Holds the lock."""
        # IndexError: a signal handler came in between, and did all of it.
        with contextlib.suppress(LinkDown, IndexError):
            while self._unread.fill(_NOW):
                data, fds = self._unread.inbox[0]
                loads, asked, packet, _ = wire.decode_for_worker(data)
                self._came_back.update(dict.fromkeys(task for task, _ in loads))
                self._packets.pop(packet, None)
                # Before it is out of there: who is interrupted after that does not ring.
                if asked:
                    self._unread.send(wire.encode_ring(loads[0][0]), (), _NOW)
                del self._unread.inbox[0]
                discard(fds)

    def _left_in_stream(self) -> list[int]:
        """As `take_back`, where only a dead worker's packets can be told from each other.

        From a stream two readers would get half a packet each. But what is unread when
        one of them is dead is the end of what was sent.
        """
        # The last packet may be out in part, and the rest of it still here.
        unread = _bytes_in(self._unread) + _bytes_to_come(self._link) - self._void
        left: deque[int] = deque()
        while self._sent and unread > 0:
            size, tasks = self._sent.pop()
            left.extendleft(reversed(tasks))
            self._void += min(size, unread)  # it may have read a part of the first
            unread -= size
        return list(left)

    def reported(self, tasks: Sequence[int]) -> None:
        """The worker has done these tasks, the first of those that it has."""
        if self.bulky:
            self.bulky.difference_update(tasks)
        for task in tasks if self._sent else ():
            sent = self._sent[0][1]
            sent.remove(task)
            if not sent:
                self._sent.popleft()

    def close(self) -> None:
        """Close our ends, when the worker has ended."""
        with self._shared:
            if self.slot is not None:
                self._journals.give_back(self.slot)
                self.slot = None
            if self._answers:
                with contextlib.suppress(LinkDown):
                    self._unread.send(_NO_ANSWERS, (), _NOW)
            else:
                self._link.close()
                _fork.forget(self._link)
            self._unread.close()
        _fork.forget(self._unread)


def _bytes_in(link: Link) -> int:
    answer = fcntl.ioctl(link.fd, termios.FIONREAD, struct.pack("i", 0))
    count: int = struct.unpack("i", answer)[0]
    return count


def _bytes_to_come(link: Any) -> int:
    """Return how many bytes a link over a stream has yet to send of a packet that was begun."""
    packet, sent = link._leaving
    return len(packet) - sum(sent) if sent else 0
