"""A signal against what it promises, in random programs of several threads and processes.

Each call is noted with the moments between which it was made. What the signal was at
some moment in between is then known, but for calls that overlapped.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import threading
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from mpkit import Signal
from tests.support import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection

    #: A signal to act on, or a method of it with a timeout (nan if it takes none).
    Order = Signal | tuple[str, float] | None

THREADS, PROCESSES = 2, 2
ACTORS = st.integers(0, THREADS + PROCESSES - 1)


class Call(NamedTuple):
    """A call that was made, between two moments."""

    method: str
    began: float
    #: Before this moment it may not return False.
    due: float
    ended: float
    result: bool | None


def made(signal: Signal, method: str, timeout: float = math.nan) -> Call:
    began = time.monotonic()
    if method == "wait":
        result = signal.wait(timeout)
        due = began + timeout
    else:
        result = getattr(signal, method)()
        due = began
    return Call(method, began, due, time.monotonic(), result)


def act(link: Connection[Call, Order]) -> None:
    """Do as one is told, one thing at a time."""
    signal = None
    while (order := link.recv()) is not None:
        if isinstance(order, Signal):
            signal = order
        else:
            assert signal
            link.send(made(signal, *order))


class SignalModel(RuleBasedStateMachine):
    """Actors that set, clear and wait at once, and one who sees it all."""

    actors: list[Connection[Any, Any]]

    @initialize()
    def begin(self) -> None:
        self.signal = Signal()
        #: Calls that have returned, and what each actor was told and has not answered.
        self.calls: list[Call] = []
        self.told: dict[int, tuple[str, float]] = {}
        for actor in self.actors:
            actor.send(self.signal)

    @rule(method=st.sampled_from(["set", "clear", "is_set"]))
    def call(self, method: str) -> None:
        self.calls.append(made(self.signal, method))

    @rule(actor=ACTORS, method=st.sampled_from(["set", "clear", "is_set"]))
    def have_it_called(self, actor: int, method: str) -> None:
        self.tell(actor, method, math.nan)

    @rule(actor=ACTORS, timeout=st.sampled_from([0, 0.0005, 0.004, PATIENCE, PATIENCE]))
    def start_a_waiter(self, actor: int, timeout: float) -> None:
        self.tell(actor, "wait", timeout)

    def tell(self, actor: int, method: str, timeout: float) -> None:
        if actor not in self.told:
            self.told[actor] = method, timeout
            self.actors[actor].send((method, timeout))

    @precondition(lambda self: self.told)
    @rule(data=st.data())
    def collect(self, data: st.DataObject) -> None:
        """Also a waiter for which nobody would set it: it stays set then until it is awake."""
        actor = data.draw(st.sampled_from(sorted(self.told)))
        if self.told[actor] == ("wait", PATIENCE):
            self.collect_all_but_long_waits()
            self.call("set")
        self.hear(actor)

    @rule()
    def collect_all_but_long_waits(self) -> None:
        for actor, order in list(self.told.items()):
            if order != ("wait", PATIENCE):
                self.hear(actor)

    def hear(self, actor: int) -> None:
        order = self.told.pop(actor)
        assert self.actors[actor].poll(2 * PATIENCE), f"{order} does not end"
        self.calls.append(self.actors[actor].recv())

    @precondition(lambda self: all(order[0] == "wait" for order in self.told.values()))
    @rule()
    def look_when_nobody_acts(self) -> None:
        """Waiters change nothing; so who was the last to act is all that counts."""
        assert self.signal.wait(0) == self.signal.is_set()
        acts = [call for call in self.calls if call.method in {"set", "clear"}]
        last = max(acts, key=lambda call: call.ended, default=None)
        if last is None:
            assert not self.signal.is_set()
        elif all(call is last or call.ended < last.began for call in acts):
            assert self.signal.is_set() == (last.method == "set")

    def check(self) -> None:
        """Compare each answer with what was done before and meanwhile."""
        sets = [call for call in self.calls if call.method == "set"]
        clears = [call for call in self.calls if call.method == "clear"]
        for call in self.calls:
            if call.result is True:
                # Somebody had set it, and nobody had cleared it since and before this call.
                assert any(
                    it.began <= call.ended
                    and not any(it.ended < un.began and un.ended < call.began for un in clears)
                    for it in sets
                ), f"{call} says that it was set"
            elif call.result is False:
                assert call.ended >= call.due, f"{call} returned early"
                # Whoever had set it in time, somebody may have cleared it after that.
                assert all(
                    any(un.ended >= it.began and un.began <= call.ended for un in clears)
                    for it in sets
                    if it.ended < call.due
                ), f"{call} says that it was not set"

    def teardown(self) -> None:
        """A signal that stays set ends every wait."""
        if hasattr(self, "signal"):
            self.collect_all_but_long_waits()
            self.call("set")
            waiters = len(self.told)
            for actor in list(self.told):
                self.hear(actor)
            assert all(call.result for call in self.calls[len(self.calls) - waiters :])
            self.check()


@contextlib.contextmanager
def actors() -> Iterator[list[Connection[Any, Any]]]:
    """Start them, once for all examples; processes first, which are forked."""
    fork = multiprocessing.get_context("fork")
    links = [fork.Pipe() for _ in range(THREADS + PROCESSES)]
    started: list[Any] = []
    try:
        for index, (_, theirs) in enumerate(links):
            kind: Any = fork.Process if index < PROCESSES else threading.Thread
            started.append(kind(target=act, args=(theirs,), daemon=True))
            started[-1].start()
        yield [ours for ours, _ in links]
    finally:
        for ours, _ in links:
            ours.send(None)
        for actor in started:
            actor.join(PATIENCE)
        for link in links:
            for connection in link:
                connection.close()


def test_a_signal_keeps_its_promises() -> None:
    with actors() as them:

        def model() -> SignalModel:
            machine = SignalModel()
            machine.actors = them
            return machine

        run_state_machine_as_test(  # type: ignore[no-untyped-call]
            model, settings=settings(max_examples=200, stateful_step_count=40, deadline=None)
        )
