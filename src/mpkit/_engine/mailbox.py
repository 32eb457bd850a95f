"""What other threads tell a supervisor, and how it is woken."""

from __future__ import annotations

import os
import threading
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mpkit._engine.ledger import Entry


class Mailbox:
    """Any thread may put something in; the supervisor takes it out, and is woken for it.

    To be made while `_fork.guard` is held, and closed likewise. ``refuse`` is called for what
    comes when the supervisor has ended, with the lock held: it takes it out and settles it.
    """

    def __init__(self, refuse: Callable[[], None]) -> None:
        self._refuse = refuse
        self._submissions: deque[Entry] = deque()
        self._messages: deque[Callable[[], None]] = deque()
        #: Whether what is submitted may wait until the supervisor wakes, as others wait already.
        self.patient = False
        self._woken = False
        self._ended = False
        #: Set when the supervisor has ended, and what there was is refused.
        self.over = threading.Event()
        #: Held by who wakes the supervisor, and by the supervisor while it ends: so that
        #: nobody wakes what is no longer there.
        self.lock = threading.RLock()
        self.reader, self._writer = os.pipe()

    def __len__(self) -> int:
        """Return how many submissions were not taken out."""
        return len(self._submissions)

    def submit(self, *entries: Entry) -> None:
        """Put in tasks that are to be run."""
        self._submissions += entries
        if not (self.patient or self._woken):  # as `wake` asks, too
            self.wake()

    def tell(self, message: Callable[[], None]) -> None:
        """Have the supervisor call this, soon."""
        self._messages.append(message)
        self.wake()

    def wake(self) -> None:
        """Have the supervisor look for what there is."""
        # It clears the flag before it looks: if it is set here, what we put in is yet to be seen.
        if not self._woken:
            with self.lock:
                if self._ended:
                    self._refuse()
                else:
                    # Nothing in between from which a signal handler may raise, or nobody
                    # would ever wake the supervisor again.
                    self._woken = True
                    os.write(self._writer, b"!")

    # called by the supervisor

    def woke(self) -> None:
        """The reader is readable."""
        os.read(self.reader, 512)
        self._woken = False

    def submissions(self) -> list[Entry]:
        """Take out what was submitted."""
        return [self._submissions.popleft() for _ in range(len(self._submissions))]

    def messages(self) -> Iterator[Callable[[], None]]:
        """Take out what is to be called, and was there already: others may go on for ever."""
        for _ in range(len(self._messages)):
            yield self._messages.popleft()

    def end(self, last: Callable[[], None]) -> None:
        """Refuse what is there, and from now on what comes; do what is ``last``, and be over."""
        try:
            with self.lock:
                self._ended = True
                self.patient = False
                # First: who believes that it was woken has put in before this what is refused now.
                self._woken = False
                self._refuse()
            last()
        finally:
            self.over.set()

    @property
    def closed(self) -> bool:
        """Whether this process has closed (its copy of) the pipe."""
        return self._writer < 0

    def close(self) -> None:
        """Give the descriptors back. Nobody wakes the supervisor any more."""
        os.close(self.reader)
        writer, self._writer = self._writer, -1
        os.close(writer)
