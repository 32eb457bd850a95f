"""limit() and Semaphore on a cluster: what they share, with whom, and what they say."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import pickle
import signal
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

distributed: Any = pytest.importorskip("distributed")

import mpkit.dask as mpkit  # noqa: E402  needs distributed
from mpkit.dask import _loop  # noqa: E402
from mpkit.dask._leases import leases_of  # noqa: E402
from tests.dasklimits import hold, new_name, until_waiting, waiting  # noqa: E402
from tests.support import PATIENCE, copied, until  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mpkit.dask import Semaphore, Signal
    from tests.cluster import Cluster


@pytest.fixture
def client(cluster: Cluster) -> Iterator[Any]:
    with cluster.client(set_as_default=True) as client:
        yield client


def take_now(semaphore: Semaphore) -> bool:
    return semaphore.acquire(block=False)


def try_it(semaphore: Semaphore) -> bool:
    """Tell whether there is a slot, and leave it there."""
    taken = take_now(semaphore)
    if taken:
        semaphore.release()
    return taken


# what is shared


def test_a_name_is_shared_by_the_client_and_all_workers(client: Any) -> None:
    name = new_name()
    first, second = mpkit.Semaphore(2, name=name), mpkit.Semaphore(2, name=name)
    addresses = list(client.scheduler_info()["workers"])
    with first, second:
        assert (first.slots, first.available) == (2, 0)
        for address in addresses:
            assert not client.submit(try_it, second, workers=address, pure=False).result()
    assert first.available == 2
    for address in addresses:
        assert client.submit(try_it, second, workers=address, pure=False).result()


def test_without_a_name_it_is_shared_by_those_who_got_it(client: Any) -> None:
    semaphore, other = mpkit.Semaphore(1), mpkit.Semaphore(1)
    with semaphore:
        assert not client.submit(try_it, semaphore, pure=False).result()
        assert not copied(semaphore).acquire(False)
        assert client.submit(try_it, other, pure=False).result()
    assert (copied(semaphore).key, copied(semaphore).slots) == (semaphore.key, 1)
    assert repr(copied(semaphore)) == repr(semaphore)


def at_this_line(inside: Signal, leave: Signal) -> bool:
    try:
        with mpkit.limit(2, timeout=0):
            inside.set()
            return leave.wait(PATIENCE)
    except mpkit.LimitTimeout:
        return False


def at_another_line() -> bool:
    with mpkit.limit(2, timeout=0):
        return True


def test_inline_a_line_has_its_slots_over_the_cluster(client: Any) -> None:
    leave = mpkit.Signal()
    held = []
    for address in client.scheduler_info()["workers"]:
        inside = mpkit.Signal()
        held.append(client.submit(at_this_line, inside, leave, workers=address, pure=False))
        assert inside.wait(PATIENCE)
    assert not at_this_line(mpkit.Signal(), leave)  # in this process
    assert at_another_line()
    leave.set()
    assert client.gather(held) == [True, True]
    assert at_this_line(mpkit.Signal(), leave)


def compiled(source: str, file: str) -> Callable[[], Any]:
    """Return the function of a program, which workers get by value."""
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(source, file, "exec"), names)
    function: Callable[[], Any] = names["function"]
    return function


PROGRAM = """
import mpkit.dask as mpkit
def function(slots=1):
    with mpkit.limit(SLOTS) as found:
        return found.key
"""


def test_functions_that_come_by_value_have_the_same_line(client: Any) -> None:
    """And so do files that are elsewhere on another host."""
    function = compiled(PROGRAM.replace("SLOTS", "4"), "/one/survey.py")
    key = client.submit(function, pure=False).result()
    assert key == function()
    assert key == compiled(PROGRAM.replace("SLOTS", "4"), "/other/survey.py")()


def test_an_edited_line_is_another_one(client: Any) -> None:
    """Else a program with more slots could not be run again on the same scheduler."""
    keys = {compiled(PROGRAM.replace("SLOTS", slots), "survey.py")() for slots in "34"}
    assert len(keys) == 2


def test_lambdas_of_a_line_are_told_apart(client: Any) -> None:
    one, two = (lambda: mpkit.limit(1).key), (lambda: mpkit.limit(1).key)
    assert one() != two()
    assert client.submit(one, pure=False).result() == one()


def at(slots: int) -> None:
    with mpkit.limit(slots):
        pass


def test_another_number_of_slots_is_told_with_both_and_the_place(client: Any) -> None:
    at(3)
    with pytest.raises(mpkit.LimitMismatch, match=r"limit at .*test_dask_limit:\d+ \(at\)") as told:
        client.submit(at, 4, pure=False).result()
    assert (told.value.wanted, told.value.existing) == (4, 3)
    with pytest.raises(mpkit.LimitMismatch) as told:  # which is known here, too
        at(2)
    assert (told.value.wanted, told.value.existing) == (2, 3)


# how slots are taken and given back


def test_acquire_and_release_are_those_of_a_semaphore(client: Any) -> None:
    semaphore = mpkit.Semaphore(2, name=new_name())
    assert semaphore.acquire()
    assert semaphore.acquire(timeout=PATIENCE)
    assert not semaphore.acquire(False)
    assert not semaphore.acquire(timeout=0)
    began = time.monotonic()
    assert not semaphore.acquire(timeout=0.1)
    assert time.monotonic() - began >= 0.1
    semaphore.release()
    assert semaphore.acquire(True, None)
    semaphore.release()
    semaphore.release()
    with pytest.raises(ValueError, match=f"process {os.getpid()} released limit '.*' without"):
        semaphore.release()
    assert semaphore.available == 2


def test_a_worker_cannot_give_back_what_another_process_holds(client: Any) -> None:
    semaphore = mpkit.Semaphore(1)
    with semaphore:
        with pytest.raises(ValueError, match="without holding a slot"):
            client.submit(semaphore.release, pure=False).result()


def test_any_thread_gives_back_what_its_process_holds(client: Any) -> None:
    semaphore = mpkit.Semaphore(1)
    thread = threading.Thread(target=semaphore.acquire)
    thread.start()
    thread.join(PATIENCE)
    assert semaphore.available == 0
    copied(semaphore).release()
    assert semaphore.available == 1


def test_who_waits_goes_on_when_a_slot_is_given_back(client: Any) -> None:
    semaphore, inside, leave = mpkit.Semaphore(1), mpkit.Signal(), mpkit.Signal()
    with semaphore:
        future = client.submit(hold, semaphore, inside, leave, pure=False)
        until_waiting(client, semaphore)
        assert not inside.is_set()
    assert inside.wait(PATIENCE)
    assert not semaphore.acquire(timeout=0.01)
    leave.set()
    assert future.result(PATIENCE) == ""


def test_to_wait_for_oneself_is_told(client: Any) -> None:
    semaphore = mpkit.Semaphore(2)
    with semaphore, semaphore:
        with pytest.raises(mpkit.WouldDeadlock, match="holds all 2 slots of Semaphore made at"):
            semaphore.acquire()
        assert not semaphore.acquire(timeout=0.01)
        with pytest.raises(mpkit.WouldDeadlock):
            with copied(semaphore):
                pass


def test_with_a_timeout_the_block_is_not_entered(client: Any) -> None:
    name = new_name()
    with mpkit.limit(1, name=name):
        with pytest.raises(mpkit.LimitTimeout, match=f"the only slot of limit '{name}' did not"):
            with mpkit.limit(1, name=name, timeout=0.01):
                raise AssertionError


def test_bad_arguments_fail_at_the_call_without_a_client() -> None:
    wrong: Any = "2"
    for make in (mpkit.limit, mpkit.Semaphore):
        with pytest.raises(TypeError, match="the number of slots is an int, not '2'"):
            make(wrong)
        with pytest.raises(ValueError, match="1 to 1,000,000"):
            make(0)
        with pytest.raises(ValueError, match="a name is 1 to 200"):
            make(1, name="a/b")
        with pytest.raises(TypeError, match="client is a dask.distributed Client or an address"):
            make(1, client=wrong and 7)
    with pytest.raises(ValueError, match="timeout is not negative"):
        mpkit.limit(1, timeout=-1)
    with pytest.raises(RuntimeError, match="there is no current dask.distributed Client"):
        mpkit.Semaphore(1).acquire()


def test_it_decorates_functions_before_there_is_a_client(cluster: Cluster) -> None:
    semaphore = mpkit.Semaphore(1)

    @semaphore
    def free() -> int:
        return semaphore.available

    @semaphore
    async def free_async() -> int:
        return await asyncio.to_thread(lambda: semaphore.available)

    with pytest.raises(TypeError, match="is a generator"):
        semaphore(lambda: (yield))
    with cluster.client(set_as_default=True) as client:
        assert free() == 0
        assert asyncio.run(free_async()) == 0
        assert client.submit(free, pure=False).result() == 0
        assert client.submit(free_async, pure=False).result() == 0
        assert semaphore.available == 1


def test_in_tasks_of_a_pool_on_the_cluster(client: Any) -> None:
    name = new_name()
    with mpkit.TaskPool(client=client) as pool:
        with mpkit.Semaphore(1, name=name) as semaphore:
            assert not pool.apply(try_it, (semaphore,))
        assert pool.map(try_it, [semaphore] * 4, chunksize=4) == [True] * 4


def test_in_jobs_on_the_cluster(client: Any) -> None:
    semaphore, inside, leave = mpkit.Semaphore(1), mpkit.Signal(), mpkit.Signal()
    with mpkit.start(hold, semaphore, inside, leave) as job:
        assert inside.wait(PATIENCE)
        assert not semaphore.acquire(False)
        leave.set()
        assert job.result(PATIENCE) == ""
    assert try_it(semaphore)


def test_holders_are_told_by_machine_process_and_time(client: Any) -> None:
    semaphore, inside, leave = mpkit.Semaphore(3), mpkit.Signal(), mpkit.Signal()
    began = time.time()
    future = client.submit(hold, semaphore, inside, leave, pure=False)
    assert inside.wait(PATIENCE)
    with semaphore:
        workers, ours = client.run(os.getpid), (os.getpid(), client.id)
        holders = semaphore.holders()
        assert len(holders) == 2
        assert all(began <= each.since <= time.time() for each in holders)
        assert {each.host for each in holders} == {socket.gethostname()}
        assert [(each.pid, each.process) for each in holders if each.pid == ours[0]] == [ours]
        (worker,) = [each for each in holders if each.pid != ours[0]]
        assert workers[worker.process] == worker.pid
    leave.set()
    assert future.result(PATIENCE) == ""
    foreign = distributed.Semaphore(3, name=f"mpkit-{semaphore._key}")
    assert foreign.acquire()
    assert [(each.pid, each.process) for each in semaphore.holders()] == [
        (-1, "distributed.Semaphore")
    ]
    assert semaphore.available == 2  # they are the same slots
    foreign.refresh_callback.stop()
    foreign.release()


def test_the_client_is_a_given_one_or_that_of_an_address(cluster: Cluster) -> None:
    name = new_name()
    with cluster.client() as client:
        by_client = mpkit.Semaphore(1, name=name, client=client)
        by_address = mpkit.Semaphore(1, name=name, client=cluster.address)
        try:
            with by_client:
                assert not by_address.acquire(False)
                assert not mpkit.limit(1, name=name, client=cluster.address).acquire(False)
            assert len(_loop._opened) == 1
        finally:
            _loop._opened.pop((os.getpid(), cluster.address)).close()


def test_a_client_that_was_closed_is_told_and_another_one_found(cluster: Cluster) -> None:
    semaphore = mpkit.Semaphore(1)
    with cluster.client(set_as_default=True):
        assert semaphore.acquire()
    with pytest.raises(mpkit.SchedulerLost, match="was not given back: .* the client was closed"):
        semaphore.release()
    other = mpkit.Semaphore(1)
    for _ in range(2):
        with cluster.client(set_as_default=True), other:
            assert other.available == 0
            other.release()
            assert other.acquire()


def test_one_that_the_scheduler_has_forgotten_is_made_known_again(client: Any) -> None:
    """As one that is started anew has: a client finds it at the old address."""
    name = new_name()
    with mpkit.limit(2, name=name) as semaphore:
        pass
    distributed.Semaphore(2, name=f"mpkit-{semaphore._key}").close()
    for _ in range(2):
        with mpkit.limit(2, name=name):
            assert semaphore.available == 1


def in_a_fork(semaphore: Semaphore, answer: Any) -> None:
    try:
        semaphore.acquire()
    except RuntimeError as error:
        answer.send(str(error))


@pytest.mark.parametrize("used", [True, False])
def test_a_forked_child_is_told_that_it_has_no_client(client: Any, used: bool) -> None:
    context = multiprocessing.get_context("fork")
    semaphore = mpkit.Semaphore(2)
    if used:
        assert semaphore.available == 2
    here, there = context.Pipe(duplex=False)
    with here, there:
        child = context.Process(target=in_a_fork, args=(semaphore, there))
        child.start()
        assert here.poll(PATIENCE)
        assert "is of the process that has forked this one" in here.recv()
        child.join(PATIENCE)
        assert child.exitcode == 0


def of_an_address(semaphore: Semaphore, signal: Signal, answer: Any) -> None:
    with semaphore:
        answer.send((semaphore.available, signal.is_set()))


def test_a_forked_child_has_a_client_of_its_own_for_an_address(cluster: Cluster) -> None:
    context = multiprocessing.get_context("fork")
    semaphore = mpkit.Semaphore(2, client=cluster.address)
    flag = mpkit.Signal(client=cluster.address)
    try:
        flag.set()
        here, there = context.Pipe(duplex=False)
        with here, there, semaphore:
            child = context.Process(target=of_an_address, args=(semaphore, flag, there))
            child.start()
            assert here.poll(PATIENCE)
            assert here.recv() == (0, True)
            child.join(PATIENCE)
            assert child.exitcode == 0
            assert semaphore.available == 1
        flag.clear()
    finally:
        _loop._opened.pop((os.getpid(), cluster.address)).close()


# asyncio


async def two_turns(semaphore: Semaphore) -> list[str]:
    """Have two tasks share a slot; return what they did."""
    said: list[str] = []
    taken = asyncio.Event()

    async def first() -> None:
        async with semaphore:
            said.append("first in")
            taken.set()
            await asyncio.sleep(0)  # the loop goes on while the other one waits
            said.append("first out")

    async def second() -> None:
        await taken.wait()
        async with semaphore:
            said.append("second in")

    await asyncio.gather(second(), first())
    return said


TURNS = ["first in", "first out", "second in"]


async def on_an_asyncio_client(address: str, semaphore: Semaphore) -> list[str]:
    async with distributed.Client(address, asynchronous=True):
        with pytest.raises(RuntimeError, match="this thread runs the event loop"):
            semaphore.acquire()
        assert await semaphore.acquire_async()
        assert not await semaphore.acquire_async(timeout=0)
        with pytest.raises(mpkit.WouldDeadlock):
            await semaphore.acquire_async()
        await asyncio.to_thread(semaphore.release)
        return await two_turns(semaphore)


def test_in_an_event_loop_of_ones_own(client: Any) -> None:
    assert asyncio.run(two_turns(mpkit.Semaphore(1))) == TURNS


def test_in_the_event_loop_of_an_asyncio_client(cluster: Cluster) -> None:
    assert asyncio.run(on_an_asyncio_client(cluster.address, mpkit.Semaphore(1))) == TURNS


def test_in_the_event_loop_of_a_worker(client: Any) -> None:
    assert client.submit(two_turns, mpkit.Semaphore(1), pure=False).result(PATIENCE) == TURNS


async def cancel_one_who_waits(semaphore: Semaphore, client: Any) -> None:
    task = asyncio.create_task(semaphore.acquire_async())
    await asyncio.to_thread(until_waiting, client, semaphore)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_who_is_cancelled_while_he_waits_takes_nothing(client: Any) -> None:
    semaphore = mpkit.Semaphore(1)
    with semaphore:
        asyncio.run(cancel_one_who_waits(semaphore, client))
    # His question may still be with the scheduler. What it brings is given back.
    until(lambda: waiting(client, semaphore) == 0 and semaphore.available == 1)
    with pytest.raises(ValueError):
        semaphore.release()


def test_who_is_cancelled_when_he_has_it_gives_it_back(client: Any) -> None:
    """A task that is cancelled in the instant in which the answer arrives."""
    semaphore = mpkit.Semaphore(1)
    with semaphore:
        pass

    async def cancel_at_every_step() -> None:
        for steps in range(12):
            task = asyncio.create_task(semaphore.acquire_async())
            for _ in range(steps):
                await asyncio.sleep(0)
            while steps > 6 and semaphore._leases and not semaphore._leases._held:
                await asyncio.sleep(0)  # the loop of the client has it; ours is not told yet
            task.cancel()
            try:
                if await task:
                    await asyncio.to_thread(semaphore.release)
            except asyncio.CancelledError:
                pass

    asyncio.run(cancel_at_every_step())
    until(lambda: semaphore.available == 1 and not semaphore._leases._held)  # type: ignore[union-attr]


def test_who_is_interrupted_while_he_waits_takes_nothing(client: Any) -> None:
    semaphore = mpkit.Semaphore(1)

    def interrupt() -> None:
        until_waiting(client, semaphore)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    with semaphore:
        other = copied(semaphore)
        thread = threading.Thread(target=interrupt)
        with pytest.raises(KeyboardInterrupt):
            thread.start()
            other.acquire(timeout=PATIENCE)
        thread.join(PATIENCE)
    until(lambda: waiting(client, semaphore) == 0 and semaphore.available == 1)


def test_more_wait_than_a_client_has_connections(client: Any) -> None:
    """If each took one, then nobody could give back what they wait for."""
    semaphore = mpkit.Semaphore(1)

    async def crowd() -> int:
        async def one() -> int:
            async with semaphore:
                return 1

        async with semaphore:
            tasks = [asyncio.create_task(one()) for _ in range(client.rpc.limit + 50)]
            await asyncio.to_thread(until_waiting, client, semaphore)
        return sum(await asyncio.gather(*tasks))

    assert asyncio.run(crowd()) == client.rpc.limit + 50


def test_a_semaphore_that_nobody_has_is_renewed_no_more(client: Any) -> None:
    semaphore = mpkit.Semaphore(1)
    with semaphore:
        assert semaphore._leases is not None
        renewal = semaphore._leases._dask.refresh_callback
        until(renewal.is_running)
    del semaphore
    until(lambda: not renewal.is_running())


def test_after_its_client_was_closed_it_is_renewed_no_more(
    cluster: Cluster, client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Also if the loop of that goes on, and so with what Dask does again and again."""
    with cluster.client(loop=client.loop) as another:
        semaphore = mpkit.Semaphore(1, client=another)
        assert semaphore.acquire()
    assert semaphore._leases is not None
    client.sync(semaphore._leases._dask._refresh_leases)
    assert "not renewed" not in caplog.text


def test_what_has_a_name_is_opened_once_for_a_client(client: Any) -> None:
    name = new_name()

    async def opened() -> Any:
        return leases_of(client, f"name-{name}", 1, "it")

    for _ in range(2):
        with mpkit.limit(1, name=name) as held:
            assert held._leases is client.sync(opened)


def test_what_travels_is_small_and_knows_no_client(client: Any) -> None:
    semaphore = mpkit.Semaphore(1, client=client)
    with semaphore:
        assert len(pickle.dumps(semaphore)) < 300
        assert copied(semaphore)._given is None
