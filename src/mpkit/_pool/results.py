"""`Results`: what ``imap`` returns, an iterator over results as they come."""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
from collections import deque
from typing import TYPE_CHECKING, Any, Generic, Protocol, Self, TypeVar

from mpkit._errors import PoolClosed, ResultTimeout
from mpkit._pool import chunks
from mpkit._wait import Deadline

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable

    from mpkit._pool.progress import Meter
    from mpkit._pool.task import Task

R = TypeVar("R")

#: Chunks per worker that may be pulled from the input and not yet be consumed. Enough
#: for packets of short tasks; what bounds the memory of an endless input.
AHEAD = 32


class Results(Generic[R]):
    """The results of a `TaskPool.imap`, in order or as they come; also for ``async for``.

    The input is pulled by a thread of its own, and never further ahead than a bound
    (32 chunks for each worker): it may be slow or endless. An item that raised raises
    when its turn comes, and the iteration may go on behind it. ``close``, or dropping
    the iterator, cancels what has not begun.
    """

    def __init__(
        self,
        submit: Callable[[list[Any]], Task[list[tuple[bool, Any]]]],
        feeds: Feeds,
        items: Iterable[Any],
        chunksize: int,
        bound: int,
        meter: Meter,
        *,
        ordered: bool,
    ) -> None:
        """Not for users: pools make them."""
        self._window = Window(bound, meter, ordered=ordered)
        self._taking = threading.Lock()
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
        deadline = Deadline(timeout)
        while True:
            with self._taking:  # of several threads
                if self._values:
                    returned, value = self._values.popleft()
                    break
            chunk = self._window.next_chunk(deadline.left())
            with self._taking:
                self._values.extend(chunk)
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

            if not self._window.call_when_ready(functools.partial(_wake, loop, woken)):
                await woken
                continue
            try:
                self._values.extend(self._window.next_chunk(0))
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


class Window:
    """The chunks between the feeder and the consumer. Any thread may use it."""

    def __init__(self, bound: int, meter: Meter, *, ordered: bool) -> None:
        self._bound = bound
        self._meter = meter
        self._ordered = ordered
        # Taken by itself, and not through the condition: that does so in Python, where a
        # Ctrl-C could come in between, and nobody would release it.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        #: Chunks that were submitted and not consumed: in order, or as they ended.
        self._line: deque[Task[list[tuple[bool, Any]]]] = deque()
        self._running: set[Task[list[tuple[bool, Any]]]] = set()
        self._pulled_all = False
        self._error: BaseException | None = None
        self._stopped = False
        self._halted = False
        self._wake: Callable[[], None] | None = None

    # the feeder's side

    def wait_for_room(self) -> bool:
        """Block until another chunk may be pulled; False if none is wanted any more."""
        with self._lock:
            if self._unconsumed() >= self._bound:
                # Half of it at a time: to take turns costs more than to pull an item.
                self._changed.wait_for(
                    lambda: self._stopped or self._halted or self._has_much_room()
                )
            if self._halted and not self._stopped:
                raise PoolClosed("the pool", "it ended before all of the input was read")
            return not self._stopped

    def lift(self) -> None:
        """Let all of the input be pulled, since the pool may end before it is consumed."""
        with self._lock:
            self._bound = sys.maxsize
            self._changed.notify_all()

    def halt(self) -> None:
        """Let no more of the input be pulled."""
        with self._lock:
            self._halted = True
            self._changed.notify_all()

    def add(self, task: Task[list[tuple[bool, Any]]]) -> None:
        """A chunk was submitted."""
        with self._lock:
            self._running.add(task)
            if self._ordered:
                self._line.append(task)
        task.add_done_callback(self._ended)

    def end(self, error: BaseException | None) -> None:
        """The input has ended, or raised."""
        with self._lock:
            self._pulled_all, self._error = True, error
            self._notify()

    def _has_much_room(self) -> bool:
        return self._unconsumed() <= self._bound // 2

    def _unconsumed(self) -> int:
        return len(self._line) if self._ordered else len(self._line) + len(self._running)

    def _ended(self, task: Any) -> None:
        with self._lock:
            self._running.discard(task)
            if not self._ordered:
                self._line.append(task)
            elif self._line and self._line[0] is not task:
                return  # nobody waits for it yet
            self._notify()

    def _notify(self) -> None:
        self._changed.notify_all()
        if self._wake is not None:
            self._wake()
            self._wake = None

    # the consumer's side

    def next_chunk(self, timeout: float | None) -> list[tuple[bool, Any]]:
        """Return the next chunk of results; raises what its worker's end, or the input, did."""
        with self._lock:
            if not self._changed.wait_for(self._ready, timeout):
                raise ResultTimeout("the next item", timeout or 0.0)
            if self._line:
                task = self._line.popleft()
                if self._has_much_room():
                    self._changed.notify_all()
            else:
                self._meter.close()
                error, self._error = self._error, None
                if error is not None:
                    raise error
                raise StopIteration
        values = task.result()
        self._meter.advance(len(values))
        return values

    def call_when_ready(self, wake: Callable[[], None]) -> bool:
        """Tell whether `next_chunk` would not block; if it would, ``wake`` is called later."""
        with self._lock:
            ready = self._ready()
            if not ready:
                self._wake = wake
            return ready

    def _ready(self) -> bool:
        if self._line:
            return self._line[0].done()
        return (self._pulled_all and not self._running) or self._stopped

    def stop(self) -> None:
        """Want nothing more."""
        with self._lock:
            self._stopped = True
            left = [*self._line, *self._running]
            self._notify()
        for task in left:
            task.cancel()
        self._meter.close()


class Feed(Protocol):
    """Something that submits more as its tasks end."""

    def lift(self) -> None:
        """Submit all that there is, since the pool may end before it is asked for."""

    def halt(self) -> None:
        """Submit no more of what may be endless."""


class Feeds:
    """What a backend takes calls from, until it ends. Any thread may use it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._windows: set[Feed] = set()
        self._over: Callable[[], None] | None = None

    def __bool__(self) -> bool:
        return bool(self._windows)

    def enter(self, window: Feed) -> None:
        """Begin to take from an input."""
        with self._lock:
            self._windows.add(window)

    def leave(self, window: Feed) -> None:
        """An input has ended."""
        with self._lock:
            self._windows.discard(window)
            over = None if self._windows else self._over
        if over is not None:
            over()

    def close(self, over: Callable[[], None]) -> None:
        """Take from no other inputs, and all from these; then call ``over``."""
        with self._lock:
            self._over = over
            windows = list(self._windows)
        for window in windows:
            window.lift()
        if not windows:
            over()

    def stop(self) -> None:
        """Take no more from any."""
        with self._lock:
            windows = list(self._windows)
        for window in windows:
            window.halt()


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
    window.end(error)
    feeds.leave(window)
