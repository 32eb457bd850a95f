"""`Results`: what ``imap`` returns, an iterator over results as they come."""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from mpkit._errors import PoolClosed, ResultTimeout
from mpkit._pool import chunks
from mpkit._pool.lookahead import Lookahead
from mpkit._wait import Deadline

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable

    from mpkit._pool.feeds import Feeds
    from mpkit._pool.progress import Meter
    from mpkit._pool.task import Task

R = TypeVar("R")


class Results(Generic[R]):
    """The results of a `TaskPool.imap`, in order or as they come; also for ``async for``.

    The input is pulled by a thread of its own, and never further ahead than a bound
    (32 chunks for each worker; up to 512, if half of that is consumed in 5 ms): it may be slow
    or endless. An item that raised raises
    when its turn comes, and the iteration may go on behind it. ``close``, or dropping
    the iterator, cancels what has not begun.
    """

    def __init__(
        self,
        submit: Callable[[list[Any]], Task[list[tuple[bool, Any]]]],
        feeds: Feeds,
        items: Iterable[Any],
        chunksize: int,
        later: Callable[[Callable[[], None]], None],
        bound: int,
        meter: Meter,
        *,
        ordered: bool,
    ) -> None:
        """Not for users: pools make them."""
        self._window = Window(bound, meter, later, ordered=ordered)
        self._values: deque[tuple[bool, Any]] = deque()
        self._submit = submit  # keeps the pool alive as long as its results are wanted
        chunked = chunks.split(items, chunksize)
        self._feeder = threading.Thread(
            target=_feed,
            args=(self._window, feeds, submit, chunked),
            name="mpkit imap",
            daemon=True,
        )
        try:
            feeds.enter(self._window)
            self._feeder.start()
        except BaseException:  # there is no room for a thread, or it was Ctrl-C
            feeds.leave(self._window)
            raise

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> R:
        return self.next()

    def next(self, timeout: float | None = None) -> R:
        """Return the next result, blocking until it is there.

        Args:
            timeout: seconds to wait; None waits for ever.

        Raises:
            StopIteration: there are no more.
            ResultTimeout: it was not there in time; it comes with a later call.
            Exception: what the item's call, or the input, raised.

        """
        deadline = None if timeout is None else Deadline(timeout)
        while True:
            try:
                returned, value = self._values.popleft()
            except IndexError:
                left = None if deadline is None else deadline.left()
                self._window.take(self._values, left)
            else:
                break
        if not returned:
            raise value.error()
        result: R = value
        return result

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> R:
        import asyncio  # noqa: PLC0415  who awaits has it; nobody else should pay for it

        while not self._values:
            loop = asyncio.get_running_loop()
            woken: asyncio.Future[None] = loop.create_future()
            wake = functools.partial(_wake, loop, woken)
            if not self._window.call_when_ready(wake):
                try:
                    await woken
                finally:
                    self._window.call_no_more(wake)
                continue
            try:
                self._window.take(self._values, 0)
            except StopIteration:
                raise StopAsyncIteration from None
        return self.next()

    def close(self) -> None:
        """Pull no more from the input, and cancel what has not begun."""
        self._window.stop()

    def __del__(self) -> None:
        window = getattr(self, "_window", None)
        if window is not None:
            window.stop()


def _wake(loop: asyncio.AbstractEventLoop, woken: asyncio.Future[None]) -> None:
    def settle() -> None:
        if not woken.done():
            woken.set_result(None)

    with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
        loop.call_soon_threadsafe(settle)


class _Raised:
    """What became of a chunk that has no results."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def error(self) -> BaseException:
        return self._error


class Window:
    """The chunks between the feeder and the consumer. Any thread may use it."""

    def __init__(
        self,
        bound: int,
        meter: Meter,
        later: Callable[[Callable[[], None]], None],
        *,
        ordered: bool,
    ) -> None:
        self._ahead = Lookahead(bound)
        #: When half of what may be pulled ahead was consumed the last time.
        self._consumed_at = time.monotonic()
        self._later = later
        self._meter = meter
        self._ordered = ordered
        # Taken by itself, and not through the condition: that does so in Python, where a
        # Ctrl-C could come in between, and nobody would release it.
        self._lock = threading.RLock()
        #: For the consumer, and for the feeder.
        self._changed = threading.Condition(self._lock)
        self._emptied = threading.Condition(self._lock)
        #: Chunks that were submitted and not consumed: in order, or as they ended.
        self._line: deque[Task[list[tuple[bool, Any]]]] = deque()
        #: Those that have not ended, if the others are in the line as they did.
        self._running: set[Task[list[tuple[bool, Any]]]] = set()
        #: The task in the line that tells us of its end, if they are in order.
        self._listened_to: Task[Any] | None = None
        self._pulled_all = False
        self._error: BaseException | None = None
        self._stopped = False
        self._halted = False
        #: What wakes those who wait in asyncio.
        self._wakes: dict[Callable[[], None], None] = {}

    # the feeder's side

    def wait_for_room(self) -> bool:
        """Block until another chunk may be pulled; False if none is wanted any more."""
        if self._unconsumed() >= self._ahead.bound:
            with self._lock:
                # Half of it at a time: to take turns costs more than to pull an item.
                self._emptied.wait_for(
                    lambda: self._stopped or self._halted or self._has_much_room()
                )
                now = time.monotonic()
                self._ahead.half_consumed(now - self._consumed_at)
                self._consumed_at = now
        if self._halted and not self._stopped:
            raise PoolClosed("the pool", "it ended before all of the input was read")
        return not self._stopped

    def lift(self) -> None:
        """Let all of the input be pulled, since the pool may end before it is consumed."""
        with self._lock:
            self._ahead.lift()
            self._emptied.notify_all()

    def halt(self) -> None:
        """Let no more of the input be pulled."""
        with self._lock:
            self._halted = True
            self._emptied.notify_all()

    def add(self, task: Task[list[tuple[bool, Any]]]) -> None:
        """A chunk was submitted."""
        if self._ordered:
            self._line.append(task)
            if self._first() is task:  # the consumer may wait, and could not listen to it
                task.add_done_callback(self._ended)
        else:
            self._running.add(task)
            task.add_done_callback(self._ended)
        if self._stopped:  # and did not know of this one
            task.cancel()

    def end(self, error: BaseException | None) -> None:
        """The input has ended, or raised."""
        with self._lock:
            self._pulled_all, self._error = True, error
            self._notify()

    def _has_much_room(self) -> bool:
        return self._unconsumed() <= self._ahead.bound // 2

    def _unconsumed(self) -> int:
        return len(self._line) + len(self._running)

    def _ended(self, task: Any) -> None:
        if not self._ordered:
            with self._lock:  # or it would be nowhere for a moment, and all be over
                self._running.discard(task)
                self._line.append(task)
        if task is self._listened_to:  # whose result would live as long as we do
            self._listened_to = None
        self._later(self._notify)

    def _first(self) -> Task[Any] | None:
        """Return the first in the line, which the consumer takes out meanwhile."""
        try:
            return self._line[0]
        except IndexError:
            return None

    def _notify(self) -> None:
        with self._lock:
            self._changed.notify_all()
            wakes, self._wakes = self._wakes, {}
            for wake in wakes:
                wake()

    # the consumer's side

    def take(self, values: deque[tuple[bool, Any]], timeout: float | None) -> None:
        """Move the results of some chunks to ``values``, or errors in their place.

        Or none, if another thread has moved some there. Raises StopIteration if there are no
        more, and what the input raised.
        """
        sizes: list[int] = []
        with self._lock:
            if not (values or self._ready()):
                self._make_room()  # once more: a Ctrl-C may have come before that
                if not self._changed.wait_for(lambda: values or self._ready(), timeout):
                    raise ResultTimeout("the next item", timeout or 0.0)
            if values:
                return
            over = not self._line
            for _ in range(min(self._ahead.at_a_time, len(self._line))):
                outcome = self._line[0].outcome()
                if outcome is None:
                    break
                results, error = outcome
                if error is not None:
                    results = [(False, _Raised(error))]
                sizes.append(len(results))
                # Without a call in between: what a signal handler raises loses nothing.
                values += results
                del self._line[0]
            self._make_room()
            self._notify()  # what others wait for is in ``values`` now, or first in the line
        # Without the lock: these are the user's, who may use us.
        if over:
            self._finish()
        for size in sizes:
            self._meter.advance(size)

    def _make_room(self) -> None:
        if self._has_much_room():
            self._emptied.notify_all()

    def _finish(self) -> None:
        """Raise what the input raised, once, or StopIteration."""
        self._meter.close()
        with self._lock:
            error, self._error = self._error, None
        raise StopIteration if error is None else error

    def call_when_ready(self, wake: Callable[[], None]) -> bool:
        """Tell whether `take` would not block; if it would, ``wake`` is called later, once."""
        with self._lock:
            ready = self._ready()
            if not ready:
                self._wakes[wake] = None
            return ready

    def call_no_more(self, wake: Callable[[], None]) -> None:
        """Forget what was given to `call_when_ready`: nobody waits any more."""
        with self._lock:
            self._wakes.pop(wake, None)

    def _ready(self) -> bool:
        """Tell whether `take` would not block; if it would, have what ends that notify."""
        if self._line:
            first = self._line[0]
            if first is not self._listened_to and not first.done():
                first.add_done_callback(self._ended)
                self._listened_to = first
            return first.done()
        return (self._pulled_all and not self._running) or self._stopped

    def stop(self) -> None:
        """Want nothing more."""
        with self._lock:
            self._stopped = True
            left = [*self._line, *self._running]
            self._notify()
            self._emptied.notify_all()
        for task in left:
            task.cancel()
        self._meter.close()


def _feed(
    window: Window,
    feeds: Feeds,
    submit: Callable[[list[Any]], Task[list[tuple[bool, Any]]]],
    chunked: Iterable[list[Any]],
) -> None:
    """Pull chunks and submit them, as far as there is room: the feeder thread."""
    error: BaseException | None = None
    try:
        iterator = iter(chunked)
        while window.wait_for_room():
            chunk = next(iterator, None)
            if chunk is None:
                break
            window.add(submit(chunk))
    except BaseException as raised:  # noqa: BLE001  the input's, or NotPicklable: for the consumer
        error = raised
    try:  # who has had all that came of it may take the pool to have done with it
        feeds.leave(window)
    finally:
        window.end(error)
