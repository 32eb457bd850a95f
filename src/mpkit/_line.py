"""A line of threads, and tasks of any event loops, in which the first one has the turn.

There is no lock in it. Who joins appends his place to a list, and then looks whether it is
the first; who leaves takes his out, and then wakes the one who is first by now. Each of these
is one step: so if one leaves while another joins, then one of the two sees the other. To wake
somebody twice, or who does not wait, does no harm. So signal handlers and the collector of
garbage may leave a line, too, in the middle of whatever.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, Future

    from mpkit._wait import Deadline


class Place:
    """The place of the calling thread in a line, or of a task of the event loop ``loop``."""

    def __init__(self, loop: AbstractEventLoop | None = None) -> None:
        self.thread = threading.get_ident()
        self._loop = loop
        # Not an Event: a handler may interrupt whoever sets it, and set it as well.
        self._bell = queue.SimpleQueue[None]()
        self._woken: Future[None] | None = loop.create_future() if loop else None

    def sleep(self, deadline: Deadline) -> bool:
        """Block this thread until it is woken; False if the deadline passed."""
        left = deadline.left()
        try:
            self._bell.get(timeout=None if left is None else min(left, threading.TIMEOUT_MAX))
        except queue.Empty:
            return False
        return True

    async def sleep_async(self, deadline: Deadline) -> bool:
        """As `sleep`, for a task."""
        import asyncio  # noqa: PLC0415  who awaits has it; nobody else should pay for it

        assert self._woken is not None
        try:
            async with asyncio.timeout(deadline.left()):
                await self._woken
        except TimeoutError:
            return False
        return True

    def wake(self) -> bool:
        """End the sleep; False if the event loop was closed meanwhile, so that there is none."""
        if self._loop is None:
            self._bell.put(None)
            return True
        try:
            self._loop.call_soon_threadsafe(self._wake_task)
        except RuntimeError:
            if not self._loop.is_closed():
                raise
            return False
        return True

    def _wake_task(self) -> None:
        if self._woken and not self._woken.done():
            self._woken.set_result(None)


class Line:
    """Who waits for a turn, in the order in which they came; the first one has it."""

    def __init__(self) -> None:
        self._places: list[Place] = []

    def join(self, place: Place, deadline: Deadline) -> bool:
        """Block this thread until it has its turn; False if the deadline passed.

        Also then, and if this raises, the caller has to `leave`.
        """
        self._places.append(place)
        while not self._is_first(place):
            if not place.sleep(deadline):
                return False
        return True

    async def join_async(self, place: Place, deadline: Deadline) -> bool:
        """As `join`, for a task."""
        self._places.append(place)
        # One sleep is enough: who is woken has become the first, and stays it.
        return self._is_first(place) or await place.sleep_async(deadline)

    def leave(self, place: Place) -> None:
        """Leave the line and wake the next one. To leave again does no harm.

        A signal handler may raise in the middle of it: then it has to be done again.
        """
        while True:
            with contextlib.suppress(ValueError):
                self._places.remove(place)
            first = self._places[:1]
            if not first or first[0].wake():
                return
            place = first[0]  # it can never leave by itself

    def has(self, thread: int) -> bool:
        """Tell whether this thread, or a task of it, is in line: if it blocked, it would stay there."""
        return any(place.thread == thread for place in self._places[:])

    def _is_first(self, place: Place) -> bool:
        return self._places[0] is place
