"""What `apply` waits for: a task that a worker answers to its caller, past the supervisor."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from mpkit import _outcome
from mpkit._pool import wire
from mpkit._pool.task import Task, is_ctrl_c

if TYPE_CHECKING:
    from collections.abc import Callable

R = TypeVar("R")


class Asked(Task[R]):
    """A task of which nobody knows but a caller who waits for it, and the pool."""

    #: Waits for the answer, if it was sent to a worker by the caller: see `shortcut`.
    answer: Callable[[], wire.Done | None] | None = None

    def claim(self) -> bool:
        """Tell whether the result is to be unpacked by the one who asks this: by the first.

        (The caller and the supervisor may both see it. To unpickle it is user code.)
        """
        # One step, between which and the next no other thread runs.
        return self.__dict__.setdefault("_claimed", token := object()) is token

    def result(self, timeout: float | None = None) -> R:
        """Return what the call returned, blocking until it has. As `Task.result`, without a timeout."""
        answer, self.answer = self.answer, None
        control = self._control
        if answer is not None and control is not None:
            control.check_waiter(self)
            done = answer()
            if done is not None:
                self._pool = None  # the supervisor may sleep until the pool is garbage
                return self._unpacked(done)
        return super().result(timeout)

    def _unpacked(self, done: wire.Done) -> R:
        try:
            result: R = _outcome.unpack_result(lambda: self.name, done.data, [], wire.DONE_SIZE)
        except Exception:
            raise
        except BaseException as error:
            if is_ctrl_c(error):
                raise
            # As from the supervisor: the exit that user code asks for is not the caller's.
            raise _outcome.Raised.of(self.name, error).error() from None
        return result
