"""A worker as the engine sees it: its process, and our ends of its two links.

Down the *inbox* go packets of tasks. We keep a copy of its reading end: a packet is
either still in it, and can be taken back at once, or the worker has it. Up the *outbox*
come reports. Both belong to one worker alone, so a dead one blocks nobody.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import termios
from collections import deque
from typing import TYPE_CHECKING

from mpkit import _fork, _platform, _wait
from mpkit._child import Child
from mpkit._link import Link, LinkDown, discard
from mpkit._pool import wire, worker
from mpkit._wait import Deadline

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.context import BaseContext

    from mpkit._pool.wire import Done, InitFailed, Load, Ready
    from mpkit._process import Call

#: How many reports of one worker to read before looking at the others (arbitrary).
REPORTS_AT_A_TIME = 64

_NOW = Deadline(0)


class Worker:
    """Starts a process, and speaks with it. Used by the supervisor thread only."""

    def __init__(self, context: BaseContext, init: Call | None, *, report_memory: bool) -> None:
        self._inbox, reader = Link.pair()
        self.outbox, writer = Link.pair()
        with _fork.guard:  # no child is born with a copy that nobody knows of
            self._unread = Link.adopt(os.dup(reader.fd))
        # Sizes of packets and their tasks, for a system whose sockets know no packets.
        self._sent: deque[tuple[int, list[int]]] = deque()
        #: What it was sent with descriptors, and has not reported.
        self.bulky: set[int] = set()
        self.retiring = False
        self.hung_up = False
        try:
            self.child = Child(worker.main, (reader, writer, init, report_memory), context)
        except BaseException:
            self.close()
            raise
        finally:
            reader.close()
            writer.close()

    @property
    def pid(self) -> int:
        """The number of its process."""
        return self.child.pid

    @property
    def ended(self) -> str:
        """How its process ended, in words."""
        return _platform.exit_reason(self.child.exitcode)

    def send(self, loads: list[Load], fds: list[int]) -> bool:
        """Send a packet of tasks; False if its inbox is full, or it is gone.

        Raises OSError if descriptors cannot be sent, since too many are on their way.
        """
        packet = wire.encode_run(loads)
        try:
            sent = self._inbox.send(packet, fds, _NOW)
        except LinkDown:  # its death will be told by its sentinel
            return False
        if sent and fds:
            self.bulky.update(load.task for load in loads)
        if sent and not _platform.HAS_PACKETS:
            self._sent.append((len(packet), [load.task for load in loads]))
        return sent

    def retire(self) -> None:
        """Have it leave after what it was sent."""
        self.retiring = True
        # The end of the link comes after all packets, whether its inbox is full or not,
        # and cannot be taken back with them.
        self._inbox.shut_sending()

    def reports(self) -> Iterator[tuple[Ready | InitFailed | Done, list[int]]]:
        """Yield what it reported, and the descriptors that came with it. Never blocks.

        Once it has closed its end, ``hung_up`` is true, and there is nothing more.
        """
        for _ in range(REPORTS_AT_A_TIME):
            try:
                packet = self.outbox.receive(_NOW)
            except LinkDown:
                self.hung_up = True
                return
            if packet is None:
                return
            data, fds = packet
            yield wire.decode_for_parent(data), fds

    def has_reports(self) -> bool:
        """Tell whether `reports` would yield something, or find the end."""
        return not self.hung_up and bool(_wait.poll([self.outbox.fd], 0))

    def take_back(self) -> list[int]:
        """Return the tasks that it has not taken from its inbox; it will never get them."""
        if not _platform.HAS_PACKETS:
            return self._left_in_stream()
        tasks: list[int] = []
        with contextlib.suppress(LinkDown):
            while (packet := self._unread.receive(_NOW)) is not None:
                data, fds = packet
                discard(fds)
                tasks += [load.task for load in wire.decode_for_worker(data).loads]
        self.bulky.difference_update(tasks)
        return tasks

    def _left_in_stream(self) -> list[int]:
        """As `take_back`, where only a dead worker's packets can be told from each other.

        From a stream two readers would get half a packet each. But what is unread when
        one of them is dead is the end of what was sent.
        """
        if self.child.exitcode is None:
            return []
        unread = _bytes_in(self._unread)
        left: deque[int] = deque()
        while self._sent and unread > 0:
            size, tasks = self._sent.pop()
            left.extendleft(reversed(tasks))
            unread -= size
        return list(left)

    def reported(self, task: int) -> None:
        """It has done this task, the first of those that it has."""
        self.bulky.discard(task)
        if self._sent:
            tasks = self._sent[0][1]
            tasks.remove(task)
            if not tasks:
                self._sent.popleft()

    def close(self) -> None:
        """Close our ends."""
        for link in (self._inbox, self._unread, self.outbox):
            link.close()


def _bytes_in(link: Link) -> int:
    answer = fcntl.ioctl(link.fd, termios.FIONREAD, struct.pack("i", 0))
    count: int = struct.unpack("i", answer)[0]
    return count
