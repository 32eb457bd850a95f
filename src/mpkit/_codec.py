"""How a channel's messages become bytes: by pickle, or checked against a type by msgspec.

Unpickling runs whatever the bytes say. A msgspec codec builds nothing but values of
the declared type, so it suits a peer that is not trusted that far.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol, get_args

from mpkit import _parcel, _reader
from mpkit._errors import MessageTypeError, NotPicklable
from mpkit._parcel import Parcel

CodecName = Literal["pickle", "msgspec"]


class Codec(Protocol):
    """Packs what one end sends, and unpacks what it receives."""

    #: What errors call that end.
    label: str

    def pack(self, message: object) -> Parcel:
        """Return ``message`` as a parcel, or raise before anything is sent."""
        ...

    def unpack(self, data: bytes, fds: list[int], start: int = 0) -> Any:
        """Return the message of a packet, of which the first ``start`` bytes are not looked at."""


#: In the place of a type, that there is none. (None is one.)
UNKNOWN: Any = object()


class PickleCodec:
    """Any picklable object; large buffers beside the stream; channel ends move along."""

    def __init__(self, label: str) -> None:
        self.label = label

    def pack(self, message: object) -> Parcel:
        # To be asked if it is needed: most messages travel.
        what = lambda: _named(message, self.label)  # noqa: E731
        return _parcel.pack(message, what, reader=_reader.UNKNOWN)

    unpack = staticmethod(_parcel.unpack)


class MsgspecCodec:
    """MessagePack, and each message checked against ``received`` on arrival."""

    def __init__(self, label: str, sent: Any, received: Any) -> None:
        try:
            import msgspec  # noqa: PLC0415  optional
        except ImportError:
            raise ImportError(
                "codec='msgspec' needs the package msgspec: pip install 'mpkit[msgspec]'"
            ) from None
        self.label = label
        self._types = sent, received
        self._error = msgspec.MsgspecError
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(received).decode

    def __reduce__(self) -> tuple[Any, ...]:
        return MsgspecCodec, (self.label, *self._types)

    def pack(self, message: object) -> Parcel:
        parcel = _parcel.of(self.encode(message))
        parcel.trusting = False
        return parcel

    def unpack(self, data: bytes, fds: list[int], start: int = 0) -> Any:
        return self.decode(_parcel.unpack_stream(data, fds, start))

    def encode(self, message: object) -> bytes:
        """Return a message as bytes, or raise NotPicklable."""
        try:
            return self._encode(message)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            why = f"msgspec cannot encode it: {error}"
            raise NotPicklable(_named(message, self.label), why) from error

    def decode(self, stream: bytes | memoryview) -> Any:
        """Return the message that these bytes are, or raise MessageTypeError."""
        try:
            return self._decode(stream)
        # A text that is no UTF-8 is a ValueError, and lists too deep in each other are a
        # RecursionError: they are no errors of msgspec's, but of the message all the same.
        except (self._error, ValueError, RecursionError) as error:
            raise MessageTypeError(self.label, f"a message of the wrong type: {error}") from error


def make(name: str, label: str, sent: Any, received: Any) -> Codec:
    """Return the codec called ``name`` for the end ``label``, which sends and receives these types."""
    if name == "pickle":
        return PickleCodec(label)
    if name != "msgspec":
        names = " or ".join(repr(known) for known in get_args(CodecName))
        raise ValueError(f"codec is {names}, not {name!r}")
    if sent is UNKNOWN or received is UNKNOWN:
        raise TypeError("codec='msgspec' checks messages: give channel() send= and recv=")
    return MsgspecCodec(label, sent, received)


def _named(message: object, label: str) -> str:
    """Name a message in few words, without calling a ``__repr__`` that may be huge."""
    return f"the message of type {type(message).__name__} for {label}"
