"""`Messages`: the end of a channel as an iterator, and as a context manager."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Generic, Self

from mpkit._errors import EndOfChannel

if sys.version_info >= (3, 13):  # where it knows defaults
    from typing import TypeVar
else:
    from typing_extensions import TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

RecvT = TypeVar("RecvT", covariant=True, default=Any)


class Messages(Generic[RecvT]):
    """What follows from receiving and closing, whatever a channel goes over."""

    def recv(self, timeout: float | None = None) -> RecvT:
        """Return the next message; raise `EndOfChannel`, or what is one, if none comes."""
        raise NotImplementedError

    async def recv_async(self, timeout: float | None = None) -> RecvT:
        """As `recv`, for asyncio."""
        raise NotImplementedError

    def close(self) -> None:
        """Close this end."""
        raise NotImplementedError

    def _check(self) -> None:
        """Raise ChannelClosed if this end was closed or moved."""
        raise NotImplementedError

    def _was_closed(self) -> bool:
        """Tell whether the other end said goodbye: unpickling may raise what it likes."""
        raise NotImplementedError

    def __iter__(self) -> Iterator[RecvT]:
        """Receive until the other end is closed; `PeerDied` comes out of the loop."""
        while True:
            try:
                message = self.recv()
            except EndOfChannel:
                if self._was_closed():
                    return
                raise
            yield message

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> RecvT:
        try:
            return await self.recv_async()
        except StopAsyncIteration as error:  # by unpickling: it is not the end of the loop
            raise RuntimeError("a message's unpickling raised StopAsyncIteration") from error
        except EndOfChannel:
            if self._was_closed():
                raise StopAsyncIteration from None
            raise

    def __enter__(self) -> Self:
        """Return this end, to be closed by the block. Raises ChannelClosed if it is closed or moved."""
        self._check()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
