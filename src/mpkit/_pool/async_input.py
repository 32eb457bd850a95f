"""An asynchronous iterable as the input of an imap, whose items the running loop pulls.

For a feeder, which is a thread; or, where nobody but the consumer pulls (``workers=0``), for
who waits for them in the loop himself.
"""

from __future__ import annotations

import contextlib
from collections import deque
from typing import TYPE_CHECKING, Any, Final, Generic, Self, TypeVar, cast

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterable, AsyncIterator, Iterator

T = TypeVar("T")

_END: Final = object()


def pulled(items: AsyncIterable[T]) -> Iterator[T]:
    """Return an iterator for another thread, whose items the running loop pulls one by one.

    What the input raises, it raises. If the loop ends, it raises what that makes of what is awaited.
    """
    import asyncio  # noqa: PLC0415  slow to import, and who has a loop has it

    loop = asyncio.get_running_loop()  # here, and not in that thread
    return _pulled(aiter(items), loop)


def _pulled(items: AsyncIterator[T], loop: asyncio.AbstractEventLoop) -> Iterator[T]:
    import asyncio  # noqa: PLC0415

    async def pull() -> object:
        return await anext(items, _END)

    while True:
        coming = pull()
        try:
            item = asyncio.run_coroutine_threadsafe(coming, loop).result()
        except RuntimeError:
            coming.close()  # if the loop was closed before, nobody will ever await it
            raise
        if item is _END:
            return
        yield cast("T", item)


class Awaited(Generic[T]):
    """An iterator over what was pulled `ahead` of it, by who is about to ask for that."""

    def __init__(self, items: AsyncIterable[T]) -> None:
        import asyncio  # noqa: PLC0415

        self._loop = asyncio.get_running_loop()
        self._items = aiter(items)
        self._ready: deque[T] = deque()
        #: Pulls the next item, whoever waits for it: he may be cancelled, and it is not.
        self._coming: asyncio.Task[None] | None = None
        self._ended = False
        self._error: BaseException | None = None

    async def ahead(self, count: int) -> None:
        """Pull so many items, if there are so many. What the input raises is raised behind them."""
        import asyncio  # noqa: PLC0415

        while len(self._ready) < count and not self._ended:
            if self._coming is None:
                self._coming = self._loop.create_task(self._pull())
            await asyncio.wait([self._coming])

    async def _pull(self) -> None:
        try:
            item: Any = await anext(self._items, _END)
        except Exception as error:  # noqa: BLE001  the input's, for the consumer
            self._ended, self._error = True, error
        except BaseException as error:  # the loop ends
            self._ended, self._error = True, error
            raise
        else:
            if item is _END:
                self._ended = True
            else:
                self._ready.append(item)
        finally:
            self._coming = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        if not self._ready and not self._ended:
            self._wait()
        if self._ready:
            return self._ready.popleft()
        error, self._error = self._error, None
        raise StopIteration if error is None else error

    def _wait(self) -> None:
        """Have the loop pull an item, in another thread than the loop's."""
        import asyncio  # noqa: PLC0415

        here: asyncio.AbstractEventLoop | None = None
        with contextlib.suppress(RuntimeError):
            here = asyncio.get_running_loop()
        if here is self._loop:
            raise RuntimeError(
                "the loop that runs here is to pull the input, and cannot while it waits for "
                "that: take the results by `async for`, before the pool is closed"
            )
        coming = self.ahead(1)
        try:
            asyncio.run_coroutine_threadsafe(coming, self._loop).result()
        except RuntimeError:
            coming.close()
            raise
