"""Messages, packed and unpacked without a socket between."""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
import resource
import socket
import struct
import tempfile
from array import array
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as np_strategies

from mpkit import NotPicklable, _parcel, _segment
from mpkit._link import MOST_DESCRIPTORS, PACKET, Malformed
from mpkit._parcel import pack, unpack, unpack_stream
from mpkit._pickling import OUT_OF_BAND
from mpkit._platform import descriptors, memory
from tests import poolwork

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

HEADER = b"a header"


def sent(message: object) -> tuple[bytes, list[int]]:
    """Return the packet of ``message`` with copies of its descriptors, as a receiver has."""
    with contextlib.closing(pack(message, "it")) as parcel:
        data, fds = parcel.seal(HEADER)
        assert len(data) <= PACKET
        assert data.startswith(HEADER)
        return data[len(HEADER) :], [os.dup(fd) for fd in fds]


def travelled(message: object) -> Any:
    return unpack(*sent(message))


def alike(one: Any, other: Any) -> bool:
    """Compare for equality, also what is not a number and what is an array."""
    if isinstance(one, np.ndarray):
        return (
            isinstance(other, np.ndarray)
            and one.dtype.newbyteorder("=") == other.dtype.newbyteorder("=")  # numpy's choice
            and one.shape == other.shape
            and (one.tobytes() == other.tobytes() or bool(np.all((one == other) | (one != one))))
        )
    if isinstance(one, dict):
        return list(one) == list(other) and all(alike(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return (
            type(one) is type(other)
            and len(one) == len(other)
            and all(alike(*both) for both in zip(one, other, strict=True))
        )
    return type(one) is type(other) and (one == other or one != one)


class Loud(str):
    """A text that has something to say when it is pickled."""

    __slots__ = ()

    def __reduce__(self) -> Any:
        return str.upper, (str(self),)


@pytest.mark.parametrize(
    "atom", [None, True, -3, 7**9999, 1.5, "é", "\ud800", "x" * 300_000], ids=type
)
def test_what_has_no_parts_travels_as_all_else_does(atom: object) -> None:
    for message in (atom, [atom], [(True, atom), (True, None)]):
        assert alike(travelled(message), message)
    with contextlib.closing(_parcel.of(_parcel.dump_atoms([(True, atom)]))) as parcel:
        data, fds = parcel.seal(HEADER)
        assert alike(unpack(data, [os.dup(fd) for fd in fds], len(HEADER)), [(True, atom)])


def test_only_what_pickle_alone_can_do_is_left_to_it() -> None:
    assert _parcel.are_atoms([None, True, 2, 3.5, "text"])
    for other in (Loud("x"), b"", [], int, array("b")):
        assert not _parcel.are_atoms([1, other])
    assert travelled(Loud("x")) == "X"


def test_what_has_a_class_without_a_hash_is_no_atom() -> None:
    """Its worker died of the question."""
    assert not _parcel.are_atoms([poolwork.OfUnhashable()])


def repeated(data: bytes) -> st.SearchStrategy[bytes]:
    """Bytes of lengths around the limits at which something changes."""
    edges = st.sampled_from([0, 1, OUT_OF_BAND, PACKET])
    return st.builds(lambda edge, more: data * max(0, edge + more), edges, st.integers(-40, 40))


arrays = np_strategies.arrays(
    dtype=np_strategies.scalar_dtypes(),
    shape=np_strategies.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=6),
)
leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.binary(max_size=20),
    repeated(b"x"),
    repeated(b"y").map(bytearray),
    arrays,
)
messages = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.text(max_size=5), inner, max_size=4),
        st.tuples(inner, inner),
    ),
    max_leaves=10,
)


@settings(max_examples=80, deadline=None)
@given(messages)
def test_any_message_arrives_equal(message: object) -> None:
    assert alike(travelled(message), message)


def large(dtype: str = "f8") -> np.ndarray[Any, Any]:
    """An array that travels beside the stream."""
    return np.arange(120 * 130).reshape(120, 130).astype(dtype)


LAYOUTS: dict[str, Callable[[], Any]] = {
    "C": large,
    "Fortran": lambda: np.asfortranarray(large()),
    "transposed": lambda: large().T,
    "strided": lambda: large()[::2, ::3],
    "reversed": lambda: large()[::-1],
    "broadcast": lambda: np.broadcast_to(np.arange(5000.0), (20, 5000)),
    "empty": lambda: np.empty((0, 100_000)),
    "scalar": lambda: np.array(1.5),
    "other byte order": lambda: large(">i4"),
    "records": lambda: np.zeros(5000, dtype=[("number", "i4"), ("name", "S9")]),
    "text": lambda: large("U9"),
    "bool": lambda: large("?"),
    "complex": lambda: large("c16"),
    "time": lambda: large("i8").astype("M8[s]"),
    "objects": lambda: np.array([{"any": "thing"}, [1], None] * 5000, dtype=object),
    "masked": lambda: np.ma.masked_less(large(), 7.0),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_array_of_any_layout_arrives_equal_and_writable(layout: str) -> None:
    array = LAYOUTS[layout]()
    arrived = travelled(["before", array, "after"])[1]
    assert type(arrived) is type(array)
    assert arrived.dtype == array.dtype
    assert np.array_equal(np.ma.filled(arrived, 0), np.ma.filled(array, 0))
    if array.flags.writeable:
        arrived[...] = array.flat[0] if array.size else 0  # it may be written to


def test_a_read_only_array_stays_read_only() -> None:
    array = large()
    array.flags.writeable = False
    assert not travelled(array).flags.writeable


def test_writing_to_what_arrived_changes_no_other_copy() -> None:
    """The sender may have to send the same segment again."""
    array = large()
    data, fds = sent(array)
    once, again = unpack(data, [os.dup(fd) for fd in fds]), unpack(data, fds)
    once[...] = -1
    assert np.array_equal(again, array)
    assert np.array_equal(array, large())


def test_the_same_array_twice_arrives_as_one() -> None:
    array = large()
    one, other = travelled([array, array])
    assert one is other
    assert np.array_equal(one, array)


@pytest.mark.parametrize("make", [bytes, bytearray, memoryview])
@pytest.mark.parametrize("size", [0, 10, OUT_OF_BAND, PACKET - 50, PACKET, 3_000_000])
def test_a_buffer_arrives_equal(make: Callable[[bytes], Any], size: int) -> None:
    message = pickle.PickleBuffer(make(os.urandom(size)))
    arrived = travelled([message])[0]
    assert bytes(arrived) == bytes(message)


@pytest.mark.parametrize(
    "view",
    [
        memoryview(b"abc"),
        memoryview(bytearray(b"abcdef"))[::2],
        memoryview(b""),
        memoryview(np.arange(90_000)),
        memoryview(np.arange(90_000.0).reshape(300, 300)),
        memoryview(np.empty(0)),
        memoryview(np.empty((0, 3))),
    ],
    ids=["bytes", "strided", "empty", "large", "two dimensions", "no numbers", "no rows"],
)
def test_a_memoryview_arrives_equal(view: memoryview) -> None:
    arrived = travelled([view])[0]
    assert arrived == view
    assert (arrived.format, arrived.shape) == (view.format, view.shape)
    assert arrived.readonly == (view.readonly or not view.contiguous)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(3, dtype=">i4"),
        np.zeros(3, complex),
        np.zeros(3, [("a", "i4"), ("b", "f8")]),
        np.empty((3, 0)),
    ],
)
def test_a_memoryview_of_which_no_other_can_be_made_is_refused_by_the_sender(array: Any) -> None:
    with pytest.raises(NotPicklable, match="memoryview of format"):
        pack(memoryview(array), "it")


def test_hundreds_of_buffers_take_one_descriptor() -> None:
    arrays = [np.full(OUT_OF_BAND, number, "u2") for number in range(2 * MOST_DESCRIPTORS)]
    data, fds = sent(arrays)
    assert len(fds) == 1
    assert all(map(np.array_equal, unpack(data, fds), arrays))


def test_parts_are_aligned() -> None:
    arrived = travelled([np.arange(3000.0), np.arange(3001.0), "x" * 13])
    assert [array.ctypes.data % 16 for array in arrived[:2]] == [0, 0]


def test_own_keeps_what_was_packed() -> None:
    array = np.asfortranarray(large())
    before, memory = array.copy(), array.T.tobytes()
    with contextlib.closing(pack([array, pickle.PickleBuffer(array)], "it")) as parcel:
        parcel.own()
        array[...] = 0
        data, fds = parcel.seal()
        arrived, raw = unpack(data, [os.dup(fd) for fd in fds])
    assert np.array_equal(arrived, before)
    assert bytes(raw) == memory


def test_own_takes_a_bounded_number_of_descriptors() -> None:
    """And none of them is lost."""
    before = len(os.listdir("/dev/fd"))
    arrays = [np.full(20_000, number) for number in range(100)]
    with contextlib.ExitStack() as stack:
        parcels = [stack.enter_context(contextlib.closing(pack(it, "it"))) for it in arrays]
        for parcel, array in zip(parcels, arrays, strict=True):
            parcel.own()
            array[...] = -1
        assert len(os.listdir("/dev/fd")) - before <= 3 * _segment.MOST_KEPT
        for number, parcel in enumerate(parcels):
            data, fds = parcel.seal()
            assert (unpack(data, [os.dup(fd) for fd in fds]) == number).all()
    _segment.clear()
    assert len(os.listdir("/dev/fd")) == before


def test_unpickling_errors_are_the_users_and_leak_nothing() -> None:
    data, fds = sent([large(), Fails()])
    with pytest.raises(EOFError, match="mine"):
        unpack(data, fds)
    assert all(closed(fd) for fd in fds)


class Fails:
    def __reduce__(self) -> Any:
        return fail, ()


def fail() -> None:
    raise EOFError("mine")


def closed(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return True
    return False


def segment(content: bytes, size: int | None = None) -> int:
    fd = memory.anonymous_file(len(content) if size is None else size)
    os.pwrite(fd, content, 0)
    memory.seal(fd)
    return fd


def inline(stream: bytes, carried: int = 0) -> bytes:
    """Return a packet without a segment, that says it has so many descriptors."""
    return struct.pack("=cB", b"\0", carried) + stream


def beside(used: int, carried: int = 0) -> bytes:
    """Return the packet of a segment with so many bytes in use."""
    return struct.pack("=cBQ", b"\1", carried, used) + bytes(100)


SEGMENTS = {
    "empty": b"",
    "short": b"\1",
    "no parts": struct.pack("=QQ", 0, 0),
    "negative count": struct.pack("=qQ", -1, 0) + bytes(100),
    "huge count": struct.pack("=QQ", 2**63, 1) + bytes(100),
    "count of all there is": struct.pack("=QQ", 2, 1),
    "huge part": struct.pack("=QQ", 1, 2**63) + bytes(100),
    "parts that overflow": struct.pack("=QQQ", 2, 2**64 - 1, 2**64 - 1) + bytes(100),
    "beyond the end": struct.pack("=QQ", 1, 101) + bytes(100),
    "many small parts": struct.pack("=Q", 1000) + bytes(2**17),
}


@pytest.mark.parametrize("kind", SEGMENTS)
@pytest.mark.parametrize("read", [unpack, unpack_stream])
def test_a_malformed_segment_is_named_so(read: Callable[..., Any], kind: str) -> None:
    fd = segment(SEGMENTS[kind])
    with pytest.raises(Malformed, match="a segment of"):
        read(beside(len(SEGMENTS[kind])), [fd])
    assert closed(fd)


def test_buffers_that_fit_into_the_packet_need_no_descriptor() -> None:
    arrays = [np.arange(3000.0), np.arange(3001.0)]
    data, fds = sent(arrays)
    assert not fds
    arrived = unpack(data, fds)
    arrived[0][...] = 1.0
    assert arrived[0].flags.aligned
    assert np.array_equal(arrived[1], arrays[1])


@pytest.mark.parametrize("read", [unpack, unpack_stream])
def test_a_segment_with_more_in_use_than_it_has_is_malformed(read: Callable[..., Any]) -> None:
    fd = segment(struct.pack("=QQ", 1, 100) + bytes(200))
    with pytest.raises(Malformed, match="cannot have 300 in use"):
        read(beside(300), [fd])
    assert closed(fd)


@pytest.mark.parametrize("data", [b"", b"\0", b"\x03", b"GET / HTTP/1.0", b"\x01", b"\x02\0abc"])
@pytest.mark.parametrize("read", [unpack, unpack_stream])
def test_an_unknown_packet_is_malformed(read: Callable[..., Any], data: bytes) -> None:
    with pytest.raises(Malformed, match="is no packet"):
        read(data, [])


@pytest.mark.parametrize("read", [unpack, unpack_stream])
@pytest.mark.parametrize("extra", [-1, 1, 3])
@pytest.mark.parametrize("bulky", [False, True])
def test_a_descriptor_too_few_or_too_many_is_malformed(
    read: Callable[..., Any], extra: int, bulky: bool
) -> None:
    """And nothing is unpickled, nothing is left open."""
    carried = 0 if extra > 0 or bulky else 1
    content = struct.pack("=QQ", 1, 4) + bytes(48) + pickle.dumps(None)
    data = beside(len(content), carried) if bulky else inline(pickle.dumps(Fails()), carried)
    fds = [segment(content) for _ in range(carried + bulky + extra)]
    with pytest.raises(Malformed, match="descriptors"):
        read(data, fds)
    assert all(closed(fd) for fd in fds)


def test_a_message_of_bytes_has_no_other_parts() -> None:
    arrays = [np.zeros(OUT_OF_BAND), np.zeros(OUT_OF_BAND)]
    data, fds = sent(arrays)
    with pytest.raises(Malformed, match="more than its stream"):
        unpack_stream(data, fds)
    assert all(closed(fd) for fd in fds)


def test_what_is_for_no_pickle_is_copied() -> None:
    """Its sender, who is not trusted, could change it after it was checked."""
    content = struct.pack("=QQ", 1, 2**21) + bytes(48) + bytes(2**21)
    fd = segment(content)
    mine = os.dup(fd)
    stream = unpack_stream(beside(len(content)), [fd])
    os.pwrite(mine, b"changed", 64)
    assert bytes(stream[:7]) == bytes(7)
    os.close(mine)


def test_a_descriptor_that_is_no_memory_is_malformed() -> None:
    reader, writer = os.pipe()
    with pytest.raises(Malformed):
        unpack(beside(8), [reader])
    assert closed(reader)
    os.close(writer)


def test_a_segment_that_cannot_be_read_is_malformed(tmp_path: Path) -> None:
    ours = segment(struct.pack("=QQ", 1, 10) + bytes(100))
    unreadable = os.open(f"/proc/self/fd/{ours}", os.O_WRONLY)
    os.close(ours)
    for fd in (unreadable, os.open(tmp_path, os.O_RDONLY)):
        with pytest.raises(Malformed, match="a segment of"):
            unpack_stream(beside(24), [fd])
        assert closed(fd)


@pytest.mark.skipif(not memory.HAS_MEMFD, reason="it cannot be prevented, nor known")
class TestAnUntrustedSegment:
    def test_that_could_become_shorter_is_malformed(self) -> None:
        """Whoever maps it would be killed by SIGBUS."""
        fd = memory.anonymous_file(2**21)
        os.pwrite(fd, struct.pack("=QQ", 1, 100) + bytes(2**21 - 16), 0)
        with pytest.raises(Malformed, match="may lose"):
            unpack_stream(beside(2**21), [fd])
        assert closed(fd)

    def test_that_is_a_file_on_disk_is_malformed(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(struct.pack("=QQ", 1, 100) + bytes(200))
        fd = os.open(tmp_path / "file", os.O_RDWR)
        with pytest.raises(Malformed, match="may lose"):
            unpack_stream(beside(200), [fd])
        assert closed(fd)

    def test_that_has_no_memory_for_its_size_is_malformed(self) -> None:
        """To read it would take as much memory as it says."""
        fd = segment(struct.pack("=QQ", 1, 2**40), 2**40 + 64)
        with pytest.raises(Malformed, match="holes"):
            unpack_stream(beside(2**40 + 64), [fd])
        assert closed(fd)

    def test_of_ours_cannot_become_shorter(self) -> None:
        with contextlib.closing(pack(bytes(2**21), "it")) as parcel:
            _, (fd,) = parcel.seal()
            with pytest.raises(OSError, match="not permitted|Invalid"):
                os.ftruncate(fd, 0)
            mine = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
            with pytest.raises(PermissionError):
                os.ftruncate(mine, 0)
            os.close(mine)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 200), st.integers(0, 500))
def test_no_segment_costs_more_memory_than_it_has(content: bytes, more: int, used: int) -> None:
    fd = segment(content, len(content) + more)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with contextlib.suppress(Malformed):
        unpack_stream(beside(used), [fd])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000
    assert closed(fd)


def test_millions_of_empty_parts_cost_nothing() -> None:
    fd = segment(struct.pack("=Q", 4_000_000) + bytes(33_000_000))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(Malformed, match="cannot have 4000000 parts"):
        unpack(beside(33_000_008), [fd])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


class TestAFileInsteadOfMemory:
    @pytest.fixture(autouse=True)
    def _portable(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(memory, "HAS_MEMFD", False)
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    @pytest.mark.skipif(not hasattr(os, "O_TMPFILE"), reason="each file has a name at first")
    def test_it_never_has_a_name(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Who is killed at any moment leaves nothing."""
        monkeypatch.setattr(tempfile, "mkstemp", None)
        self.check()

    def test_its_name_is_gone_at_once_where_it_needs_one(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.delattr(os, "O_TMPFILE", raising=False)
        self.check()
        assert not list(tmp_path.iterdir())

    def check(self) -> None:
        for size in (100_000, 3_000_000):
            array = np.arange(size)
            data, fds = sent(array)
            assert os.fstat(fds[0]).st_nlink == 0
            assert np.array_equal(unpack(data, fds), array)
        assert not _segment._kept.sizes()


@pytest.mark.parametrize("size", range(PACKET - 200, PACKET + 10, 7))
def test_a_packet_leaves_room_for_what_others_put_around_it(size: int) -> None:
    with contextlib.closing(pack("x" * size, "it")) as parcel:
        data, fds = parcel.seal()
        assert len(data) <= PACKET - 60
        assert parcel.plain == (not fds)


def test_a_map_that_cannot_be_had_is_read_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    array = np.arange(1_000_000)
    data, fds = sent(array)

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("mpkit._platform.memory.mmap.mmap", fail)
    assert np.array_equal(unpack(data, fds), array)


def test_a_message_in_a_segment_takes_room_in_the_buffer_too() -> None:
    here, there = descriptors.socket_pair(PACKET)
    closing = contextlib.closing
    with closing(here), closing(there), closing(pack(np.zeros(2_000_000), "it")) as parcel:
        count = 0
        here.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while count < 1000:
                data, fds = parcel.seal(HEADER)
                here.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))])
                count += 1
        assert 1 <= count < 20


def test_what_the_first_pickler_took_along_the_second_does_not_send_twice() -> None:
    pytest.importorskip("cloudpickle")
    thing = Thing()
    with contextlib.closing(pack([thing, lambda: 1], "it")) as parcel:
        data, fds = parcel.seal()
        assert len(fds) == 1
        assert data[:2] == b"\0\1"


class Thing:
    """Something that moves."""

    def _descriptor(self) -> int:
        return 0

    def _leave(self) -> None:
        pass

    def _remain(self) -> None:
        pass

    def _moved(self, where: str) -> None:
        pass

    def __reduce__(self) -> Any:
        parcel = _parcel.current_parcel()
        assert parcel is not None
        return _parcel.claim, (parcel.carry(self),)


def test_claiming_what_did_not_arrive_is_malformed() -> None:
    stream = pickle.dumps(Claims(0))
    with pytest.raises(Malformed, match="descriptor"):
        unpack(inline(stream), [])


class Claims:
    def __init__(self, index: int) -> None:
        self.index = index

    def __reduce__(self) -> Any:
        return _parcel.claim, (self.index, int)
