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
import functools
import io
import pickle
import reprlib
from multiprocessing.reduction import ForkingPickler
from typing import TYPE_CHECKING, Any

from mpkit._errors import MpkitError, NotPicklable

if TYPE_CHECKING:
    from collections.abc import Callable

    BufferCallback = Callable[[pickle.PickleBuffer], Any]
    Elsewhere = Callable[[Any], Any]

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
    thing: object,
    what: str,
    elsewhere: Elsewhere | None = None,
    start_anew: Callable[[], object] = lambda: None,
) -> tuple[bytes, list[pickle.PickleBuffer]]:
    """Return the pickle stream of ``thing`` and the large buffers that belong to it.

    ``what`` names it in the error. ``elsewhere`` is what pickle calls ``persistent_id``:
    asked of each object, it returns a reference by which the reader finds it, or None.
    ``start_anew`` is called before the second pickler is tried. Raises `NotPicklable`,
    with the original error as its cause, and OSError if the system has run out of
    descriptors: that says nothing of ``thing``.
    """
    buffers: list[pickle.PickleBuffer] = []

    def keep_in_band(buffer: pickle.PickleBuffer) -> bool:
        if buffer.raw().nbytes < OUT_OF_BAND:
            return True
        buffers.append(buffer)
        return False

    file = io.BytesIO()
    pickler: Any = _pickler(pickle.Pickler, file, keep_in_band, elsewhere)
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
        stream = _cloudpickled(thing, keep_in_band, elsewhere, error, what)
    else:
        stream = file.getvalue()
    return stream, buffers


def _cloudpickled(
    thing: object,
    buffer_callback: BufferCallback,
    elsewhere: Elsewhere | None,
    first: Exception,
    what: str,
) -> bytes:
    try:
        import cloudpickle as untyped  # noqa: PLC0415  optional
    except ImportError:
        why = f"{_sentence(first)}{_inside(thing, pickle.Pickler)}{_hint(first)}"
        raise NotPicklable(what, why) from first
    cloudpickle: Any = untyped
    file = io.BytesIO()
    try:
        _pickler(cloudpickle.Pickler, file, buffer_callback, elsewhere).dump(thing)
    except MpkitError:
        raise
    except Exception as error:
        why = f"{_sentence(error)}{_inside(thing, cloudpickle.Pickler)}"
        raise NotPicklable(what, why) from error
    return file.getvalue()


def _pickler(
    kind: Any, file: io.BytesIO, callback: BufferCallback | None, elsewhere: Elsewhere | None
) -> Any:
    """Return a pickler of this kind; one without ``elsewhere`` need not ask of each object."""
    pickler = (_asking(kind) if elsewhere else kind)(file, 5, buffer_callback=callback)
    if elsewhere:
        pickler.elsewhere = elsewhere
    return pickler


@functools.cache
def _asking(kind: type) -> Any:
    def persistent_id(self: Any, thing: object) -> Any:
        return self.elsewhere(thing)

    return type(kind.__name__, (kind,), {"persistent_id": persistent_id})


def _inside(thing: object, kind: Any) -> str:
    """Say what it is inside ``thing`` that a pickler of this kind cannot pickle.

    It is the object of which the pickler asked last before it failed, so it has to fail
    once more. The user's code runs again for that, and may raise anything.
    """
    last: list[object] = [thing]

    def remember(part: object) -> None:
        last[0] = part

    pickler = _pickler(kind, io.BytesIO(), lambda _: True, remember)
    if kind is pickle.Pickler:
        pickler.dispatch_table = _reducers.table()
    try:
        pickler.dump(thing)
    except Exception:  # noqa: BLE001  pickling is user code
        return "" if last[0] is thing else f" (inside it: {shown(last[0])})"
    return ""  # this time it went well


_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = 200


def shown(thing: object) -> str:
    """Return the repr of anything, or what can be had of it, in at most 500 characters."""
    try:
        text = str.__str__(_repr.repr(thing))
    except BaseException as error:  # noqa: BLE001  user code
        return f"<a {type(thing).__name__}, whose repr raised {type(error).__name__}>"
    return text if len(text) <= 500 else f"{text[:497]}..."


def _sentence(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _hint(error: Exception) -> str:
    if "<lambda>" in str(error) or "<locals>" in str(error) or "local object" in str(error):
        return (
            " (move the function to the top level of a module, or install "
            "mpkit[cloudpickle], with which lambdas and closures travel too)"
        )
    return ""
