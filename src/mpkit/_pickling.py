"""How objects become bytes, and what to say when one cannot.

Two picklers are tried in turn. Plain ``pickle`` with multiprocessing's reducers does
nearly everything. ``cloudpickle``, where it is installed, adds lambdas, closures and
what was typed into a notebook. What remains is `NotPicklable`, raised in the caller's
thread before a byte has left it.

Buffers of `OUT_OF_BAND` bytes and more (NumPy and Arrow arrays) are not copied into
the stream: pickle protocol 5 hands them over as they lie in memory.
"""

from __future__ import annotations

import copyreg
import errno
import io
import pickle
from multiprocessing.reduction import ForkingPickler
from typing import TYPE_CHECKING, Any

from mpkit._errors import MpkitError, NotPicklable

if TYPE_CHECKING:
    from collections.abc import Callable

    BufferCallback = Callable[[pickle.PickleBuffer], Any]

#: Bytes from which a buffer travels beside the pickle stream instead of in it. That saves
#: two copies, and costs some µs. Measured by ``python -m benchmarks --thresholds``, with a
#: hundred arrays in a message: of 8 KB each, it is faster in the stream; of 16 KB, beside it;
#: of 64 KB, the stream takes half as much time again.
OUT_OF_BAND = 16 * 1024


class _Reducers:
    """The reducers of copyreg, and those of multiprocessing for sockets and connections."""

    def __init__(self) -> None:
        self._known = (-1, -1)
        self._table: dict[type, Any] = {}

    def table(self) -> dict[type, Any]:
        """Return them, with what was registered since the last call."""
        reducers: dict[type, Any] = getattr(ForkingPickler, "_extra_reducers")  # noqa: B009
        known = len(copyreg.dispatch_table), len(reducers)
        if known != self._known:
            self._known = known
            self._table = copyreg.dispatch_table | reducers | {memoryview: _reduce_view}
        return self._table


_reducers = _Reducers()


def _reduce_view(view: memoryview) -> tuple[Any, ...]:
    """Pickle can do every buffer but this one."""
    flat = pickle.PickleBuffer(view.cast("B") if view.c_contiguous else view.tobytes())
    return _rebuild_view, (flat, view.format, view.shape)


def _rebuild_view(flat: Any, form: str, shape: tuple[int, ...]) -> memoryview:
    view = memoryview(flat).cast("B")
    return view if (form, shape) == (view.format, view.shape) else view.cast(form, shape)  # type: ignore[call-overload]


def dumps(
    thing: object, what: str, start_anew: Callable[[], object] = lambda: None
) -> tuple[bytes, list[pickle.PickleBuffer]]:
    """Return the pickle stream of ``thing`` and the large buffers that belong to it.

    ``what`` names it in the error. ``start_anew`` is called before the second pickler
    is tried. Raises `NotPicklable`, with the original error as its cause, and OSError if
    the system has run out of descriptors: that says nothing of ``thing``.
    """
    buffers: list[pickle.PickleBuffer] = []

    def keep_in_band(buffer: pickle.PickleBuffer) -> bool:
        if buffer.raw().nbytes < OUT_OF_BAND:
            return True
        buffers.append(buffer)
        return False

    file = io.BytesIO()
    pickler = pickle.Pickler(file, 5, buffer_callback=keep_in_band)
    pickler.dispatch_table = _reducers.table()
    try:
        pickler.dump(thing)
    except MpkitError:  # says what is wrong better than a pickler could
        raise
    except OSError as error:  # of which another pickler knows no more
        if error.errno in (errno.EMFILE, errno.ENFILE):
            error.add_note(f"(raised while {what} was pickled)")
            raise
        raise NotPicklable(what, _sentence(error)) from error
    except Exception as error:  # noqa: BLE001  pickling is user code
        buffers.clear()
        start_anew()
        stream = _cloudpickled(thing, keep_in_band, error, what)
    else:
        stream = file.getvalue()
    return stream, buffers


def _cloudpickled(
    thing: object, buffer_callback: BufferCallback, first: Exception, what: str
) -> bytes:
    try:
        import cloudpickle as untyped  # noqa: PLC0415  optional
    except ImportError:
        raise NotPicklable(what, f"{_sentence(first)}{_hint(first)}") from first
    cloudpickle: Any = untyped
    try:
        stream: bytes = cloudpickle.dumps(thing, 5, buffer_callback=buffer_callback)
    except MpkitError:
        raise
    except Exception as error:
        raise NotPicklable(what, _sentence(error)) from error
    return stream


def _sentence(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _hint(error: Exception) -> str:
    if "<lambda>" in str(error) or "<locals>" in str(error) or "local object" in str(error):
        return (
            " (move the function to the top level of a module, or install "
            "mpkit[cloudpickle], with which lambdas and closures travel too)"
        )
    return ""
