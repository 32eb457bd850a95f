"""An asynchronous iterable as the input of an imap, whose items the running loop pulls.

For a feeder, which is a thread; or, where nobody but the consumer pulls (``workers=0``), for
who waits for them in the loop himself. Who waits there and lets the loop do nothing is told so.
"""

from __future__ import annotations

import contextlib
from collections import deque
from typing import TYPE_CHECKING, Any, Final, Generic, Self, TypeVar

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterable

T = TypeVar("T")

_END: Final = object()


class Awaited(Generic[T]):
    """An iterator for another thread, or over what was pulled `ahead` of it.

    What the input raises, it raises. If the loop ends, it raises what that makes of what is awaited.
    """

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

    async def _one(self) -> None:
        """As `ahead`, for another thread: in the task that this is, as one more takes its time."""
        import asyncio  # noqa: PLC0415

        if self._coming is None and not self._ready and not self._ended:
            self._coming = asyncio.current_task()
            await self._pull()
        else:
            await self.ahead(1)

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

    def check_reader(self) -> None:
        """Raise RuntimeError in the thread of the loop, which cannot pull while that waits."""
        import asyncio  # noqa: PLC0415

        here: asyncio.AbstractEventLoop | None = None
        with contextlib.suppress(RuntimeError):
            here = asyncio.get_running_loop()
        if here is self._loop:
            raise RuntimeError(
                "the loop that runs here is to pull the input, and cannot while it waits for "
                "that: take the results by `async for`, before the pool is closed"
            )

    def _wait(self) -> None:
        """Have the loop pull an item, in another thread than the loop's."""
        import asyncio  # noqa: PLC0415

        self.check_reader()
        coming = self._one()
        try:
            asyncio.run_coroutine_threadsafe(coming, self._loop).result()
        except RuntimeError:
            coming.close()
            raise
