"""The one way to block: many things, one poll.

Everything that mpkit waits for is a descriptor that becomes readable: a signal is a
byte in a FIFO, a death is a pidfd, a message is a packet. `poll` waits for any of
them in a thread, `readable` in asyncio, and `wait` is the public face of the first.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import select
import threading
import time
import weakref
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

from mpkit import _fork

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable, Sequence

#: What `wait` takes, and returns.
T = TypeVar("T", bound="Waitable | Future[Any]")

#: How often to look again, in seconds, where the kernel cannot tell of a death (macOS).
LOOK_AGAIN = 0.05

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


def waiter(fd: int) -> Callable[[], object]:
    """Return what blocks until ``fd`` is readable, hung up or broken: `poll`, many times."""
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return poller.poll


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


@runtime_checkable
class Waitable(Protocol):
    """What `wait` takes, besides futures: a Signal, a Channel or a Job."""

    def _ready(self) -> bool:
        """Tell, without blocking, whether there is something to take."""
        ...

    def _watched(self) -> Sequence[int]:
        """Return descriptors of which one becomes readable when `_ready` may be true.

        None, if it is known to be: then it is asked without waiting for anything.
        """
        ...


def wait(*things: T, timeout: float | None = None) -> list[T]:
    """Block until at least one of ``things`` is ready, and return all that are, in order.

    For any mix of `Signal` (ready while it is set), `Channel` (a message can be
    received, or its end), `Job` (it has ended) and `Task` or any other
    `concurrent.futures.Future` (it is done). One system call waits for all of them;
    nothing is polled and no thread is started.

    Args:
        things: what to wait for.
        timeout: seconds to wait; None waits for ever, 0 only looks.

    Returns:
        Those that are ready; an empty list if none was in time.

    Raises:
        TypeError: one of the things cannot be waited for.
        ChannelClosed: one of them is a channel's end that was closed or, as
            `ChannelMoved`, given away. (That another thread waits for an end here does not
                keep it from moving.)
        OSError: no descriptors are left for that (Signals, Jobs and futures take some).

    Example:
        >>> import mpkit
        >>> early, late = mpkit.Signal(), mpkit.Signal()
        >>> early.set()
        >>> mpkit.wait(early, late, timeout=5) == [early]
        True

    """
    # One of each type: what a protocol asks of each thing takes longer than all the rest.
    kinds: dict[type, object] = {type(thing): thing for thing in things}
    for thing in kinds.values():
        # A class has the methods that its objects have.
        if isinstance(thing, type) or not isinstance(thing, (Future, Waitable)):
            raise TypeError(f"wait() takes Signals, Channels, Jobs and Tasks, not {thing!r}")
    deadline = Deadline(timeout)
    if not things:
        return []
    bell: _Bell | None = None
    try:
        while True:
            last = deadline.passed()  # before the look: a signal handler may come between
            # Anew each time: what a job watches changes once it has said its last.
            watched = [_watched(thing, bell) for thing in things]
            rung = _rung(watched, 0.0 if last else deadline.left())
            # Of hundreds of things only those that rang are asked.
            ready = [
                thing
                for thing, fds in zip(things, watched, strict=True)
                if (not fds or not rung.isdisjoint(fds)) and _is_ready(thing)
            ]
            if ready or last:
                return ready
            if bell is None and (futures := [it for it in things if isinstance(it, Future)]):
                bell = _Bell()  # only now: it takes a pipe
                bell.hang(futures)
    finally:
        if bell:
            bell.take_down()


def _rung(watched: Iterable[Sequence[int]], timeout: float | None) -> set[int]:
    """Poll them all; without blocking if there is one that watches nothing any more."""
    fds = [fd for each in watched for fd in each]
    return set(poll(fds, timeout if all(watched) else 0.0))


def _is_ready(thing: Any) -> bool:
    return thing.done() if isinstance(thing, Future) else thing._ready()


def _watched(thing: Waitable | Future[Any], bell: _Bell | None) -> Sequence[int]:
    if not isinstance(thing, Future):
        return thing._watched()
    return bell.fds if bell else ()


class _Bell:
    """A pipe, for futures to ring when they are done, since they have no descriptor.

    A call of `wait` has one for all its futures. Nobody closes it: that happens when
    neither the call nor a thread that is just ringing refers to it any more.
    """

    def __init__(self) -> None:
        self._pipe = _fork.Descriptors()
        with _fork.guard:
            self._pipe.keep(os.pipe())
        os.set_blocking(self._pipe[1], False)  # thousands may ring
        self.fds = self._pipe[:1]
        self._hung: list[list[_Bell]] = []

    def hang(self, futures: Iterable[Future[Any]]) -> None:
        """Have each of them ring it."""
        for future in futures:
            bells = _bells_of(future)
            self._hung.append(bells)
            bells.append(self)
            if future.done():  # perhaps since before that, and then it does not ring
                self.ring()

    def ring(self) -> None:
        """Make it readable."""
        with contextlib.suppress(BlockingIOError):  # it is full: so it is readable
            for writer in self._pipe[1:]:  # none in a forked child
                os.write(writer, b"!")

    def take_down(self) -> None:
        """Have no future ring it any more."""
        for bells in self._hung:
            with contextlib.suppress(ValueError):  # an interruption kept it from being hung
                bells.remove(self)


#: Those that each future rings. Its callback refers to the list, since no callback can
#: be taken off a future: so a future that is waited for again and again has but one.
_bells: weakref.WeakKeyDictionary[Future[Any], list[_Bell]] = weakref.WeakKeyDictionary()


def _bells_of(future: Future[Any]) -> list[_Bell]:
    bells = _bells.get(future)
    if bells is None:
        bells = []
        future.add_done_callback(functools.partial(_ring, bells))
        # Last: what is in there will be rung, whoever is interrupted. (Of two threads that
        # come here at once each has its own list and callback, and the later one's is kept.)
        _bells[future] = bells
    return bells


def _ring(bells: list[_Bell], _: Future[Any]) -> None:
    for bell in bells.copy():
        bell.ring()
