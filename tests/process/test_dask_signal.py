"""Signal on a cluster: the flag, its waiters, and what is not to be had of it."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

distributed: Any = pytest.importorskip("distributed")

import mpkit.dask as mpkit  # noqa: E402  needs distributed
from mpkit.dask import _loop, _signal  # noqa: E402
from tests.dasklimits import new_name  # noqa: E402
from tests.support import PATIENCE, copied, until  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mpkit.dask import Signal
    from tests.cluster import Cluster


@pytest.fixture
def client(cluster: Cluster) -> Iterator[Any]:
    with cluster.client(set_as_default=True) as client:
        yield client


def answer(question: Signal, reply: Signal) -> bool:
    """Wait for one signal, and set the other."""
    was_set = question.wait(PATIENCE)
    reply.set()
    return was_set


async def answer_async(question: Signal, reply: Signal) -> bool:
    was_set = await question
    await asyncio.to_thread(reply.set)
    return was_set


def waiters(client: Any, signal: Signal) -> int:
    """Return how many waits the scheduler knows of."""
    key = f"mpkit-{signal._key}"

    def waiting(dask_scheduler: Any) -> int:
        count: int = dask_scheduler.extensions["events"]._waiter_count.get(key, 0)
        return count

    count: int = client.run_on_scheduler(waiting)
    return count


def test_all_processes_agree_on_whether_it_is_set(client: Any) -> None:
    signal = mpkit.Signal()
    for fact in (False, True, True, False, False):
        if fact:
            signal.set()
        else:
            signal.clear()
        assert signal.is_set() is fact
        assert copied(signal).is_set() is fact
        assert client.submit(signal.is_set, pure=False).result() is fact
        assert client.submit(signal.wait, 0, pure=False).result() is fact


def test_a_name_is_a_signal_and_no_name_is_another(client: Any) -> None:
    name = new_name()
    mpkit.Signal(name=name).set()
    assert mpkit.Signal(name=name).is_set()
    assert not mpkit.Signal().is_set()
    assert not mpkit.Signal().is_set()
    mpkit.Signal(name=name).clear()


@pytest.mark.parametrize("function", [answer, answer_async])
def test_tasks_wait_for_the_client_and_the_client_for_tasks(client: Any, function: Any) -> None:
    question, reply = mpkit.Signal(), mpkit.Signal()
    future = client.submit(function, question, reply, pure=False)
    until(lambda: waiters(client, question) == 1)
    assert not reply.is_set()
    question.set()
    assert reply.wait(PATIENCE)
    assert future.result(PATIENCE)


def test_a_wait_has_its_time_and_one_more_look(client: Any) -> None:
    signal = mpkit.Signal()
    began = time.monotonic()
    assert not signal.wait(0.1)
    assert time.monotonic() - began >= 0.1
    assert not signal.wait(0)
    signal.set()
    assert signal.wait(0)
    assert signal.wait(1e-9)  # over before anybody can have answered
    assert signal.wait(1e300)


def test_bad_arguments_fail_at_the_call() -> None:
    wrong: Any = 7
    with pytest.raises(ValueError, match="a name is 1 to 200"):
        mpkit.Signal(name="a/b")
    with pytest.raises(TypeError, match="client is a dask.distributed Client or an address"):
        mpkit.Signal(client=wrong)
    with pytest.raises(ValueError, match="timeout is not negative"):
        mpkit.Signal().wait(-1)
    with pytest.raises(RuntimeError, match="there is no current dask.distributed Client"):
        mpkit.Signal().set()


def test_there_is_no_descriptor_of_it(client: Any) -> None:
    assert not hasattr(mpkit.Signal(), "fileno")
    wrong: Any = mpkit.Signal()
    with pytest.raises(TypeError):
        mpkit.wait(wrong, timeout=0)


def test_its_name_is_shown(client: Any) -> None:
    assert repr(mpkit.Signal(name="go")) == "<Signal 'go', on a Dask cluster>"
    signal = mpkit.Signal()
    assert repr(copied(signal)) == repr(signal)


def test_more_wait_than_a_client_has_connections(client: Any) -> None:
    """If each took one, then nobody could set what they wait for."""
    signal = mpkit.Signal()

    async def crowd() -> int:
        async def one() -> bool:
            return await signal

        tasks = [asyncio.create_task(one()) for _ in range(client.rpc.limit + 50)]
        await asyncio.to_thread(until, lambda: waiters(client, signal) == 1)
        await asyncio.to_thread(signal.set)
        return sum(await asyncio.gather(*tasks))

    assert asyncio.run(crowd()) == client.rpc.limit + 50
    until(lambda: not _signal._crowds[client])


def test_threads_and_a_cancelled_task_wait_for_the_same(client: Any) -> None:
    signal = mpkit.Signal()
    found: list[bool] = []

    async def cancelled() -> None:
        task = asyncio.ensure_future(_wait(signal))
        await asyncio.to_thread(until, lambda: waiters(client, signal) == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    threads = [threading.Thread(target=lambda: found.append(signal.wait())) for _ in range(3)]
    for thread in threads:
        thread.start()
    asyncio.run(cancelled())
    assert not signal.is_set()
    signal.set()
    for thread in threads:
        thread.join(PATIENCE)
    assert found == [True] * 3


async def _wait(signal: Signal) -> bool:
    return await signal


def test_on_an_asyncio_client(cluster: Cluster) -> None:
    async def use() -> bool:
        async with distributed.Client(cluster.address, asynchronous=True):
            signal = mpkit.Signal()
            for call in (signal.set, signal.clear, signal.is_set, signal.wait):
                with pytest.raises(RuntimeError, match="this thread runs the event loop"):
                    call()
            await asyncio.to_thread(signal.set)
            return await signal

    assert asyncio.run(use())


def test_a_closed_client_ends_all_waits(cluster: Cluster) -> None:
    with cluster.client() as client:
        signal, errors = mpkit.Signal(client=client), list[BaseException]()

        def wait() -> None:
            try:
                signal.wait()
            except mpkit.SchedulerLost as error:
                errors.append(error)

        threads = [threading.Thread(target=wait) for _ in range(3)]
        for thread in threads:
            thread.start()
        until(lambda: _signal._crowds.get(client) and waiters(client, signal) == 1)
    for thread in threads:
        thread.join(PATIENCE)
    assert len(errors) == 3


def test_an_address_where_no_scheduler_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(given: str) -> None:
        raise TimeoutError("Timed out trying to connect")

    monkeypatch.setattr(_loop, "client_of", refuse)
    with pytest.raises(mpkit.SchedulerLost, match=r"tcp://nowhere:1.*Timed out") as told:
        mpkit.Signal(client="tcp://nowhere:1").set()
    assert isinstance(told.value.__cause__, TimeoutError)


def test_what_was_before_a_wait_is_no_answer_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be set, and cleared again, while the news of that is on its way to this process."""
    answers: list[asyncio.Future[bool]] = []

    async def asked(client: Any, key: str, method: str, **options: object) -> bool:
        answers.append(asyncio.get_running_loop().create_future())
        return await answers[-1]

    async def use() -> None:
        client: Any = FakeClient()
        early = asyncio.ensure_future(_signal._wait_for(client, "key", None))
        while not answers:
            await asyncio.sleep(0)
        late = asyncio.ensure_future(_signal._wait_for(client, "key", None))
        await asyncio.sleep(0)
        answers[0].set_result(True)
        assert await early
        while len(answers) < 2:
            await asyncio.sleep(0)
        assert not late.done()
        answers[1].set_result(False)  # a minute is over
        while len(answers) < 3:
            await asyncio.sleep(0)
        answers[2].set_result(True)
        assert await late
        assert len(answers) == 3

    monkeypatch.setattr(_signal, "_asked", asked)
    asyncio.run(use())


class FakeClient:
    """What can be the key of a weak dictionary."""
