"""A worker as the supervisor sees it: its process, and our ends of its two links.

Down the `inbox` go packets of tasks. Up the *outbox* come reports that are large; where they
belong among the others its journal says. All belong to one worker alone, so a dead one blocks
nobody.
"""

from __future__ import annotations

import signal
from collections import deque
from typing import TYPE_CHECKING

from mpkit import _fork, _links, _wait
from mpkit._child import Child
from mpkit._engine.inbox import Inbox
from mpkit._link import LinkDown, Malformed, discard
from mpkit._platform import descriptors, processes, stdlib
from mpkit._wait import Deadline
from mpkit._worker import wire, worker

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.context import BaseContext

    from mpkit._engine.audience import Audience, Ear
    from mpkit._reader import Forked
    from mpkit._worker.aside import Beside
    from mpkit._worker.journal import Journals
    from mpkit._worker.setup import Setup
    from mpkit._worker.wire import Report

#: How many reports of one worker to read before looking at the others (arbitrary).
REPORTS_AT_A_TIME = 64

_NOW = Deadline(0)


class Worker:
    """Starts a process, and hears from it. For the supervisor thread, but for its `Inbox`."""

    def __init__(
        self,
        context: BaseContext,
        journals: Journals,
        setup: Setup,
        name: str | None = None,
        audience: Audience | None = None,
        common: Forked | None = None,
    ) -> None:
        self._journals = journals
        link, reader = _links.pair()
        self.outbox, writer = _links.pair()
        self._kills_to_be_sure = context.get_start_method() != "forkserver"
        self.retiring = False
        self.hung_up = False
        #: Whether it has sent what is no report: then nothing that it says is believed.
        self.babbles = False
        #: What was read from its journal, and not told yet.
        self._records: deque[bytes] = deque()
        #: What was received and is to be read where the journal says so.
        self._received: deque[tuple[Report, list[int]]] = deque()
        #: What it is sent goes through here; callers may use it, too.
        self.inbox = Inbox(link, reader, journals)
        #: Hears what else it says, if anybody wants to know.
        self.ear: Ear | None = None
        journal = None if self.slot is None else journals.journal(self.slot)
        beside: Beside | None = None
        try:
            if audience is not None:
                self.ear, beside = audience.seat()
            # Ctrl-C must not end a worker that does not ignore it yet.
            with stdlib.interrupts_held(context.get_start_method()):
                args = reader, writer, journal, setup, beside
                ahead = setup.threads.environment if setup.threads is not None else None
                moves = (reader, writer) if beside is None and setup.empty else None
                self.child = Child(worker.main, args, context, name, ahead, moves, common)
            #: The number of its process.
            self.pid: int = self.child.pid
        except BaseException:
            if hasattr(self, "child"):  # a Ctrl-C was held until now
                self.child.signal(signal.SIGKILL)
                self.child.join(None)
            self.close()
            raise
        finally:
            reader.close()
            writer.close()
            _fork.forget(reader, writer)
            if beside is not None:
                beside.writer.close()

    @property
    def slot(self) -> int | None:
        """Which journal is its own, if any."""
        return self.inbox.slot

    @property
    def ended(self) -> str:
        """How its process ended, in words."""
        return processes.exit_reason(self.child.exitcode)

    def retire(self, *, idle: bool = False) -> None:
        """Have it leave after what it was sent, which is nothing if it is ``idle``."""
        self.retiring = True
        self.inbox.shut()
        if idle and processes.is_stopped(self.pid):  # then it would never leave
            self.child.signal(signal.SIGKILL)

    def ask_to_end(self) -> None:
        """Send it SIGTERM, which it may handle; or SIGKILL if it is stopped, and cannot."""
        stopped = processes.is_stopped(self.pid)
        self.child.signal(signal.SIGKILL if stopped else signal.SIGTERM)

    def reap(self) -> None:
        """Wait for its process, of which the sentinel says that it has ended.

        Without pidfds that is a pipe, and what has closed all descriptors may go on for ever.
        (What a fork server has forked it has waited for, and the pid may be another's by now.)
        """
        if self._kills_to_be_sure and self.child.sentinel == self.child.process.sentinel:
            self.child.signal(signal.SIGKILL)
        self.child.join(None)

    def reports(self, *, listen: bool = True) -> Iterator[tuple[Report, list[int]]]:
        """Yield what it reported, and the descriptors that came with it. Never blocks.

        Once it has closed its end, or ``babbles``, ``hung_up`` is true. Who knows that there is
        nothing by socket, or will be told, need not ``listen``, for which other threads take turns.
        """
        for _ in range(REPORTS_AT_A_TIME if listen else 0):
            if not self._receive(until_woken=True):
                break
        if self.slot is not None:
            records = self._records
            records += self.inbox.reported_since()
            while records:  # of which who is in the midst of it may have read some
                # Nobody else writes there, so this is to be believed of one that babbles, too.
                if records[0]:
                    yield wire.decode_records(records), []
                    continue
                del records[0]
                if not self.babbles and (self._received or self._receive()):
                    yield self._received.popleft()
        # What it was killed or cut off before it could note is the last that it has said.
        while self._received and (self.slot is None or self.hung_up):
            yield self._received.popleft()

    def disbelieve(self) -> None:
        """It has sent what is no report, or none that makes sense: take nothing more from it."""
        self.hung_up = self.babbles = True
        self._forget_received()

    def _forget_received(self) -> None:
        for _, fds in self._received:
            discard(fds)
        self._received.clear()

    def _receive(self, *, until_woken: bool = False) -> bool:
        """Receive a report, if there is one, or one before the next wake-up."""
        while not self.hung_up:
            try:
                packet = self.outbox.receive(_NOW)
                if packet is None:
                    break
                data, fds = packet
                if data != wire.WAKE:
                    self._received.append((wire.decode_for_parent(data), fds))
                    return True
                if until_woken:  # mostly there is no more; and if there is, it stays readable
                    break
            except LinkDown:
                self.hung_up = True
            except Malformed:
                self.disbelieve()
        return False

    def has_written(self) -> bool:
        """Tell whether there is something new in its journal."""
        unread = self.slot is not None and self._journals.unread(self.slot)
        return unread or bool(self._records)

    def has_reports(self) -> bool:
        """Tell whether `reports` would yield something, or find the end."""
        if self.hung_up:
            return self.has_written() or bool(self._received)
        return self.has_written() or bool(_wait.poll([self.outbox.fd], 0))

    def take_back(self) -> list[int]:
        """Return the tasks that it has not begun; it never will."""
        # Whether it lives matters, and is asked, only where its inbox is a stream.
        ended = not descriptors.HAS_PACKETS and self.child.ended
        return self.inbox.take_back(ended=ended)

    def close(self) -> None:
        """Close our ends, when its process has ended."""
        self._forget_received()
        self.inbox.close()
        self.outbox.close()
        _fork.forget(self.outbox)
        if self.ear is not None:
            self.ear.close()
