"""`Results`: what ``imap`` returns, an iterator over results as they come."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections import deque
from typing import TYPE_CHECKING, Any, Final, Generic, Self, TypeVar

from mpkit._pickling import Stays
from mpkit._pool.window import Window, feed
from mpkit._wait import Deadline
from mpkit._worker import chunks

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable
    from types import TracebackType

    from mpkit._engine.feeds import Feeds
    from mpkit._pool.lookahead import Lookahead
    from mpkit._pool.progress import Meter
    from mpkit._task.task import Task

R = TypeVar("R")

#: What has all its items: to pull one does not block, raises nothing and runs no code of the user's.
_THERE: Final = (list, tuple, range)


class Results(Stays, Generic[R]):
    """The results of a `TaskPool.imap`, in order or as they come; also for ``async for``.

    The input is pulled by a thread of its own, and never further ahead than a bound
    (32 chunks for each worker; up to 512, if half of that is consumed in 5 ms): it may be slow
    or endless. An item that raised raises when its turn comes, and the iteration may go on behind
    it; so does each item of a chunk whose worker died. `close`, the end of a ``with`` block, or
    dropping the iterator, cancels what has not begun.

    Example:
        >>> import itertools, mpkit
        >>> with mpkit.TaskPool(2) as pool, pool.imap(abs, itertools.count(-3)) as results:
        ...     for result in results:
        ...         if result == 0:
        ...             break

    """

    #: Of an asynchronous input: raises in the thread that has to pull it.
    _check_reader: Callable[[], None] | None = None

    def __init__(
        self,
        submit: Callable[[list[Any]], Task[Any]],
        submit_all: Callable[[list[list[Any]]], list[Task[Any]]] | None,
        feeds: Feeds,
        items: Iterable[Any],
        chunksize: int,
        later: Callable[[Callable[[], None]], None],
        ahead: Lookahead,
        meter: Meter,
        *,
        ordered: bool,
    ) -> None:
        """Not for users: pools make them."""
        self._window = Window(ahead, meter, later, feeds, ordered=ordered)
        self._values: deque[tuple[bool, Any]] = deque()
        self._submit = submit  # keeps the pool alive as long as its results are wanted
        chunked = chunks.split(items, chunksize)
        args = self._window, submit, submit_all if type(items) in _THERE else None, chunked
        try:
            threading.Thread(target=feed, args=args, name="mpkit imap", daemon=True).start()
        except BaseException:  # there is no room for a thread, or it was Ctrl-C
            self._window.stop()
            raise

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> R:
        try:  # as `next`, for a call less
            returned, value = self._values.popleft()
        except IndexError:
            pass  # and not in here, as this would be the context of what that raises
        else:
            if not returned:
                raise value.error()
            result: R = value
            return result
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
            with contextlib.suppress(IndexError):
                returned, value = self._values.popleft()
                break
            # Not where that is handled: it would be the context of what is raised here.
            self._take(None if deadline is None else deadline.left())
        if not returned:
            raise value.error()
        result: R = value
        return result

    def _take(self, timeout: float | None) -> None:
        """Move some results to where `next` finds them, or raise StopIteration."""
        if self._check_reader is not None:
            self._check_reader()
        self._window.take(self._values, timeout)

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

    async def aclose(self) -> None:
        """As `close`, which does not wait: for `contextlib.aclosing`."""
        self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

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
