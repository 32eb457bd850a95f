"""Random programs of threads at both ends: nothing lost, nothing twice, in order, and an end.

Each end has threads that send and threads that receive, in this process or in another
one. What they sent and what they got is compared when all of them are done.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import threading
import zlib
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpkit import (
    Channel,
    ChannelClosed,
    ChannelTimeout,
    channel,
    start,
)
from tests.support import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

End = Channel[Any, Any]


@dataclass
class Program:
    """What one end does."""

    #: The sizes of the messages that each sending thread sends.
    senders: list[list[int]]
    receivers: int
    #: Seconds that a call waits before it tries again; None is for ever.
    send_timeout: float | None
    recv_timeout: float | None
    #: The messages after which a receiving thread closes the end, though more may come.
    enough: int | None
    #: Whether the senders' last word is a ``close_send``, or the close after all.
    half_close: bool


@dataclass
class Log:
    """What came of it: messages are (sender, number, size)."""

    sent: list[list[tuple[int, int, int]]] = field(default_factory=list)
    received: list[list[tuple[int, int, int]]] = field(default_factory=list)
    #: How each receiving and each sending thread ended, by the names of errors.
    ends: list[str] = field(default_factory=list)
    stops: list[str] = field(default_factory=list)


def play(program: Program, end: End) -> Log:
    """Run a program, and return when all its threads have ended."""
    log = Log()
    senders: list[threading.Thread] = []
    receivers: list[threading.Thread] = []
    for number, sizes in enumerate(program.senders):
        log.sent.append([])
        senders.append(thread(log.stops, send, program, end, number, sizes, log.sent[-1]))
    for _ in range(program.receivers):
        log.received.append([])
        receivers.append(thread(log.ends, receive, program, end, log.received[-1]))
    for one in senders:
        one.join()
    if program.half_close:
        with contextlib.suppress(ChannelClosed):
            end.close_send()
        for one in receivers:
            one.join()
    elif program.enough is not None:
        for one in receivers:  # one of them closes it, or the peer does
            one.join()
    end.close()
    for one in receivers:
        one.join()
    return log


def thread(errors: list[str], work: Callable[..., None], *args: Any) -> threading.Thread:
    def run() -> None:
        try:
            work(*args)
        except Exception as error:
            errors.append(type(error).__name__)

    one = threading.Thread(target=run)
    one.start()
    return one


def send(
    program: Program, end: End, sender: int, sizes: list[int], sent: list[tuple[int, int, int]]
) -> None:
    for number, size in enumerate(sizes):
        data = np.full(size, (7 * sender + number) % 251, np.uint8)
        check = zlib.crc32(data)
        while True:
            try:
                end.send((sender, number, check, data), program.send_timeout)
            except ChannelTimeout:
                assert program.send_timeout is not None
            else:
                break
        sent.append((sender, number, size))


def receive(program: Program, end: End, got: list[tuple[int, int, int]]) -> None:
    while program.enough is None or len(got) < program.enough:
        try:
            sender, number, check, data = end.recv(program.recv_timeout)
        except ChannelTimeout:
            assert program.recv_timeout is not None
            continue
        assert zlib.crc32(data) == check
        got.append((sender, number, len(data)))
    end.close()


# what must hold afterwards


def check(sender: Log, receiver: Log, program: Program, other: Program) -> None:
    """Compare what was sent by one end with what the other one got."""
    got = Counter(itertools.chain(*receiver.received))
    sent = Counter(itertools.chain(*sender.sent))
    assert all(count == 1 for count in got.values()), "nothing twice"
    assert not got - sent, "and nothing whose send failed"
    for messages in receiver.received:
        for number in range(len(program.senders)):
            mine = [message for message in messages if message[0] == number]
            assert mine == sorted(mine), "in the order in which they were sent"
    if early(receiver, other):
        for one in range(len(program.senders)):  # of each sender's messages the first ones
            mine = sorted(message for message in got if message[0] == one)
            assert [message[1] for message in mine] == list(range(len(mine)))
    else:
        assert got == sent, "nothing is lost"


def early(log: Log, program: Program) -> bool:
    """Tell whether this end was closed before it had received everything."""
    return any(len(messages) == program.enough for messages in log.received)


def check_ends(log: Log, other: Log, program: Program, others: Program) -> None:
    """The end is a goodbye, and only who is closed, or has nobody to send to, stops early."""
    closed, peer_closed = early(log, program), early(other, others)
    assert set(log.ends) <= ({"EndOfChannel", "ChannelClosed"} if closed else {"EndOfChannel"})
    if closed:
        assert set(log.stops) <= {"ChannelClosed", "BrokenChannel"}
    else:
        assert set(log.stops) <= ({"BrokenChannel"} if peer_closed else set())


SIZES = st.sampled_from([*[0, 1, 500, 16_384, 60_000, 65_536, 70_000] * 6, 1_000_000, 10_000_000])


def programs(closes: bool) -> st.SearchStrategy[Program]:
    return st.builds(
        Program,
        senders=st.lists(st.lists(SIZES, max_size=12), max_size=3),
        receivers=st.integers(1, 3),
        send_timeout=st.sampled_from([None, 0.0005, PATIENCE]),
        recv_timeout=st.sampled_from([None, 0.0, 0.0005, PATIENCE]),
        enough=st.integers(0, 12) if closes else st.none(),
        half_close=st.just(True) if not closes else st.booleans(),
    )


def here(program: Program, end: End) -> Callable[[], Log]:
    """Start a program in a thread of this process; return what waits for its log."""
    logs: list[Log] = []
    playing = threading.Thread(target=lambda: logs.append(play(program, end)))
    playing.start()

    def finish() -> Log:
        playing.join(PATIENCE)
        assert logs, "a thread waits for ever"
        return logs[0]

    return finish


def there(control: End, program: Program, end: End) -> Callable[[], Log]:
    """Start it in the other process."""
    control.send((program, end))
    return functools.partial(control.recv, PATIENCE)


def play_all(control: End) -> None:
    for program, end in control:
        control.send(play(program, end))


@contextlib.contextmanager
def other_process() -> Iterator[End]:
    control, theirs = channel()
    with start(play_all, theirs) as job:
        yield control
        control.close()
        job.result(PATIENCE)


@pytest.mark.parametrize("far", [False, True], ids=["threads", "processes"])
@pytest.mark.parametrize("closes", [False, True], ids=["to the end", "closed early"])
def test_threads_at_both_ends(closes: bool, far: bool) -> None:
    with other_process() if far else contextlib.nullcontext() as control:

        @settings(max_examples=80, deadline=None)
        @given(programs(False), programs(closes))
        def run(left: Program, right: Program) -> None:
            mine, theirs = channel()
            second = there(control, right, theirs) if control else here(right, theirs)
            first = here(left, mine)
            logs = first(), second()
            check(*logs, left, right)
            check(*logs[::-1], right, left)
            check_ends(*logs, left, right)
            check_ends(*logs[::-1], right, left)

        run()
