"""Signals whose waiters are killed (rows s06 and s07 of the table of faults)."""

from __future__ import annotations

import multiprocessing
import random
import signal as signals
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
def test_set_returns_and_wakes_the_others_when_waiters_were_killed(
    spawn: Spawn, killed: int
) -> None:
    signal = Signal()
    waiters = start_waiters(spawn, signal, killed + 1)
    for waiter in waiters[:killed]:
        kill(waiter)

    signal.set()  # of a multiprocessing.Event it never returns

    assert signal.is_set()
    finish(waiters[killed])


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


def wait_for_all(signal: Signal, link: Connection[int, int]) -> None:
    link.send(0)
    raise SystemExit(0 if signal.wait(PATIENCE) else 1)


def test_half_of_a_hundred_waiters_are_killed_at_once() -> None:
    """Of a `multiprocessing.Event` `set` does not return then. Forked, for there are so many."""
    fork = multiprocessing.get_context("fork")
    signal, (ours, theirs) = Signal(), fork.Pipe()
    waiters = [fork.Process(target=wait_for_all, args=(signal, theirs)) for _ in range(100)]
    try:
        for waiter in waiters:
            waiter.start()
        for _ in waiters:
            ours.recv()
        until(lambda: all(asleep(waiter.pid or 0) for waiter in waiters))
        for waiter in waiters[::2]:
            waiter.kill()  # and do not wait until it is dead
        signal.set()
        for waiter in waiters:
            waiter.join(PATIENCE)
        codes = [waiter.exitcode for waiter in waiters]
        assert codes == [-signals.SIGKILL, 0] * 50
    finally:
        for waiter in waiters:
            waiter.kill()
            waiter.join()
            waiter.close()
        for connection in (ours, theirs):
            connection.close()
    assert signal.is_set()
    signal.clear()
    assert not signal.is_set()
    assert not signal.wait(0.001)
    signal.set()
    assert signal.wait()


def wait_again_and_again(signal: Signal, link: Connection[int, int]) -> None:
    link.send(0)
    while True:
        signal.wait(0.0002)


def test_a_waiter_may_be_killed_at_any_moment() -> None:
    """On its way into `wait`, inside it, and on its way out."""
    fork = multiprocessing.get_context("fork")
    signal, chance = Signal(), random.Random(2)
    for _ in range(25):
        ours, theirs = fork.Pipe()
        waiter = fork.Process(target=wait_again_and_again, args=(signal, theirs))
        waiter.start()
        ours.recv()
        for _ in range(chance.randrange(100)):
            signal.set()
            assert signal.is_set()
            signal.clear()
            assert not signal.is_set()
        kill(waiter)
        waiter.close()
        for connection in (ours, theirs):
            connection.close()
        signal.set()
        assert signal.wait(0)
        signal.clear()
        assert not signal.wait(0)
