"""`Task`: a call that was given to a pool, and its result to come."""

from __future__ import annotations

import contextlib
import itertools
import sys
from concurrent.futures import CancelledError, Future
from typing import TYPE_CHECKING, Any, TypeVar

from mpkit._errors import ResultTimeout

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from mpkit._pool.options import Options

R = TypeVar("R")

_numbers = itertools.count(1)


class Task(Future[R]):
    """The result to come of a call in a pool.

    It is a `concurrent.futures.Future` (``result``, ``exception``, ``cancel``, ``done``,
    ``add_done_callback``), it has what `multiprocessing.pool.AsyncResult` has (``get``,
    ``wait``, ``ready``, ``successful``), and it can be awaited.

    ``cancel`` works until the task is sent to a worker. When an asyncio task that awaits
    this one is cancelled, this one is cancelled likewise. The exception of a call that
    raised has the worker's traceback as its last cause; if the worker died it is
    `WorkerDied`, after too long a run it is `TaskTimeout`.

    Example:
        >>> import mpkit
        >>> with mpkit.TaskPool(1) as pool:
        ...     task = pool.submit(pow, 2, 10)
        ...     task.get(timeout=30)
        1024
        >>> task.successful()
        True

    """

    def __init__(self, what: str, options: Options, pool: object = None) -> None:
        """Not for users: pools make tasks."""
        super().__init__()
        # While the task is pending its pool must not become garbage, as that ends it.
        self._pool = pool
        self.number: int = next(_numbers)
        self.options = options
        self._what = what
        self._callbacks: tuple[Callable[[R], object] | None, Callable[[Any], object] | None]
        self._callbacks = None, None

    def call_back(
        self,
        callback: Callable[[R], object] | None,
        error_callback: Callable[[Any], object] | None,
    ) -> None:
        """Have one of these called with the result, just before whoever waits is woken.

        To be used before the task is submitted. As in `multiprocessing.Pool`, so that
        what the callback did is seen by those that waited; but one that raises is
        reported, and does no harm.
        """
        self._callbacks = callback, error_callback

    def set_result(self, result: R) -> None:
        """Not for users: the pool sets results."""
        callback, _ = self._callbacks
        if callback is not None:
            self._run_callback(callback, result)
        self._pool = None
        super().set_result(result)

    def set_exception(self, exception: BaseException | None) -> None:
        """Not for users: the pool sets exceptions."""
        _, callback = self._callbacks
        if callback is not None:
            self._run_callback(callback, exception)
        self._pool = None
        super().set_exception(exception)

    def cancel(self) -> bool:
        """Cancel the task if it was not sent to a worker yet; tell whether it is cancelled."""
        cancelled = super().cancel()
        if cancelled:
            self._pool = None
        return cancelled

    def _run_callback(self, callback: Callable[[Any], object], argument: object) -> None:
        try:
            callback(argument)
        except BaseException as error:  # noqa: BLE001  the user's, and not the pool's affair
            report_callback(self.name, error)

    def __repr__(self) -> str:
        return f"<{self.name}: {self._state.lower().replace('_', ' ')}>"

    @property
    def name(self) -> str:
        """What errors call the task, by its number and its function or given name."""
        return f"task {self.number} ({self.options.name or self._what})"

    def result(self, timeout: float | None = None) -> R:
        """Return what the call returned, blocking until it has.

        Args:
            timeout: seconds to wait; None waits for ever.

        Raises:
            ResultTimeout: it was not there in time. The task goes on.
            CancelledError: the task was cancelled.
            Exception: what the call raised, or what became of its worker.

        """
        try:
            return super().result(timeout)
        except TimeoutError:
            if self.done():  # then it is the call's own, or it came just now
                return super().result()
        raise ResultTimeout(self.name, timeout or 0.0)

    def get(self, timeout: float | None = None) -> R:
        """As `result`; the name that `multiprocessing.pool.AsyncResult` has for it."""
        return self.result(timeout)

    def wait(self, timeout: float | None = None) -> None:
        """Block until the task is done, or ``timeout`` seconds have passed."""
        with contextlib.suppress(CancelledError, TimeoutError):
            self.exception(timeout)

    def ready(self) -> bool:
        """Tell whether the task is done."""
        return self.done()

    def successful(self) -> bool:
        """Tell whether the call returned. Raises ValueError if the task is not done."""
        if not self.done():
            raise ValueError(f"{self.name} is not done")
        return not self.cancelled() and self.exception() is None

    def __await__(self) -> Generator[Any, None, R]:
        import asyncio  # noqa: PLC0415  who awaits has it; nobody else should pay for it

        return asyncio.wrap_future(self).__await__()


def report_callback(what: str, error: BaseException) -> None:
    """Tell the program, as for an uncaught exception, that a callback raised."""
    error.add_note(f"(raised by a callback of {what}; the pool goes on)")
    sys.excepthook(type(error), error, error.__traceback__)
