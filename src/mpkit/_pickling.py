"""How objects become bytes, and what to say when one cannot.

Two picklers are tried in turn. Plain ``pickle`` with multiprocessing's reducers does
nearly everything. ``cloudpickle``, where it is installed, adds lambdas, closures and
what was typed into a notebook. What remains is `NotPicklable`, raised in the caller's
thread before a byte has left it.

The large buffers (of NumPy and Arrow arrays) of what does not fit in a packet are not copied
into the stream: pickle protocol 5 hands them over as they lie in memory.
"""

from __future__ import annotations

import copyreg
import errno
import functools
import math
import pickle
import reprlib
from multiprocessing.reduction import ForkingPickler
from typing import TYPE_CHECKING, Any

from mpkit._culprit import path_to
from mpkit._errors import MpkitError, NotPicklable
from mpkit._frames import PACKET

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Pickled = tuple[bytes, Sequence[pickle.PickleBuffer]]
    Name = str | Callable[[], str]
    Elsewhere = Callable[[Any], Any]

#: Bytes from which a buffer travels beside the pickle stream instead of in it, if not all of
#: them fit in a packet. That saves two copies, and costs some µs. Measured by ``python -m
#: benchmarks --thresholds``, with a hundred arrays in a message: of 8 KB each, it is faster
#: in the stream; of 16 KB, beside it; of 64 KB, the stream takes half as much time again.
OUT_OF_BAND = 16 * 1024

#: Bytes of such buffers that are in the stream all the same, where they come first. If there
#: are no more, then the stream fits in a packet, and to send that takes some 60 µs less.
_IN_PACKET = PACKET - 4096


#: The reducers of copyreg, and those of multiprocessing for sockets and connections.
_COPYREG: dict[type, Any] = copyreg.dispatch_table
_EXTRA: dict[type, Any] = getattr(ForkingPickler, "_extra_reducers")  # noqa: B009


def _reduce_view(view: memoryview) -> tuple[Any, ...]:
    """Pickle can do every buffer but this one."""
    form, shape = view.format, view.shape or ()
    try:
        if not view.nbytes:  # a row of zeros, to be made empty there
            row = bytes(view.itemsize * math.prod(shape[1:]))
            args = pickle.PickleBuffer(row if view.readonly else bytearray(row)), form, shape
        elif view.c_contiguous:
            args = pickle.PickleBuffer(view.cast("B")), form, shape
        else:
            args = pickle.PickleBuffer(view.tobytes()), form, shape
        made = _rebuild_view(*args)  # here, since the receiver could only lose the message
        if (made.format, made.shape) == (form, shape):
            return _rebuild_view, args
    except (ValueError, TypeError, OverflowError, MemoryError):
        pass
    raise NotPicklable(
        f"a memoryview of format {form!r} and shape {shape}",
        "Python can make no other one like it; send what it is a view of, or its bytes",
    )


def _rebuild_view(flat: Any, form: str, shape: tuple[int, ...]) -> memoryview:
    view: Any = memoryview(flat).cast("B")
    made: memoryview = view
    if (form, shape) != (view.format, view.shape):
        # No cast makes a shape with a zero in it, but a slice does, if the zero comes first.
        empty = shape[:1] == (0,)
        made = view.cast(form, (1, *shape[1:]))[:0] if empty else view.cast(form, shape)
    return made


class _Press:
    """A pickler, and what it makes of an object: a stream, and the buffers beside that."""

    def __init__(self, kind: Any, elsewhere: Elsewhere | None = None) -> None:
        # One without `elsewhere` need not ask of each object.
        made = _asking(kind) if elsewhere else kind
        self._parts: list[bytes] = []
        self._buffers = buffers = list[pickle.PickleBuffer]()
        self._room = room = [_IN_PACKET]
        #: How many reducers there were when it learned of them.
        self._copyreg = self._extra = -1
        self.write = self._parts.append  # for the pickler, whose file we are

        def keep_in_band(buffer: pickle.PickleBuffer) -> bool:
            size = buffer.raw().nbytes
            if size < OUT_OF_BAND:
                return True
            room[0] -= size
            if room[0] >= 0:
                return True
            buffers.append(buffer)
            return False

        self._pickler = made(self, 5, buffer_callback=keep_in_band)
        if elsewhere:
            self._pickler.elsewhere = elsewhere
        self._has_our_table = kind is pickle.Pickler

    def dump(self, thing: object) -> Pickled:
        """Return the stream and the buffers of ``thing``. To be used again if that went well."""
        pickler, parts = self._pickler, self._parts
        if len(_COPYREG) != self._copyreg or len(_EXTRA) != self._extra:
            self._learn_reducers()
        pickler.dump(thing)
        pickler.clear_memo()
        # A small pickle is written at once.
        stream = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        self._room[0] = _IN_PACKET
        if not self._buffers:
            return stream, ()
        beside = tuple(self._buffers)
        self._buffers.clear()
        return stream, beside

    def _learn_reducers(self) -> None:
        self._copyreg, self._extra = len(_COPYREG), len(_EXTRA)
        if self._has_our_table:  # cloudpickle has its own
            self._pickler.dispatch_table = _COPYREG | _EXTRA | {memoryview: _reduce_view}


#: Those that nobody uses just now: to make one takes longer than to pickle a small object.
_idle: list[_Press] = []
#: Bytes of a stream after which its pickler may have grown large itself.
_LARGE = 64 * 1024


def dumps(
    thing: object,
    what: Name,
    names: Sequence[str] = (),
    start_anew: Callable[[], object] = lambda: None,
    elsewhere: Elsewhere | None = None,
) -> Pickled:
    """Return the pickle stream of ``thing`` and the large buffers that belong to it.

    ``what`` names it in the error, or is asked for that, and ``names`` are what that calls
    the elements of ``thing``, a tuple. ``start_anew`` is called before another pickler is
    tried. ``elsewhere`` is what pickle calls ``persistent_id``: asked of each object, it
    returns a reference by which the reader finds it, or None. Raises
    `NotPicklable`, with the original error as its cause, and OSError if the system has run
    out of descriptors: that says nothing of ``thing``.
    """
    try:
        if elsewhere:
            return _Press(pickle.Pickler, elsewhere).dump(thing)
        try:
            press = _idle.pop()
        except IndexError:
            press = _Press(pickle.Pickler)
        made = press.dump(thing)
        if len(made[0]) < _LARGE:
            _idle.append(press)
        return made
    except MpkitError:  # says what is wrong better than a pickler could
        raise
    except OSError as error:  # of which another pickler knows no more
        if error.errno in (errno.EMFILE, errno.ENFILE):
            error.add_note(f"(raised while {text(what)} was pickled)")
            raise
        raise NotPicklable(text(what), _sentence(error)) from error
    except Exception as error:  # noqa: BLE001  pickling is user code
        start_anew()
        return _cloudpickled(thing, elsewhere, error, text(what), start_anew, names)


def text(what: Name) -> str:
    """Return a name that errors have for a thing."""
    return what if isinstance(what, str) else what()


def _cloudpickled(
    thing: object,
    elsewhere: Elsewhere | None,
    first: Exception,
    what: str,
    start_anew: Callable[[], object],
    names: Sequence[str],
) -> Pickled:
    try:
        import cloudpickle as untyped  # noqa: PLC0415  optional
    except ImportError:
        why = f"{_sentence(first)}{_inside(thing, pickle.Pickler, names)}{_hint(first)}"
        raise NotPicklable(what, why) from first
    cloudpickle: Any = untyped
    try:
        return _Press(cloudpickle.Pickler, elsewhere).dump(thing)
    except MpkitError:
        raise
    except Exception as error:
        start_anew()  # or it would fail at what was taken along already
        why = f"{_sentence(error)}{_inside(thing, cloudpickle.Pickler, names)}"
        raise NotPicklable(what, why) from error


@functools.cache
def _asking(kind: type) -> Any:
    def persistent_id(self: Any, thing: object) -> Any:
        return self.elsewhere(thing)

    return type(kind.__name__, (kind,), {"persistent_id": persistent_id})


def _inside(thing: object, kind: Any, names: Sequence[str]) -> str:
    """Say what it is inside ``thing`` that a pickler of this kind cannot pickle, and where.

    It is the object of which the pickler asked last before it failed, so it has to fail
    once more. The user's code runs again for that, and may raise anything.
    """
    last: list[object] = [thing]

    def remember(part: object) -> None:
        last[0] = part

    try:
        _Press(kind, remember).dump(thing)
    except Exception:  # noqa: BLE001  pickling is user code
        if last[0] is thing:
            return ""
        path = path_to(last[0], thing, names)
        return f" (inside it: {path}{', which is ' if path else ''}{shown(last[0])})"
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
