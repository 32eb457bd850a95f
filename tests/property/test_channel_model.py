"""A channel against a model of it: two queues, and who has closed what."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mpkit import BrokenChannel, Channel, ChannelClosed, ChannelTimeout, EndOfChannel, channel

#: Sizes around each limit at which something changes.
SIZES = st.sampled_from([0, 1, 100, 16_000, 16_384, 65_000, 65_536, 70_000, 1_000_000])
SIDES = st.sampled_from([0, 1])

#: No model of how much fits into a socket: a refused send must only have sent nothing.
AT_ONCE = 0.0


class ChannelModel(RuleBasedStateMachine):
    """Random programs of both ends in one process."""

    @initialize()
    def begin(self) -> None:
        self.ends: list[Channel[Any, Any]] = list(channel())
        self.carrier = channel()
        #: What each side will receive, and whether it closed, or said that no more comes.
        self.inbox: list[deque[tuple[int, int]]] = [deque(), deque()]
        self.closed = [False, False]
        self.silent = [False, False]
        self.number = 0

    @rule(side=SIDES, size=SIZES, array=st.booleans())
    def send(self, side: int, size: int, array: bool) -> None:
        self.number += 1
        data = np.full(size, self.number % 251, np.uint8)
        message = self.number, data if array else data.tobytes()
        try:
            self.ends[side].send(message, AT_ONCE)
        except ChannelTimeout:
            assert self.inbox[1 - side], "an empty channel has room for one message"
        except ChannelClosed:
            assert self.closed[side] or self.silent[side]
        except BrokenChannel:
            assert self.closed[1 - side]
            assert not self.closed[side]
        else:
            assert not (self.closed[0] or self.closed[1] or self.silent[side])
            self.inbox[1 - side].append((self.number, size))

    @rule(side=SIDES)
    def receive(self, side: int) -> None:
        expected = self.inbox[side]
        try:
            number, data = self.ends[side].recv(AT_ONCE)
        except ChannelTimeout:
            assert not expected
            assert not self.ended(side)
        except EndOfChannel as error:
            assert type(error) is EndOfChannel
            assert not expected
            assert self.ended(side)
        except ChannelClosed:
            assert self.closed[side]
        else:
            assert not self.closed[side]
            assert (number, len(data)) == expected.popleft()
            assert bytes(data) == bytes([number % 251]) * len(data)

    @rule(side=SIDES)
    def poll(self, side: int) -> None:
        if self.closed[side]:
            with pytest.raises(ChannelClosed):
                self.ends[side].poll()
        else:
            assert self.ends[side].poll() == bool(self.inbox[side] or self.ended(side))

    @precondition(lambda self: not self.closed[0] or not self.closed[1])
    @rule(side=SIDES)
    def move(self, side: int) -> None:
        """Send an end through another channel, with all that waits in it."""
        if not self.closed[side]:
            self.carrier[0].send([self.ends[side]])
            old, self.ends[side] = self.ends[side], self.carrier[1].recv(0)[0]
            assert old.closed

    @rule(side=SIDES)
    def close_send(self, side: int) -> None:
        if not self.closed[side]:
            self.ends[side].close_send()
            self.silent[side] = True

    @precondition(lambda self: self.number > 3)
    @rule(side=SIDES)
    def close(self, side: int) -> None:
        self.ends[side].close()
        self.closed[side] = True

    def ended(self, side: int) -> bool:
        return self.closed[1 - side] or self.silent[1 - side]

    @invariant()
    def an_end_says_whether_it_is_closed(self) -> None:
        assert [end.closed for end in self.ends] == self.closed

    def teardown(self) -> None:
        for side in (0, 1):
            while self.inbox[side] and not self.closed[side]:
                self.receive(side)
            self.receive(side)
        for end in (*self.ends, *self.carrier):
            end.close()


TestChannelModel = ChannelModel.TestCase
TestChannelModel.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
