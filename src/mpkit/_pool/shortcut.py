"""From a caller to an idle worker, without the supervisor in between.

To wake the supervisor for a task takes as long as to wake the worker. So it leaves out
which workers are idle, while nothing waits, and a caller may take one and send it a task.
The supervisor learns of that when it has something to do anyway: at the latest when that
worker reports, or dies.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mpkit._pool.crew import Worker
    from mpkit._pool.ledger import Entry


class Handed(NamedTuple):
    """A task that a caller has sent to a worker, or was about to."""

    entry: Entry
    worker: int
    #: Not empty if it was sent.
    receipt: list[int]


class Shortcut:
    """The idle workers, and what was sent to them."""

    def __init__(self) -> None:
        self._idle: dict[int, Worker] = {}
        self._handed: deque[Handed] = deque()
        self._closed = False
        # Held while a worker is taken and a task sent to it. Re-entrant: a signal handler may
        # submit one, too.
        self._sending = threading.RLock()

    # called by any thread

    def __len__(self) -> int:
        """Return how many tasks were sent of which the supervisor does not know."""
        return len(self._handed)

    def send(self, entry: Entry) -> bool | None:
        """Send a task to a worker that is idle; None if there is none.

        False if it could not be sent; then, and if a signal handler raises in here, the
        supervisor finds it as if it had been submitted.
        """
        if not self._idle:
            return None
        with self._sending:
            if self._closed or not self._idle:
                return None
            number, worker = self._idle.popitem()
            entry.task.set_running_or_notify_cancel()
            handed = Handed(entry, number, [])
            self._handed.append(handed)  # first, so that it is known before it is reported
            worker.hand(entry.task.number, entry.head, handed.receipt)
        return bool(handed.receipt)

    def close(self) -> None:
        """Send nothing any more."""
        with self._sending:
            self._closed = True
            self._idle.clear()

    def find(self, task: int) -> Handed | None:
        """Return a task that was sent, if the supervisor does not know of it yet."""
        found = [handed for handed in list(self._handed) if handed.entry.task.number == task]
        return found[0] if found else None

    # called by the supervisor

    def offer(self, number: int, worker: Worker) -> None:
        """Let a caller have a worker, which has nothing to do, unless one had it meanwhile.

        What a second caller sent it would lie behind the first one's task, and nobody would
        look for another worker before that one is done.
        """
        if number in self._idle:
            return
        with self._sending:
            if not self._is_taken(number):
                self._idle[number] = worker

    def withdraw(self, number: int) -> bool:
        """Let no caller have a worker any more; False if one had it, as `handed` will tell."""
        with self._sending:
            self._idle.pop(number, None)
            return not self._is_taken(number)

    def _is_taken(self, number: int) -> bool:
        return any(handed.worker == number for handed in self._handed)

    def handed(self) -> Iterator[Handed]:
        """Yield what callers have taken upon themselves."""
        while self._handed:
            handed = self._handed.popleft()
            with self._sending:
                """Whoever is in the midst of it has sent it then, or will not."""
            yield handed
