"""The one way to block: many things, one poll.

Everything that mpkit waits for is a descriptor that becomes readable: a signal is a
byte in a FIFO, a death is a pidfd, a message is a packet. `poll` waits for any of
them in a thread, `readable` in asyncio. What waits for objects is in `_anyof`.
"""

from __future__ import annotations

import math
import select
import threading
import time
from typing import TYPE_CHECKING, Final

from mpkit import _fork

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable, Sequence

#: How often to look again, in seconds, where the kernel cannot tell of a death (macOS).
LOOK_AGAIN = 0.05

#: Seconds for which a `Lookout` looks. (Measured: an answer takes 60 µs if only one of both
#: parties sleeps meanwhile, and 30 if none does. Less than the former, and both go on sleeping.)
MOMENT: Final = 75e-6
#: How many times in a row it does not, at most, where it was in vain (arbitrary: with it, it takes
#: less than a tenth of a microsecond each time).
MOST_PASSES: Final = 1024

#: Seconds that are as good as for ever: 30 million years. Much more, and a sum of times is
#: not exact any more; an int may have so many digits that it is no float at all.
_FOR_EVER = 1e15


class Deadline:
    """A moment in the future, or never. ``timeout`` is in seconds; None is for ever."""

    def __init__(self, timeout: float | None) -> None:
        check_timeout(timeout)
        self.timeout = timeout
        if timeout is None or timeout > _FOR_EVER:
            self._end = math.inf
        else:
            self._end = time.monotonic() + timeout

    def left(self) -> float | None:
        """Return the seconds that are left, 0 if it has passed; None if it never will."""
        return None if self._end == math.inf else max(0.0, self._end - time.monotonic())

    def passed(self) -> bool:
        """Tell whether it lies behind."""
        return time.monotonic() >= self._end


def check_timeout(timeout: float | None) -> None:
    """Raise for what is not a number of seconds, in the words of the one who passed it."""
    if timeout is None:
        return
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise TypeError(f"timeout is a number of seconds or None, not {timeout!r}")
    if timeout != timeout:  # an int may be too large for math.isnan()
        raise ValueError("timeout is a number of seconds or None, and nan is no number")
    if timeout < 0:
        raise ValueError(f"timeout is not negative, unlike {timeout!r}")


def for_lock(deadline: Deadline | None) -> float:
    """Return what is left until a deadline as `threading.Lock.acquire` wants it."""
    left = None if deadline is None else deadline.left()
    return -1 if left is None else min(left, threading.TIMEOUT_MAX)


def poll(fds: Iterable[int], timeout: float | None = None) -> list[int]:
    """Block until one of ``fds`` is readable, hung up or broken; return those that are.

    ``timeout`` is in seconds; after it the list is empty.
    """
    poller = select.poll()
    for fd in fds:
        poller.register(fd, select.POLLIN)
    # poll() counts in milliseconds and rounds up; its longest is 2**31 of them.
    longest = None if timeout is None else min(timeout * 1000, 2**31 - 1)
    return [fd for fd, _ in poller.poll(longest)]


def waiter(fd: int) -> Callable[[float | None], object]:
    """Return what blocks until ``fd`` is readable, hung up or broken: `poll`, many times."""
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return poller.poll


class Lookout:
    """Looks for a moment whether a descriptor becomes readable, for who is to wait for that.

    For what mostly comes at once. To wake a core that sleeps takes who does it 15 µs, and who is
    woken another 25: more than to look for that long. Who has looked in vain does not look the
    next time, nor the next two times after that, nor the next four: so it is worth while,
    or as good as never done. What is idle sleeps.

    It does not yield its core while it looks: it would get it back when those who compute have
    had their turns, of 4 ms each.
    """

    def __init__(self, fd: int) -> None:
        self._ready = waiter(fd)
        #: How many times not to look any more, and how many after the next time in vain.
        self._passes, self._next = 0, 1

    def look(self) -> bool:
        """Look until it is readable; False if that does not come, or came late, or was not looked for."""
        if self._passes:
            self._passes -= 1
            return False
        ready, now, until = self._ready, time.monotonic, time.monotonic() + MOMENT
        while not ready(0) and now() < until:
            pass
        # Not by what was seen last, which may be late, if others had the core.
        if now() < until:
            self._next = 1
            return True
        self._passes, self._next = self._next, min(2 * self._next, MOST_PASSES)
        return False


def poll_writable(fd: int, timeout: float | None = None) -> None:
    """Block until ``fd`` takes data, or nobody can read it any more."""
    poller = select.poll()
    poller.register(fd, select.POLLOUT)
    poller.poll(None if timeout is None else min(timeout * 1000, 2**31 - 1))


async def readable(fds: Sequence[int], timeout: float | None = None) -> bool:
    """As `poll`, for asyncio: return whether one of ``fds`` became readable in time."""
    return await _until(fds, "add_reader", "remove_reader", timeout)


async def writable(fd: int, timeout: float | None = None) -> bool:
    """As `poll_writable`, for asyncio: return whether ``fd`` took data in time."""
    return await _until([fd], "add_writer", "remove_writer", timeout)


async def _until(fds: Sequence[int], add: str, remove: str, timeout: float | None) -> bool:
    """Wait with copies of ``fds`` of our own.

    An event loop knows only one reader per descriptor, and several tasks may wait for
    the same thing.
    """
    import asyncio  # noqa: PLC0415  who awaits has it; nobody else should pay for it

    loop = asyncio.get_running_loop()
    woken: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not woken.done():
            woken.set_result(None)

    copies = _fork.Descriptors()
    try:
        for fd in fds:
            getattr(loop, add)(copies.keep_copy(fd), wake)
        async with asyncio.timeout(timeout):
            await woken
    except TimeoutError:
        return False
    finally:
        for copy in copies:
            getattr(loop, remove)(copy)
        copies.close()
    return True


class Crowd:
    """All tasks of an event loop that wait for one descriptor, which they share a copy of.

    With a copy for each, as in `_until`, thousands of tasks would need thousands of
    descriptors. For what keeps its descriptor as long as anybody waits for it.
    """

    def __init__(self) -> None:
        self._waiting: set[asyncio.Future[None]] = set()
        self._copy = _fork.Descriptors()

    async def wait(self, fd: int) -> None:
        """Return when ``fd`` is readable."""
        import asyncio  # noqa: PLC0415  who awaits has it; nobody else should pay for it

        loop = asyncio.get_running_loop()
        woken: asyncio.Future[None] = loop.create_future()
        self._waiting.add(woken)
        try:
            if not self._copy:
                loop.add_reader(self._copy.keep_copy(fd), self._wake)
            await woken
        finally:
            self._waiting.remove(woken)
            if not self._waiting:
                for copy in self._copy:
                    loop.remove_reader(copy)
                self._copy.close()

    def _wake(self) -> None:
        # Called again in each turn of the loop until the last one has left.
        for woken in self._waiting:
            if not woken.done():
                woken.set_result(None)
