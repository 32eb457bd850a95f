"""Whoever has the memory of a message, in whatever process: only then it is not used again."""

from __future__ import annotations

import contextlib
import os
import signal
from multiprocessing import active_children
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from mpkit import _segment, channel
from mpkit._platform import memory
from tests.support import available, finish, kill

if TYPE_CHECKING:
    from mpkit import Channel
    from tests.support import Spawn

pytestmark = pytest.mark.skipif(not memory.HAS_MEMFD, reason="segments are used once there")

LARGE = np.arange(300_000)


def kept() -> list[tuple[int, bool]]:
    """Return which memory this process keeps, and whether it is free."""
    return [
        (os.fstat(segment.fd).st_ino, segment.is_free()) for segment in _segment._kept._segments
    ]


def all_free() -> bool:
    return all(free for _, free in kept())


def hold(end: Channel[Any, Any]) -> None:
    """Receive, say so, and hold it for ever."""
    held = [message for _, message in zip(range(3), end, strict=False)]
    end.send(len(held))
    signal.pause()


def hold_in_a_fork(end: Channel[Any, Any]) -> None:
    """Receive, leave it to a child, and let go."""
    held = end.recv()
    pid = os.fork()
    if not pid:
        signal.pause()
    total = int(held.sum())
    del held
    end.send(total)
    end.recv()
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    end.send("it is gone")


def test_who_is_killed_has_no_memory_any_more(spawn: Spawn) -> None:
    here, there = channel()
    process = spawn(hold, there)
    for _ in range(4):  # one of them is never received
        here.send(LARGE)
    assert here.recv() == 3
    assert [free for _, free in kept()] == [False] * 4
    assert process.pid is not None
    os.kill(process.pid, signal.SIGSTOP)  # who is stopped has it, too
    assert not any(free for _, free in kept())
    kill(process)
    assert all_free()
    assert len(kept()) == 4
    here.close()


def test_a_fork_of_the_receiver_has_it_too(spawn: Spawn) -> None:
    here, there = channel()
    process = spawn(hold_in_a_fork, there)
    here.send(LARGE)
    assert here.recv() == int(LARGE.sum())
    assert not all_free()
    assert here.request("end it") == "it is gone"
    assert all_free()
    finish(process)
    here.close()


def test_messages_that_nobody_reads_are_let_go_with_their_channel() -> None:
    here, there = channel()
    for _ in range(3):
        here.send(LARGE)
    assert [free for _, free in kept()] == [False] * 3
    there.close()
    assert all_free()
    here.close()


def answer(end: Channel[Any, Any], forks: bool) -> None:
    if forks:
        assert not kept(), "a child has segments of its parent's"
        for fd in os.listdir("/proc/self/fd"):
            with contextlib.suppress(FileNotFoundError):  # it was that of the folder
                assert "memfd:mpkit" not in os.readlink(f"/proc/self/fd/{fd}")
        with open("/proc/self/maps") as file:
            assert "memfd:mpkit" not in file.read()
    for message in end:
        end.send(message + 1)


def test_a_forked_child_uses_none_of_its_parents(spawn: Spawn, start_method: str) -> None:
    idle, unread = channel()
    idle.send(LARGE)
    idle.send(LARGE + 5)
    here, there = channel()
    process = spawn(answer, there, start_method == "fork")
    for number in range(20):
        here.send(LARGE + number)
        assert np.array_equal(here.recv(), LARGE + number + 1)
    assert np.array_equal(unread.recv(), LARGE)
    assert np.array_equal(unread.recv(), LARGE + 5)
    here.close()
    finish(process)
    assert all_free()
    idle.close()
    unread.close()


def chat(end: Channel[Any, Any]) -> None:
    """Send back what comes, and keep some of it for a while."""
    held: list[Any] = []
    for message in end:
        held = [*held[-3:], message]
        for old in held:
            assert old[0] == old[-1], "what was received has changed"
        end.send(message)


def test_what_is_held_never_changes_on_either_side(spawn: Spawn) -> None:
    here, there = channel()
    process = spawn(chat, there)
    held: list[Any] = []
    for number in range(200):
        here.send(np.full(200_000 + number % 7 * 10_000, number))
        held = [*held[-5:], here.recv()]
        for age, old in enumerate(reversed(held)):
            assert old[0] == old[-1] == number - age
    here.close()
    finish(process)
    assert not active_children()


@pytest.mark.any_python
def test_a_message_may_have_more_than_4_gib() -> None:
    """More than one call of write() takes, and than 32 bits can count."""
    if available() < 12 * 2**30:
        pytest.skip("it takes 12 GiB of memory")
    size = 2**32 + 17
    stamps = [0, 1, 2**31 - 4097, 2**31 - 1, 2**31, 2**32 - 1, 2**32, size - 1]
    array = np.zeros(size, "u1")  # what is never written takes no memory here
    array[stamps] = range(1, 1 + len(stamps))
    here, there = channel()
    with here, there:
        here.send(["before", array, "after"])
        assert not kept()  # it is beyond the bound
        before, arrived, after = there.recv()
    assert (before, after) == ("before", "after")
    assert arrived.shape == array.shape
    step = 2**26
    for start in range(0, size, step):
        assert np.array_equal(arrived[start : start + step], array[start : start + step])
    arrived[size - 1] = 0  # in this process alone
    assert array[size - 1] == len(stamps)
