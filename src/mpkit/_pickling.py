"""How objects become bytes, and what to say when one cannot.

Two picklers are tried in turn. Plain ``pickle`` with multiprocessing's reducers does
nearly everything. ``cloudpickle``, where it is installed, adds lambdas, closures and
what the reader lacks of our main module (see `_reader`): what was typed into a notebook, say.
What remains is `NotPicklable`, raised in the caller's thread before a byte has left it.

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
from collections import ChainMap
from multiprocessing.reduction import ForkingPickler
from typing import TYPE_CHECKING, Any, NoReturn

from mpkit import _byvalue, _reader
from mpkit._culprit import path_to
from mpkit._errors import MpkitError, NotPicklable
from mpkit._frames import PACKET

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from mpkit._reader import Reader

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


class Stays:
    """What cannot travel says so, and not which of its parts could not."""

    __slots__ = ()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"{type(self).__name__} objects stay in the process that made them: leave it out of what is "
            "sent (a method takes along its whole object, but for what its __getstate__ omits)"
        )


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


#: What cloudpickle has no reducers for; it has its own of copyreg's.
_OURS = ChainMap[type, Any]({memoryview: _reduce_view}, _EXTRA)


class _Press:
    """A pickler, and what it makes of an object: a stream, and the buffers beside that."""

    def __init__(
        self, kind: Any, elsewhere: Elsewhere | None = None, reader: Reader | None = None
    ) -> None:
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
        if reader:
            self._pickler.reader = reader
        self._kind = kind
        self._asks = elsewhere is not None

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
        ours = self._kind in (pickle.Pickler, _byvalue.Refusing)
        if ours or self._asks:
            own: Mapping[Any, Any] = _COPYREG | _EXTRA | {memoryview: _reduce_view}
            table = own if ours else self._kind.dispatch_table
            # As pickle has it: a class of picklers may have something else by this name.
            _TABLE.__set__(self._pickler, _of_exceptions(table) if self._asks else table)


_TABLE: Any = vars(pickle.Pickler)["dispatch_table"]


def _of_exceptions(table: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return the reducers without those that tblib has put there for exceptions, as Dask has it do.

    They take along the traceback and all that hangs on it, of which `_outcome` sees to each part.
    """
    return {
        kind: reduce
        for kind, reduce in table.items()
        if not (
            isinstance(kind, type)
            and issubclass(kind, BaseException)
            and str(getattr(reduce, "__module__", "")).startswith("tblib.")
        )
    }


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
    reader: Reader | None = None,
) -> Pickled:
    """Return the pickle stream of ``thing`` and the large buffers that belong to it.

    ``what`` names it in the error, or is asked for that, and ``names`` are what that calls
    the elements of ``thing``, a tuple. ``start_anew`` is called before another pickler is
    tried. ``elsewhere`` is what pickle calls ``persistent_id``: asked of each object, it
    returns a reference by which the reader finds it, or None. ``reader`` is who will unpickle
    it; None is one who has whatever we have. Raises
    `NotPicklable`, with the original error as its cause, and OSError if the system has run
    out of descriptors: that says nothing of ``thing``.
    """
    try:
        if elsewhere:
            made = _Press(pickle.Pickler, elsewhere).dump(thing)
        else:
            try:
                press = _idle.pop()
            except IndexError:
                press = _Press(pickle.Pickler)
            made = press.dump(thing)
            if len(made[0]) < _LARGE:
                _idle.append(press)
    except MpkitError:  # says what is wrong better than a pickler could
        raise
    except OSError as error:  # of which another pickler knows no more
        if error.errno in (errno.EMFILE, errno.ENFILE):
            error.add_note(f"(raised while {text(what)} was pickled)")
            raise
        raise NotPicklable(text(what), _sentence(error)) from error
    except Exception as error:
        kind = _byvalue.pickler(_OURS)
        start_anew()
        if kind is None:
            why = f"{_sentence(error)}{_inside(thing, pickle.Pickler, names)}{_hint(error)}"
            raise NotPicklable(text(what), why) from error
        return _again(kind, thing, text(what), names, start_anew, elsewhere, reader)
    if reader is None or _reader.TRACE not in made[0] or not _reader.may_miss(reader, made[0]):
        return made
    kind = _byvalue.pickler(_OURS)
    if kind is None:
        if not reader.sure:
            return made
        kind = _byvalue.Refusing
    start_anew()
    return _again(kind, thing, text(what), names, start_anew, elsewhere, reader)


def text(what: Name) -> str:
    """Return a name that errors have for a thing."""
    return what if isinstance(what, str) else what()


def _again(
    kind: Any,
    thing: object,
    what: str,
    names: Sequence[str],
    start_anew: Callable[[], object],
    elsewhere: Elsewhere | None,
    reader: Reader | None,
) -> Pickled:
    """Have another kind of pickler try."""
    try:
        return _Press(kind, elsewhere, reader).dump(thing)
    except MpkitError:
        raise
    except _byvalue.Missing as error:
        start_anew()
        assert reader is not None  # who else could lack anything?
        why = _missing(error, thing, names, reader)
    except Exception as error:
        start_anew()  # or it would fail at what was taken along already
        why = f"{_sentence(error)}{_inside(thing, kind, names, reader)}"
        raise NotPicklable(what, why) from error
    raise NotPicklable(what, why)


def _missing(error: _byvalue.Missing, thing: object, names: Sequence[str], reader: Reader) -> str:
    """Say what the reader lacks, where that is, and how to mend it."""
    path = path_to(error.thing, thing, names)
    if not path and type(error.holder) is error.thing:
        path = path_to(error.holder, thing, names)
        path = f"the class of {path}" if path else ""
    which = f"{path}, which is __main__.{error.name}," if path else f"__main__.{error.name}"
    why = reader.why(error.name.partition(".")[0])
    return f"{which} is not in the process that receives it: {why} ({_reader.HOW_TO_MEND})"


@functools.cache
def _asking(kind: type) -> Any:
    def persistent_id(self: Any, thing: object) -> Any:
        return self.elsewhere(thing)

    return type(kind.__name__, (kind,), {"persistent_id": persistent_id})


def _inside(thing: object, kind: Any, names: Sequence[str], reader: Reader | None = None) -> str:
    """Say what it is inside ``thing`` that a pickler of this kind cannot pickle, and where.

    It is the object of which the pickler asked last before it failed, so it has to fail
    once more. The user's code runs again for that, and may raise anything.
    """
    last: list[object] = [thing]

    def remember(part: object) -> None:
        last[0] = part

    try:
        _Press(kind, remember, reader).dump(thing)
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
