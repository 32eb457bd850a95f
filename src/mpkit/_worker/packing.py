"""A call on its way to a worker: its function by name, if it has one, and its arguments.

A function at the top level of a module is pickled as a name anyway. To have a pickler find
that out takes longer than to pickle a few arguments, and so does it to read it.
"""

from __future__ import annotations

import contextlib
import itertools
import pickle
import struct
import sys
from types import BuiltinFunctionType, FunctionType
from typing import TYPE_CHECKING, Any, Final

from mpkit import _parcel
from mpkit._call import PARTS, Call
from mpkit._parcel import Parcel
from mpkit._platform import mains
from mpkit._worker.chunks import run_each
from mpkit._worker.slices import run_slice

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mpkit._reader import Reader
    from mpkit._worker.slices import Bounds

#: A call begins with how many bytes of name follow, or this, if all of it is in the message.
_NAMELESS: Final = b"\x00"
_LONGEST: Final = 254
#: Or this, if it is a part of one: then follow the first of its items, the one behind the last,
#: the seconds that there are for them, and how many may be done between two looks at the clock;
#: and then the call with all of them.
_PART: Final = b"\xff"
_OF_PART: Final = _PART[0]
_PART_HEAD = struct.Struct("=cQQdQ")
assert _PART_HEAD.size + 1 + _LONGEST <= _parcel.MOST_HEAD


def pack(call: Call, reader: Reader | None) -> tuple[bytes, Parcel | None]:
    """Pickle a call for a reader; return it, or its head and the parcel that is to be sealed with that.

    Raises NotPicklable, naming what cannot travel.
    """
    head = _named(call.fn, reader)
    if head is not None:
        args, kwargs = call.args, call.kwargs
        if not args and not kwargs:
            return head, None
        # Names may be of a subclass of str.
        if _parcel.are_atoms((*args, *kwargs, *kwargs.values()) if kwargs else args):
            stream = _parcel.dump_atoms((args, kwargs))
            if len(stream) <= _parcel.MOST_INLINE:
                return head + _parcel.PLAIN + stream, None
            return _sealed(head, _parcel.of(stream))
    return _sealed(*_pack(call, head, reader))


def _pack(call: Call, head: bytes | None, reader: Reader | None) -> tuple[bytes, Parcel]:
    fn, args, kwargs = call.fn, call.args, call.kwargs
    if head is None:
        what = f"{call.what}(...)"
        return _NAMELESS, _parcel.pack((fn, args, kwargs), what, PARTS, reader)
    return head, _parcel.pack((args, kwargs), f"{call.what}(...)", PARTS[1:], reader)


def _sealed(head: bytes, parcel: Parcel) -> tuple[bytes, Parcel | None]:
    """Put both into one message now, if that is all; or leave it to who sends the parcel."""
    return (parcel.seal(head)[0], None) if parcel.plain else (head, parcel)


#: Bytes of a function that is sent once for all tasks in a packet. (Arbitrary: a closure that
#: cloudpickle has packed takes some 600.)
_MOST_COMMON: Final = 4096
#: Bytes of a chunk that fits into a packet beside any of them.
_SURELY_FITS: Final = _parcel.MOST_INLINE - _MOST_COMMON


class Each:
    """What all tasks of an `imap` are: a function, called with the items of a chunk of its own.

    The function is pickled once, here; raises NotPicklable. Most are sent once in a packet.
    """

    def __init__(self, fn: Callable[..., Any], reader: Reader | None) -> None:
        call = Call(fn, (), {})
        self.what = call.what
        self._reader = reader
        head, parcel = pack(call, reader)
        small = parcel is None and len(head) <= _MOST_COMMON
        #: The function, if it is beside the chunks.
        self.common = head if small else b""
        if parcel is not None:
            parcel.close()
        self._fn = fn
        self._item = f"an item for {call.what}"

    def pack_small(self, chunks: list[list[Any]]) -> list[bytes] | None:
        """Return what `pack` does of chunks that fit in a packet, beside their ``common`` function.

        None if not all do, or to pickle them is user code.
        """
        if not self.common or not _parcel.are_atoms(itertools.chain.from_iterable(chunks)):
            return None
        packed: list[bytes] = []
        for chunk in chunks:
            stream = _parcel.dump_atoms(chunk)
            if len(stream) > _SURELY_FITS:
                return None
            packed.append(_parcel.PLAIN + stream)
        return packed

    def pack(self, chunk: list[Any]) -> tuple[bytes, Parcel | None, bytes]:
        """Return what `pack` does of a call with a chunk, and the function if it is beside that."""
        common = self.common
        if common:
            if _parcel.are_atoms(chunk):
                stream = _parcel.dump_atoms(chunk)
                if len(stream) <= _SURELY_FITS:
                    return _parcel.PLAIN + stream, None, common
                parcel = _parcel.of(stream)
            else:
                parcel = _parcel.pack(chunk, self._item, (), self._reader)
            if parcel.plain and len(parcel.stream) <= _SURELY_FITS:
                return _parcel.PLAIN + parcel.stream, None, common
            size, most = len(parcel.stream), _parcel.MOST_INLINE
            if size > most or size + len(common) <= most:  # or both are too much for a packet
                return *_sealed(b"", parcel), common
            parcel.close()
        call = Call(run_each, (self._fn, chunk), {})
        call.what = self.what
        return *pack(call, self._reader), b""


def unpack_each(common: bytes, data: bytes, fds: list[int]) -> tuple[Callable[..., Any], list[Any]]:
    """Return the function and the chunk of a task. Raises what unpickling raises."""
    try:  # as `unpack`, for a call less
        module, name = _names[common]
        fn = sys.modules[module].__dict__[name]
    except KeyError:
        fn, _, _ = unpack(common, [])
    return fn, _parcel.unpack(data, fds)


#: Bytes of a chunk that is sent again for each slice. (To send and unpickle them takes about as
#: long as a slice lasts.)
MOST_AGAIN: Final = 2**22


class Chunk:
    """A packed call of a function with the items of a chunk, and whether they are arguments."""

    def __init__(self, head: bytes, stream: bytes) -> None:
        self.head = head
        self.stream = stream


class Part:
    """The call of `slices.run_slice` for some items of a chunk."""

    def __init__(self, chunk: Chunk, bounds: Bounds) -> None:
        self.chunk = chunk
        self.bounds = bounds

    def seal(self) -> tuple[bytes, Parcel | None]:
        """Return what `pack` does of a call."""
        head = _PART_HEAD.pack(_PART, *self.bounds) + self.chunk.head
        return _sealed(head, _parcel.of(self.chunk.stream))


def pack_chunk(call: Call, reader: Reader | None) -> Chunk | None:
    """Pickle a call so that it can be sent again and again; None if that cannot or should not be.

    Large buffers, in which several workers would write, cannot, nor can what moves only once;
    and what is large is not worth while to be sent and unpickled for each slice of it.
    """
    head = _named(call.fn, reader)
    if head is not None and not call.args and not call.kwargs:
        return None
    head, parcel = _pack(call, head, reader)
    with contextlib.closing(parcel):
        again = parcel.alone and len(parcel.stream) <= MOST_AGAIN
        return Chunk(head, parcel.stream) if again else None


def unpack(data: bytes, fds: list[int]) -> tuple[Callable[..., Any], Any, Any]:
    """Return the function and the arguments of a call. Raises what unpickling raises."""
    length = data[0]
    if length == _OF_PART:
        bounds = _PART_HEAD.unpack_from(data)[1:]
        fn, (chunk, star), _ = unpack(data[_PART_HEAD.size :], fds)
        return run_slice, (fn, chunk, star, bounds), {}
    if not length:
        fn, args, kwargs = _parcel.unpack(data, fds, 1)
        return fn, args, kwargs
    end = 1 + length
    head = data[:end]
    try:
        module, name = _names[head]
        fn = sys.modules[module].__dict__[name]
    except KeyError:
        fn = _find(head)
    if end == len(data):
        return fn, (), {}
    args, kwargs = _parcel.unpack(data, fds, end)
    return fn, args, kwargs


def unpack_beside(
    head: bytes, stream: Any, buffers: Sequence[Any]
) -> tuple[Callable[..., Any], Any, Any]:
    """As `unpack`, for a call whose parcel was not sealed: its stream and buffers are beside it."""
    if not stream:
        return unpack(head, [])
    if not buffers:
        return unpack(b"".join((head, _parcel.PLAIN, stream)), [])
    if head == _NAMELESS:
        fn, args, kwargs = pickle.loads(stream, buffers=buffers)
        return fn, args, kwargs
    fn, _, _ = unpack(head, [])
    args, kwargs = pickle.loads(stream, buffers=buffers)
    return fn, args, kwargs


def unpack_each_beside(
    common: bytes, head: bytes, stream: Any, buffers: Sequence[Any]
) -> tuple[Callable[..., Any], Any, Any]:
    """As `unpack_beside`, for what `Each.pack` made: the call of `run_each` with a chunk."""
    fn, _, _ = unpack(common, [])
    chunk = pickle.loads(stream, buffers=buffers) if stream else _parcel.unpack(head, [])
    return run_each, (fn, chunk), {}


#: The functions that were called lately, by their ids: their modules, names and heads; and if
#: that is the main module, a reader that has them.
_known: dict[int, tuple[Any, str, str, bytes, Reader | None]] = {}
_MOST_KNOWN: Final = 1000


def _named(fn: Callable[..., Any], reader: Reader | None) -> bytes | None:
    """Return the head of a call of a function that its module has by its name, or None.

    None as well if that is the main module, and the reader has no such name in it.
    """
    known = _known.get(id(fn))
    if known is not None:
        same, module, name, head, has_it = known
        if same is fn and (has_it is None or has_it is reader):
            try:  # as `_is_there`, for one call less
                if sys.modules[module].__dict__.get(name) is fn:
                    return head
            except (KeyError, AttributeError):  # and is not there
                return None
    if type(fn) not in (FunctionType, BuiltinFunctionType):
        return None
    module, name = fn.__module__, fn.__qualname__
    if not module or not _is_there(fn, module, name):  # a method of a builtin class has none
        return None
    in_main = module in mains.NAMES
    if in_main and reader and not reader.has(name, fn):
        return None
    text = f"{module}\n{name}".encode()
    if len(text) > _LONGEST:
        return None
    head = bytes([len(text)]) + text
    if not in_main or reader:
        if len(_known) >= _MOST_KNOWN:
            _known.clear()
        _known[id(fn)] = fn, module, name, head, reader if in_main else None
    return head


def _is_there(fn: Callable[..., Any], module: str, name: str) -> bool:
    try:
        return sys.modules[module].__dict__.get(name) is fn
    # Something else may be in the place of a module, and of its name.
    except (KeyError, AttributeError, TypeError):
        return False


#: The module and the name that heads stand for which came here.
_names: dict[bytes, tuple[str, str]] = {}


def _find(head: bytes) -> Any:
    """Import a function, as pickle would."""
    module, name = head[1:].decode().split("\n")
    __import__(module)
    fn = getattr(sys.modules[module], name)
    _names[head] = module, name
    return fn
