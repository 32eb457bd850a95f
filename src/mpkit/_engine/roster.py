"""The workers that live, and what tells of them: their journals, connections and deaths."""

from __future__ import annotations

import contextlib
import functools
import itertools
import selectors
import signal
import time
from typing import TYPE_CHECKING

from mpkit._engine.crew import Worker
from mpkit._process import GRACE
from mpkit._wait import Deadline
from mpkit._worker.journal import Journals

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.context import BaseContext

    from mpkit._engine.audience import Audience
    from mpkit._engine.settings import Settings
    from mpkit._reader import Forked
    from mpkit._worker.setup import Setup

#: Seconds that are waited at most before one looks again. (epoll counts to 24 days.)
LONGEST_WAIT = 86_400.0


def audience_of(settings: Settings) -> Audience | None:
    """Return what hears what workers say beside their reports, if anybody wants to know."""
    if settings.log is None and not settings.capture:
        return None
    from mpkit._engine.audience import Audience  # noqa: PLC0415  most pools have none

    forks = settings.context.get_start_method() == "fork"
    return Audience(settings.log, capture=settings.capture, forks=forks)


class Roster:
    """Starts workers, and waits for what they do. Used by the supervisor thread only."""

    def __init__(
        self, size: int, context: BaseContext, setup: Setup, audience: Audience | None = None
    ) -> None:
        #: By their numbers in the schedule.
        self.workers: dict[int, Worker] = {}
        self._numbers = itertools.count()
        self._context = context
        self._setup = setup
        self._audience = audience
        # Those that are being replaced may live on beside those that replace them. For some of
        # them: the others report by socket.
        forks = context.get_start_method() == "fork"
        self._journals = Journals(size + size // 4 + 1, forks=forks)
        #: Whose journals these are, or were last, by slot.
        self._writers: dict[int, int] = {}
        self._selector = selectors.DefaultSelector()

    def watch(self, fd: int, call: Callable[[], object]) -> None:
        """Have this called by `wait` when ``fd`` is readable."""
        self._selector.register(fd, selectors.EVENT_READ, call)

    def unwatch(self, fd: int) -> None:
        """Watch a descriptor no more, before it is closed; again is fine.

        A closed one would stay with epoll for as long as a forked child has a copy of it,
        and its events would then be taken for those of the next one with that number.
        """
        with contextlib.suppress(KeyError):
            self._selector.unregister(fd)

    def start(self, common: Forked | None = None) -> int:
        """Start a worker, and return its number. `attend` is to follow.

        Raises what the system says if there is no room for a process, and whatever pickling the
        initializer raises. ``common`` is what a forked one will have of the main module, if known.
        """
        number = next(self._numbers)
        name = f"mpkit worker {number + 1}"
        worker = Worker(self._context, self._journals, self._setup, name, self._audience, common)
        # First of all: those that are here are ended if a Ctrl-C ends the making of the pool.
        self.workers[number] = worker
        return number

    def attend(
        self, number: int, says: Callable[[int], None], ended: Callable[[int], None]
    ) -> Worker:
        """Watch a worker that was started, and return it.

        ``says`` is called with its number when its connection is readable, ``ended`` when it is dead.
        """
        worker = self.workers[number]
        if worker.slot is not None:
            self._writers[worker.slot] = number
        self.watch(worker.outbox.fd, functools.partial(says, number))
        self.watch(worker.child.sentinel, functools.partial(ended, number))
        if self._audience is not None and worker.ear is not None:
            self.watch(worker.ear.fd, functools.partial(self._audience.hear, worker.ear))
        return worker

    def wait(self, until: float | None) -> list[int]:
        """Wait for something to happen, and call what is to be; return who has written.

        Until then (`time.monotonic`) at most, if that is not None.
        """
        sleeps = self._journals.fall_asleep()
        ready = self._selector.select(_seconds_until(until) if sleeps else 0)
        self._journals.wake_up()
        for key, _ in ready:
            key.data()
        return [self._writers[slot] for slot in self._journals.changed()]

    def remove(self, number: int) -> None:
        """Forget a worker, which has ended."""
        worker = self.workers.pop(number)
        self.unwatch(worker.outbox.fd)
        self.unwatch(worker.child.sentinel)
        if worker.ear is not None and worker.ear.fd >= 0:
            self.unwatch(worker.ear.fd)
        worker.close()

    def stop(self) -> Iterator[tuple[int, Worker]]:
        """End all workers; yield each, and its number, before it is forgotten."""
        for worker in self.workers.values():
            worker.ask_to_end()
        patience = Deadline(GRACE)
        for number, worker in list(self.workers.items()):
            if not worker.child.join(patience.left()):
                worker.child.signal(signal.SIGKILL)
                worker.child.join(None)
            yield number, worker
            self.remove(number)

    def release(self) -> None:
        """Watch nothing any more. To be called while `_fork.guard` is held."""
        self._selector.close()

    def close(self) -> None:
        """Give the memory of the journals back, and what workers share, when all are gone."""
        self._journals.close()
        self._setup.close()


def _seconds_until(when: float | None) -> float | None:
    return None if when is None else min(max(0.0, when - time.monotonic()), LONGEST_WAIT)
