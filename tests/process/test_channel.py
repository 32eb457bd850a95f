"""Channels between processes, under every start method."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import multiprocessing
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from mpkit import (
    BrokenChannel,
    Channel,
    ChannelMoved,
    ChannelTimeout,
    EndOfChannel,
    PeerDied,
    Signal,
    channel,
    start,
    wait,
)
from mpkit._platform import processes
from tests.support import PATIENCE, Spawn, asleep, finish, kill, until

if TYPE_CHECKING:
    from multiprocessing.context import BaseContext
    from multiprocessing.process import BaseProcess

End = Channel[Any, Any]

pytestmark = pytest.mark.usefixtures("start_method")


def echo(end: End) -> None:
    for message in end:
        end.send(message)


def test_messages_pass_in_both_directions(spawn: Spawn) -> None:
    here, there = channel()
    child = spawn(echo, there)
    for message in (1, "x" * 100_000, {"a": [None]}, b"\0"):
        assert here.request(message, PATIENCE) == message
    here.close()
    finish(child)


def test_an_end_moves_with_start(start_method: str) -> None:
    here, there = channel()
    with start(echo, there) as job:
        assert there.closed
        with pytest.raises(ChannelMoved, match="moved to "):
            there.send(1)
        assert here.request(1, PATIENCE) == 1
        here.close()
        assert job.result(PATIENCE) is None


def test_a_moved_end_names_the_process_where_it_is(spawn: Spawn) -> None:
    here, there = channel()
    child = spawn(echo, there)
    with pytest.raises(ChannelMoved, match=f"moved to process {child.pid}$"):
        there.recv()
    here.close()
    finish(child)


@pytest.mark.parametrize("wrap", [list, dict, functools.partial], ids=["list", "dict", "partial"])
def test_an_end_inside_an_argument_moves(spawn: Spawn, wrap: Any) -> None:
    here, there = channel()
    wrapped = {
        list: [[there]],
        dict: {"key": (there,)},
        functools.partial: functools.partial(echo, there),
    }
    child = spawn(echo_in, wrapped[wrap])
    assert here.request("hello", PATIENCE) == "hello"
    here.close()
    finish(child)


def echo_in(wrapped: Any) -> None:
    if isinstance(wrapped, functools.partial):
        wrapped()
    else:
        echo(wrapped["key"][0] if isinstance(wrapped, dict) else wrapped[0][0])


def test_both_ends_may_move_to_different_processes(spawn: Spawn) -> None:
    left, right = channel()
    mine, theirs = channel()
    children = [spawn(echo, right), spawn(relay, theirs, left)]
    assert mine.request("through two", PATIENCE) == "through two"
    mine.close()
    for child in children:
        finish(child)


def relay(outer: End, inner: End) -> None:
    for message in outer:
        outer.send(inner.request(message, PATIENCE))


def say(end: End, *messages: object) -> None:
    for message in messages:
        end.send(message)


def test_a_child_that_returns_says_goodbye(spawn: Spawn) -> None:
    here, there = channel()
    child = spawn(say, there, 1, 2)
    assert list(here) == [1, 2]
    finish(child)


@pytest.mark.parametrize("make", ["thread", "executor"])
def test_the_threads_of_a_child_have_their_say_before_its_goodbye(spawn: Spawn, make: str) -> None:
    here, there = channel()
    go = Signal()
    child = spawn(leave_it_to_a_thread, there, go, make)
    assert here.recv(PATIENCE) == "on my way out"
    until(lambda: asleep(child.pid or 0))
    go.set()
    assert list(here) == ["by a thread"]
    finish(child)


def leave_it_to_a_thread(end: End, go: Signal, make: str) -> None:
    def speak() -> None:
        assert go.wait(PATIENCE)
        end.send("by a thread")

    if make == "thread":
        threading.Thread(target=speak).start()
    else:
        ThreadPoolExecutor(1).submit(speak)
    end.send("on my way out")


def test_a_child_that_exits_says_goodbye(spawn: Spawn) -> None:
    here, there = channel()
    child = spawn(say_and_exit, there)
    assert list(here) == ["leaving"]
    child.join(PATIENCE)
    assert child.exitcode == 3


def say_and_exit(end: End) -> None:
    end.send("leaving")
    raise SystemExit(3)


def hold(held: Any, go: Signal) -> None:
    """Keep whatever came along until ``go``."""
    go.wait(PATIENCE)


def test_siblings_keep_no_copy(spawn: Spawn) -> None:
    """Row p04 of the table of faults: one is started before the end moves, one after."""
    here, there = channel()
    go = Signal()
    before = spawn(hold, None, go)
    child = spawn(say, there, "last words")
    after = spawn(hold, None, go)
    assert list(here) == ["last words"]
    go.set()
    for process in (before, child, after):
        finish(process)


def test_the_parent_keeps_no_copy(spawn: Spawn) -> None:
    """Row p03: ``there`` is a forgotten variable of this function all the time."""
    here, there = channel()
    child = spawn(wait_and_hang, there)
    assert here.request("ready?", PATIENCE) == "ready!"
    kill(child)
    with pytest.raises(PeerDied):
        here.recv(PATIENCE)
    with pytest.raises(BrokenChannel):
        here.send(1)
    assert there.closed


def wait_and_hang(end: End) -> None:
    assert end.recv() == "ready?"
    end.send("ready!")
    signal.pause()


def test_the_parents_close_ends_the_childs_loop(spawn: Spawn) -> None:
    """The child has no copy of the other end that could keep it waiting."""
    here, there = channel()
    child = spawn(echo, there)
    here.close()
    finish(child)


def test_a_grandchild_gets_an_end(spawn: Spawn) -> None:
    here, there = channel()
    child = spawn(pass_on, there)
    assert here.request("hello", PATIENCE) == "hello"
    here.close()
    finish(child)


def pass_on(end: End) -> None:
    with start(echo, end) as job:
        with pytest.raises(ChannelMoved):
            end.recv()
        job.result(PATIENCE)


def test_an_end_travels_through_a_channel(spawn: Spawn) -> None:
    """Row p26: also from a process that has exited since."""
    here, there = channel()
    child = spawn(send_an_end, there)
    finish(child)
    inner = here.recv(PATIENCE)
    assert inner.recv(PATIENCE) == "hello from the dead"
    with pytest.raises(EndOfChannel):
        inner.recv(PATIENCE)
    here.close()
    inner.close()


def send_an_end(end: End) -> None:
    left, right = channel()
    right.send("hello from the dead")
    end.send(left)


def test_an_end_travels_to_a_child_that_runs(spawn: Spawn) -> None:
    control, theirs = channel()
    child = spawn(serve_ends, theirs)
    pairs = [channel() for _ in range(3)]
    for here, there in pairs:
        control.send(there)
        assert here.request("hello", PATIENCE) == "hello"
        here.close()
    control.close()
    finish(child)


def serve_ends(control: End) -> None:
    for end in control:
        with end:
            echo(end)


def test_half_a_close_lets_the_answers_come(spawn: Spawn) -> None:
    here, there = channel()
    child = spawn(add_up, there)
    for number in range(10):
        here.send(number)
    here.close_send()
    assert list(here) == [45]
    finish(child)


def add_up(end: End) -> None:
    end.send(sum(end))


def test_two_that_send_large_messages_at_once_go_on(spawn: Spawn) -> None:
    """Row p21: with a pipe both would block for ever."""
    here, there = channel()
    child = spawn(swap, there)
    swap(here)
    finish(child)


def swap(end: End) -> None:
    for size in (1_000_000, 4_000_000):
        end.send(b"x" * size, PATIENCE)
        assert len(end.recv(PATIENCE)) == size


def test_arrays_may_be_written_to_where_they_arrive(spawn: Spawn) -> None:
    numpy = pytest.importorskip("numpy")
    here, there = channel()
    array = numpy.arange(500_000.0)
    child = spawn(double, there)
    here.send(array)
    assert numpy.array_equal(here.recv(PATIENCE), array * 2)
    finish(child)


def double(end: End) -> None:
    array = end.recv()
    array *= 2
    end.send(array)


def test_two_processes_share_no_messages(spawn: Spawn) -> None:
    """Row p10: two processes cannot read from one end, for it is in one of them."""
    here, there = channel()
    child = spawn(echo, there)
    with pytest.raises(ChannelMoved):  # here, or where it is used if it was forked
        start(echo, there).result(PATIENCE)
    assert here.request(1, PATIENCE) == 1
    here.close()
    finish(child)


def test_the_habits_of_a_pipe_do_no_harm(spawn: Spawn) -> None:
    """To close the child's end in the parent, and to forget about both, says no goodbye."""
    here, there = channel()
    child = spawn(echo, there)
    there.close()
    del there
    gc.collect()
    assert here.request(1, PATIENCE) == 1
    here.close()
    finish(child)


def test_ends_that_moved_to_two_children_leave_nothing_with_the_parent(spawn: Spawn) -> None:
    """It uses no channel after that, and only waits for the children."""
    left, right = channel()
    reader, writer = spawn(drain, left), spawn(say_and_vanish, right)
    finish(writer)
    finish(reader)


def drain(end: End) -> None:
    assert end.recv() == "last words"
    with pytest.raises(PeerDied):
        end.recv()


def say_and_vanish(end: End) -> None:
    end.send("last words")
    os._exit(0)


def test_a_failed_start_moves_nothing(context: BaseContext, start_method: str) -> None:
    if start_method == "fork":
        pytest.skip("fork pickles nothing")
    here, there = channel()
    lock = threading.Lock()
    with pytest.raises(TypeError):
        context.Process(target=say, args=(there, lock)).start()  # type: ignore[attr-defined]
    there.send("still here")
    assert here.recv() == "still here"
    here.close()
    there.close()


def test_what_the_peer_raises_in_unpickling_is_the_receivers(spawn: Spawn) -> None:
    here, there = channel()
    child = spawn(say, there, Fails(), "next")
    with pytest.raises(EOFError, match="mine"):
        here.recv(PATIENCE)
    assert list(here) == ["next"]
    finish(child)


class Fails:
    """Its unpickling raises: in the second journey, if the first was to a new process."""

    def __init__(self, journeys: int = 0) -> None:
        self.journeys = journeys

    def __reduce__(self) -> Any:
        if multiprocessing.parent_process() is None:
            return Fails, ()
        return fail, ()


def fail() -> None:
    raise EOFError("mine")


def test_a_signal_handler_that_raises_loses_nothing(spawn: Spawn) -> None:
    """Row p22 of the table of faults."""
    here, there = channel()
    go = Signal()

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        child = spawn(interrupt_then_say, there, os.getpid(), go)
        go.set()
        with pytest.raises(KeyboardInterrupt):
            here.recv(PATIENCE)
        here.send("go on")
        assert here.recv(PATIENCE) == "x" * 100_000
        assert list(here) == ["end"]
    finally:
        signal.signal(signal.SIGUSR1, before)
    finish(child)


def interrupt_then_say(end: End, pid: int, go: Signal) -> None:
    assert go.wait(PATIENCE)
    until(lambda: asleep(pid))
    os.kill(pid, signal.SIGUSR1)
    end.recv()
    say(end, "x" * 100_000, "end")


def test_a_stalled_peer_costs_a_timeout_and_no_more(spawn: Spawn) -> None:
    """Row p13: what `poll` promises `recv` keeps, and a stopped process is no death."""
    here, there = channel()
    child = spawn(echo, there)
    assert here.request(1, PATIENCE) == 1
    assert child.pid
    os.kill(child.pid, signal.SIGSTOP)
    assert not here.poll(0.01)
    with pytest.raises(ChannelTimeout):
        here.request(2, 0.01)
    os.kill(child.pid, signal.SIGCONT)
    assert here.recv(PATIENCE) == 2
    here.close()
    finish(child)


def test_wait_tells_which_of_many_spoke_or_died(spawn: Spawn) -> None:
    pairs = [channel() for _ in range(3)]
    children = [spawn(wait_and_hang, there) for _, there in pairs]
    ends = [here for here, _ in pairs]
    assert wait(*ends, timeout=0) == []
    ends[1].send("ready?")
    assert wait(*ends, timeout=PATIENCE) == [ends[1]]
    assert ends[1].recv() == "ready!"
    kill(children[2])
    assert wait(*ends, timeout=PATIENCE) == [ends[2]]
    for end in ends:
        end.close()


def test_ends_work_in_asyncio_on_both_sides(spawn: Spawn) -> None:
    here, there = channel()
    child = spawn(run_echo_async, there)

    async def ask() -> list[int]:
        return [await here.request_async(number, PATIENCE) for number in range(20)]

    assert asyncio.run(ask()) == list(range(20))
    here.close()
    finish(child)


def run_echo_async(end: End) -> None:
    asyncio.run(echo_async(end))


async def echo_async(end: End) -> None:
    async for message in end:
        await end.send_async(message)


def test_a_msgspec_end_keeps_its_types_on_its_way(spawn: Spawn) -> None:
    pytest.importorskip("msgspec")
    here, there = channel(int, str, codec="msgspec")
    child = spawn(answer_wrongly, there)
    here.send("seven")  # type: ignore[arg-type]
    assert here.recv(PATIENCE).startswith("MessageTypeError: right end of channel")
    finish(child)
    here.close()


def answer_wrongly(end: End) -> None:
    try:
        end.recv()
    except TypeError as error:
        end.send(f"{type(error).__name__}: {error}")


def hold_on(end: Channel[Any, Any], said: Signal) -> None:
    said.set()
    Signal().wait()


def test_a_process_that_died_before_its_first_message_is_named(spawn: Spawn) -> None:
    here, there = channel()
    said = Signal()
    process = spawn(hold_on, there, said)
    assert said.wait(PATIENCE)
    kill(process)
    with pytest.raises(PeerDied) as caught:
        here.recv(PATIENCE)
    # Reaped by us, so that only multiprocessing can know.
    assert caught.value.pid == process.pid
    assert "SIGKILL" in str(caught.value)
    here.close()


def test_what_was_given_twice_is_with_the_first(spawn: Spawn) -> None:
    here, there = channel()
    said = Signal()
    first = spawn(hold_on, there, said)
    assert said.wait(PATIENCE)
    with contextlib.suppress(ChannelMoved):  # under fork it is up to the second to find out
        finish_badly(spawn(echo, there))
    with pytest.raises(ChannelMoved, match=f"moved to process {first.pid}$"):
        there.recv()
    kill(first)
    with pytest.raises(PeerDied) as caught:
        here.recv(PATIENCE)
    assert caught.value.pid == first.pid
    here.close()


def finish_badly(process: BaseProcess) -> None:
    process.join(PATIENCE)
    assert process.exitcode == 1


def speak_and_pass_on(end: Channel[Any, Any], carrier: Channel[Any, Any]) -> None:
    end.send("hello")
    carrier.send(end)
    Signal().wait()


def take_over(carrier: Channel[Any, Any], said: Signal) -> None:
    end = carrier.recv()
    said.set()
    Signal().wait()
    end.close()


@pytest.mark.skipif(not processes.lives(os.getpid()), reason="who lives is not known: he is named")
def test_who_passed_an_end_on_is_not_named_as_the_one_that_died(spawn: Spawn) -> None:
    here, there = channel()
    carrier, receiver = channel()
    said = Signal()
    spawn(speak_and_pass_on, there, carrier)
    second = spawn(take_over, receiver, said)
    assert here.recv(PATIENCE) == "hello"
    assert said.wait(PATIENCE)
    kill(second)
    with pytest.raises(PeerDied) as caught:
        here.recv(PATIENCE)
    assert caught.value.pid is None
    here.close()
