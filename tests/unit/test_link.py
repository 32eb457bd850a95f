"""Packets and descriptors over one socket, of packets and of a stream."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from mpkit import _links
from mpkit._link import MOST_DESCRIPTORS, PACKET, Link, LinkDown, Malformed, discard
from mpkit._platform import descriptors
from mpkit._wait import Deadline, poll
from tests.support import PATIENCE, until

if TYPE_CHECKING:
    from collections.abc import Iterator

Pair = tuple[Link, Link]


@pytest.fixture
def pair(socket_kind: str) -> Iterator[Pair]:
    """Both ends of a link of each kind."""
    ends = _links.pair()
    yield ends
    for end in ends:
        end.close()


def received(link: Link) -> bytes:
    packet = link.receive(Deadline(PATIENCE))
    assert packet is not None
    data, fds = packet
    discard(fds)
    return data


def fill(link: Link) -> int:
    """Send until nothing more goes in; return how many packets that took."""
    count = 0
    while link.send(b"x" * 1000, [], Deadline(0)):
        count += 1
    return count


def test_packets_arrive_whole_and_in_order(pair: Pair) -> None:
    here, there = pair
    packets = [b"a", b"b" * 1000, b"c" * PACKET, b"\0"]
    sender = threading.Thread(target=lambda: [here.send(packet, []) for packet in packets])
    sender.start()
    assert [received(there) for _ in packets] == packets
    sender.join()


def test_both_directions_are_independent(pair: Pair) -> None:
    here, there = pair
    here.send(b"question", [])
    there.send(b"reply", [])
    assert received(here) == b"reply"
    assert received(there) == b"question"


@pytest.mark.parametrize("count", [1, 2, MOST_DESCRIPTORS])
def test_descriptors_ride_on_their_own_packet(pair: Pair, count: int) -> None:
    here, there = pair
    reader, writer = os.pipe()
    here.send(b"none", [])
    here.send(b"some", [writer] * count)
    here.send(b"none again", [])
    packets = [there.receive() for _ in range(3)]
    assert [packet and len(packet[1]) for packet in packets] == [0, count, 0]
    assert packets[1]
    os.write(packets[1][1][-1], b"!")
    assert os.read(reader, 1) == b"!"
    discard(packets[1][1])
    discard([reader, writer])


def test_descriptors_that_arrive_are_not_inherited_by_programs(pair: Pair) -> None:
    here, there = pair
    here.send(b"x", [0])
    packet = there.receive()
    assert packet
    # macOS has no MSG_CMSG_CLOEXEC.
    assert not os.get_inheritable(packet[1][0]) or not hasattr(socket, "MSG_CMSG_CLOEXEC")
    discard(packet[1])


def test_receive_gives_up_at_the_deadline(pair: Pair) -> None:
    here, there = pair
    assert there.receive(Deadline(0)) is None
    assert there.receive(Deadline(0.01)) is None
    here.send(b"later", [])
    assert received(there) == b"later"


def test_a_send_that_gave_up_has_sent_nothing(pair: Pair) -> None:
    here, there = pair
    count = fill(here)
    assert not here.send(b"y" * 1000, [], Deadline(0.01))
    for _ in range(count):
        assert received(there) == b"x" * 1000
    here.send(b"z", [])
    assert received(there) == b"z"


def test_a_blocked_send_goes_on_when_there_is_room(pair: Pair) -> None:
    here, there = pair
    count = fill(here)
    sender = threading.Thread(target=here.send, args=(b"last", []))
    sender.start()
    data = [received(there) for _ in range(count + 1)]
    sender.join(PATIENCE)
    assert data[-1] == b"last"


@pytest.mark.parametrize("deadline", [None, Deadline(PATIENCE)])
def test_what_was_sent_arrives_before_the_end(pair: Pair, deadline: Deadline | None) -> None:
    here, there = pair
    here.send(b"1", [])
    here.send(b"2", [])
    here.close()
    assert there.receive(deadline) == (b"1", [])
    assert there.receive(deadline) == (b"2", [])
    for _ in range(2):
        with pytest.raises(LinkDown):
            there.receive(deadline)


@pytest.mark.parametrize("deadline", [None, Deadline(PATIENCE)])
def test_it_arrives_too_when_the_other_end_left_something_unread(
    pair: Pair, deadline: Deadline | None
) -> None:
    """The kernel then reports a reset, on a socket of packets before it delivers them."""
    here, there = pair
    there.send(b"never read", [])
    here.send(b"1", [])
    here.send(b"2", [])
    here.close()
    assert there.receive(deadline) == (b"1", [])
    assert there.receive(deadline) == (b"2", [])
    with pytest.raises(LinkDown):
        there.receive(deadline)


@pytest.mark.parametrize("deadline", [None, Deadline(PATIENCE)])
def test_sending_to_nobody_is_link_down(pair: Pair, deadline: Deadline | None) -> None:
    here, there = pair
    there.close()
    for _ in range(2):
        with pytest.raises(LinkDown):
            here.send(b"x", [], deadline)


@pytest.mark.parametrize("end", ["here", "there"])
def test_a_blocked_send_ends_when_either_end_is_shut(pair: Pair, end: str) -> None:
    here, there = pair
    fill(here)
    caught: list[LinkDown] = []

    def send() -> None:
        try:
            here.send(b"x" * PACKET, [])
        except LinkDown as error:
            caught.append(error)

    sender = threading.Thread(target=send)
    sender.start()
    (here if end == "here" else there).shut()
    sender.join(PATIENCE)
    assert caught


@pytest.mark.parametrize("end", ["here", "there"])
def test_a_blocked_receive_ends_when_either_end_is_shut(pair: Pair, end: str) -> None:
    here, there = pair
    caught: list[LinkDown] = []

    def receive() -> None:
        try:
            here.receive()
        except LinkDown as error:
            caught.append(error)

    receiver = threading.Thread(target=receive)
    receiver.start()
    (here if end == "here" else there).shut()
    receiver.join(PATIENCE)
    assert caught


def test_shut_sending_ends_one_direction_only(pair: Pair) -> None:
    here, there = pair
    here.send(b"last", [])
    here.shut_sending()
    assert received(there) == b"last"
    with pytest.raises(LinkDown):
        there.receive(Deadline(PATIENCE))
    with pytest.raises(LinkDown):
        here.send(b"more", [])
    there.send(b"back", [])
    assert received(here) == b"back"


def test_there_is_room_for_a_last_packet_and_none_comes_after_it(pair: Pair) -> None:
    here, there = pair
    sent = fill(here)
    here.send_last(b"goodbye")
    with pytest.raises(LinkDown):
        here.send(b"x", [])
    here.shut_sending()
    assert [received(there) for _ in range(sent + 1)][-1] == b"goodbye"
    with pytest.raises(LinkDown):
        there.receive()


def test_to_poll_does_not_tie_what_came_to_this_process(pair: Pair) -> None:
    """Descriptors that were received cannot move with it."""
    here, there = pair
    assert not there.poll(Deadline(0))
    here.send(b"x", [here.fd])
    here.send(b"y", [here.fd])
    assert there.poll(Deadline(0))
    assert there.poll(Deadline(PATIENCE))
    assert not there.busy
    assert [received(there), received(there)] == [b"x", b"y"]
    assert not there.poll(Deadline(0))


@pytest.mark.parametrize("timeout", [0, 0.001])
def test_what_may_not_wait_is_sent_whole_or_not_at_all(pair: Pair, timeout: float) -> None:
    here, there = pair
    for size in range(1000, PACKET, 3000):  # so that there is another amount of room each time
        sent = [b"first" * (size // 5)]
        here.send(sent[0], [])
        while here.send(b"x" * PACKET, [], Deadline(timeout)):
            sent.append(b"x" * PACKET)
        assert [there.receive(Deadline(0)) for _ in sent] == [(data, []) for data in sent]
        assert there.receive(Deadline(0)) is None


def test_it_is_readable_when_something_came_and_when_it_ended(pair: Pair) -> None:
    here, there = pair
    assert poll([there.fd], 0) == []
    here.send(b"x", [])
    assert poll([there.fd], PATIENCE) == [there.fd]
    assert received(there) == b"x"
    assert poll([there.fd], 0) == []
    here.close()
    assert poll([there.fd], PATIENCE) == [there.fd]


def test_closing_says_so(pair: Pair) -> None:
    here, _ = pair
    assert not here.closed
    here.close()
    here.close()
    assert here.closed


def raw(link: Link) -> socket.socket:
    return link._socket


@pytest.mark.parametrize("how_far", ["read", "in the inbox"])
def test_closing_closes_what_came_and_was_not_taken(pair: Pair, how_far: str) -> None:
    here, there = pair
    reader, writer = os.pipe()
    here.send(b"x", [writer])
    os.close(writer)
    if how_far == "read":
        assert there._read(Deadline(PATIENCE))
    else:
        there.fill(Deadline(PATIENCE))
    inbox = there.inbox  # as a traceback may
    there.close()
    assert poll([reader], 0) == [reader]  # it is the end: nobody has the other side
    os.close(reader)
    assert not any(fds for _, fds in inbox)


def test_a_packet_that_is_too_large_is_malformed(pair: Pair) -> None:
    here, there = pair
    reader, writer = os.pipe()
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, writer.to_bytes(4, "little"))]
    data = b"\xff" * (PACKET + 1)  # for a stream: a length of 4 GiB
    raw(here).sendmsg([data], rights)
    os.close(writer)
    with pytest.raises(Malformed):
        there.receive(Deadline(PATIENCE))
    there.close()
    here.close()
    assert os.read(reader, 1) == b""  # every copy of what came along was closed
    os.close(reader)


@pytest.mark.skipif(not hasattr(select, "POLLRDHUP"), reason="it is taken for the end there")
def test_an_empty_packet_is_none_of_ours_and_leaks_nothing(pair: Pair) -> None:
    here, there = pair
    if raw(here).type == socket.SOCK_STREAM:
        pytest.skip("a stream has no empty packets")
    reader, writer = os.pipe()
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, writer.to_bytes(4, "little"))]
    raw(here).sendmsg([b""], rights)
    os.close(writer)
    with pytest.raises(Malformed, match="empty"):
        there.receive(Deadline(PATIENCE))
    assert os.read(reader, 1) == b""
    os.close(reader)


class TestStream:
    """What only a stream can do: stop in the middle of a packet."""

    @pytest.fixture(autouse=True)
    def _stream(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(descriptors, "HAS_PACKETS", False)

    def test_half_a_packet_waits_for_its_other_half(self) -> None:
        here, there = _links.pair()
        raw(here).sendall(b"\0\0")
        assert there.receive(Deadline(0)) is None
        raw(here).sendall(b"\0\x05abc")
        assert there.receive(Deadline(0.01)) is None
        raw(here).sendall(b"de")
        assert there.receive(Deadline(PATIENCE)) == (b"abcde", [])
        here.close()
        there.close()

    def test_half_a_packet_and_then_the_end_is_link_down(self) -> None:
        here, there = _links.pair()
        raw(here).sendall(b"\0\0\0\x05abc")
        here.close()
        with pytest.raises(LinkDown):
            there.receive()
        there.close()

    @pytest.mark.parametrize("length", [0, PACKET + 1, 0x7FFFFFFF, 0xFFFFFFFF])
    def test_a_length_that_lies_is_malformed_at_once(self, length: int) -> None:
        here, there = _links.pair()
        raw(here).sendall(length.to_bytes(4, "big") + b"abc")
        for _ in range(2):
            with pytest.raises(Malformed, match=str(length)):
                there.receive()
        here.close()
        there.close()

    def test_a_send_stopped_halfway_by_its_deadline_ends_the_link(self) -> None:
        here, there = _links.pair()
        raw(here).setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        with pytest.raises(LinkDown):
            here.send(b"x" * PACKET, [], Deadline(0.01))
        with pytest.raises(LinkDown):
            while there.receive():
                pass
        here.close()
        there.close()

    def test_a_send_that_may_not_wait_leaves_the_rest_for_later(self) -> None:
        """So that an event loop can go on with it, and nothing is sent twice."""
        here, there = _links.pair()
        raw(here).setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        assert here.send(b"x" * PACKET, [], Deadline(0))
        assert not here.flush()
        assert not here.send(b"y", [], Deadline(0))  # the rest comes first
        assert there.receive(Deadline(0)) is None
        assert here.busy  # the rest cannot move to another process
        while not here.flush():
            there.receive(Deadline(0.001))
        assert not here.busy
        assert here.send(b"y", [], Deadline(0))
        packets = [*there.inbox, there.receive(Deadline(PATIENCE))]
        assert packets[0] == (b"x" * PACKET, [])
        here.close()
        there.close()

    @pytest.mark.parametrize("moment", ["sent", "not sent"])
    def test_a_send_that_is_interrupted_leaves_no_half_packet_in_the_way(
        self, moment: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        here, there = _links.pair()
        raw(here).setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)

        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        receipt: list[int] = []
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            if moment == "not sent":
                patch.setattr(here, "_put", interrupt)
            patch.setattr("mpkit._streamlink.may_wait", interrupt)
            here.send(b"x" * PACKET, [], receipt=receipt)
        assert bool(receipt) == (moment == "sent")
        sender = threading.Thread(target=lambda: here.send(b"y", []))
        sender.start()
        expected = [b"x" * PACKET, b"y"] if moment == "sent" else [b"y"]
        assert [received(there) for _ in expected] == expected
        sender.join()
        here.close()
        there.close()

    def test_a_part_of_a_packet_moves_along(self) -> None:
        here, there = _links.pair()
        raw(here).sendall(b"\0\0")
        assert not there.poll(Deadline(0))
        raw(here).sendall(b"\0\5whole\0\0\0\x05abc")
        assert there.poll(Deadline(0))
        assert there.inbox == [(b"whole", [])]
        there.receive()
        assert not there.poll(Deadline(0))  # half a packet is nothing to receive
        moved = _links.adopt(os.dup(there.fd))
        moved.keep(*there.kept())
        there.close()
        raw(here).sendall(b"de")
        assert received(moved) == b"abcde"
        here.close()
        moved.close()


def test_one_thread_receives_while_another_sends(pair: Pair) -> None:
    """Each direction has its own thread at each end; nothing is mixed up."""
    here, there = pair

    def echo() -> None:
        with contextlib.suppress(LinkDown):
            while packet := there.receive():
                there.send(packet[0], [])

    echoing = threading.Thread(target=echo)
    echoing.start()
    got: list[bytes] = []
    reading = threading.Thread(target=lambda: got.extend(received(here) for _ in range(500)))
    reading.start()
    sent = [str(number).encode() * 100 for number in range(500)]
    for data in sent:
        here.send(data, [])
    until(lambda: len(got) == 500)
    reading.join()
    here.shut()
    echoing.join(PATIENCE)
    assert got == sent
