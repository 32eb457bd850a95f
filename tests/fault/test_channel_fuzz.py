"""Whatever bytes and descriptors arrive: an error that is documented, and nothing kept.

Into the socket under an end goes anything: noise, packets that were changed a little,
memory whose table of parts lies, descriptors that belong to nothing, over both kinds of
socket. No pickle is made of noise, for unpickling runs what it says: a stand-in reads the
stream where the framing of pickled messages is tried.
"""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import socket
import struct
import tempfile
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpkit import (
    BrokenChannel,
    Channel,
    ChannelTimeout,
    EndOfChannel,
    MessageTypeError,
    _end,
    _parcel,
    _segment,
    channel,
)
from mpkit._link import MOST_DESCRIPTORS, PACKET
from mpkit._platform import descriptors, memory
from tests.support import PATIENCE, peak, reset_peak

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

msgspec = pytest.importorskip("msgspec")

#: Bytes by which no input may make this process larger.
MOST_MEMORY = 64 * 2**20

# what goes in: (bytes, the kinds of descriptors that ride on them)
Packet = tuple[bytes, list[Any]]

HEADER = struct.Struct("=ci")
ODD = [0, 1, 2, 7, 8, 63, 64, 100, 2**31 - 1, 2**31, 2**32 - 1, 2**62 - 1, 2**63, 2**64 - 1]

words = st.one_of(st.sampled_from(ODD), st.integers(0, 200), st.integers(0, 2**64 - 1))
tables = st.lists(words, max_size=12).map(lambda some: struct.pack(f"={len(some)}Q", *some))
values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(), st.binary()),
    lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.binary(max_size=4), inner)),
    max_leaves=20,
)
streams = st.one_of(
    st.binary(max_size=200),
    values.map(msgspec.msgpack.encode),
    st.integers(1, 5000).map(lambda depth: b"\x91" * depth),
)
segments = st.one_of(
    st.builds(lambda *parts: b"".join(parts), tables, st.binary(max_size=300)),
    streams.map(
        lambda stream: struct.pack("=QQ", 1, len(stream)) + bytes(48) + stream
    ),  # a good one
)
files = st.one_of(
    st.tuples(st.just("memory"), segments, st.integers(0, 2**20)),
    st.tuples(st.just("unsealed memory"), segments, st.just(0)),
    st.tuples(st.just("file"), segments, st.just(0)),
    st.sampled_from([("pipe",), ("socket",), ("directory",), ("/dev/zero",), ("/dev/null",)]),
)
headers = st.builds(
    HEADER.pack,
    st.one_of(st.just(b"m"), st.just(b"g"), st.binary(min_size=1, max_size=1)),
    st.one_of(st.just(os.getpid()), st.integers(-(2**31), 2**31 - 1)),
)
tags = st.one_of(
    st.sampled_from([b"", b"\0", b"\0\0", b"\0\1", b"\1\0", b"\2", b"\3\0"]),
    st.builds(struct.Struct("=cBQ").pack, st.just(b"\2"), st.sampled_from([0, 0, 1, 9]), words),
)
packets = st.one_of(
    st.tuples(st.binary(max_size=300), st.lists(files, max_size=2)),
    st.tuples(
        st.builds(lambda *parts: b"".join(parts), headers, tags, streams),
        st.lists(files, max_size=3),
    ),
    st.tuples(  # too long, or with as many descriptors as there can be
        st.builds(lambda head, count: head + b"\0" * count, headers, st.integers(0, PACKET + 9)),
        st.lists(files, max_size=1).map(lambda some: some * MOST_DESCRIPTORS),
    ),
)


@pytest.fixture(params=["msgspec", "pickle"])
def make(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    """Make a channel whose messages are safe to read, whatever they are."""
    if request.param == "msgspec":
        return lambda: channel(*(bytes | float | list[Any],) * 2, codec="msgspec")

    def loads(stream: Any, buffers: Sequence[memoryview] = ()) -> Any:
        return [bytes(stream), *(bytes(buffer) for buffer in buffers)]

    stand_in = SimpleNamespace(loads=loads, PickleBuffer=pickle.PickleBuffer)
    monkeypatch.setattr(_parcel, "pickle", stand_in)
    return channel


def test_the_header_is_the_one_that_is_tried() -> None:
    assert _end._HEADER.format == HEADER.format


def test_packets_of_anything(socket_kind: str, make: Callable[[], Any]) -> None:
    @settings(max_examples=150, deadline=None)
    @given(st.lists(packets, min_size=1, max_size=6))
    def run(some: list[Packet]) -> None:
        with nothing_kept():
            here, there = make()
            for data, kinds in some:
                length = struct.pack("!I", len(data)) if socket_kind == "stream" else b""
                put(here, length + data, kinds)
            hang_up(here)
            take_all(there)

    run()


def test_a_stream_of_anything(monkeypatch: pytest.MonkeyPatch, make: Callable[[], Any]) -> None:
    """Bytes that are cut anywhere, with lengths that lie and descriptors in between."""
    monkeypatch.setattr(descriptors, "HAS_PACKETS", False)
    lengths = st.one_of(st.integers(0, 300), st.integers(0, 2**32 - 1)).map(
        lambda length: struct.pack("!I", length)
    )
    pieces = st.tuples(
        st.one_of(st.binary(max_size=30), lengths, headers, streams), st.lists(files, max_size=2)
    )

    @settings(max_examples=150, deadline=None)
    @given(st.lists(pieces, min_size=1, max_size=12))
    def run(some: list[Packet]) -> None:
        with nothing_kept():
            here, there = make()
            for data, kinds in some:
                put(here, data, kinds)
                with contextlib.suppress(ChannelTimeout, *ERRORS):
                    there.recv(0)
            hang_up(here)
            take_all(there)

    run()


def test_good_messages_changed_in_one_place(socket_kind: str, make: Callable[[], Any]) -> None:
    """All that comes before the stream is tried with each byte changed, cut and repeated."""

    @settings(max_examples=150, deadline=None)
    @given(
        st.sampled_from([0, 100, 70_000]),
        st.integers(0, 80),
        st.sampled_from(["change", "cut", "insert"]),
        st.binary(min_size=1, max_size=9),
        st.booleans(),
    )
    def run(size: int, place: int, how: str, other: bytes, inside: bool) -> None:
        with nothing_kept():
            here, there = make()
            with contextlib.closing(here._end.codec.pack(b"x" * size)) as parcel:
                data, fds = parcel.seal(HEADER.pack(b"m", os.getpid()))
                if inside and fds:
                    content = os.pread(fds[-1], 2**20, 0)
                    kinds: list[Any] = [("memory", changed(content, place, how, other), 0)]
                else:
                    data = changed(data, place, how, other)
                    kinds = [("fd", fd) for fd in fds]
                length = struct.pack("!I", len(data)) if socket_kind == "stream" else b""
                put(here, length + data, kinds)
            hang_up(here)
            take_all(there)

    run()


def changed(data: bytes, place: int, how: str, other: bytes) -> bytes:
    place = min(place, len(data))
    if how == "cut":
        return data[:place]
    return data[:place] + other + data[place + (len(other) if how == "change" else 0) :]


# how it goes in, and what may come out

ERRORS = (BrokenChannel, MessageTypeError, EndOfChannel)


def put(end: Channel[Any, Any], data: bytes, kinds: list[Any]) -> None:
    """Write into the socket under an end, past all that a channel does."""
    made = {kind: descriptor(*kind) for kind in set(kinds)}  # each is opened once
    fds = [made[kind] for kind in kinds]
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"{len(fds)}i", *fds))]
    try:
        # No more than fits: nobody has read anything yet.
        end._end.link._socket.sendmsg([data], rights if fds else [], socket.MSG_DONTWAIT)
    except OSError:
        pass  # full, too long for a packet, or hung up on by the other end
    finally:
        for fd in made.values():
            os.close(fd)


def descriptor(kind: str, *facts: Any) -> int:
    """Return a descriptor of some kind, to be closed."""
    if kind == "fd":
        return os.dup(facts[0])
    if kind == "pipe":
        reader, writer = os.pipe()
        os.close(writer)
        return reader
    if kind == "socket":
        return socket.socket().detach()
    if kind == "directory":
        return os.open(tempfile.gettempdir(), os.O_RDONLY)
    if kind.startswith("/dev"):
        return os.open(kind, os.O_RDWR)
    content, more = facts
    size = len(content) + more
    if kind == "file":
        with tempfile.TemporaryFile() as file:
            file.write(content)
            file.flush()
            return os.dup(file.fileno())
    fd = memory.anonymous_file(size)
    os.pwrite(fd, content + bytes(more), 0)
    if kind == "memory":
        memory.seal(fd)
    return fd


def hang_up(end: Channel[Any, Any]) -> None:
    """Close the socket under an end without a goodbye."""
    end._end.send_closed = True
    end.close()


def take_all(end: Channel[Any, Any]) -> None:
    """Receive until the end, or for as long as the stream says that it is broken."""
    with end:
        again = 0
        while again < 20:  # more than there are packets
            again += 1
            assert end.poll(PATIENCE), "there is something, be it the end"
            try:
                end.recv(PATIENCE)
            except EndOfChannel:
                with pytest.raises(EndOfChannel):
                    end.recv(PATIENCE)
                return
            except (BrokenChannel, MessageTypeError):
                continue
        assert not descriptors.HAS_PACKETS, "packets end"


@contextlib.contextmanager
def nothing_kept() -> Iterator[None]:
    """Check that no descriptor stays open, and that the memory stays within bounds."""
    reset_peak()
    _segment.clear()
    before = open_descriptors(), peak()
    yield
    _segment.clear()
    if open_descriptors() != before[0]:
        gc.collect()  # tracebacks
    assert open_descriptors() == before[0], "a descriptor was kept"
    assert peak() - before[1] < MOST_MEMORY


def open_descriptors() -> int:
    return len(os.listdir("/dev/fd"))
