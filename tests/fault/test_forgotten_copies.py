"""No copy of an end that mpkit itself makes keeps the other end from learning of a death.

An end that is packed, has arrived, or is awaited has a copy of its descriptor for a
moment. A process that is started in this moment must not have it.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

import pytest

from mpkit import Channel, PeerDied, Signal, TaskPool, WorkerDied, channel
from tests.support import PATIENCE, Spawn, exists, until

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")

End = Channel[Any, Any]


def hang() -> None:
    signal.pause()


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class WhilePacked:
    """Calls a function while the message that it is part of is packed."""

    def __init__(self, call: Callable[[], object]) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        self.call()
        return int, ()


class WhileUnpacked:
    """Starts a process that hangs where the message that it is part of is unpacked."""

    def __reduce__(self) -> Any:
        return start_hanging, ()


def start_hanging() -> int:
    """Return the pid of a process that is up to the test to kill."""
    process = multiprocessing.Process(target=hang)
    process.start()
    assert process.pid
    return process.pid


def gone_without(here: End, orphan: int) -> None:
    """Check that the death behind ``here`` shows while ``orphan`` lives, and kill this one."""
    try:
        with pytest.raises(PeerDied):
            here.recv(PATIENCE)
        assert exists(orphan)
    finally:
        os.kill(orphan, signal.SIGKILL)
        until(lambda: not exists(orphan))
        here.close()


def test_a_process_started_while_an_end_is_packed(spawn: Spawn) -> None:
    carrier, theirs = channel()
    here, there = channel()
    spawn(receive_and_die, theirs)
    carrier.send([there, WhilePacked(lambda: spawn(hang))])
    with pytest.raises(PeerDied):
        here.recv(PATIENCE)
    here.close()
    carrier.close()


def receive_and_die(carrier: End) -> None:
    die(carrier.recv())


def test_a_process_started_while_an_end_that_arrived_is_unpacked(spawn: Spawn) -> None:
    carrier, theirs = channel()
    here, there = channel()
    spawn(receive_say_and_die, theirs)
    carrier.send([WhileUnpacked(), there])
    gone_without(here, here.recv(PATIENCE))
    carrier.close()


def receive_say_and_die(carrier: End) -> None:
    orphan, end = carrier.recv()
    end.send(orphan)
    die()


@pytest.mark.parametrize("waits", ["recv", "send"])
def test_a_process_started_while_a_task_awaits_an_end(spawn: Spawn, waits: str) -> None:
    """Each awaiting task has a copy of the descriptor, for the event loop."""
    here, there = channel()
    tell, told = channel()
    spawn(await_and_die, there, told, waits)
    orphan = tell.recv(PATIENCE)
    try:
        with pytest.raises(PeerDied):
            while True:
                here.recv(PATIENCE)
        assert exists(orphan)
    finally:
        os.kill(orphan, signal.SIGKILL)
        until(lambda: not exists(orphan))
    here.close()
    tell.close()


def await_and_die(end: End, told: End, waits: str) -> None:
    async def send_until_full() -> None:
        while True:
            await end.send_async("x" * 10_000)

    async def main() -> None:
        task = asyncio.create_task(end.recv_async() if waits == "recv" else send_until_full())
        await asyncio.sleep(0)  # it runs until it waits
        told.send(start_hanging())
        die(task)

    asyncio.run(main())


def test_a_program_started_by_a_child(spawn: Spawn) -> None:
    """`posix_spawn` and `os.system` close nothing: the end must not be inheritable."""
    here, there = channel()
    spawn(start_program_and_die, there)
    gone_without(here, here.recv(PATIENCE))


def start_program_and_die(end: End) -> None:
    program = [sys.executable, "-c", "import signal; signal.pause()"]
    end.send(os.posix_spawn(sys.executable, program, os.environ))
    die()


def test_a_worker_that_is_replaced_while_an_end_waits_for_its_turn(start_method: str) -> None:
    here, there = channel()
    first, second, third = Signal(), Signal(), Signal()
    began, at_last = Signal(), Signal()
    with TaskPool(2) as pool:
        other = pool.submit(wait_for, first, began)
        doomed = pool.submit(wait_and_die, second)
        replaced = pool.submit(wait_for, third, at_last)
        user = pool.submit(say_and_die, there)
        assert began.wait(PATIENCE)
        second.set()
        assert at_last.wait(PATIENCE)  # in the worker that was started while the end waited
        first.set()
        assert here.recv(PATIENCE) == "had its turn"
        with pytest.raises(PeerDied):
            here.recv(PATIENCE)
        third.set()
        for task in (doomed, user):
            assert isinstance(task.exception(PATIENCE), WorkerDied)
        for task in (other, replaced):
            task.result(PATIENCE)
    here.close()


def wait_for(go: Signal, began: Signal) -> None:
    began.set()
    assert go.wait(PATIENCE)


def wait_and_die(go: Signal) -> None:
    assert go.wait(PATIENCE)
    die()


def say_and_die(end: End) -> None:
    end.send("had its turn")
    die()
