"""How the messages of a channel become frames of Dask's, and back.

The stream of a pickle, and its large buffers beside it. Those are copied once, when they are
sent (who sends an array may change it at once), and not when they are received: the array that
arrives lies in the frame that Dask has read from the socket.
"""

from __future__ import annotations

import contextlib
import contextvars
import pickle
from typing import TYPE_CHECKING, Any, Final, Protocol

from mpkit import _codec, _pickling, _reader

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from mpkit._pickling import Name

#: A message: a stream, and the buffers that belong to it.
Frames = tuple[Any, ...]

#: What a message counts besides its bytes, so that many empty ones are no endless memory.
_EACH: Final = 512


#: Who unpickles what goes to the cluster, or comes from there.
ELSEWHERE: Final = _reader.Foreign()

_arrivals: contextvars.ContextVar[list[Movable] | None] = contextvars.ContextVar(
    "mpkit_arrivals", default=None
)
_passengers: contextvars.ContextVar[list[Movable] | None] = contextvars.ContextVar(
    "mpkit_passengers", default=None
)


class Movable(Protocol):
    """The end of a channel."""

    def _arrive(self) -> Callable[[], None]:
        """Take its place, which it has reached; return what waits until it has that."""
        ...

    def _remain(self) -> None:
        """Stay here: it was not sent."""

    def _withdraw(self) -> None:
        """Leave for good, if it has not come to where it was sent."""


def dumps(thing: object, what: Name, names: Sequence[str] = ()) -> tuple[Frames, list[Movable]]:
    """Return ``thing`` as frames, and the ends of channels in it, which have moved.

    Raises NotPicklable; then they have not.
    """
    with leaving() as passengers:
        stream, buffers = _pickling.dumps(thing, what, names, reader=ELSEWHERE)
        frames = (stream, *(_copied(buffer) for buffer in buffers))
    return frames, passengers


@contextlib.contextmanager
def leaving() -> Generator[list[Movable]]:
    """Have the ends of channels that are pickled in the block stay here, if that raises."""
    passengers: list[Movable] = []
    token = _passengers.set(passengers)
    try:
        yield passengers
    except BaseException:
        for one in passengers:
            one._remain()
        raise
    finally:
        _passengers.reset(token)


def loads(frames: Frames, waits: list[Callable[[], None]] | None = None) -> Any:
    """Return what `dumps` got. The ends of channels in it are here from now on.

    What waits until each of them has its place is added to ``waits``, also if this raises.
    """
    with arriving(waits):
        return pickle.loads(frames[0], buffers=frames[1:])


@contextlib.contextmanager
def arriving(waits: list[Callable[[], None]] | None = None) -> Generator[None]:
    """Have the ends of channels that are unpickled in the block take their place here.

    Without that they do so when they are used: whoever unpickles them may just pass them on.
    What waits until each of them has its place is added to ``waits``.
    """
    arrivals: list[Movable] = []
    token = _arrivals.set(arrivals)
    try:
        yield
    finally:
        _arrivals.reset(token)
        for one in arrivals:
            wait = one._arrive()
            if waits is not None:
                waits.append(wait)


def note_arrival(end: Movable) -> None:
    """Have an end that is being unpickled take its place, if this is where it goes."""
    arrivals = _arrivals.get()
    if arrivals is not None:
        arrivals.append(end)


def note_passenger(end: Movable) -> None:
    """Note that an end is being pickled."""
    passengers = _passengers.get()
    if passengers is not None:
        passengers.append(end)


def size_of(frames: Frames) -> int:
    """Return what a message counts."""
    return _EACH + sum(memoryview(frame).nbytes for frame in frames)


def _copied(buffer: pickle.PickleBuffer) -> bytes | bytearray:
    view = memoryview(buffer)
    if isinstance(view.obj, bytes) and view.nbytes == len(view.obj):
        return view.obj
    raw = buffer.raw()
    return bytes(raw) if raw.readonly else bytearray(raw)


class Codec(Protocol):
    """Packs what one end sends, and unpacks what it receives."""

    label: str

    def pack(self, message: object) -> Frames:
        """Return a message as frames, or raise before anything is sent."""
        ...

    def unpack(self, frames: Frames) -> Any:
        """Return the message."""


class PickleCodec:
    """Any picklable object."""

    def __init__(self, label: str) -> None:
        self.label = label

    def pack(self, message: object) -> Frames:
        return dumps(
            message, lambda: f"the message of type {type(message).__name__} for {self.label}"
        )[0]

    def unpack(self, frames: Frames) -> Any:
        return loads(frames)


class CheckedCodec:
    """MessagePack, and each message checked against its type on arrival."""

    def __init__(self, codec: _codec.MsgspecCodec) -> None:
        self._codec = codec
        self.label: str = codec.label

    def pack(self, message: object) -> Frames:
        return (self._codec.encode(message),)

    def unpack(self, frames: Frames) -> Any:
        return self._codec.decode(frames[0])


def make_codec(name: str, label: str, sent: Any, received: Any) -> Codec:
    """Return the codec called ``name``, of those that `mpkit.channel` has."""
    made = _codec.make(name, label, sent, received)
    return CheckedCodec(made) if isinstance(made, _codec.MsgspecCodec) else PickleCodec(label)
