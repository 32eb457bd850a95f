"""What `mpkit` and `mpkit.dask` have in common, for type checkers: write a program once, for both.

A module that has all that a protocol asks for is one (PEP 544), so either of the two can be given
to a function that takes a `Mpkit`. What is in here has no behaviour, and what is not in here
exists on one of the two sides only, or means something else there.

Example:
    >>> import mpkit
    >>> from mpkit.protocols import Mpkit
    >>> def powers(mp: Mpkit, most: int) -> list[int]:
    ...     with mp.TaskPool() as pool:
    ...         return pool.map(abs, range(-most, 0))
    >>> powers(mpkit, 3)  # and on a cluster: powers(mpkit.dask, 3)
    [3, 2, 1]

"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, Self, TypeVar

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Generator, Iterator
    from types import TracebackType

    import mpkit

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")
R_co = TypeVar("R_co", covariant=True)
SendT = TypeVar("SendT", contravariant=True)
RecvT = TypeVar("RecvT", covariant=True)

__all__ = ["Channel", "Job", "Mpkit", "Semaphore", "SemaphoreClass", "Signal", "SignalClass"]


class Channel(Protocol[SendT, RecvT]):
    """One end of a channel: `mpkit.Channel` or `mpkit.dask.Channel`."""

    def send(self, message: SendT, timeout: float | None = None) -> None:
        """Send one message."""
        ...

    def recv(self, timeout: float | None = None) -> RecvT:
        """Return the next message."""
        ...

    def request(self, message: SendT, timeout: float | None = None) -> RecvT:
        """Send ``message`` and return the reply to it."""
        ...

    def poll(self, timeout: float | None = 0.0) -> bool:
        """Tell whether `recv` would return, or raise the end, without blocking."""
        ...

    def __iter__(self) -> Iterator[RecvT]: ...

    async def send_async(self, message: SendT, timeout: float | None = None) -> None:
        """As `send`, for asyncio."""
        ...

    async def recv_async(self, timeout: float | None = None) -> RecvT:
        """As `recv`, for asyncio."""
        ...

    async def request_async(self, message: SendT, timeout: float | None = None) -> RecvT:
        """As `request`, for asyncio."""
        ...

    def __aiter__(self) -> AsyncIterator[RecvT]: ...

    def close_send(self) -> None:
        """Say that no more comes from here, and go on receiving."""
        ...

    def close(self) -> None:
        """Say goodbye and close this end."""
        ...

    @property
    def closed(self) -> bool:
        """Whether this end was closed or moved away."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


class Job(Protocol[R_co]):
    """A call that runs elsewhere: `mpkit.Job` or `mpkit.dask.Job`."""

    def is_alive(self) -> bool:
        """Tell whether it has not ended."""
        ...

    def result(self, timeout: float | None = None) -> R_co:
        """Return what the call returned, blocking until it has."""
        ...

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return what `result` would raise, or None if it would return."""
        ...

    def join(self, timeout: float | None = None) -> bool:
        """Wait until it has ended, at most ``timeout`` seconds; tell if it has."""
        ...

    def __await__(self) -> Generator[Any, None, R_co]: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


class Semaphore(Protocol):
    """Slots that many processes share: `mpkit.Semaphore` or `mpkit.dask.Semaphore`."""

    @property
    def slots(self) -> int:
        """How many there are."""
        ...

    @property
    def available(self) -> int:
        """How many are free at the moment."""
        ...

    def acquire(self, block: bool = True, timeout: float | None = None) -> bool:
        """Take a slot; tell whether there was one."""
        ...

    async def acquire_async(self, timeout: float | None = None) -> bool:
        """As `acquire`, for asyncio."""
        ...

    def release(self) -> None:
        """Give a slot back."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """Return ``function``, each call of which holds a slot."""
        ...


class Signal(Protocol):
    """A flag that many processes share: `mpkit.Signal` or `mpkit.dask.Signal`."""

    def set(self) -> None:
        """Set it, and wake who waits for it."""
        ...

    def clear(self) -> None:
        """Clear it."""
        ...

    def is_set(self) -> bool:
        """Tell whether it is set."""
        ...

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is set; tell whether it is."""
        ...

    def __await__(self) -> Generator[Any, None, bool]: ...


class SemaphoreClass(Protocol):
    """The class of semaphores."""

    def __call__(self, slots: int, *, name: str | None = None) -> Semaphore:
        """Return one."""
        ...


class SignalClass(Protocol):
    """The class of signals."""

    def __call__(self, *, name: str | None = None) -> Signal:
        """Return one."""
        ...


class Mpkit(Protocol):
    """The module ``mpkit`` or the module ``mpkit.dask``."""

    def limit(
        self, slots: int, *, name: str | None = None, timeout: float | None = None
    ) -> Semaphore:
        """Let at most ``slots`` run a block or a function at once."""
        ...

    @property
    def Semaphore(self) -> SemaphoreClass:
        """The class of semaphores."""
        ...

    @property
    def Signal(self) -> SignalClass:
        """The class of signals."""
        ...

    @property
    def TaskPool(self) -> type[mpkit.TaskPool]:
        """The class of pools."""
        ...

    def channel(self, send: type[S], recv: type[R]) -> tuple[Channel[S, R], Channel[R, S]]:
        """Return both ends of a new channel, typed from the first one's point of view."""
        ...

    def start(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Job[R]:
        """Call ``fn(*args, **kwargs)`` in another process, and return its `Job`."""
        ...
