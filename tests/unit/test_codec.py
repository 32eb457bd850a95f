"""Messages as pickle, or as msgspec checks them."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pickle
import sys
from typing import Any

import pytest

from mpkit import _codec, _segment
from mpkit._errors import MessageTypeError, NotPicklable
from mpkit._link import Malformed
from tests.support import copied

END = "left end of channel 1"


@dataclasses.dataclass
class Request:
    name: str
    numbers: list[int]


def travelled(codec: _codec.Codec, message: object, receiver: _codec.Codec | None = None) -> Any:
    with contextlib.closing(codec.pack(message)) as parcel:
        data, fds = parcel.seal()
        return (receiver or codec).unpack(data, [os.dup(fd) for fd in fds])


@pytest.fixture
def checked() -> _codec.Codec:
    pytest.importorskip("msgspec")
    return _codec.make("msgspec", END, Request, Request)


@pytest.mark.parametrize("message", [None, {"a": (1, {2})}, "x" * 100_000, Request("a", [1])])
def test_pickle_takes_anything(message: object) -> None:
    assert travelled(_codec.make("pickle", END, None, None), message) == message


def test_pickles_error_names_the_end_and_the_messages_type() -> None:
    codec = _codec.make("pickle", END, None, None)
    with pytest.raises(
        NotPicklable, match=f"the message of type frame for {END} cannot be pickled"
    ):
        codec.pack(sys._getframe())


@pytest.mark.parametrize("size", [1, 100_000])
def test_msgspec_builds_the_declared_type(checked: _codec.Codec, size: int) -> None:
    message = Request("a" * size, list(range(size)))
    assert travelled(checked, message) == message


def test_msgspec_names_what_is_wrong_and_where(checked: _codec.Codec) -> None:
    untyped = _codec.make("msgspec", END, object, object)
    with pytest.raises(MessageTypeError) as caught:
        travelled(untyped, {"name": "a", "numbers": [1, "two"]}, checked)
    assert str(caught.value).startswith(END)
    assert "Expected `int`, got `str`" in str(caught.value)
    assert "$.numbers[1]" in str(caught.value)
    assert isinstance(caught.value, TypeError)


@pytest.mark.parametrize("content", [b"", b"\xc1", b"\x92\x01", pickle.dumps(Request("a", []))])
def test_bytes_that_are_no_message_are_of_the_wrong_type(
    checked: _codec.Codec, content: bytes
) -> None:
    with pytest.raises(MessageTypeError):
        checked.unpack(b"\x00\x00" + content, [])


@pytest.mark.parametrize("content", [b"\xa1\xff", b"\x91" * 50_000 + b"\xc0"])
def test_text_that_is_none_and_lists_too_deep_are_of_the_wrong_type(content: bytes) -> None:
    pytest.importorskip("msgspec")
    codec = _codec.make("msgspec", END, object, object)
    with pytest.raises(MessageTypeError, match=END):
        codec.unpack(b"\x00\x00" + content, [])


def test_what_is_too_deep_for_msgspec_raises_before_anything_is_sent() -> None:
    pytest.importorskip("msgspec")
    nested: list[object] = []
    for _ in range(50_000):
        nested = [nested]
    with pytest.raises(NotPicklable, match="cannot encode it"):
        _codec.make("msgspec", END, object, object).pack(nested)
    while nested:  # its own deallocation is not the subject
        nested = nested[0]  # type: ignore[assignment]


def test_a_peer_that_is_not_trusted_gets_memory_that_nobody_has_again() -> None:
    pytest.importorskip("msgspec")
    codec = _codec.make("msgspec", END, bytes, bytes)
    with contextlib.closing(codec.pack(bytes(100_000))) as parcel:
        parcel.seal()
        assert not _segment._kept.sizes()


def test_a_packet_that_is_none_is_malformed(checked: _codec.Codec) -> None:
    with pytest.raises(Malformed):
        checked.unpack(b"\x07abc", [])


def test_msgspec_closes_descriptors_that_it_did_not_ask_for(checked: _codec.Codec) -> None:
    reader, writer = os.pipe()
    with pytest.raises(Malformed):
        checked.unpack(b"\x00\x01\xc0", [writer])
    assert os.read(reader, 1) == b""
    os.close(reader)


def test_what_msgspec_cannot_encode_raises_before_anything_is_sent(checked: _codec.Codec) -> None:
    with pytest.raises(NotPicklable, match="the message of type frame .* msgspec cannot encode it"):
        checked.pack(sys._getframe())
    with pytest.raises(NotPicklable, match="msgspec cannot encode it"):
        checked.pack([2**70])


@pytest.mark.parametrize("name", ["pickle", "msgspec"])
def test_a_codec_travels_with_its_end(name: str) -> None:
    pytest.importorskip("msgspec")
    codec = copied(_codec.make(name, END, int, str))
    assert travelled(codec, "text") == "text"


def test_an_unknown_codec_is_refused_with_the_known_names() -> None:
    with pytest.raises(ValueError, match="'pickle' or 'msgspec', not 'json'"):
        _codec.make("json", END, int, int)


@pytest.mark.parametrize("types", [(_codec.UNKNOWN, int), (int, _codec.UNKNOWN)])
def test_msgspec_without_types_is_refused(types: tuple[Any, Any]) -> None:
    with pytest.raises(TypeError, match="send= and recv="):
        _codec.make("msgspec", END, *types)


def test_none_is_a_type() -> None:
    codec = _codec.make("msgspec", END, None, None)
    assert travelled(codec, None) is None
    with pytest.raises(MessageTypeError):
        travelled(_codec.make("msgspec", END, int, None), 5, codec)


def test_msgspec_that_is_not_installed_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "msgspec", None)
    with pytest.raises(ImportError, match=r"pip install 'mpkit\[msgspec\]'"):
        _codec.make("msgspec", END, int, int)
