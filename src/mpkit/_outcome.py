"""What a call in another process came to, and how that travels back.

Used by `Job` and by the pool's workers. A result is packed as it is. An exception is
packed together with its traceback as text, and it is rebuilt once before it leaves, in
the process that raised it: one that cannot be rebuilt is replaced there by a
`RemoteError` that says why, instead of breaking whoever reads it.
"""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from mpkit import _parcel, _pickling
from mpkit._errors import NotPicklable, RemoteError, RemoteTraceback, TaskExit

if TYPE_CHECKING:
    from collections.abc import Callable

    from mpkit._parcel import Parcel

#: The first byte of an outcome's packet.
DONE: Final = b"d"
FAILED: Final = b"f"


def pack_result(what: str, fn: Callable[..., object], value: object) -> tuple[bytes, Parcel]:
    """Pack what ``fn`` returned; that it cannot be pickled is an outcome, too."""
    try:
        return DONE, _parcel.pack(value, "the result")
    except NotPicklable as error:
        named = NotPicklable(f"the result of {what} ({describe(fn)})", error.why)
        named.__cause__ = error.__cause__
        return FAILED, pack_error(what, named)
    except BaseException as error:  # noqa: BLE001  pickling is user code
        return FAILED, pack_error(what, error)


class Raised(NamedTuple):
    """An exception in parts that always travel."""

    type_name: str
    message: str
    text: str
    stream: bytes
    why: str

    @staticmethod
    def of(what: str, error: BaseException, *, skip_frames: int = 0) -> Raised:
        """Take ``error`` apart, in the process that raised it."""
        import traceback  # noqa: PLC0415  most programs never get here

        trace = error.__traceback__
        for _ in range(skip_frames):  # ours, which say nothing about the failure
            trace = trace.tb_next if trace else None
        text = "".join(traceback.format_exception(type(error), error, trace))
        try:
            stream, why = _rebuildable(_presentable(what, error)), ""
        except BaseException as failure:  # noqa: BLE001  the exception's own code ran
            stream, why = b"", f"the original could not travel: {_message(failure)}"
        return Raised(_qualified_name(error), _message(error), text, stream, why)

    def error(self) -> BaseException:
        """Return the exception, caused by its traceback in the other process."""
        error: BaseException
        try:
            error = pickle.loads(self.stream) if self.stream else self._stand_in(self.why)
        except BaseException as failure:  # noqa: BLE001  its own code ran, here this time
            error = self._stand_in(f"the original could not be rebuilt: {_message(failure)}")
        error.__cause__ = RemoteTraceback(self.text)
        return error

    def _stand_in(self, why: str) -> RemoteError:
        return RemoteError(self.type_name, self.message, self.text, why)


def pack_error(what: str, error: BaseException, *, skip_frames: int = 0) -> Parcel:
    """Pack an exception and its traceback."""
    raised = Raised.of(what, error, skip_frames=skip_frames)
    return _parcel.pack(tuple(raised), f"the failure of {what}")


def unpack_error(data: bytes, fds: list[int]) -> BaseException:
    """Return the exception of a failed call, caused by its traceback in the other process."""
    return Raised(*_parcel.unpack(data, fds)).error()


def unpack_result(what: str, data: bytes, fds: list[int]) -> Any:
    """Return what the call returned; what unpickling raises says so in a note."""
    try:
        return _parcel.unpack(data, fds)
    except BaseException as error:
        error.add_note(f"(raised here while the result of {what} was unpickled)")
        raise


def _presentable(what: str, error: BaseException) -> BaseException:
    """Return what may be raised in the waiting process in place of ``error``."""
    if isinstance(error, SystemExit):
        return TaskExit(what, error.code)
    if not isinstance(error, Exception):
        # A KeyboardInterrupt or a GeneratorExit of the other process is not one here.
        raise TypeError("it is not an Exception, and is not raised in other processes")
    return error


def _rebuildable(error: BaseException) -> bytes:
    stream, buffers = _pickling.dumps(error, "the exception")
    if buffers:
        stream = pickle.dumps(error, 5)
    rebuilt = pickle.loads(stream)
    if type(rebuilt) is not type(error):
        raise TypeError(f"it becomes a {type(rebuilt).__name__} when it is unpickled")
    return stream


def _qualified_name(error: BaseException) -> str:
    kind = type(error)
    module = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
    return module + kind.__qualname__


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as failure:  # noqa: BLE001  user code
        return f"<its __str__ raised {type(failure).__name__}>"


def describe(fn: Callable[..., object]) -> str:
    """Return a name for a call of ``fn`` that a reader of an error will recognise."""
    inner = getattr(fn, "func", None)  # functools.partial
    if callable(inner):
        return describe(inner)
    module = getattr(fn, "__module__", None)
    name = getattr(fn, "__qualname__", None) or type(fn).__qualname__
    return name if module in (None, "builtins", "__main__", "__mp_main__") else f"{module}.{name}"
