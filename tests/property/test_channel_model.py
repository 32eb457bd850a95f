"""A channel against a model of it: two queues, and who has closed what.

One end is here; the other is here too, or in a process that does what it is told, and
may move between the two with all that waits in it.
"""

from __future__ import annotations

import contextlib
from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from mpkit import (
    BrokenChannel,
    Channel,
    ChannelClosed,
    ChannelTimeout,
    EndOfChannel,
    MpkitError,
    channel,
    start,
)
from tests.support import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterator

End = Channel[Any, Any]

#: Sizes around each limit at which something changes, and now and then a large one.
SMALL = [0, 1, 100, 16_000, 16_384, 65_000, 65_536, 70_000]
SIZES = st.sampled_from([*SMALL, *SMALL, *SMALL, 1_000_000, 10_000_000])
SIDES = st.sampled_from([0, 1])

#: No model of how much fits into a socket: a refused send must only have sent nothing.
AT_ONCE = 0.0


def message(number: int, size: int, array: bool) -> tuple[int, Any]:
    data = np.full(size, number % 251, np.uint8)
    return number, data if array else data.tobytes()


class Side:
    """One end, and what a program does with it."""

    def __init__(self, end: End) -> None:
        self.end = end

    def send(self, number: int, size: int, array: bool) -> None:
        self.end.send(message(number, size, array), AT_ONCE)

    def recv(self) -> tuple[int, int]:
        """Receive a message; return its number and size."""
        number, data = self.end.recv(AT_ONCE)
        assert bytes(data) == message(number, len(data), False)[1]
        return number, len(data)

    def poll(self) -> bool:
        return self.end.poll()

    def close_send(self) -> None:
        self.end.close_send()

    def close(self) -> None:
        self.end.close()

    def closed(self) -> bool:
        return self.end.closed

    def taken(self) -> End:
        return self.end


def be_told(control: End) -> None:
    """Be the other process: have an end, and do with it what it is told to."""
    side: Side | None = None
    for name, *args in control:
        try:
            if name == "have":
                side = Side(*args)
                control.send((True, None))
            else:
                control.send((True, getattr(side, name)(*args)))
        except MpkitError as error:
            control.send((False, error))


class Far:
    """The same for an end in the other process."""

    def __init__(self, control: End, end: End) -> None:
        self._control = control
        self._ask("have", end)

    def _ask(self, *request: object) -> Any:
        good, answer = self._control.request(request, PATIENCE)
        if not good:
            raise answer
        return answer

    def __getattr__(self, name: str) -> Any:
        return lambda *args: self._ask(name, *args)


class ChannelModel(RuleBasedStateMachine):
    """Random programs of both ends."""

    def __init__(self, control: End) -> None:
        super().__init__()
        self.control = control

    @initialize(far=st.booleans())
    def begin(self, far: bool) -> None:
        here, there = channel()
        self.sides: list[Any] = [Side(here), Side(there)]
        self.carrier = channel()
        #: What each side will receive, and whether it closed, or said that no more comes.
        self.inbox: list[deque[tuple[int, int]]] = [deque(), deque()]
        self.closed = [False, False]
        self.silent = [False, False]
        self.number = 0
        if far:
            self.move_to_the_other_process()

    @rule(side=SIDES, size=SIZES, array=st.booleans())
    def send(self, side: int, size: int, array: bool) -> None:
        self.number += 1
        try:
            self.sides[side].send(self.number, size, array)
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
            got = self.sides[side].recv()
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
            assert got == expected.popleft()

    @rule(side=SIDES)
    def poll(self, side: int) -> None:
        if self.closed[side]:
            with pytest.raises(ChannelClosed):
                self.sides[side].poll()
        else:
            assert self.sides[side].poll() == bool(self.inbox[side] or self.ended(side))

    @precondition(lambda self: not self.closed[0] or not self.closed[1])
    @rule(side=SIDES)
    def move(self, side: int) -> None:
        """Send an end through another channel, with all that waits in it."""
        if not self.closed[side] and isinstance(self.sides[side], Side):
            old = self.sides[side].end
            self.carrier[0].send([old])
            self.sides[side] = Side(self.carrier[1].recv(AT_ONCE)[0])
            assert old.closed

    @precondition(lambda self: not self.closed[1])
    @rule()
    def move_to_the_other_process(self) -> None:
        if isinstance(self.sides[1], Side):
            self.sides[1] = Far(self.control, self.sides[1].end)

    @precondition(lambda self: not self.closed[1])
    @rule()
    def come_back(self) -> None:
        if isinstance(self.sides[1], Far):
            self.sides[1] = Side(self.sides[1].taken())

    @rule(side=SIDES)
    def close_send(self, side: int) -> None:
        if not self.closed[side]:
            self.sides[side].close_send()
            self.silent[side] = True

    @precondition(lambda self: self.number > 3)
    @rule(side=SIDES)
    def close(self, side: int) -> None:
        self.sides[side].close()
        self.closed[side] = True

    def ended(self, side: int) -> bool:
        return self.closed[1 - side] or self.silent[1 - side]

    @invariant()
    def an_end_says_whether_it_is_closed(self) -> None:
        assert [side.closed() for side in self.sides] == self.closed

    def teardown(self) -> None:
        for side in (0, 1):
            while self.inbox[side] and not self.closed[side]:
                self.receive(side)
            self.receive(side)
        for end in (*self.sides, *self.carrier):
            end.close()


@contextlib.contextmanager
def other_process() -> Iterator[End]:
    """Run `be_told` in a process; return what tells it."""
    control, there = channel()
    with start(be_told, there) as job:
        yield control
        control.close()
        job.result(PATIENCE)


def test_one_end_and_the_other_agree_with_the_model() -> None:
    with other_process() as control:
        run_state_machine_as_test(
            lambda: ChannelModel(control),  # type: ignore[arg-type, return-value]
            settings=settings(max_examples=120, stateful_step_count=40, deadline=None),
        )
