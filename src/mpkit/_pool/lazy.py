"""The results of an `imap` where nobody but its consumer is there to run it (``workers=0``).

Nothing is done ahead: who asks for a result pulls the item and runs the call, in his own
thread. So a breakpoint stops where its result is waited for, and Ctrl-C goes where it should.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any, TypeVar

from mpkit._describe import describe
from mpkit._errors import PoolClosed
from mpkit._pool.inline import as_reported, check_interruption
from mpkit._pool.results import Results
from mpkit._pool.window import Failure
from mpkit._worker import chunks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from mpkit._pool.async_input import Awaited
    from mpkit._pool.inline import Inline
    from mpkit._pool.progress import Meter
    from mpkit._task.task import Task

R = TypeVar("R")


class LazyResults(Results[R]):
    """Results that are made when they are asked for, in order."""

    def __init__(
        self,
        submit: Callable[[list[Any]], Task[list[tuple[bool, Any]]]],
        backend: Inline,
        items: Iterable[Any],
        chunksize: int,
        meter: Meter,
        awaited: Awaited[Any] | None = None,
    ) -> None:
        """Not for users: pools make them. ``awaited`` is what ``items`` come from, if they are."""
        self._values = deque()
        self._awaited = awaited
        self._chunksize = chunksize
        self._submit = submit  # keeps the pool alive as long as its results are wanted
        self._input = _Input(submit, backend, chunks.split(items, chunksize), meter)
        backend.enter(self._input)

    def _take(self, timeout: float | None) -> None:
        """Run the next call, which no ``timeout`` ends."""
        self._input.take(self._values)

    async def __anext__(self) -> R:
        import asyncio  # noqa: PLC0415  who awaits has it; nobody else should pay for it

        await asyncio.sleep(0)  # others have their turn between two results, at least
        if self._awaited is not None and not self._values:
            await self._awaited.ahead(self._chunksize)
        try:
            return self.next()
        except StopIteration:
            raise StopAsyncIteration from None

    def close(self) -> None:
        """Pull no more from the input."""
        self._input.stop()

    def __del__(self) -> None:
        source = getattr(self, "_input", None)
        if source is not None:
            source.stop()


class _Input:
    """What is left of the input. It ends with that, or when nobody wants its results."""

    def __init__(
        self,
        submit: Callable[[list[Any]], Task[list[tuple[bool, Any]]]],
        backend: Inline,
        chunked: Iterable[list[Any]],
        meter: Meter,
    ) -> None:
        self._run = submit
        self._backend = backend
        self._chunks = iter(chunked)
        self._meter = meter
        # One thread at a time runs the next; another one that asks gets the one behind it.
        self._lock = threading.RLock()
        #: What was run by `drain`.
        self._ready: deque[list[tuple[bool, Any]]] = deque()
        self._error: BaseException | None = None
        self._halted = False
        self._over = False

    def take(self, values: deque[tuple[bool, Any]]) -> None:
        """Run the next chunk, and put its results, or errors in their place, into ``values``.

        Raises StopIteration if there are no more, and what the input raised.
        """
        with self._lock:
            if values:  # by another thread
                return
            if self._ready:
                results = self._ready.popleft()
            elif self._error is not None:
                error, self._error = self._error, None
                raise error
            else:
                results = self._next()
            values += results
        self._meter.advance(len(results))

    def _next(self) -> list[tuple[bool, Any]]:
        if self._over:
            self._meter.close()
            raise StopIteration
        try:
            if self._halted:
                raise PoolClosed("the pool", "it ended before all of the input was read")
            chunk = next(self._chunks, None)
        except BaseException:  # then it has ended
            self.stop()
            raise
        if chunk is None:
            self.stop()
            raise StopIteration
        try:
            task = self._run(chunk)
        except BaseException as error:
            check_interruption(error)  # what was interrupted is done with, and the next may be run
            self.stop()
            raise
        outcome = task.outcome()
        if outcome is None:
            task.cancel()
            raise RuntimeError("a callback of a pool cannot wait for the results of an imap")
        results, failure = outcome
        return results if failure is None else [(False, Failure(failure))] * len(chunk)

    def drain(self) -> None:
        """Run all that is left, for who may ask for it when the pool has ended."""
        with self._lock:
            while not self._over:
                try:
                    self._ready.append(self._next())
                except StopIteration:
                    return
                except BaseException as error:  # noqa: BLE001  to be raised where it is read
                    check_interruption(error)
                    self._error = error

    def lift(self) -> None:
        """All of it will be run: by who asks for it, or at last by `drain`."""

    def halt(self) -> None:
        """Run no more of what may be endless."""
        self._halted = True

    def stop(self) -> None:
        """There is nothing more, or nobody wants it."""
        self._over = True
        self._meter.close()
        self._backend.leave(self)


class Here(Failure):
    """An exception of an item, which stays in this process with all that it leads to."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(error)
        _kept[id(self)] = self

    def __reduce__(self) -> tuple[Any, ...]:
        # Among results that travel, to nowhere else and at once.
        return _find, (id(self),)


_kept: weakref.WeakValueDictionary[int, Here] = weakref.WeakValueDictionary()


def _find(number: int) -> Here:
    return _kept[number]


def run_each_here(fn: Callable[[Any], Any], chunk: Sequence[Any]) -> list[tuple[bool, Any]]:
    """As `chunks.run_each`, where a Ctrl-C and the end of debugging are not the item's."""
    return [_run_one(fn, item) for item in chunk]


def _run_one(fn: Callable[[Any], Any], item: Any) -> tuple[bool, Any]:
    try:
        return True, fn(item)
    except BaseException as error:  # noqa: BLE001  to be raised where the results are read
        check_interruption(error)
        return False, Here(as_reported(describe(fn), error, skip_frames=1))
