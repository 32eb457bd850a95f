"""A call on its way to a new process."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any, Final

from mpkit import _fork, _pickling, _reader
from mpkit._describe import describe

if TYPE_CHECKING:
    from collections.abc import Callable

#: What errors call the parts of a call.
PARTS: Final = "the function", "args", "kwargs"


class Call(_fork.Bearer):
    """A function and its arguments, as they travel to a new process.

    Under fork they are inherited and need not be picklable.
    """

    def __init__(
        self, fn: Callable[..., object], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self.fn = fn
        self.args = args
        self.kwargs = kwargs
        self.what: str = describe(fn)

    def _carried(self) -> list[object]:
        return [self.fn, self.args, self.kwargs]

    def arrived(self) -> Call:
        """Return this call; what arrived is unpickled here, which may raise anything."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        call = self.fn, self.args, self.kwargs
        stream, buffers = _pickling.dumps(
            call, f"{self.what}(...)", names=PARTS, reader=_reader.Anew()
        )
        return _Packed, (self.what, stream, [bytearray(buffer.raw()) for buffer in buffers])


class _Packed(Call):
    """A call in its new process, where it is unpickled when its errors can be reported."""

    def __init__(self, what: str, stream: bytes, buffers: list[bytearray]) -> None:
        self.what = what
        self._stream = stream
        self._buffers = buffers

    def arrived(self) -> Call:
        try:
            return Call(*pickle.loads(self._stream, buffers=self._buffers))
        except BaseException as error:
            error.add_note(f"(raised in the new process, which unpickled {self.what}(...))")
            _reader.note_missing(error)
            raise
