"""Signals whose waiters are killed (rows s06 and s07 of the table of faults)."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

import pytest

from mpkit._signal import Signal
from tests.support import PATIENCE, Spawn, asleep, finish, kill, until

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.context import BaseContext
    from multiprocessing.process import BaseProcess


def wait_for(signal: Signal, about_to: Signal) -> None:
    about_to.set()
    signal.wait()


def start_waiters(spawn: Spawn, signal: Signal, count: int) -> list[BaseProcess]:
    """Start processes that wait for ``signal``, and return when all are inside ``wait``."""
    waiters: list[BaseProcess] = []
    for _ in range(count):
        about_to = Signal()
        waiters.append(spawn(wait_for, signal, about_to))
        assert about_to.wait(PATIENCE)
    until(lambda: all(asleep(waiter.pid or 0) for waiter in waiters))
    return waiters


@pytest.mark.parametrize("killed", [1, 3])
def test_set_returns_at_once_and_wakes_the_others_when_waiters_were_killed(
    spawn: Spawn, killed: int
) -> None:
    signal = Signal()
    waiters = start_waiters(spawn, signal, killed + 1)
    for waiter in waiters[:killed]:
        kill(waiter)

    started = time.monotonic()
    signal.set()
    took = time.monotonic() - started

    assert signal.is_set()
    finish(waiters[killed])
    assert took < 1  # of a multiprocessing.Event it never returns; here it is microseconds


def test_a_signal_goes_on_working_after_its_waiters_were_killed(spawn: Spawn) -> None:
    signal = Signal()
    for _ in range(2):
        kill(start_waiters(spawn, signal, 1)[0])
        signal.set()
        assert signal.wait(PATIENCE)
        signal.clear()
        assert not signal.is_set()


def flip(signal: Signal, connection: Connection[None, None]) -> None:
    connection.send(None)
    while True:
        signal.set()
        signal.clear()


def test_no_operation_blocks_when_processes_are_killed_in_the_midst_of_set_and_clear(
    spawn: Spawn, context: BaseContext
) -> None:
    signal = Signal()
    chance = random.Random(1)
    for _ in range(5):
        ours, theirs = context.Pipe()
        flipper = spawn(flip, signal, theirs)
        ours.recv()
        for _ in range(chance.randrange(200)):
            signal.is_set()
        kill(flipper)
        for connection in (ours, theirs):
            connection.close()
        signal.set()
        assert signal.wait(0)
        signal.clear()
        assert not signal.wait(0)
