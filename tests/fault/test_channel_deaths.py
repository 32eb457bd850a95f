"""Deaths that the table of `test_channel_table` has no cell for.

In a call; while large arrays are written; of a receiver; of a parent; and of one who
leaves a child of his own behind.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from multiprocessing.connection import wait as wait_for_any
from typing import TYPE_CHECKING, Any

import pytest

from mpkit import BrokenChannel, Channel, EndOfChannel, Job, PeerDied, Signal, channel, start
from tests.support import PATIENCE, Spawn, asleep, exists, kill, until

if TYPE_CHECKING:
    from collections.abc import Callable

End = Channel[Any, Any]

#: Seconds from a death to its news, at most. (The issue says 200 ms; a test machine may
#: be busy, so that is measured in benchmarks, and this only tells news from a hang.)
SOON = 5.0


def blocked_in_recv(end: End, go: Signal) -> None:
    go.set()
    end.recv()


def blocked_in_send(end: End, go: Signal) -> None:
    go.set()
    while True:
        end.send("x" * 1000)


@pytest.mark.parametrize("doing", [blocked_in_recv, blocked_in_send])
def test_a_peer_killed_in_a_call_is_a_death(
    spawn: Spawn, doing: Callable[[End, Signal], None]
) -> None:
    """Rows p11 and p12: between its messages; there is no half of one."""
    here, there = channel()
    go = Signal()
    child = spawn(doing, there, go)
    assert go.wait(PATIENCE)
    assert child.pid
    until(lambda: asleep(child.pid or 0))
    kill(child)
    before = time.monotonic()
    with pytest.raises(PeerDied):
        for message in here:
            assert message == "x" * 1000
    assert time.monotonic() - before < SOON
    here.close()


def test_a_sender_killed_while_it_writes_large_arrays_loses_only_the_last(spawn: Spawn) -> None:
    here, there = channel()
    child = spawn(send_arrays, there)
    got = [here.recv(PATIENCE) for _ in range(5)]
    child.kill()
    with pytest.raises(PeerDied):
        for array in here:
            got.append(array)
    assert [array[0] for array in got] == list(range(len(got)))
    assert all((array == array[0]).all() for array in got)
    here.close()


def send_arrays(end: End) -> None:
    import numpy as np  # which the other children need not import

    for number in range(1_000_000):
        end.send(np.full(200_000, number))


def test_a_receiver_killed_while_we_send_breaks_the_send(spawn: Spawn) -> None:
    here, there = channel()
    go = Signal()
    child = spawn(hang, there, go)
    assert go.wait(PATIENCE)
    killer = spawn(kill_when_asleep, os.getpid(), child.pid)
    with pytest.raises(BrokenChannel):
        while True:
            here.send("x" * 1000)
    killer.join(PATIENCE)
    here.close()


def hang(end: Any, go: Signal) -> None:
    go.set()
    signal.pause()


def kill_when_asleep(watched: int, victim: int) -> None:
    until(lambda: asleep(watched))
    os.kill(victim, signal.SIGKILL)


def die_by_sigkill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_by_exit() -> None:
    os._exit(3)


@pytest.mark.parametrize("die", [die_by_sigkill, die_by_exit])
def test_siblings_do_not_hide_a_death(spawn: Spawn, die: Callable[[], None]) -> None:
    """Row p04, and the child of the dead one does not either."""
    here, there = channel()
    go = Signal()
    spawn(hang, None, go)
    spawn(leave_a_child_and_die, there, die)
    assert here.recv(PATIENCE) == "has a child"
    spawn(hang, None, go)
    with pytest.raises(PeerDied):
        here.recv(PATIENCE)
    here.close()


def leave_a_child_and_die(end: End, die: Callable[[], None]) -> None:
    go = Signal()
    start(hang, None, go)
    assert go.wait(PATIENCE)
    end.send("has a child")
    die()


def test_a_child_learns_that_its_parent_was_killed(spawn: Spawn) -> None:
    """Row p05: a plain process of multiprocessing, in `recv` when its parent dies."""
    here, there = channel()
    parent = spawn(be_a_parent, there)
    parent_pid, child_pid = here.recv(PATIENCE)
    assert parent_pid == parent.pid
    until(lambda: asleep(child_pid))
    kill(parent)
    assert here.recv(PATIENCE) == "PeerDied"
    until(lambda: not exists(child_pid))
    here.close()


def be_a_parent(end: End) -> None:
    import multiprocessing

    inner, theirs = channel()
    inner.send("hello")
    process = multiprocessing.Process(target=be_an_orphan, args=(theirs, end, os.getpid()))
    process.start()
    signal.pause()


def be_an_orphan(inner: End, end: End, parent: int) -> None:
    assert inner.recv() == "hello"
    end.send((parent, os.getpid()))
    try:
        inner.recv()
    except EndOfChannel as error:
        end.send(type(error).__name__)


def test_a_stopped_peer_is_not_dead_until_it_is(spawn: Spawn) -> None:
    here, there = channel()
    go = Signal()
    child = spawn(hang, there, go)
    assert go.wait(PATIENCE)
    assert child.pid
    os.kill(child.pid, signal.SIGSTOP)
    assert not here.poll(0.01)
    kill(child)
    with pytest.raises(PeerDied):
        here.recv(PATIENCE)
    here.close()


def speak_and_hang(end: Channel[Any, Any]) -> None:
    end.send("here")
    signal.pause()


def test_a_death_is_told_with_its_reason_under_each_start_method(spawn: Spawn) -> None:
    here, there = channel()
    process = spawn(speak_and_hang, there)
    assert here.recv(PATIENCE) == "here"
    process.kill()
    assert wait_for_any([process.sentinel], PATIENCE)  # nobody has read its exit code
    with pytest.raises(PeerDied, match="killed by SIGKILL") as caught:
        here.recv(PATIENCE)
    assert caught.value.pid == process.pid
    process.join(PATIENCE)
    assert process.exitcode == -signal.SIGKILL
    here.close()


def ask(job: Job[None], together: threading.Barrier, told: list[int | None]) -> None:
    together.wait(PATIENCE)
    told.append(job.exitcode)


def test_threads_that_ask_at_once_are_told_the_same(start_method: str) -> None:
    """A fork server tells the exit code once."""
    for _ in range(5):
        here, there = channel()
        job = start(speak_and_hang, there)
        assert here.recv(PATIENCE) == "here"
        job.kill()
        for sentinel in (job._child.sentinel, job._child.process.sentinel):
            assert wait_for_any([sentinel], PATIENCE)
        together, told = threading.Barrier(4), list[int | None]()
        threads = [threading.Thread(target=ask, args=(job, together, told)) for _ in range(3)]
        for thread in threads:
            thread.start()
        together.wait(PATIENCE)
        with pytest.raises(PeerDied):
            here.recv(PATIENCE)
        for thread in threads:
            thread.join()
        assert told == [-signal.SIGKILL] * 3
        here.close()
