"""The one way to block, within one process."""

from __future__ import annotations

import asyncio
import math
import os
import resource
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from mpkit import ChannelClosed, ChannelMoved, EndOfChannel, Signal, _wait, channel, start, wait
from mpkit._wait import Deadline
from tests.support import PATIENCE, few_descriptors, until

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    os.close(reader)
    os.close(writer)


def test_a_deadline_passes_after_its_timeout() -> None:
    deadline = Deadline(0.01)
    assert deadline.timeout == 0.01
    until(deadline.passed)
    assert deadline.left() == 0.0


def test_no_timeout_is_for_ever() -> None:
    assert Deadline(None).left() is None
    assert Deadline(math.inf).left() is None
    assert not Deadline(None).passed()


def test_more_seconds_than_can_be_counted_are_for_ever() -> None:
    for timeout in (10**400, 1e300):
        assert Deadline(timeout).left() is None
        assert not Deadline(timeout).passed()


def test_nan_is_not_said_to_be_negative() -> None:
    with pytest.raises(ValueError, match="nan is no number"):
        Deadline(math.nan)


def test_zero_has_passed_at_once() -> None:
    assert Deadline(0).passed()


@pytest.mark.parametrize("timeout", [-1, -0.001, math.nan, -math.inf])
def test_a_negative_timeout_is_refused(timeout: float) -> None:
    with pytest.raises(ValueError, match="timeout"):
        Deadline(timeout)


@pytest.mark.parametrize("timeout", ["1", True, [], 1j])
def test_what_is_no_number_of_seconds_is_refused(timeout: Any) -> None:
    with pytest.raises(TypeError, match="timeout"):
        Deadline(timeout)


def test_poll_returns_what_is_readable(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    assert _wait.poll([reader], 0) == []
    assert _wait.poll([reader], 0.001) == []
    os.write(writer, b"!")
    assert _wait.poll([reader]) == [reader]
    assert _wait.poll([reader], 10**12) == [reader]  # longer than poll() can count


@pytest.mark.parametrize("timeout", [0.0, 0.001, 0.0004, 1e-9])
def test_poll_does_not_give_up_early(pipe: tuple[int, int], timeout: float) -> None:
    deadline = Deadline(timeout)
    _wait.poll([pipe[0]], timeout)
    assert deadline.passed()


def test_wait_returns_all_that_are_ready_in_order() -> None:
    signals = [Signal() for _ in range(5)]
    for index in (3, 1):
        signals[index].set()
    assert wait(*signals) == [signals[1], signals[3]]
    assert wait(*reversed(signals), timeout=PATIENCE) == [signals[3], signals[1]]


def test_wait_gives_up_after_its_timeout() -> None:
    assert wait(Signal(), timeout=0) == []
    assert wait(Signal(), timeout=0.01) == []


def test_waiting_for_nothing_returns_at_once() -> None:
    assert wait() == []


@pytest.mark.parametrize("thing", [None, 7, "text", object(), threading.Event()])
def test_what_cannot_be_waited_for_is_refused(thing: object) -> None:
    with pytest.raises(TypeError, match="Signals, Channels, Jobs and Tasks"):
        wait(Signal(), thing, timeout=0)


def test_wait_wakes_for_any_kind_of_thing() -> None:
    signal, future = Signal(), Future[int]()
    here, there = channel()
    for act, ready in [
        (signal.set, signal),
        (lambda: future.set_result(1), future),
        (lambda: there.send(1), here),
    ]:
        things = [thing for thing in (signal, future, here) if not wait(thing, timeout=0)]
        got: list[Any] = []
        thread = threading.Thread(target=lambda: got.extend(wait(*things, timeout=PATIENCE)))  # noqa: B023
        thread.start()
        act()
        thread.join()
        assert got == [ready]
    here.close()
    there.close()


def test_the_end_of_a_channel_is_something_to_wait_for() -> None:
    here, there = channel()
    there.close()
    assert wait(here, timeout=PATIENCE) == [here]
    assert wait(here, timeout=PATIENCE) == [here]
    here.close()


def test_the_same_thing_twice_is_ready_twice() -> None:
    signal = Signal()
    signal.set()
    assert wait(signal, signal) == [signal, signal]


def test_hundreds_of_channels_take_one_wait() -> None:
    pairs = [channel() for _ in range(150)]
    pairs[77][1].send("here")
    ends = [here for here, _ in pairs]
    assert wait(*ends, timeout=PATIENCE) == [ends[77]]
    for pair in pairs:
        for end in pair:
            end.close()


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """Allow this process as many descriptors as it may have."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_of_hundreds_of_ends_only_those_that_are_ready_are_looked_at(
    many_descriptors: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = [channel() for _ in range(600)]
    ends = [here for here, _ in pairs]
    polls: list[int] = []

    def counted(fds: Iterable[int], timeout: float | None = None) -> list[int]:
        polls.append(1)
        return poll(fds, timeout)

    poll = _wait.poll
    monkeypatch.setattr(_wait, "poll", counted)
    for number in (7, 300, 599):
        pairs[number][1].send("here")
    pairs[301][1].close()
    for timeout in (0, PATIENCE, None):
        polls.clear()
        assert wait(*ends, timeout=timeout) == [ends[number] for number in (7, 300, 301, 599)]
        assert len(polls) == 1 + 4
    for end in [*ends, *(there for _, there in pairs)]:
        end.close()


def test_an_end_that_is_known_to_be_over_is_not_waited_for() -> None:
    """Its peer has said goodbye, and may yet be stopped before it closes its socket."""
    (here, there), (other, another) = channel(), channel()
    there._end.say_goodbye()
    with pytest.raises(EndOfChannel):
        here.recv(PATIENCE)
    assert wait(other, here) == [here]
    another.send(1)
    assert wait(other, here) == [other, here]
    for end in (here, there, other, another):
        end.close()


def test_a_job_that_has_said_its_last_is_not_waited_for(start_method: str) -> None:
    """Its process may take its time to end."""
    go, never = Signal(), Signal()
    with start(leave_a_thread, go) as job:
        assert wait(never, job) == [job]
        assert job.is_alive()
        assert wait(never, job) == [job]
        go.set()


def leave_a_thread(go: Signal) -> None:
    """Return, while the process has to wait for this one."""
    threading.Thread(target=go.wait, args=(PATIENCE,)).start()


def test_a_closed_end_cannot_be_waited_for() -> None:
    here, there = channel()
    here.close()
    with pytest.raises(ChannelClosed):
        wait(Signal(), here)
    there.close()


def test_an_end_that_moves_while_it_is_waited_for_is_told_at_the_next_look(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At the timeout at the latest: to wait keeps no end from moving."""
    here, there = channel()
    carrier, receiver = channel()

    def meanwhile(fds: Iterable[int], timeout: float | None = None) -> list[int]:
        carrier.send(here)
        return []

    with monkeypatch.context() as patch, pytest.raises(ChannelMoved):
        patch.setattr(_wait, "poll", meanwhile)
        wait(here, timeout=0.001)
    with receiver.recv(PATIENCE) as arrived:
        there.send("for the new owner")
        assert arrived.recv(PATIENCE) == "for the new owner"
    for end in (there, carrier, receiver):
        end.close()


def test_a_future_that_is_done_after_a_wait_gave_up_harms_nobody() -> None:
    """Its bell was closed with the wait, and is not rung."""
    future = Future[int]()
    assert wait(future, timeout=0.001) == []
    reader, writer = os.pipe()  # takes the numbers of the bell
    future.set_result(1)
    os.close(writer)
    assert os.read(reader, 1) == b""
    os.close(reader)
    assert wait(future) == [future]


def test_waiting_again_and_again_leaves_nothing_at_a_future() -> None:
    here, there = channel()
    future = Future[int]()
    before = os.listdir("/dev/fd")
    for _ in range(20):
        assert wait(here, future, timeout=0.0001) == []
    assert os.listdir("/dev/fd") == before
    assert len(future._done_callbacks) == 1  # type: ignore[attr-defined]
    later = threading.Timer(0.01, future.set_result, (1,))
    later.start()
    assert wait(here, future, future, timeout=PATIENCE) == [future, future]
    later.join()
    here.close()
    there.close()


def test_any_number_of_futures_takes_one_pipe() -> None:
    futures = [Future[int]() for _ in range(100)]
    with few_descriptors(2):
        assert wait(*futures, timeout=0.0001) == []
        later = threading.Timer(0.01, futures[70].set_result, (1,))
        later.start()
        assert wait(*futures, timeout=PATIENCE) == [futures[70]]
        later.join()


def test_a_future_that_many_threads_wait_for_wakes_them_all() -> None:
    for _ in range(50):
        future = Future[int]()
        with ThreadPoolExecutor(4) as threads:
            waits = [threads.submit(wait, future, timeout=PATIENCE) for _ in range(4)]
            future.set_result(1)
        assert [done.result() for done in waits] == [[future]] * 4


def test_futures_of_many_threads_ring_once_each() -> None:
    for _ in range(50):
        futures = [Future[int]() for _ in range(4)]
        threads = [threading.Thread(target=one.set_result, args=(1,)) for one in futures]
        for thread in threads:
            thread.start()
        assert wait(*futures, timeout=PATIENCE)
        for thread in threads:
            thread.join()


def test_readable_and_writable_suspend_only_their_task(pipe: tuple[int, int]) -> None:
    reader, writer = pipe

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            waiting = [group.create_task(_wait.readable([reader])) for _ in range(3)]
            await asyncio.sleep(0)
            assert not any(task.done() for task in waiting)
            assert await _wait.writable(writer, PATIENCE)
            os.write(writer, b"!")
        assert all(task.result() for task in waiting)

    asyncio.run(main())


def test_readable_gives_up_and_can_be_cancelled_without_a_trace(pipe: tuple[int, int]) -> None:
    reader, writer = pipe

    async def main() -> None:
        before = os.listdir("/dev/fd")
        assert not await _wait.readable([reader], 0)
        assert not await _wait.readable([reader], 0.001)
        task = asyncio.create_task(_wait.readable([reader]))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert os.listdir("/dev/fd") == before
        os.write(writer, b"!")
        assert await _wait.readable([reader])

    asyncio.run(main())


def test_who_looks_in_vain_does_so_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    comes = False

    def ready(_: object) -> bool:
        looked.append(number)
        return comes

    lookout = _wait.Lookout(0)
    monkeypatch.setattr(lookout, "_ready", ready)
    monkeypatch.setattr(_wait, "MOMENT", 0.0)
    for number in range(16):
        lookout.look()
    assert looked == [0, 2, 5, 10]
    looked.clear()
    monkeypatch.setattr(_wait, "MOMENT", PATIENCE)
    comes = True
    for number in range(19, 24):  # once what was left to pass over is over
        lookout.look()
    assert looked == [22, 23]
    monkeypatch.setattr(_wait, "MOMENT", 0.0)
    looked.clear()
    for number in range(4):
        lookout.look()
    assert looked == [0, 2], "it begins anew"


def test_who_looks_for_what_is_there_sees_it_at_once(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = pipe
    monkeypatch.setattr(_wait, "MOMENT", math.inf)
    os.write(writer, b"!")
    _wait.Lookout(reader).look()
    assert os.read(reader, 1) == b"!"


def test_who_looks_for_what_does_not_come_gives_up(pipe: tuple[int, int]) -> None:
    _wait.Lookout(pipe[0]).look()
    assert not _wait.poll([pipe[0]], 0)
