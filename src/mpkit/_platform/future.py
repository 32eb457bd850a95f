"""A `concurrent.futures.Future` whose locks and lists are made for those who ask for them.

Most futures of a pool are asked for nothing before they are done. A condition with its
lock, its queue and its bound methods takes ten times the memory of all else in a future,
and the collector of garbage has to look at each part of it, time and again.
"""

from __future__ import annotations

import os
import threading
from concurrent.futures import CancelledError, Future
from typing import TYPE_CHECKING, Any, TypeVar

from mpkit._platform.stdlib import Condition

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

R = TypeVar("R")
F = TypeVar("F", bound="LightFuture[Any]")

PENDING, RUNNING, FINISHED = "PENDING", "RUNNING", "FINISHED"
_CANCELLED, _NOTIFIED = "CANCELLED", "CANCELLED_AND_NOTIFIED"

#: Held while the state of a future changes that has no condition yet, and while one gets its
#: condition: so whoever waits, in that condition, either sees the change or is seen by it.
#: Nobody who holds it waits for anything.
lock = threading.RLock()


def _renew_lock() -> None:
    global lock
    lock = threading.RLock()


# Some thread of the parent may have held it, which is not in the child to let go.
os.register_at_fork(after_in_child=_renew_lock)


class LightFuture(Future[R]):
    """A Future. What differs is when its parts are made, and that states are read unlocked."""

    # What `Future.__init__` gives to each, here for all that have no other. So there is nothing
    # to be made, and who makes many need not call that of this class.
    _state: str = PENDING
    _result: Any = None
    _exception: BaseException | None = None
    _made_condition: threading.Condition | None = None
    _made_waiters: list[Any] | None = None
    _made_callbacks: list[Any] | None = None

    def __init__(self) -> None:
        """Have nothing yet."""

    @property
    def _condition(self) -> threading.Condition:  # type: ignore[override]
        condition = self._made_condition
        if condition is None:
            with lock:
                condition = self._made_condition
                if condition is None:
                    condition = self._made_condition = Condition()
        return condition

    # These two are used by who has the condition, or the lock while there is none.

    @property
    def _waiters(self) -> list[Any]:  # type: ignore[override]
        if self._made_waiters is None:
            self._made_waiters = []
        return self._made_waiters

    @property
    def _done_callbacks(self) -> list[Any]:
        if self._made_callbacks is None:
            self._made_callbacks = []
        return self._made_callbacks

    def cancelled(self) -> bool:
        """Tell whether it was cancelled."""
        return self._state in (_CANCELLED, _NOTIFIED)

    def running(self) -> bool:
        """Tell whether it runs, and cannot be cancelled."""
        return self._state == RUNNING

    def done(self) -> bool:
        """Tell whether it has ended, or was cancelled."""
        return self._state in (_CANCELLED, _NOTIFIED, FINISHED)

    def result(self, timeout: float | None = None) -> R:
        """Return what the call returned, blocking until it has."""
        if self._state == FINISHED and self._exception is None:
            result: R = self._result
            return result
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return what the call raised, or None, blocking until it is over."""
        if self._state == FINISHED:
            return self._exception
        return super().exception(timeout)

    def outcome(self) -> tuple[R, BaseException | None] | None:
        """Not for users: return the result and the exception, or None if it has not ended."""
        if self._state == FINISHED:
            return self._result, self._exception
        return (self._result, CancelledError()) if self.done() else None

    def set_running_or_notify_cancel(self) -> bool:
        """Not for users: have it run; False if it was cancelled, and those who wait know that."""
        with lock:
            alone = self._made_condition is None and self._state == PENDING
            if alone:
                self._state = RUNNING
        return alone or super().set_running_or_notify_cancel()

    @staticmethod
    def start_all(futures: Iterable[F]) -> list[F]:
        """Not for users: have all of these run; return those that were cancelled, as above."""
        others: list[F] = []
        with lock:
            for future in futures:
                if future._made_condition is None and future._state == PENDING:
                    future._state = RUNNING
                else:
                    others.append(future)
        return [future for future in others if not future.set_running_or_notify_cancel()]

    def wait_again(self) -> None:
        """Not for users: it runs no more. A Future knows no way back."""
        if not self._changes(RUNNING, PENDING):
            with self._condition:
                if self._state == RUNNING:
                    self._state = PENDING

    def set_result(self, result: R) -> None:
        """Not for users: the pool sets results."""
        with lock:  # as `_changes`, for one call less
            alone = self._made_condition is None and self._state == RUNNING
            if alone:
                if result is not None:  # else it has what all have
                    self._result = result
                self._state = FINISHED
        if not alone:
            super().set_result(result)
        elif self._made_callbacks:
            self._call_back()

    def set_exception(self, exception: BaseException | None) -> None:
        """Not for users: the pool sets exceptions."""
        if not self._changes(RUNNING, FINISHED, exception):
            super().set_exception(exception)
        elif self._made_callbacks:
            self._call_back()

    def add_done_callback(self, fn: Callable[[Future[R]], object]) -> None:
        """Have ``fn`` called with this future when it is done, or at once if it is."""
        with lock:
            pending = self._made_condition is None and self._state in (PENDING, RUNNING)
            if pending:
                self._done_callbacks.append(fn)
        if not pending:
            super().add_done_callback(fn)

    def _call_back(self) -> None:
        invoke: Any = getattr(self, "_invoke_callbacks")  # noqa: B009  typeshed knows nothing of it
        invoke()

    def _changes(self, old: str, new: str, exception: BaseException | None = None) -> bool:
        """Change the state from ``old``, if there is no condition by which to tell anybody."""
        with lock:
            if self._made_condition is not None or self._state != old:
                return False
            if exception is not None:
                self._exception = exception
            self._state = new
            return True
