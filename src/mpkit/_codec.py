"""How a channel's messages become bytes: by pickle, or checked against a type by msgspec.

Unpickling runs whatever the bytes say. A msgspec codec builds nothing but values of
the declared type, so it suits a peer that is not trusted that far.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol, get_args

from mpkit import _parcel
from mpkit._errors import MessageTypeError, NotPicklable
from mpkit._parcel import Parcel

CodecName = Literal["pickle", "msgspec"]


class Codec(Protocol):
    """Packs what one end sends, and unpacks what it receives."""

    def pack(self, message: object, channel: str) -> Parcel:
        """Return ``message`` as a parcel, or raise before anything is sent."""
        ...

    def unpack(self, data: bytes, fds: list[int], channel: str, start: int = 0) -> Any:
        """Return the message of a packet, of which the first ``start`` bytes are not looked at."""


#: In the place of a type, that there is none. (None is one.)
UNKNOWN: Any = object()


class PickleCodec:
    """Any picklable object; large buffers beside the stream; channel ends move along."""

    def pack(self, message: object, channel: str) -> Parcel:
        # To be asked if it is needed: most messages travel.
        return _parcel.pack(message, lambda: f"the message {_short(message)} for {channel}")

    def unpack(self, data: bytes, fds: list[int], channel: str, start: int = 0) -> Any:
        return _parcel.unpack(data, fds, start)


class MsgspecCodec:
    """MessagePack, and each message checked against ``received`` on arrival."""

    def __init__(self, sent: Any, received: Any) -> None:
        try:
            import msgspec  # noqa: PLC0415  optional
        except ImportError:
            raise ImportError(
                "codec='msgspec' needs the package msgspec: pip install 'mpkit[msgspec]'"
            ) from None
        self._types = sent, received
        self._error = msgspec.MsgspecError
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(received).decode

    def __reduce__(self) -> tuple[Any, ...]:
        return MsgspecCodec, self._types

    def pack(self, message: object, channel: str) -> Parcel:
        parcel = Parcel()
        parcel.trusting = False
        try:
            parcel.stream = self._encode(message)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            what = f"the message {_short(message)} for {channel}"
            raise NotPicklable(what, f"msgspec cannot encode it: {error}") from error
        return parcel

    def unpack(self, data: bytes, fds: list[int], channel: str, start: int = 0) -> Any:
        stream = _parcel.unpack_stream(data, fds, start)
        try:
            return self._decode(stream)
        # A text that is no UTF-8 is a ValueError, and lists too deep in each other are a
        # RecursionError: they are no errors of msgspec's, but of the message all the same.
        except (self._error, ValueError, RecursionError) as error:
            raise MessageTypeError(channel, f"a message of the wrong type: {error}") from error


def make(name: str, sent: Any, received: Any) -> Codec:
    """Return the codec called ``name`` for an end that sends and receives these types."""
    if name == "pickle":
        return PickleCodec()
    if name != "msgspec":
        names = " or ".join(repr(known) for known in get_args(CodecName))
        raise ValueError(f"codec is {names}, not {name!r}")
    if sent is UNKNOWN or received is UNKNOWN:
        raise TypeError("codec='msgspec' checks messages: give channel() send= and recv=")
    return MsgspecCodec(sent, received)


def _short(message: object) -> str:
    """Name a message in few words, without calling a ``__repr__`` that may be huge."""
    return f"of type {type(message).__name__}"
