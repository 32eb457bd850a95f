"""An asynchronous iterable as the input of an imap, whose feeder is a thread."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Iterator

T = TypeVar("T")

_END: Final = object()


def pulled(items: AsyncIterable[T]) -> Iterator[T]:
    """Return an iterator for another thread, whose items the running loop pulls one by one.

    What the input raises, it raises. If the loop ends, it raises what that makes of what is awaited.
    """
    loop = asyncio.get_running_loop()  # here, and not in that thread
    return _pulled(aiter(items), loop)


def _pulled(items: AsyncIterator[T], loop: asyncio.AbstractEventLoop) -> Iterator[T]:
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
