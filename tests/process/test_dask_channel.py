"""Channels between tasks, jobs and clients of a real Dask cluster."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import pickle
import threading
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from tests.cluster import current_client
from tests.support import PATIENCE, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.cluster import Cluster

distributed: Any = pytest.importorskip("distributed")

import mpkit.dask as mpkit  # noqa: E402  needs distributed
from mpkit.dask import _link, _loop, _node, _port, _state  # noqa: E402


@pytest.fixture
def client(cluster: Cluster) -> Iterator[Any]:
    with current_client(cluster) as client:
        yield client
    assert not _link._expecting
    assert not [end for end in _port._open if not end._gone]


@dataclass
class Ask:
    """A question; where to answer, if not here."""

    n: int
    reply: Any = None


def double(end: mpkit.Channel[int, int]) -> str:
    """Answer each number, until no more come."""
    with end:
        for number in end:
            end.send(2 * number)
    return "well"


def drop(end: object) -> None:
    """Do nothing with it."""


def test_both_ends_in_one_process(client: object) -> None:
    here, there = mpkit.channel(send=str, recv=int)
    here.send("abc")
    there.send(len(there.recv(PATIENCE)))
    assert here.recv(PATIENCE) == 3
    with pytest.raises(mpkit.ChannelTimeout):
        here.recv(timeout=0)
    there.close()
    assert list(here) == []
    with pytest.raises(mpkit.BrokenChannel):
        here.send("x")
    here.close()
    assert (here.closed, there.closed) == (True, True)
    with pytest.raises(mpkit.ChannelClosed):
        here.send("x")


@pytest.mark.parametrize("carrier", ["job", "dask"])
def test_an_end_moves_to_a_job_or_a_task_and_says_goodbye_there(client: Any, carrier: str) -> None:
    here, there = mpkit.channel(send=int, recv=int)
    job = mpkit.start(double, there) if carrier == "job" else client.submit(double, there)
    with pytest.raises(mpkit.ChannelMoved):
        there.send(1)
    assert [here.request(n, PATIENCE) for n in range(5)] == [0, 2, 4, 6, 8]
    for number in range(2000):
        here.send(number)
    here.close_send()
    assert list(here) == [2 * number for number in range(2000)]
    with pytest.raises(mpkit.ChannelClosed):
        here.send(1)
    assert job.result(PATIENCE) == "well"
    here.close()


def test_an_end_moves_to_a_task_of_a_pool(client: object) -> None:
    made = [mpkit.channel(send=int, recv=int) for _ in range(3)]
    with mpkit.TaskPool() as pool:
        with pytest.raises(mpkit.NotPicklable):
            pool.submit(drop, [made[0][1], threading.Lock()])
        tasks = [pool.submit(double, there) for _, there in made]
        for here, _ in made:
            assert here.request(4, PATIENCE) == 8
            here.close()
        assert [task.result(PATIENCE) for task in tasks] == ["well"] * 3
        here, there = mpkit.channel()
        pool.map(drop, [there])
        assert list(here) == []
        here.close()


def pipe(source: mpkit.Channel[Any, int], target: mpkit.Channel[int, Any]) -> int:
    """Pass all on."""
    count = 0
    with target:
        for number in source:
            target.send(number)
            count += 1
    return count


def produce(end: mpkit.Channel[int, Any], count: int) -> None:
    for number in range(count):
        end.send(number)


def test_from_worker_to_worker_and_back_to_the_client(client: object) -> None:
    """More than the window, so that all wait for each other's taking."""
    first, second = mpkit.channel(send=int, recv=None)
    third, fourth = mpkit.channel(send=int, recv=None)
    piped = mpkit.start(pipe, second, third)
    produced = mpkit.start(produce, first, 20_000)
    assert list(fourth) == list(range(20_000))
    assert piped.result(PATIENCE) == 20_000
    assert produced.result(PATIENCE) is None
    fourth.close()


def test_an_end_moves_through_a_channel(client: object) -> None:
    here, there = mpkit.channel(send=Ask, recv=None)
    job = mpkit.start(answer, there)
    mine, theirs = mpkit.channel(send=None, recv=int)
    here.send(Ask(21, theirs))
    assert mine.recv(PATIENCE) == 42
    here.close()
    with pytest.raises(mpkit.EndOfChannel):
        mine.recv(PATIENCE)
    assert job.result(PATIENCE) is None
    mine.close()


def answer(end: mpkit.Channel[None, Ask]) -> None:
    for ask in end:
        ask.reply.send(2 * ask.n)
        end.send(None)


def make_one() -> tuple[int, mpkit.Channel[int, int]]:
    """Make a channel in a job, serve one end by a thread, and return the other one."""
    here, there = mpkit.channel(send=int, recv=int)
    mpkit.start(double, here)
    return os.getpid(), there


def test_a_job_makes_a_channel_and_returns_an_end_of_it(client: object) -> None:
    pid, end = mpkit.start(make_one).result(PATIENCE)
    assert pid != os.getpid()
    assert end.request(4, PATIENCE) == 8
    end.close()


def test_an_end_that_is_dropped_says_goodbye(client: object) -> None:
    here, there = mpkit.channel(send=int, recv=int)
    job = mpkit.start(drop, there)
    with pytest.raises(mpkit.EndOfChannel) as caught:
        here.recv(PATIENCE)
    assert not isinstance(caught.value, mpkit.PeerDied)
    assert job.result(PATIENCE) is None
    here.close()
    here, there = mpkit.channel(send=int, recv=int)
    del there
    assert list(here) == []
    here.close()


@pytest.mark.parametrize("use", ["recv", "send", "close", "close_send"])
def test_an_end_stays_where_it_is_used_first(
    client: object, monkeypatch: pytest.MonkeyPatch, use: str
) -> None:
    """It says so as it comes: its maker still has the place until one comes who stays."""
    here, there = mpkit.channel(send=int, recv=int)
    packed = pickle.dumps(there)
    came_to_stay: list[bool] = []
    attach = _link.Link.attach

    def attach_and_note(link: _link.Link, node: Any) -> None:
        came_to_stay.append(link.settled)
        attach(link, node)

    monkeypatch.setattr(_link.Link, "attach", attach_and_note)
    here.send(1)
    with pickle.loads(packed) as end:
        if use == "recv":
            assert end.recv(PATIENCE) == 1
        elif use == "send":
            end.send(2)
            assert here.recv(PATIENCE) == 2
        else:
            getattr(end, use)()
            assert list(here) == []
    assert came_to_stay == [True]
    here.close()


def test_what_was_sent_arrives_after_its_sender_was_closed(client: object) -> None:
    """Also if the other end comes later."""
    here, there = mpkit.channel(send=int, recv=int)
    with here:
        for number in range(10):
            here.send(number)
    assert mpkit.start(list, there).result(PATIENCE) == list(range(10))


def test_an_end_moves_once_and_not_when_it_was_used(client: Any) -> None:
    here, there = mpkit.channel(send=int, recv=int)
    here.poll()
    with pytest.raises(mpkit.NotPicklable, match="moves once, before it is used"):
        mpkit.start(drop, here)
    first = pickle.dumps(there)
    with pytest.raises(mpkit.ChannelMoved):
        there.poll()
    end, other = pickle.loads(first), pickle.loads(first)
    end.send(1)
    assert here.recv(PATIENCE) == 1
    with pytest.raises(mpkit.ChannelMoved, match="moves once"):
        other.recv(PATIENCE)
    with pytest.raises(mpkit.NotPicklable):
        pickle.dumps(end)
    for one in (here, end, other):
        one.close()


def test_what_cannot_travel_is_not_sent_and_the_channel_goes_on(client: object) -> None:
    here, there = mpkit.channel()
    mine, theirs = mpkit.channel()
    with pytest.raises(mpkit.NotPicklable, match="the message of type list"):
        here.send([theirs, threading.Lock()])
    with pytest.raises(mpkit.NotPicklable):
        mpkit.start(drop, [theirs, threading.Lock()])
    assert not theirs.closed  # it stayed
    here.send("good")
    assert there.recv(PATIENCE) == "good"
    mine.send(1)
    assert theirs.recv(PATIENCE) == 1
    for end in (here, there, mine, theirs):
        end.close()


def test_a_sender_waits_while_too_much_is_unread(client: object) -> None:
    here, there = mpkit.channel(send=bytes, recv=None)
    sent = 0
    with pytest.raises(mpkit.ChannelTimeout, match="could not take a message"):
        for sent in range(10**6):
            here.send(bytes(100_000), timeout=0)
    assert sent == -(-_state.WINDOW // (100_000 + 512))
    large = bytes(_state.WINDOW)
    waiting = threading.Thread(target=here.send, args=(large,))
    waiting.start()
    for _ in range(sent):
        there.recv(PATIENCE)
    waiting.join(PATIENCE)
    assert there.recv(PATIENCE) == large
    here.close()
    there.close()


def test_large_arrays_travel_and_are_their_receivers(client: object) -> None:
    numpy = pytest.importorskip("numpy")
    here, there = mpkit.channel()
    array = numpy.arange(1_000_000)
    here.send({"a": array, "b": [array[:10], array[::2]]})
    array[:] = 0  # what was sent was copied
    got = there.recv(PATIENCE)
    assert (got["a"] == numpy.arange(1_000_000)).all()
    assert (got["b"][1] == numpy.arange(0, 1_000_000, 2)).all()
    got["a"][0] = 5  # and what was received may be changed
    here.close()
    there.close()


def test_polling_and_closing_wake_who_waits(client: object) -> None:
    here, there = mpkit.channel(send=int, recv=int)
    assert not there.poll()
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        waiting = threads.submit(there.poll, PATIENCE)
        here.send(1)
        assert waiting.result(PATIENCE)
        receiving = threads.submit(here.recv)
        until(lambda: here._link.changed._waiters)  # type: ignore[attr-defined]
        here.close()
        assert isinstance(receiving.exception(PATIENCE), mpkit.ChannelClosed)
    assert there.recv(PATIENCE) == 1
    assert there.poll(PATIENCE)
    there.close()


def test_requests_of_many_threads_get_their_own_replies(client: object) -> None:
    here, there = mpkit.channel(send=int, recv=int)
    job = mpkit.start(double, there)
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        asked = list(range(200))
        assert list(threads.map(here.request, asked)) == [2 * n for n in asked]
    with pytest.raises(mpkit.ChannelTimeout):
        here.request(1000, timeout=0)
    assert here.request(5, PATIENCE) == 10  # and not the reply to the one that was given up
    here.close()
    assert job.result(PATIENCE) == "well"


def test_asyncio(client: object) -> None:
    async def talk() -> None:
        here, there = mpkit.channel(send=int, recv=int)
        job = mpkit.start(double, there)
        asked = [here.request_async(n, PATIENCE) for n in range(20)]
        assert await asyncio.gather(*asked) == [2 * n for n in range(20)]
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await here.recv_async()
        await here.send_async(4)
        here.close_send()
        assert [n async for n in here] == [8]
        assert await job == "well"
        here.close()

    asyncio.run(talk())


def test_a_coroutine_in_the_loop_of_a_worker_awaits(client: Any) -> None:
    here, there = mpkit.channel(send=int, recv=int)
    task = client.submit(double_async, there)
    assert here.request(4, PATIENCE) == 8
    here.close()
    assert "use the method whose name ends with _async" in task.result(PATIENCE)


async def double_async(end: mpkit.Channel[int, int]) -> str:
    async for number in end:
        try:
            end.recv()
        except RuntimeError as error:
            refused = str(error)
        await end.send_async(2 * number)
    end.close()
    return refused


def test_msgspec_checks_what_arrives(client: object) -> None:
    pytest.importorskip("msgspec")
    here, there = mpkit.channel(send=int, recv=str, codec="msgspec")
    job = mpkit.start(tell_type_error, there)
    assert here.request("no int", PATIENCE) == "MessageTypeError"  # type: ignore[arg-type]
    assert here.request(3, PATIENCE) == "3"
    here.close()
    assert job.result(PATIENCE) is None
    with pytest.raises(TypeError, match="give channel\\(\\) send= and recv="):
        mpkit.channel(codec="msgspec")  # type: ignore[call-overload]


def tell_type_error(end: mpkit.Channel[str, int]) -> None:
    try:
        end.recv()
    except mpkit.MessageTypeError as error:
        end.send(type(error).__name__)
    end.send(str(end.recv()))


def test_two_clients_talk_to_each_other(cluster: Cluster, client: object) -> None:
    with cluster.client() as other:
        here, there = mpkit.channel(send=int, recv=int)
        packed = pickle.dumps(there)
        with other.as_current():
            end = pickle.loads(packed)
            end.send(1)
        assert here.recv(PATIENCE) == 1
        here.send(2)
        assert end.recv(PATIENCE) == 2
        here.close()
        assert list(end) == []
        end.close()


def test_an_address_is_enough(cluster: Cluster) -> None:
    """The client of an address is for all who give it, and stays."""
    here, there = mpkit.channel(send=int, recv=int, client=cluster.address)
    here.send(1)
    assert there.recv(PATIENCE) == 1
    here.close()
    there.close()
    _loop._opened.pop((os.getpid(), cluster.address)).close()


def test_a_client_that_is_closed_ends_its_channels(cluster: Cluster) -> None:
    with cluster.client() as client, client.as_current():
        here, there = mpkit.channel(send=int, recv=int)
        job = mpkit.start(double, there)
        assert here.request(1, PATIENCE) == 2
    with pytest.raises(mpkit.BrokenChannel, match="was closed"):
        here.recv(PATIENCE)
    with pytest.raises(mpkit.SchedulerLost):
        job.result(PATIENCE)
    here.close()


def test_a_client_in_a_loop_that_goes_on_ends_its_channels_too(
    cluster: Cluster, client: Any
) -> None:
    """As one that was made of a LocalCluster, which has the loop of that."""
    with cluster.client(loop=client.loop) as another, another.as_current():
        here, there = mpkit.channel(send=int, recv=int)
        nobody, not_yet = mpkit.channel(send=int, recv=int)
        job = mpkit.start(double, there)
        assert here.request(1, PATIENCE) == 2
        assert not nobody.poll()
    for end in (here, nobody, not_yet):
        with pytest.raises(mpkit.BrokenChannel, match="was closed"):
            end.recv(PATIENCE)
        end.close()
    with pytest.raises(mpkit.SchedulerLost):
        job.result(PATIENCE)


def test_a_program_that_has_a_client_is_none_of_the_workers_in_its_process(
    client: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = SimpleNamespace(status=distributed.Status.running, scheduler=None)
    monkeypatch.setattr(distributed.Worker, "_instances", [worker])
    assert _node.here().address is None
    monkeypatch.setattr(distributed.Worker, "_initialized_clients", {client})
    assert _node._worker() is worker  # a thread that a task has started


def test_who_waits_no_more_is_forgotten(client: object) -> None:
    async def ask_often() -> None:
        for _ in range(3):
            with pytest.raises(mpkit.ChannelTimeout):
                await here.recv_async(timeout=0.001)
        assert not here._link._futures

    here, there = mpkit.channel(send=int, recv=int)
    with here, there:
        asyncio.run(ask_often())


def test_at_exit_all_ends_have_one_time_together(
    client: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    deadlines: list[tuple[bool, object]] = []
    monkeypatch.setattr(
        _port.Port, "_linger", lambda self, deadline: deadlines.append((self.closed, deadline))
    )
    kept = mpkit.channel(), mpkit.channel()
    _port._close_all()
    assert [end.closed for pair in kept for end in pair] == [True] * 4
    assert len(deadlines) == 4
    assert set(deadlines) == {(True, deadlines[0][1])}


def test_wrong_arguments_fail_at_the_call(client: object) -> None:
    with pytest.raises(TypeError, match="makes both ends"):
        mpkit.Channel()
    with pytest.raises(ValueError, match="codec is 'pickle' or 'msgspec'"):
        mpkit.channel(send=int, recv=int, codec="json")  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="client is a dask.distributed Client"):
        mpkit.channel(send=int, recv=int, client=3)  # type: ignore[call-overload]
    here, there = mpkit.channel(send=int, recv=int)
    with pytest.raises(TypeError, match="timeout is a number of seconds"):
        here.recv("soon")  # type: ignore[arg-type]
    here.close()
    there.close()


def test_without_a_client_it_says_what_to_do() -> None:
    with pytest.raises(RuntimeError, match="there is no current dask.distributed Client"):
        mpkit.channel(send=int, recv=int)
