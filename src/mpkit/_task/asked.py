"""What `apply` waits for: a task that a worker answers to its caller, past the supervisor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from mpkit import _outcome, _parcel
from mpkit._task.task import Task, is_ctrl_c
from mpkit._worker import wire

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
                *_, data = done
                try:
                    result: R = _parcel.unpack(data, [], wire.DONE_SIZE)
                except BaseException as error:
                    raised = misread(self, error)
                    if raised is error:
                        raise
                else:
                    return result
                raise raised  # here, or it would have that one as its context, with all its frames
        return super().result(timeout)


def misread(task: Task[Any], error: BaseException) -> BaseException:
    """Return what is to be raised for what was raised as a result was unpickled, by user code.

    That is an Exception, or a real Ctrl-C. The exit that user code asks for is not that of who
    asks for the result, nor of the supervisor.
    """
    _outcome.note_unpacking(error, task.name)
    if isinstance(error, Exception) or is_ctrl_c(error):
        return error
    return _outcome.Raised.of(task.name, error).error()
