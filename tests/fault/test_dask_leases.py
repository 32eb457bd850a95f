"""Holders of slots on a cluster that are killed, or stopped until their leases have ended.

A lease is two seconds here, and looked at ten times in a second. Who is inside is counted
outside of Dask, by `tests.support.Inside`.
"""

from __future__ import annotations

import random
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("distributed")

import dask

import mpkit.dask as mpkit
from mpkit._platform import memory
from tests.dasklimits import hold, new_name, until_waiting, waiting
from tests.support import PATIENCE, Inside, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from mpkit.dask import Semaphore, Signal
    from tests.cluster import Cluster, Server

LEASE = 2.0
CONFIG = {
    "distributed.scheduler.locks.lease-timeout": f"{LEASE} s",
    "distributed.scheduler.locks.lease-validation-interval": "0.1 s",
    "distributed.scheduler.allowed-failures": 0,
    "distributed.comm.timeouts.connect": "1 s",
}

needs_proc = pytest.mark.skipif(not memory.HAS_PROC, reason="needs /proc")


@pytest.fixture
def own(make_cluster: Callable[..., Cluster]) -> Iterator[Cluster]:
    """Have a cluster for this test, with short leases here and there."""
    with dask.config.set(CONFIG):
        yield make_cluster(2, config=CONFIG)


@pytest.fixture
def client(own: Cluster) -> Iterator[Any]:
    with own.client(set_as_default=True) as client:
        yield client


def holding_on(client: Any, worker: Server, semaphore: Semaphore) -> tuple[Any, Signal]:
    """Have a worker hold a slot; return its task, and what has it leave."""
    inside, leave = mpkit.Signal(), mpkit.Signal()
    future = client.submit(hold, semaphore, inside, leave, workers=worker.address, pure=False)
    assert inside.wait(PATIENCE)
    return future, leave


# killed


def test_the_slot_of_a_killed_holder_is_free_when_its_lease_ends(own: Cluster, client: Any) -> None:
    semaphore = mpkit.Semaphore(1)
    began = time.monotonic()
    holding_on(client, own.workers[0], semaphore)
    own.kill(own.workers[0])
    assert not semaphore.acquire(False)
    assert semaphore.acquire(timeout=PATIENCE)
    assert time.monotonic() - began > LEASE
    assert semaphore.available == 0
    semaphore.release()
    assert semaphore.available == 1


def test_a_killed_holder_is_told_of_until_then(own: Cluster, client: Any) -> None:
    semaphore = mpkit.Semaphore(2)
    worker = own.workers[0]
    holding_on(client, worker, semaphore)
    own.kill(worker)
    (holder,) = semaphore.holders()
    assert (holder.pid, holder.process) == (worker.pid, worker.address)
    until(lambda: not semaphore.holders())
    assert semaphore.available == 2


def test_the_question_of_who_is_killed_while_he_waits_is_soon_over(
    own: Cluster, client: Any
) -> None:
    """The scheduler does not know that he is dead, and would give him the slot."""
    semaphore = mpkit.Semaphore(1)
    worker = own.workers[0]
    with semaphore:
        client.submit(semaphore.acquire, workers=worker.address, pure=False)
        until_waiting(client, semaphore)
        own.kill(worker)
        until_waiting(client, semaphore, 0)
    assert semaphore.acquire(False)
    semaphore.release()


def test_who_is_killed_while_he_waits_takes_no_slot_for_good(own: Cluster, client: Any) -> None:
    semaphore = mpkit.Semaphore(1)
    worker = own.workers[0]
    with semaphore:
        client.submit(semaphore.acquire, workers=worker.address, pure=False)
        until_waiting(client, semaphore)
        own.kill(worker)
    assert semaphore.acquire(timeout=PATIENCE)
    semaphore.release()


# stopped


def test_who_was_stopped_past_its_lease_is_told_and_the_other_is_not(
    own: Cluster, client: Any
) -> None:
    """Until then both are inside: a scheduler cannot take a slot from who does not hear it."""
    semaphore = mpkit.Semaphore(1)
    worker = own.workers[0]
    future, leave = holding_on(client, worker, semaphore)
    own.stop(worker)
    with semaphore:
        leave.set()
        own.cont(worker)
        assert future.result(PATIENCE) == "LeaseLost"
        # What it gave back was its own, or nothing.
        assert not semaphore.acquire(False)
    until(lambda: semaphore.available == 1)
    assert semaphore.acquire(False)
    assert not semaphore.acquire(False)
    semaphore.release()


def test_who_stays_inside_after_that_counts_again(own: Cluster, client: Any) -> None:
    """The scheduler takes up a renewal of what it has forgotten: then more are held than there are."""
    semaphore = mpkit.Semaphore(1)
    worker = own.workers[0]
    future, leave = holding_on(client, worker, semaphore)
    own.stop(worker)
    with semaphore:
        own.cont(worker)
        until(lambda: len(semaphore.holders()) == 2)
        assert semaphore.available == 0
    assert not semaphore.acquire(False)
    leave.set()
    assert future.result(PATIENCE) == "LeaseLost"
    assert semaphore.acquire(False)
    semaphore.release()


def test_who_is_stopped_for_less_than_its_lease_loses_nothing(
    make_cluster: Callable[..., Cluster],
) -> None:
    lease = 5.0  # so that a busy machine does not keep it from renewing
    config = {**CONFIG, "distributed.scheduler.locks.lease-timeout": f"{lease} s"}
    with dask.config.set(config):
        cluster = make_cluster(1, config=config)
        with cluster.client(set_as_default=True) as client:
            semaphore, (worker,) = mpkit.Semaphore(1), cluster.workers
            future, leave = holding_on(client, worker, semaphore)
            for _ in range(3):
                cluster.stop(worker)
                cluster.cont(worker)
            assert not semaphore.acquire(timeout=lease + 0.5)  # it is renewed
            leave.set()
            assert future.result(PATIENCE) == ""
            assert semaphore.acquire(timeout=PATIENCE)
            semaphore.release()


def test_who_is_stopped_while_he_waits_does_not_come_in_on_a_lease_that_has_ended(
    own: Cluster, client: Any
) -> None:
    semaphore, inside, leave = mpkit.Semaphore(1), mpkit.Signal(), mpkit.Signal()
    worker = own.workers[0]
    with semaphore:
        future = client.submit(hold, semaphore, inside, leave, workers=worker.address, pure=False)
        until_waiting(client, semaphore)
        own.stop(worker)
    # Its question is answered now, or is over. If it got the slot, then that comes back.
    assert semaphore.acquire(timeout=PATIENCE)
    until(lambda: len(semaphore.holders()) == 1 and waiting(client, semaphore) == 0)
    own.cont(worker)
    until_waiting(client, semaphore)  # it asks again
    assert not inside.is_set()
    semaphore.release()
    assert inside.wait(PATIENCE)
    leave.set()
    assert future.result(PATIENCE) == ""


def test_the_error_of_the_block_comes_first(own: Cluster, client: Any) -> None:
    semaphore = mpkit.Semaphore(1)
    with pytest.raises(KeyError) as told:
        with semaphore:
            assert semaphore._leases is not None
            semaphore._leases._held[0].silence = 2 * LEASE
            raise KeyError("mine")
    (note,) = told.value.__notes__
    assert note.startswith("LeaseLost: a slot of Semaphore made at ")
    assert "was not renewed for 4.0 s, and its lease is 2 s" in note
    with pytest.raises(mpkit.LeaseLost):
        with semaphore:
            semaphore._leases._held[0].silence = 2 * LEASE
    assert semaphore.available == 1


# the scheduler


def test_without_a_scheduler_all_is_told_and_nobody_waits_for_ever(own: Cluster) -> None:
    with own.client(timeout=1, set_as_default=True) as client:
        lose_the_scheduler(own, client)
        # A client that has ended because of that lets its thread live on.
        until(lambda: client.status == "closed")
        client._loop_runner.stop()


def lose_the_scheduler(own: Cluster, client: Any) -> None:
    semaphore, signal, errors = mpkit.Semaphore(1), mpkit.Signal(), list[BaseException]()
    semaphore.acquire()

    def told(call: Callable[[], object]) -> None:
        try:
            call()
        except mpkit.SchedulerLost as error:
            errors.append(error)

    calls: list[Callable[[], object]] = [semaphore.acquire, signal.wait]
    threads = [threading.Thread(target=told, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    until_waiting(client, semaphore)
    until(lambda: client.run_on_scheduler(_waits_for_events) == 1)
    own.kill_scheduler()
    for thread in threads:
        thread.join(PATIENCE)
    assert len(errors) == 2
    for call in (
        signal.set,
        signal.is_set,
        lambda: semaphore.acquire(False),
        lambda: semaphore.available,
        semaphore.release,
    ):
        told(call)
    assert len(errors) == 7
    assert own.address in str(errors[0])


def _waits_for_events(dask_scheduler: Any) -> int:
    return sum(dask_scheduler.extensions["events"]._waiter_count.values())


def test_a_silent_scheduler_keeps_nobody_who_has_a_timeout(own: Cluster, client: Any) -> None:
    with dask.config.set({"distributed.scheduler.locks.lease-timeout": f"{PATIENCE} s"}):
        semaphore, signal = mpkit.Semaphore(1), mpkit.Signal()
        assert semaphore.acquire(timeout=0)
    assert not signal.wait(timeout=0.01)
    assert own.scheduler is not None
    own.scheduler.stop()
    with pytest.raises(mpkit.SchedulerLost, match="no slot of .* was taken: .* did not answer"):
        semaphore.acquire(timeout=0.1)
    with pytest.raises(mpkit.SchedulerLost, match="it is not known whether the signal is set"):
        signal.wait(timeout=0.1)
    own.scheduler.cont()
    assert not signal.wait(timeout=0.01)
    until(lambda: waiting(client, semaphore) == 0)
    semaphore.release()
    assert semaphore.available == 1


# at random


def turns(
    semaphore: Semaphore, inside: Inside, cell: int, stop: Signal, seed: int
) -> tuple[int, int]:
    """Come in again and again; return how many were inside at most, and the leases that ended."""
    most, lost, chance = 0, 0, random.Random(seed)
    while not stop.is_set():
        try:
            with semaphore:
                most = max(most, inside.enter(cell))
                if chance.random() < 0.5:
                    stop.wait(chance.uniform(0, 0.01))
                inside.leave(cell)
        except mpkit.LeaseLost:
            lost += 1
    return most, lost


@needs_proc
def test_killed_holders_never_make_room_for_more_than_there_are_slots(
    make_cluster: Callable[..., Cluster], tmp_path: Path
) -> None:
    """Nor for less, for good."""
    slots, workers, kills = 2, 4, 5
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    chance = random.Random(seed)
    inside = Inside(str(tmp_path / "inside"), workers + kills)
    name = new_name()
    config = {**CONFIG, "distributed.scheduler.locks.lease-timeout": "3 s"}
    with dask.config.set(config):
        cluster = make_cluster(workers, config=config)
        with cluster.client(set_as_default=True) as client:
            stop, semaphore = mpkit.Signal(), mpkit.Semaphore(slots, name=name)
            running: dict[str, Any] = {}
            cells = iter(range(inside.cells))

            def put(worker: Server) -> None:
                cell = next(cells)
                running[worker.address] = client.submit(
                    turns,
                    semaphore,
                    inside,
                    cell,
                    stop,
                    seed + cell,
                    workers=worker.address,
                    pure=False,
                )

            for worker in list(cluster.workers):
                put(worker)
            for _ in range(kills):
                before = sum(inside.turns())
                wanted = before + chance.randrange(1, 40)
                until(lambda wanted=wanted: sum(inside.turns()) >= wanted)  # type: ignore[misc]
                victim = chance.choice(cluster.workers)
                cluster.kill(victim)
                del running[victim.address]
                put(cluster.add_worker())
            # All slots come back.
            before = inside.turns()
            until(lambda: sum(inside.turns()) >= sum(before) + 40)
            stop.set()
            found = client.gather(list(running.values()))
            until(lambda: semaphore.available == slots)
    if sum(lost for _, lost in found) == 0:  # else a busy machine kept a living one from renewing
        assert max(most for most, _ in found) <= slots
