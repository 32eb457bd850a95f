"""What `apply` waits for: a task that a worker answers to its caller, past the supervisor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from mpkit import _outcome, _pickling
from mpkit._task.task import Task, is_ctrl_c
from mpkit._worker import wire

if TYPE_CHECKING:
    from collections.abc import Callable

    from mpkit._pickling import Name

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
                result: R = unpacked(lambda: self.name, done, [])
                return result
        return super().result(timeout)


def unpacked(name: Name, done: wire.Done, fds: list[int]) -> Any:
    """Return the result in a report; raise what unpickling it raised, which is user code.

    That is an Exception, or a real Ctrl-C. The exit that user code asks for is not that of who
    asks for the result, nor of the supervisor.
    """
    try:
        return _outcome.unpack_result(name, done.data, fds, wire.DONE_SIZE)
    except Exception:
        raise
    except BaseException as error:
        if is_ctrl_c(error):
            raise
        raised = _outcome.Raised.of(_pickling.text(name), error)
    raise raised.error()  # here, or it would have that one as its context, with all its frames
