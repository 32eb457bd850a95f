"""A map as a whole: its chunks, in slices where items take long, and the list of its results.

A worker that has a chunk goes on with it for `slices.SLICE_SECONDS`. Short items are all done
by then, and cost no more than in any other chunk. Of those that take longer, it is known then
how long; and what is left of all chunks is cut into slices, the longest items first, and each
slice shorter than those before it. So no worker has nothing to do while another one has many
items before it, and what takes longest does not begin last.
"""

from __future__ import annotations

import functools
import heapq
import itertools
import math
import threading
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from mpkit._errors import PoolClosed
from mpkit._worker.slices import SLICE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mpkit._engine.backend import Backend
    from mpkit._pool.progress import Meter
    from mpkit._task.task import Task
    from mpkit._worker.packing import Chunk

R = TypeVar("R")

#: A slice is this part of one worker's share of what is left, as far as that is known. (With 1
#: slices are too long, and more than 4 make more of them for nothing: `benchmarks.maps`.)
PARTS = 4

#: Where something fails that is not an item: to be told of first.
_BEFORE_ALL = -1, -1


class Slice:
    """Items of a chunk, from ``start`` up to ``stop``, and how long to go on with them."""

    def __init__(self, chunk: int, start: int, stop: int, seconds: float, packed: Chunk | None):
        self.chunk = chunk
        self.start = start
        self.stop = stop
        self.seconds = seconds
        #: The chunk, pickled, once it is; None for one that is not to be sliced.
        self.packed = packed

    @property
    def place(self) -> tuple[int, int]:
        """Where it is among all items."""
        return self.chunk, self.start


class _Rest(NamedTuple):
    """What is left of a chunk; those with the longest items come first."""

    #: Seconds that an item takes, negative.
    negative: float
    chunk: int
    start: int
    stop: int
    packed: Chunk | None

    @property
    def place(self) -> tuple[int, int]:
        return self.chunk, self.start

    @property
    def seconds(self) -> float:
        return -self.negative * (self.stop - self.start)


def _cancel(task: Task[Any]) -> bool:
    return task.cancel()


def _kill(task: Task[Any]) -> bool:
    return task.kill()


def _flushed() -> None:
    """Nothing is held back."""


class Gather(Generic[R]):
    """Makes one list of the results of a map's slices, in their order. Any thread may use it.

    Args:
        backend: what it runs on.
        submit: has a slice run. The results are those for which there was time, and the
            seconds that one took.
        sizes: how many items each chunk has.
        meter: is told of progress.
        longest: seconds of a slice at most.
        flush: is called when all chunks are submitted, of which some may be held back.

    """

    whole: Task[list[R]]

    def __init__(
        self,
        backend: Backend,
        submit: Callable[[Slice], Task[tuple[list[R], float]]],
        sizes: Sequence[int],
        meter: Meter,
        longest: float = math.inf,
        flush: Callable[[], None] = _flushed,
    ) -> None:
        self._backend = backend
        self._submit = submit
        self._meter = meter
        self._longest = longest
        self._flush = flush
        # Re-entrant: a signal handler may cancel a map.
        self._lock = threading.RLock()
        chunks = [Slice(number, 0, size, SLICE_SECONDS, None) for number, size in enumerate(sizes)]
        #: What is submitted, or about to be, and has not ended.
        self._running: dict[Slice, Task[tuple[list[R], float]] | None] = dict.fromkeys(chunks)
        self._rests: list[_Rest] = []
        self._rests_seconds = 0.0
        #: Where each chunk begins among all items, and how many there are.
        *self._firsts, self._count = itertools.accumulate(sizes, initial=0)
        #: The results, each where it belongs; made when there is time for that.
        self._values: list[Any] = []
        #: Where the first items are that failed, and how.
        self._failed: tuple[tuple[int, int], BaseException] | None = None
        #: How to end what runs, if nothing more is to begin.
        self._end: Callable[[Task[Any]], bool] | None = None
        self._over = False

    def begin(self) -> None:
        """Submit all chunks. The callbacks of the whole are known."""
        self.whole.set_running_or_notify_cancel()
        try:
            self._backend.feeds.enter(self)
            for chunk in list(self._running):
                self._begin(chunk)
            self._flush()
            with self._lock:  # while the workers begin
                self._make_room()
            self._go_on()
        except BaseException:  # the caller gets that, and nobody the whole
            self.whole.call_back(None, None)
            self._give_up(_cancel, with_those_to_come=True)
            self._hear_again()  # it may have been a Ctrl-C, or all have ended before
            raise

    def _begin(self, part: Slice) -> None:
        task = self._submit(part)
        with self._lock:
            self._running[part] = task
            end = self._end
        if end is not None:
            end(task)
        if task.done():  # as where tasks run in here: and then who calls us goes on by himself
            self._take(part, task)
        else:
            task.add_done_callback(functools.partial(self._ended, part))

    def _ended(self, part: Slice, task: Any) -> None:
        """A task has ended. It may say so twice, after a Ctrl-C: see `_hear_again`."""
        if self._take(part, task):
            self._go_on()

    def _take(self, part: Slice, task: Any) -> bool:
        """Take the results of a task that has ended; False if that was done before."""
        if part not in self._running:
            return False
        values: list[R] = []
        seconds, (result, error) = 0.0, task.outcome()
        if error is None:
            values, seconds = result
        try:
            if error is None:
                self._meter.advance(len(values))
            elif not task.cancelled():
                self._meter.advance(part.stop - part.start)  # they are done with
        finally:  # it may be interrupted, and have the next one who asks, too
            took = self._took(part, task, values, seconds, error)
        return took

    def _took(
        self,
        part: Slice,
        task: Task[Any],
        values: list[R],
        seconds: float,
        error: BaseException | None,
    ) -> bool:
        with self._lock:
            if part not in self._running:
                return False
            if task.written:
                self.whole.wrote(task.written)
            start = part.start + len(values)
            if error is not None:
                self._note_failure(part.place, error)
            else:
                self._make_room()
                first = self._firsts[part.chunk]
                self._values[first + part.start : first + start] = values
                if start < part.stop:
                    self._leave(_Rest(-seconds, part.chunk, start, part.stop, part.packed))
            # Last: a part that was interrupted is not over, or it would be missing in the list.
            del self._running[part]
        return True

    def _make_room(self) -> None:
        """Have a place for each result. Holds the lock."""
        if not self._values:
            self._values = [None] * self._count

    def _hear_again(self) -> None:
        """A Ctrl-C may have come while a part was about to tell us of its end: have it tell."""
        for part, task in list(self._running.items()):
            if task is not None:
                task.add_done_callback(functools.partial(self._ended, part))
        self._go_on()
        if self._over:  # and this may have been about to happen
            self._backend.feeds.leave(self)

    def _go_on(self) -> None:
        """Begin with slices while there are too few; or end, if there are none."""
        while True:
            with self._lock:
                part = self._next_slice()
                if part is None:
                    over = not self._running and not self._over
                    self._over |= over
                    break
            try:
                self._begin(part)
            except PoolClosed:  # it was terminated, which cancels what waits
                self._cannot_begin(part, CancelledError())
            except BaseException as error:  # noqa: BLE001  to be raised by the whole
                self._cannot_begin(part, error, place=_BEFORE_ALL)
                self._give_up(_cancel)
        if over:
            self._finish()

    def _next_slice(self) -> Slice | None:
        """Return what to begin with, if no more slices run than there are workers. Holds the lock."""
        if not self._rests or len(self._running) >= self._backend.workers:
            return None
        rest = heapq.heappop(self._rests)
        share = self._rests_seconds / (PARTS * self._backend.workers)
        seconds = min(max(share, SLICE_SECONDS), self._longest)
        self._rests_seconds -= rest.seconds
        items = int(seconds / max(-rest.negative, 1e-9))
        stop = min(rest.start + max(1, items), rest.stop)
        if stop < rest.stop:
            self._leave(rest._replace(start=stop))
        part = Slice(rest.chunk, rest.start, stop, seconds, rest.packed)
        self._running[part] = None
        return part

    def _leave(self, rest: _Rest) -> None:
        """Leave something for later. Holds the lock."""
        if self._end is not None:
            self._note_failure(rest.place, CancelledError())
        else:
            heapq.heappush(self._rests, rest)
            self._rests_seconds += rest.seconds

    def _note_failure(self, place: tuple[int, int], error: BaseException) -> None:
        """Note what the whole will raise, if nothing before it fails. Holds the lock."""
        if self._failed is None or place < self._failed[0]:
            self._failed = place, error

    def _cannot_begin(
        self, part: Slice, error: BaseException, place: tuple[int, int] | None = None
    ) -> None:
        with self._lock:
            self._running.pop(part, None)
            self._note_failure(place or part.place, error)

    def _finish(self) -> None:
        try:
            self._meter.close()
            if self._failed is not None:
                self.whole.set_exception(self._failed[1])
                return
            self.whole.set_result(self._values)
        except BaseException:  # of a Ctrl-C: then who catches that has it done again
            self._over = self.whole.done()
            raise
        finally:
            self._backend.feeds.leave(self)

    def _give_up(
        self, end: Callable[[Task[Any]], bool], *, with_those_to_come: bool = False
    ) -> bool:
        """Begin with nothing any more, and ``end`` what runs; tell whether any of that was."""
        try:
            with self._lock:
                self._end = end
                for rest in self._rests:
                    self._note_failure(rest.place, CancelledError())
                self._rests.clear()
                if with_those_to_come:
                    for part in [part for part, task in self._running.items() if task is None]:
                        self._cannot_begin(part, CancelledError())
                running = [task for task in self._running.values() if task is not None]
            ended = [end(task) for task in running]  # all, in any case
        except BaseException:
            self._hear_again()
            raise
        return any(ended)

    # as the control of the whole

    def recall(self, task: Task[Any]) -> bool:
        """Cancel the parts that have not begun. The whole ends with the others, and not before."""
        self._give_up(_cancel)
        return False

    def cancelled(self, task: Task[Any]) -> None:
        """The whole never is: it runs from the start."""

    def kill(self, task: Task[Any]) -> bool:
        """End all parts."""
        return self._give_up(_kill)

    def check_waiter(self, task: Task[Any]) -> None:
        """Whoever cannot wait for the parts cannot wait for the whole."""
        self._backend.check_waiter(task)

    # as one of the feeds of the pool

    def lift(self) -> None:
        """All of it will be run, whether the pool is closed or not."""

    def halt(self) -> None:
        """Likewise: the pool refuses what is left, if it is terminated."""
