"""From a caller to an idle worker, without the supervisor in between.

To wake the supervisor for a task takes as long as to wake the worker. So it leaves out
which workers are idle, while nothing waits, and a caller may take one and send it a task.
The supervisor learns of that when it has something to do anyway: at the latest when that
worker reports, or dies.

A caller who waits for nothing but that task (`asked.Asked`) reads the report himself, when the
worker rings back, and lets the next caller have the worker. Then the supervisor sleeps on, and
catches up with `ENOUGH_UNHEARD` of them at a time.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING

from mpkit._worker.wire import Load

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mpkit._engine.crew import Worker
    from mpkit._engine.ledger import Entry
    from mpkit._worker.wire import Done

#: Of so many tasks the supervisor need not have heard. (To wake it costs as much as a task.)
ENOUGH_UNHEARD = 32


class Handed:
    """A task that a caller has sent to a worker, or was about to."""

    __slots__ = (
        "asked",
        "entry",
        "heard",
        "listens",
        "number",
        "offered",
        "receipt",
        "since",
        "worker",
    )

    def __init__(self, entry: Entry, number: int, worker: Worker, *, asked: bool) -> None:
        self.entry = entry
        self.number = number
        self.worker = worker
        #: Whether the caller waits for the answer.
        self.asked = asked
        #: Where that will be in the worker's journal.
        self.since = worker.inbox.written()
        #: Not empty if it was sent.
        self.receipt: list[int] = []
        #: Whether the supervisor has heard of it, or wants the worker.
        self.heard = False
        #: Whether its caller listens to the worker, or is about to.
        self.listens = True
        #: Whether the next caller may have the worker, as soon as this one listens no more.
        self.offered = False


class Shortcut:
    """The idle workers, and what was sent to them."""

    def __init__(self) -> None:
        #: Those that a caller may have, by their numbers. To be changed in here only.
        self.idle: dict[int, Worker] = {}
        self._handed: deque[Handed] = deque()
        #: What callers wait for, by worker: one at a time can listen.
        self._asked: dict[int, Handed] = {}
        self._closed = False
        # Held while a worker is taken and a task sent to it. Re-entrant: a signal handler may
        # submit one, too.
        self._sending = threading.RLock()

    # called by any thread

    def __len__(self) -> int:
        """Return how many tasks were sent of which the supervisor does not know."""
        return len(self._handed)

    def send(self, entry: Entry, *, asked: bool) -> Handed | None:
        """Send a task to a worker that is idle; None if there is none.

        If it has no receipt it could not be sent; then, and if a signal handler raises in here,
        the supervisor finds it as if it had been submitted.
        """
        with self._sending:
            if self._closed or not self.idle:
                return None
            number, worker = self.idle.popitem()
            if not worker.inbox.has_room():  # it is offered again when its reports are read
                return None
            entry.task.set_running_or_notify_cancel()
            handed = Handed(entry, number, worker, asked=asked)
            self._handed.append(handed)  # first, so that it is known before it is reported
            load = Load(entry.task.number, entry.head)
            worker.inbox.hand(load, handed.receipt, asked=asked, common=entry.common)
        return handed

    def answer(self, handed: Handed) -> Done | None:
        """Wait for the answer to what was sent; None if the supervisor will have it."""
        number, done = handed.number, None
        try:
            with self._sending:
                if handed.heard:  # others may have had the worker meanwhile, and taken the ring
                    return None
                self._asked[number] = handed
            done = handed.worker.inbox.answer(handed.entry.task.number, handed.since)
        finally:
            # Who is interrupted while he waits for the lock leaves the rest to the supervisor.
            handed.listens = False
            with self._sending:
                if self._asked.get(number) is handed:
                    del self._asked[number]
                    done_unheard = done is not None and not handed.heard
                    if (handed.offered or done_unheard) and not self._closed:
                        self.idle[number] = handed.worker
        return done

    def close(self) -> None:
        """Send nothing any more."""
        with self._sending:
            self._closed = True
            self.idle.clear()

    def find(self, task: int) -> Handed | None:
        """Return a task that was sent, if the supervisor does not know of it yet."""
        found = [it for it in list(self._handed) if it.entry.task.number == task]
        return found[0] if found else None

    # called by the supervisor

    def offer(self, number: int, worker: Worker) -> None:
        """Let a caller have a worker, which has nothing to do, unless one had it meanwhile.

        What a second caller sent it would lie behind the first one's task, and nobody would
        look for another worker before that one is done.
        """
        if number in self.idle:
            return
        with self._sending:
            if self._taken(number):
                return
            if asked := self._listening(number):
                asked[0].offered = True
            else:
                self.idle[number] = worker

    def withdraw(self, number: int) -> bool:
        """Let no caller have a worker any more; False if one had it, as `handed` will tell."""
        with self._sending:
            self.idle.pop(number, None)
            taken = self._taken(number)
            for handed in taken + self._listening(number):
                handed.heard, handed.offered = True, False
            return not taken

    def _taken(self, number: int) -> list[Handed]:
        return [handed for handed in self._handed if handed.number == number]

    def _listening(self, number: int) -> list[Handed]:
        """Return what a caller waits for who listens to this worker; forget one that did."""
        asked = self._asked.get(number)
        if asked is None or not asked.listens:
            self._asked.pop(number, None)
            return []
        return [asked]

    def handed(self) -> Iterator[Handed]:
        """Yield what callers have taken upon themselves."""
        while self._handed:
            handed = self._handed.popleft()
            with self._sending:
                # Whoever is in the midst of it has sent it then, or will not.
                handed.heard = True
            yield handed
