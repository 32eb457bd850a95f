"""Rows of the table of faults that are about what passes through a channel's socket."""

from __future__ import annotations

import contextlib
import os
import resource
import select
import socket
import struct
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

from mpkit import BrokenChannel, Channel, ChannelMoved, EndOfChannel, _segment, channel
from mpkit._platform import descriptors
from tests.support import PATIENCE, Spawn, few_descriptors, finish, peak, reset_peak

if TYPE_CHECKING:
    from collections.abc import Iterator

End = Channel[Any, Any]

#: Bytes of which a message that only claims to be large may cost the receiver at most a part.
CLAIMED = 64 * 2**20


def send_many(end: End, size: int, count: int) -> None:
    for number in range(count):
        end.send((number, bytes([number % 251]) * size))


@pytest.mark.parametrize("size", [60_000, 1_000_000])
def test_two_processes_do_not_garble_each_others_messages(spawn: Spawn, size: int) -> None:
    """Row p08 of the table of faults: the end is in one of them, and the other is told so."""
    here, there = channel()
    first = spawn(send_many, there, size, 30)
    with pytest.raises(ChannelMoved):
        there.send("from another process")
    got = list(here)
    assert got == [(number, bytes([number % 251]) * size) for number in range(30)]
    finish(first)


def test_a_process_forked_by_hand_does_not_garble_messages() -> None:
    """Row p08: it has a copy of the end, and cannot use it."""
    here, there = channel()
    sender = threading.Thread(target=send_many, args=(there, 1_000_000, 30))
    sender.start()
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:  # without this process' pytest on the way out
        try:
            there.send("from another process")
            os.write(writer, b"was sent")
        except ChannelMoved as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as file:
        assert b"stayed with process" in file.read()
    os.waitpid(pid, 0)
    assert [here.recv(PATIENCE)[0] for _ in range(30)] == list(range(30))
    sender.join()
    here.close()
    there.close()


def test_any_number_of_processes_send_each_on_its_own_end(spawn: Spawn) -> None:
    """Row p08, and what to do instead."""
    pairs = [channel() for _ in range(3)]
    children = [spawn(send_many, there, 1_000_000, 10) for _, there in pairs]
    for here, _ in pairs:
        assert [number for number, _ in here] == list(range(10))
    for child in children:
        finish(child)


@pytest.fixture
def pair(socket_kind: str) -> Iterator[tuple[End, End]]:
    """Both ends of a channel, over either kind of socket."""
    ends = channel()
    yield ends
    for end in ends:
        end.close()


HEADERS = {
    "p16: length 0x7fffffff": struct.pack("!i", 0x7FFFFFFF),
    "p18: length -2": struct.pack("!i", -2),
    "p19: length -1, and then 2**62": struct.pack("!iQ", -1, 2**62),
    "p20: a stray print": b"DEBUG: here\n",
}


@pytest.mark.parametrize("header", HEADERS)
def test_what_is_no_message_is_broken_at_once(pair: tuple[End, End], header: str) -> None:
    """Rows p16, p18, p19 and p20 of the table of faults: no hang, no memory, and no close."""
    here, there = pair
    reset_peak()
    before = peak()
    with socket.socket(fileno=os.dup(here.fileno())) as raw:
        raw.sendall(HEADERS[header])
    assert there.poll(PATIENCE)
    with pytest.raises(BrokenChannel):  # before the rest of it came, or the end
        there.recv(PATIENCE)
    assert peak() - before < CLAIMED
    here.send("and on it goes")
    if descriptors.HAS_PACKETS:
        assert there.recv(PATIENCE) == "and on it goes"
    else:  # nobody knows where in a stream the next message begins
        with pytest.raises(BrokenChannel):
            there.recv(PATIENCE)


@pytest.mark.skipif(not hasattr(select, "POLLRDHUP"), reason="is taken for the end there")
def test_an_empty_packet_is_no_message_and_not_the_end() -> None:
    here, there = channel()
    if not descriptors.HAS_PACKETS:
        pytest.skip("a stream has no empty packets")
    with socket.socket(fileno=os.dup(here.fileno())) as raw:
        raw.send(b"")
    here.send("and on it goes")
    with pytest.raises(BrokenChannel, match="empty"):
        there.recv(PATIENCE)
    assert there.recv(PATIENCE) == "and on it goes"
    here.close()
    with pytest.raises(EndOfChannel):
        there.recv(PATIENCE)
    there.close()


def print_and_send(end: End) -> None:
    os.dup2(end.fileno(), 1)
    os.write(1, b"a stray print\n")
    os.close(1)
    end.send("a message")


def test_a_stray_print_of_another_process_is_not_a_message(spawn: Spawn) -> None:
    """Row p20 of the table of faults."""
    here, there = channel()
    finish(spawn(print_and_send, there))
    with pytest.raises(BrokenChannel):
        here.recv(PATIENCE)
    if descriptors.HAS_PACKETS:
        assert here.recv(PATIENCE) == "a message"
        with pytest.raises(EndOfChannel):
            here.recv(PATIENCE)
    here.close()


def available() -> int:
    """Return how many bytes of memory are free; 0 if that is not known."""
    try:
        with open("/proc/meminfo") as file:
            facts = dict(line.split(":") for line in file)
    except OSError:
        return 0
    return int(facts["MemAvailable"].split()[0]) * 1024


GIANT = 2**30


def measure(end: End) -> None:
    reset_peak()
    before = peak()
    array = end.recv()
    end.send((int(array[0]), int(array[-1]), int(array.sum()), len(array), peak() - before))


@pytest.mark.skipif(available() < 6 * 2**30, reason="takes 3 GB of memory")
def test_a_message_of_a_gigabyte_arrives_and_is_held_once(spawn: Spawn) -> None:
    """Row p25 of the table of faults: here a message costs each side what it has, and no more."""
    numpy = pytest.importorskip("numpy")
    here, there = channel()
    child = spawn(measure, there)
    array = numpy.ones(GIANT, "u1")
    array[0], array[-1] = 7, 9
    reset_peak()
    before = peak()
    here.send(array)
    sender = peak() - before
    first, last, total, count, receiver = here.recv(PATIENCE)
    assert (first, last, total, count) == (7, 9, GIANT + 14, GIANT)
    print(f"sender +{sender / 2**20:.0f} MiB, receiver +{receiver / 2**20:.0f} MiB")
    assert sender < 0.1 * GIANT
    assert receiver < 1.1 * GIANT
    here.close()
    finish(child)


@pytest.mark.skipif(sys.platform != "linux", reason="what is lost there is not known")
def test_a_large_message_for_which_no_descriptor_is_free_is_lost_and_that_is_said() -> None:
    here, there = channel()
    here.send(bytes(200_000))
    here.send("the next")
    with few_descriptors(0), pytest.raises(BrokenChannel, match=r"is lost.* \(.*ulimit -n\)"):
        there.recv(PATIENCE)
    assert there.recv(PATIENCE) == "the next"
    here.close()
    there.close()


@contextlib.contextmanager
def little_memory(count: int) -> Iterator[None]:
    """Leave this process so many bytes of memory to map."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.mark.skipif(sys.platform != "linux", reason="such a limit is not kept there")
@pytest.mark.parametrize("codec", ["pickle", "msgspec"])
def test_a_large_message_for_which_no_memory_is_free_is_lost_and_that_is_said(codec: Any) -> None:
    if codec == "msgspec":
        pytest.importorskip("msgspec")
    here, there = channel(bytes, bytes, codec=codec)
    here.send(bytes(200 * 2**20))
    here.send(b"the next")
    _segment.clear()  # which the sender keeps mapped
    with little_memory(50 * 2**20), pytest.raises(MemoryError):
        there.recv(PATIENCE)
    assert there.recv(PATIENCE) == b"the next"
    here.close()
    there.close()
