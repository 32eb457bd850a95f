"""A pool on a Dask cluster: what is not as on one machine, and what happens when parts of it die."""

from __future__ import annotations

import itertools
import os
import threading
import time
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("distributed")

import mpkit.dask as mpkit
from mpkit.dask import _claims, _cluster
from tests import daskwork, poolwork
from tests.daskwork import Gate
from tests.support import PATIENCE, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.cluster import Cluster

LEVEL = ContextVar("LEVEL", default=0)


def level() -> int:
    return LEVEL.get()


@pytest.fixture
def client(cluster: Cluster) -> Iterator[Any]:
    with cluster.client() as client:
        yield client


@pytest.fixture
def pool(client: Any) -> Iterator[mpkit.TaskPool]:
    with mpkit.TaskPool(client=client) as pool:
        yield pool


def claims_of(client: Any) -> dict[str, Any]:
    """Return what the scheduler knows of pools: how many of their packets were begun."""

    def ask(dask_scheduler: Any) -> dict[str, int]:
        pools = dask_scheduler.plugins[_claims.NAME]._pools
        return {name: pool._floor for name, pool in pools.items()}

    known: dict[str, Any] = client.run_on_scheduler(ask)
    return known


# calls


def test_short_calls_go_together(pool: mpkit.TaskPool, client: Any) -> None:
    tasks = [pool.submit(poolwork.square, n) for n in range(3000)]
    assert [task.result(PATIENCE) for task in tasks] == [n * n for n in range(3000)]
    assert sum(pool.imap(poolwork.square, range(3000))) == sum(n * n for n in range(3000))
    (begun,) = claims_of(client).values()
    assert begun < 1000


def test_what_waits_behind_a_long_call_runs_elsewhere(pool: mpkit.TaskPool, tmp_path: Path) -> None:
    gate = Gate(tmp_path).make()
    assert pool.submit(gate._began.exists).result(PATIENCE) is False
    with pool.options(name="any").imap(poolwork.square, range(200)) as warm:
        assert len(list(warm)) == 200  # so that the next ones go together
    view = pool.options(name="any")
    calls: list[Callable[[], Any]] = [os.getpid] * 20 + [gate] + [os.getpid] * 20
    tasks = [view.submit(call) for call in calls]
    gate.wait_until_begun()
    pids = {task.result(PATIENCE) for task in tasks[:20] + tasks[21:]}
    assert not tasks[20].done()
    gate.open()
    assert tasks[20].result(PATIENCE) in gate.begun
    assert pids


def test_what_waits_behind_a_long_call_does_not_need_dask_to_move_it(
    make_cluster: Callable[..., Cluster], tmp_path: Path
) -> None:
    """It moves nothing that depends on much data, as on what a pool shares."""
    cluster = make_cluster(2, config={"distributed.scheduler.work-stealing": False})
    with cluster.client() as client, mpkit.TaskPool(client=client) as pool:
        gate = Gate(tmp_path).make()
        view = pool.options(name="any")
        calls: list[Callable[[], Any]] = [os.getpid] * 20 + [gate] + [os.getpid] * 200
        tasks = [view.submit(call) for call in calls]
        gate.wait_until_begun()
        assert all(task.result(PATIENCE) for task in tasks[:20] + tasks[21:])
        assert not tasks[20].done()
        gate.open()
        tasks[20].result(PATIENCE)
        pool.close()
        assert pool.join(PATIENCE)
        # What was taken back was refused by then, without a word. Who closes the cluster now does
        # not break into it, of which its worker would complain.
        assert not any(client.run(executing).values())
        assert "Compute Failed" not in cluster.logs()


def executing(dask_worker: Any) -> list[str]:
    """Return what a worker is at."""
    return [str(task.key) for task in dask_worker.state.executing]


def test_what_was_done_before_a_long_call_is_told(cluster_of_one: Cluster, tmp_path: Path) -> None:
    with cluster_of_one.client() as client, mpkit.TaskPool(client=client) as pool:
        view = pool.options(name="any")
        assert len([view.submit(os.getpid).result(PATIENCE) for _ in range(3)]) == 3
        gate = Gate(tmp_path).make()
        tasks = [view.submit(call) for call in [*[os.getpid] * 20, gate]]
        assert all(task.result(PATIENCE) for task in tasks[:20])
        gate.wait_until_begun()
        assert not tasks[20].done()
        gate.open()


def test_errors_come_with_the_traceback_of_the_worker(pool: mpkit.TaskPool) -> None:
    with pytest.raises(ValueError, match="-3") as caught:
        pool.apply(poolwork.picky, (-3,))
    assert "in picky" in str(caught.value.__cause__)


def test_functions_of_no_module_travel_and_what_cannot_is_told_at_once(
    pool: mpkit.TaskPool,
) -> None:
    factor = 3
    assert pool.map(lambda n: n * factor, range(4)) == [0, 3, 6, 9]
    with pytest.raises(mpkit.NotPicklable, match=r"args\[0\]"):
        pool.submit(print, threading.Lock())


def test_an_end_of_a_channel_of_this_machine_stays_here(pool: mpkit.TaskPool) -> None:
    import mpkit as local

    ours, theirs = local.channel()
    with ours, theirs:
        with pytest.raises(mpkit.NotPicklable, match="does not move over a cluster"):
            pool.submit(print, theirs)
        theirs.send("still here")
        assert ours.recv(PATIENCE) == "still here"


def test_context_goes_with_calls(pool: mpkit.TaskPool) -> None:
    LEVEL.set(5)
    assert pool.options(propagate=LEVEL).apply(level) == 5
    assert pool.apply(level) == 0


def test_what_is_waited_for_in_a_callback_says_so(pool: mpkit.TaskPool) -> None:
    refused: list[BaseException] = []

    def callback(_: int) -> None:
        try:
            pool.submit(poolwork.square, 3).result()
        except RuntimeError as error:
            refused.append(error)

    assert pool.apply_async(poolwork.square, (2,), callback=callback).get(PATIENCE) == 4
    assert "callback" in str(refused[0])


# large things


def test_large_arguments_are_sent_once_by_what_they_are(
    pool: mpkit.TaskPool, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    numpy = pytest.importorskip("numpy")
    scattered: list[Any] = []
    scatter = client.scatter
    monkeypatch.setattr(client, "scatter", lambda *a, **k: scattered.append(a) or scatter(*a, **k))
    array = numpy.ones(300_000)
    tasks = [pool.submit(daskwork.total, array, factor) for factor in range(8)]
    array[0] = 2  # which no task sees
    assert [task.result(PATIENCE) for task in tasks] == [3e5 * factor for factor in range(8)]
    assert pool.apply(daskwork.total, (numpy.ones(300_000), 1)) == 3e5  # an equal one
    assert len(scattered) == 1
    assert pool.apply(daskwork.total, (array, 1)) == 3e5 + 1
    assert len(scattered) == 2


def test_a_large_argument_that_no_worker_takes_is_offered_again(
    pool: mpkit.TaskPool, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the scheduler gives it to a worker of which it does not know yet that it died."""
    numpy = pytest.importorskip("numpy")
    tries = iter([OSError("Timed out"), TimeoutError("No valid workers found")])
    scatter = client.scatter

    def try_to(*args: Any, **kwargs: Any) -> Any:
        for error in tries:
            raise error
        return scatter(*args, **kwargs)

    monkeypatch.setattr(client, "scatter", try_to)
    small, large = pool.submit(abs, -1), pool.submit(daskwork.total, numpy.ones(300_000), 1)
    assert (small.result(PATIENCE), large.result(PATIENCE)) == (1, 3e5)
    assert large.attempts == 1


def test_large_results_come_whole_and_can_be_written_to(pool: mpkit.TaskPool) -> None:
    numpy = pytest.importorskip("numpy")
    zeros = pool.apply(numpy.zeros, (300_000,))
    zeros += 1
    assert zeros.sum() == 3e5
    assert pool.apply(bytes, (3_000_000,)) == bytes(3_000_000)


def test_what_is_shared_is_unpickled_once_for_each_worker(client: Any) -> None:
    numpy = pytest.importorskip("numpy")
    with mpkit.TaskPool(client=client, shared={"a": 1, "array": numpy.ones(300_000)}) as pool:
        assert {value for _, value in pool.map(daskwork.read_shared, "aaaa", 1)} == {1}
        assert pool.apply(daskwork.shared_is_read_only)
    with (
        mpkit.TaskPool(client=client) as pool,
        pytest.raises(RuntimeError, match="nothing is shared"),
    ):
        pool.apply(daskwork.read_shared, ("a",))
    with pytest.raises(mpkit.NotPicklable, match="shared="):
        mpkit.TaskPool(client=client, shared=threading.Lock())


# what is refused


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"initializer": abs}, "initializer"),
        ({"finalizer": abs}, "finalizer"),
        ({"tasks_per_worker": 2}, "tasks_per_worker"),
        ({"maxtasksperchild": 2}, "tasks_per_worker"),
        ({"context": "spawn"}, "context"),
        ({"memory_limit": 10**9}, "memory_limit"),
        ({"memory_hard_limit": 10**9}, "memory_hard_limit"),
        ({"log": True}, "log"),
        ({"capture": True}, "capture"),
        ({"threads_per_worker": 1}, "threads_per_worker"),
        ({"workers": 0}, r"mpkit.TaskPool\(0\)"),
    ],
)
def test_what_dask_workers_are_made_with_is_refused(
    client: Any, options: dict[str, Any], why: str
) -> None:
    with pytest.raises(ValueError, match=why):
        mpkit.TaskPool(client=client, **options)


def test_what_is_no_client_is_refused(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TypeError, match="Client or an address"):
        mpkit.TaskPool(client=3)  # type: ignore[arg-type]
    monkeypatch.setattr("distributed.get_client", _no_client)
    with pytest.raises(RuntimeError, match="no current"):
        mpkit.TaskPool()
    client.close()
    with pytest.raises(ValueError, match="was closed"):
        mpkit.TaskPool(client=client)


def _no_client() -> None:
    raise ValueError("No global client found")


def test_pictures_are_refused(pool: mpkit.TaskPool) -> None:
    with pytest.raises(ValueError, match="dashboard"):
        pool.trace("x.json")
    with pytest.raises(ValueError, match="dashboard"):
        pool.report("x.html")


def test_a_seed_is_refused_since_dask_has_of_the_same_random_numbers(client: Any) -> None:
    with mpkit.TaskPool(client=client) as pool, pytest.raises(ValueError, match="default_rng"):
        pool.options(seed=1)
    with pytest.raises(ValueError, match="default_rng"):
        mpkit.TaskPool(client=client, seed=1)


def test_threads_of_a_worker_run_calls_at_the_same_time(
    make_cluster: Callable[..., Cluster], tmp_path: Path
) -> None:
    with make_cluster(1, threads=2).client() as client, mpkit.TaskPool(client=client) as pool:
        assert pool._backend.workers == 2
        gates = [Gate(tmp_path, str(n)).make() for n in range(2)]
        tasks = [pool.submit(gate) for gate in gates]
        pids = {gate.wait_until_begun()[0] for gate in gates}
        for gate in gates:
            gate.open()
        assert {task.result(PATIENCE) for task in tasks} == pids
        assert len(pids) == 1


# the pool and its client


def test_a_pool_to_an_address_has_a_client_of_its_own(cluster: Cluster) -> None:
    before = set(threading.enumerate())
    with mpkit.TaskPool(client=cluster.address) as pool:
        assert pool.map(abs, [-1, 2]) == [1, 2]
        assert set(threading.enumerate()) > before
    until(lambda: set(threading.enumerate()) <= before)


def test_a_given_client_stays_open_and_nothing_of_the_pool_is_left(client: Any) -> None:
    before = set(threading.enumerate())
    with mpkit.TaskPool(client=client) as pool:
        assert pool.apply(abs, (-1,)) == 1
        assert len(claims_of(client)) == 1
    assert set(threading.enumerate()) == before
    assert client.submit(abs, -1).result(PATIENCE) == 1
    assert not claims_of(client)
    until(lambda: not client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks)))


def test_workers_bounds_how_many_calls_run_at_a_time(client: Any, tmp_path: Path) -> None:
    gates = [Gate(tmp_path, str(n)).make() for n in range(2)]
    with mpkit.TaskPool(1, client=client) as pool:
        assert pool._backend.workers == 1
        tasks = [pool.submit(gate) for gate in gates]
        gates[0].wait_until_begun()
        assert not gates[1].begun
        gates[0].open()
        gates[1].wait_until_begun()
        gates[1].open()
        assert [task.result(PATIENCE) for task in tasks]


def test_a_task_may_have_a_pool_on_its_own_cluster(pool: mpkit.TaskPool) -> None:
    tasks = [pool.submit(daskwork.pool_in_a_task, 3) for _ in range(4)]
    assert [task.result(PATIENCE) for task in tasks] == [[3, 2, 1]] * 4


def test_stats_tell_of_each_thread_that_ran_something(
    pool: mpkit.TaskPool, cluster: Cluster
) -> None:
    pool.map(os.getpid and poolwork.square, range(20), 1)
    until(lambda: pool.stats().done == 20)
    stats = pool.stats()
    assert {worker.pid for worker in stats.workers} <= {worker.pid for worker in cluster.workers}
    assert sum(worker.tasks for worker in stats.workers) == 20
    assert (stats.pending, stats.failed, stats.functions[0].run.count) == (0, 0, 20)


# cancelling


def test_what_no_worker_has_begun_with_can_be_cancelled(client: Any, tmp_path: Path) -> None:
    gates = [Gate(tmp_path, str(n)).make() for n in range(2)]
    with mpkit.TaskPool(client=client) as pool:
        running = [pool.submit(gate) for gate in gates]
        for gate in gates:
            gate.wait_until_begun()
        waiting = [pool.submit(daskwork.note_item, tmp_path, n) for n in range(50, 60)]
        assert not any(task.cancel() for task in running)
        assert all(task.cancel() for task in waiting[:9])
        assert not running[0].kill()
        for gate in gates:
            gate.open()
        assert waiting[9].result(PATIENCE) == 59
    assert not any((tmp_path / str(n)).exists() for n in range(50, 59))
    assert pool.stats().cancelled == 9


def test_of_many_that_are_cancelled_not_each_is_asked_for(
    make_cluster: Callable[..., Cluster], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was taken back for one was sent again before the next one was cancelled."""
    asked: list[int] = []
    withdraw = _cluster.Cluster.withdraw

    def count(self: _cluster.Cluster, number: int) -> bool | None:
        asked.append(number)
        return withdraw(self, number)

    monkeypatch.setattr(_cluster.Cluster, "withdraw", count)
    cluster = make_cluster(0)
    cluster.add_workers(2, threads=2)
    with cluster.client() as client, mpkit.TaskPool(client=client) as pool:
        assert len(pool.map(poolwork.square, range(20_000))) == 20_000
        gates = [Gate(tmp_path, str(n)).make() for n in range(4)]
        running = [pool.submit(gate) for gate in gates]
        for gate in gates:
            gate.wait_until_begun()
        tasks = [pool.submit(poolwork.square, n) for n in range(1000)]
        assert all(task.cancel() for task in tasks)
        for gate, task in zip(gates, running, strict=True):
            gate.open()
            task.result(PATIENCE)
    assert len(asked) < 100


def test_a_pool_that_is_terminated_cancels_what_waits_and_gives_up_what_runs(
    client: Any, tmp_path: Path
) -> None:
    gate = Gate(tmp_path).make()
    pool = mpkit.TaskPool(client=client)
    running = pool.submit(gate)
    gate.wait_until_begun()
    others = [pool.submit(gate) for _ in range(20)]
    gate.wait_until_begun(2)
    pool.terminate()
    assert pool.join(PATIENCE)
    with pytest.raises(mpkit.WorkerDied, match="terminated"):
        running.result(0)
    assert sum(task.cancelled() for task in others) == 19
    gate.open()


# timeouts


def test_a_task_that_takes_too_long_fails_and_its_thread_goes_on(
    pool: mpkit.TaskPool, tmp_path: Path
) -> None:
    gate = Gate(tmp_path).make()
    task = pool.options(timeout=0.2).submit(gate)
    with pytest.raises(mpkit.TaskTimeout, match="0.2 s") as caught:
        task.result(PATIENCE)
    assert caught.value.pid == gate.begun[0]
    assert "goes on with the call" in caught.value.__notes__[0]
    assert pool.apply(os.getpid) != gate.begun[0]
    gate.open()


def test_a_worker_of_one_thread_is_ended_and_replaced_by_its_nanny(
    make_cluster: Callable[..., Cluster], tmp_path: Path
) -> None:
    cluster = make_cluster(0)
    cluster.add_workers(1, nanny=True)
    with cluster.client() as client, mpkit.TaskPool(client=client) as pool:
        gate = Gate(tmp_path).make()
        with pytest.raises(mpkit.TaskTimeout) as caught:
            pool.options(timeout=0.2).submit(gate).result(PATIENCE)
        assert caught.value.pid == gate.begun[0]
        assert pool.submit(os.getpid).result(PATIENCE) != gate.begun[0]
        assert pool.options(timeout=PATIENCE, retries=1).submit(abs, -1).result(PATIENCE) == 1


def test_no_worker_is_ended_that_has_anything_else(
    make_cluster: Callable[..., Cluster], tmp_path: Path
) -> None:
    """A job, a call that has a pool and so no thread, or the results of others that wait there."""
    cluster = make_cluster(0)
    cluster.add_workers(1, nanny=True)
    with cluster.client() as client, mpkit.TaskPool(client=client) as pool:
        gates = [Gate(tmp_path, name).make() for name in ("pool", "job", "late", "later", "last")]

        def pid_of_late(gate: Gate) -> int | None:
            error = pool.options(timeout=0.2).submit(gate).exception(PATIENCE)
            assert isinstance(error, mpkit.TaskTimeout)
            if not getattr(error, "__notes__", ()):  # it was ended
                return None
            gate.open()
            return error.pid

        outer = pool.submit(daskwork.with_a_pool, gates[0])
        (pid,) = gates[0].wait_until_begun()
        assert pid_of_late(gates[2]) == pid
        gates[0].open()
        assert outer.result(PATIENCE) == pid
        with client.as_current():
            job = mpkit.start(gates[1])
        assert gates[1].wait_until_begun() == [pid]
        assert pid_of_late(gates[3]) == pid
        gates[1].open()
        assert job.result(PATIENCE) == pid
        results = client.submit(bytes, 100, key=("mpkit-another", 7))
        assert results.result(PATIENCE) == bytes(100)
        assert pid_of_late(gates[4]) == pid
        results.release()


# what dies


def test_a_killed_worker_fails_the_task_that_it_ran_and_no_other(
    make_cluster: Callable[..., Cluster], tmp_path: Path
) -> None:
    cluster = make_cluster(2)
    with cluster.client() as client, mpkit.TaskPool(client=client) as pool:
        gates = [Gate(tmp_path, str(n)).make() for n in range(2)]
        tasks = [pool.submit(gate) for gate in gates]
        pids = [gate.wait_until_begun()[0] for gate in gates]
        waiting = [pool.submit(daskwork.note_item, tmp_path, n) for n in range(100, 120)]
        cluster.kill(next(worker for worker in cluster.workers if worker.pid == pids[0]))
        with pytest.raises(mpkit.WorkerDied, match="was lost while it ran task") as caught:
            tasks[0].result(PATIENCE)
        assert tasks[0].name in str(caught.value)
        assert (caught.value.pid, caught.value.exitcode) == (pids[0], None)
        gates[1].open()
        assert tasks[1].result(PATIENCE) == pids[1]
        assert [task.result(PATIENCE) for task in waiting] == list(range(100, 120))
        assert gates[0].begun == pids[:1]
        assert all(len((tmp_path / str(n)).read_text().split()) == 1 for n in range(100, 120))
        stats = pool.stats()
        assert (stats.lost, stats.failed, stats.done) == (1, 1, 21)


def test_no_death_is_waited_for_though_no_worker_is_left(
    make_cluster: Callable[..., Cluster], tmp_path: Path
) -> None:
    cluster = make_cluster(1)
    with cluster.client() as client, mpkit.TaskPool(client=client) as pool:
        gate = Gate(tmp_path).make()
        task, behind = pool.submit(gate), pool.submit(poolwork.square, 3)
        gate.wait_until_begun()
        cluster.kill(cluster.workers[0])
        assert isinstance(task.exception(PATIENCE), mpkit.WorkerDied)
        assert not behind.done()
        cluster.add_workers(2)
        assert behind.result(PATIENCE) == 9
        until(lambda: pool._backend.workers == 2)


def test_a_retry_runs_on_another_worker(
    make_cluster: Callable[..., Cluster], tmp_path: Path
) -> None:
    cluster = make_cluster(2)
    with cluster.client() as client, mpkit.TaskPool(client=client, retries=1) as pool:
        task = pool.submit(daskwork.kill_first, tmp_path / "died")
        assert task.result(PATIENCE) == 1
        assert task.attempts == 2
        error = pool.options(retries=2, retry_on=ValueError).submit(poolwork.picky, -1).exception()
        assert isinstance(error, ValueError)
        assert "this was attempt 3" in error.__notes__[-1]


def test_large_things_are_sent_again_if_all_who_had_them_are_gone(
    make_cluster: Callable[..., Cluster],
) -> None:
    numpy = pytest.importorskip("numpy")
    cluster = make_cluster(1)
    shared = {"array": numpy.ones(200_000)}
    with cluster.client() as client, mpkit.TaskPool(client=client, shared=shared) as pool:
        array = numpy.ones(300_000)
        assert pool.apply(daskwork.total, (array, 1)) == 3e5
        cluster.kill(cluster.workers[0])
        task = pool.submit(daskwork.total, array, 2)
        cluster.add_worker()
        assert task.result(PATIENCE) == 6e5
        assert pool.apply(daskwork.shared_is_read_only)


def test_a_worker_that_was_cut_off_and_comes_back_is_not_heard(
    make_cluster: Callable[..., Cluster], tmp_path: Path
) -> None:
    cluster = make_cluster(2, config={"distributed.scheduler.worker-ttl": "1 s"})
    with cluster.client() as client, mpkit.TaskPool(client=client) as pool:
        gate = Gate(tmp_path).make()
        callbacks: list[object] = []
        task = pool.apply_async(gate, callback=callbacks.append, error_callback=callbacks.append)
        (pid,) = gate.wait_until_begun()
        worker = next(worker for worker in cluster.workers if worker.pid == pid)
        cluster.stop(worker)
        assert isinstance(task.exception(PATIENCE), mpkit.WorkerDied)
        cluster.cont(worker)
        gate.open()
        tasks = [pool.submit(daskwork.note_item, tmp_path, n) for n in range(100)]
        assert [task.result(PATIENCE) for task in tasks] == list(range(100))
        assert all(len((tmp_path / str(n)).read_text().split()) == 1 for n in range(100))
        assert gate.begun == [pid]
        assert len(callbacks) == 1


@pytest.mark.parametrize("end", ["scheduler", "client"])
def test_nobody_waits_for_ever_without_a_scheduler(
    make_cluster: Callable[..., Cluster], tmp_path: Path, end: str
) -> None:
    cluster = make_cluster(1)
    with cluster.client(timeout=1) as client:
        pool = mpkit.TaskPool(client=client)
        gate = Gate(tmp_path).make()
        tasks = [pool.submit(gate)]
        gate.wait_until_begun()
        tasks += [pool.submit(poolwork.square, n) for n in range(20)]
        whole = pool.map_async(poolwork.square, range(1000))
        results = pool.imap(poolwork.square, itertools.count())
        if end == "scheduler":
            cluster.kill_scheduler()
        else:
            client.close()
        for task in [*tasks, whole]:
            error = task.exception(PATIENCE)
            assert isinstance(error, (mpkit.WorkerDied, mpkit.PoolClosed)), error
            assert "connection" in str(error)
        with pytest.raises((mpkit.WorkerDied, mpkit.PoolClosed)):
            list(results)
        with pytest.raises(mpkit.PoolClosed, match="connection"):
            pool.submit(poolwork.square, 1)
        pool.close()
        assert pool.join(PATIENCE)
        gate.open()


def test_the_end_of_a_pool_is_not_held_up_by_a_call_that_is_too_late(
    pool: mpkit.TaskPool, client: Any, tmp_path: Path
) -> None:
    gate = Gate(tmp_path).make()
    began = time.monotonic()
    with mpkit.TaskPool(client=client, timeout=0.1) as short:
        task = short.submit(gate)
    assert isinstance(task.exception(0), mpkit.TaskTimeout)
    assert time.monotonic() - began < PATIENCE
    gate.open()


# where mpkit is missing


def forget_mpkit(dask_scheduler: object = None) -> None:
    """Be a process in which mpkit is not installed."""
    import sys

    for name in [name for name in sys.modules if name.partition(".")[0] == "mpkit"]:
        del sys.modules[name]
    sys.modules["mpkit"] = None  # type: ignore[assignment]


def test_workers_without_mpkit_say_what_to_install(make_cluster: Callable[..., Cluster]) -> None:
    with make_cluster(1).client() as client, mpkit.TaskPool(client=client) as pool:
        client.run(forget_mpkit)
        with pytest.raises(mpkit.WorkerInitError, match="install mpkit on all of them"):
            pool.apply(abs, (-1,))


def test_a_scheduler_without_mpkit_says_what_to_install(
    make_cluster: Callable[..., Cluster],
) -> None:
    with make_cluster(1).client() as client:
        client.run_on_scheduler(forget_mpkit)
        with pytest.raises(RuntimeError, match="install mpkit where the scheduler runs"):
            mpkit.TaskPool(client=client)
