"""Between the thread that pulls the input of an imap and whoever consumes its results."""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from mpkit._errors import PoolClosed, ResultTimeout
from mpkit._pool.lookahead import Lookahead

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from mpkit._engine.feeds import Feeds
    from mpkit._pool.progress import Meter
    from mpkit._task.task import Task

    #: A chunk, and how many items it has.
    Chunk = tuple[Task[list[tuple[bool, Any]]], int]


class _Noted:
    """What an item raised whose task has something to add."""

    def __init__(self, raised: Any, task: Task[Any]) -> None:
        self._raised = raised
        self._task = task

    def error(self) -> BaseException:
        error: BaseException = self._raised.error()
        self._task.note_label(error)
        self._task.note_output(error)
        return error


class Failure:
    """What became of an item that has no result."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def error(self) -> BaseException:
        return self._error


class Window:
    """The chunks between the feeder and the consumer. Any thread may use it."""

    def __init__(
        self,
        ahead: Lookahead,
        meter: Meter,
        later: Callable[[Callable[[], None]], None],
        feeds: Feeds,
        *,
        ordered: bool,
    ) -> None:
        self._ahead = ahead
        #: When half of what may be pulled ahead was consumed the last time.
        self._consumed_at = time.monotonic()
        self._later = later
        self._meter = meter
        self._feeds = feeds
        self._ordered = ordered
        # Taken by itself, and not through the condition: that does so in Python, where a
        # Ctrl-C could come in between, and nobody would release it.
        self._lock = threading.RLock()
        #: For the consumer, and for the feeder.
        self._changed = threading.Condition(self._lock)
        self._emptied = threading.Condition(self._lock)
        #: Chunks that were submitted and not consumed: in order, or as they ended.
        self._line: deque[Chunk] = deque()
        #: Those that have not ended, if the others are in the line as they did.
        self._running: dict[Task[Any], int] = {}
        #: The task in the line that tells us of its end, if they are in order.
        self._listened_to: Task[Any] | None = None
        #: Whether there are no more of them, and what is to be raised then.
        self._pulled_all = False
        self._error: BaseException | None = None
        self._stopped = False
        #: What wakes those who wait in asyncio.
        self._wakes: dict[Callable[[], None], None] = {}
        feeds.enter(self)

    # the feeder's side

    def wait_for_room(self) -> int:
        """Block until others may be pulled; return how many chunks, or 0 if none are wanted any more."""
        room = self._ahead.bound - len(self._line) - len(self._running)  # `_unconsumed`
        if room <= 0:
            with self._lock:
                # Half of it at a time: to take turns costs more than to pull an item.
                self._emptied.wait_for(lambda: self._pulled_all or self._has_much_room())
                now = time.monotonic()
                self._ahead.half_consumed(now - self._consumed_at)
                self._consumed_at = now
                room = max(1, self._ahead.bound - self._unconsumed())
        return 0 if self._pulled_all else room

    def lift(self) -> None:
        """Let all of the input be pulled, since the pool may end before it is consumed."""
        with self._lock:
            self._ahead.lift()
            self._emptied.notify_all()

    def halt(self) -> None:
        """Let no more of the input be pulled. The pool need not wait for an item that is to come."""
        self.end(PoolClosed("the pool", "it ended before all of the input was read"))

    @property
    def ended(self) -> bool:
        """Whether nothing more is to be pulled."""
        return self._pulled_all

    def add(self, chunks: Sequence[Chunk]) -> None:
        """Chunks were submitted."""
        if self._ordered:
            self._line += chunks
            first = chunks[0][0]
            # The consumer may wait, and could not listen to it.
            if len(self._line) <= len(chunks) and self._first() is first:
                first.add_done_callback(self._ended)
        else:
            self._running.update(chunks)
            for task, _ in chunks:
                task.call_when_done(self._ended)
        if self._stopped:  # and did not know of these
            for task, _ in chunks:
                task.cancel()

    def end(self, error: BaseException | None) -> None:
        """The input has ended, or raised. What was said of that first counts."""
        try:  # who has had all that came of it may take the pool to have done with it
            self._feeds.leave(self)
        finally:
            with self._lock:
                if not self._pulled_all:
                    self._pulled_all, self._error = True, error
                    self._emptied.notify_all()
                    self._notify()

    def _has_much_room(self) -> bool:
        return self._unconsumed() <= self._ahead.bound // 2

    def _unconsumed(self) -> int:
        return len(self._line) + len(self._running)

    def _ended(self, task: Any) -> None:
        if not self._ordered:
            with self._lock:  # or it would be nowhere for a moment, and all be over
                self._line.append((task, self._running.pop(task)))
        if task is self._listened_to:  # whose result would live as long as we do
            self._listened_to = None
        self._later(self._notify)

    def _first(self) -> Task[Any] | None:
        """Return the first in the line, which the consumer takes out meanwhile."""
        try:
            return self._line[0][0]
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
            over, silent = not self._line, self._meter.silent
            for _ in range(min(self._ahead.at_a_time, len(self._line))):
                task, size = self._line[0]
                outcome = task.outcome()
                if outcome is None:
                    break
                results, error = outcome
                if error is not None:
                    results = [(False, Failure(error))] * size
                elif task.written or task.options.label is not None:
                    results = [it if it[0] else (False, _Noted(it[1], task)) for it in results]
                if not (silent or (error is not None and task.cancelled())):
                    sizes.append(size)
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
            first = self._line[0][0]
            if first is not self._listened_to and not first.done():
                first.add_done_callback(self._ended)
                self._listened_to = first
            return first.done()
        return self._stopped or (self._pulled_all and not self._running)

    def stop(self) -> None:
        """Want nothing more."""
        with self._lock:
            self._stopped = True
            # Each copied in one step: the feeder may be adding some.
            line, running = list(self._line), list(self._running)
        self.end(None)
        for task in (*(task for task, _ in line), *running):
            task.cancel()
        self._meter.close()


#: Chunks of an input that does not block that are pulled and submitted together. (Arbitrary: enough
#: that what is done once for all of them is little, and few enough that the first does not wait long.)
_TOGETHER: Final = 64


def feed(
    window: Window,
    submit: Callable[[list[Any]], Task[Any]],
    submit_all: Callable[[list[list[Any]]], list[Task[Any]]] | None,
    chunked: Iterable[list[Any]],
) -> None:
    """Pull chunks and submit them, as far as there is room: the feeder thread.

    ``submit_all`` is for an input that neither blocks nor raises: of any other each chunk is
    submitted before the next is pulled. It may return no tasks, for chunks of which each is to be
    submitted before the next is packed.
    """
    error: BaseException | None = None
    try:
        iterator = iter(chunked)
        while room := window.wait_for_room():
            most = 1 if submit_all is None else min(room, _TOGETHER)
            pulled = list(itertools.islice(iterator, most))
            if not pulled or window.ended:
                break
            if submit_all is not None and (tasks := submit_all(pulled)):
                window.add(list(zip(tasks, map(len, pulled), strict=True)))
                continue
            for chunk in pulled:
                window.add([(submit(chunk), len(chunk))])
    except BaseException as raised:  # noqa: BLE001  the input's, or NotPicklable: for the consumer
        error = raised
    window.end(error)
