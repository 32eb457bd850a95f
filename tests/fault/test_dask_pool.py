"""A pool on a Dask cluster whose workers are killed, stopped and cut off.

What was executed is counted outside of Dask, in a file that each execution adds a line to.
"""

from __future__ import annotations

import functools
import os
import random
import sys
from collections import Counter
from secrets import randbelow
from typing import TYPE_CHECKING, Any

import pytest

import mpkit
from mpkit._platform import memory
from tests import poolwork
from tests.support import PATIENCE, python, until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.cluster import Cluster

pytest.importorskip("distributed")
from mpkit.dask import TaskPool

needs_proc = pytest.mark.skipif(not memory.HAS_PROC, reason="needs /proc")

TASKS = 10_000
KILLS = 8
#: A worker is given up when nothing was heard of it for so long, at the earliest.
SOON = {"distributed.scheduler.worker-ttl": "1 s"}


def work(path: str, number: int) -> int:
    poolwork.note(path, number)
    return number * number


def has_grown(path: str, size: int) -> bool:
    return os.path.exists(path) and os.path.getsize(path) >= size


def executions(path: str) -> Counter[int]:
    return Counter(map(int, poolwork.notes(path)))


def test_workers_are_killed_while_thousands_of_tasks_run(
    make_cluster: Callable[..., Cluster], tmp_path: Path
) -> None:
    """Each is executed once, or is lost; but those that may are executed again, and none is lost."""
    seed = randbelow(10**6)
    print("seed", seed)
    chance = random.Random(seed)
    path = str(tmp_path / "notes")
    cluster = make_cluster(3)
    with cluster.client() as client, TaskPool(client=client) as pool:
        views = [pool, pool.options(retries=KILLS)]
        tasks = [views[number % 2].submit(work, path, number) for number in range(TASKS)]
        # A line is two bytes at least; most have five.
        for size in sorted(chance.randrange(4 * TASKS) for _ in range(KILLS)):
            until(functools.partial(has_grown, path, size))
            cluster.kill(chance.choice(cluster.workers))
            cluster.add_worker()
        ends = [task.exception(PATIENCE) for task in tasks]
        attempts = [task.attempts for task in tasks]
    ran = executions(path)
    lost = [number for number, error in enumerate(ends) if error is not None]
    print(f"{len(lost)} of {TASKS} were lost, {sum(ran.values()) - len(ran)} ran again")
    for number, task in enumerate(tasks):
        if ends[number] is None:
            assert task.result(0) == number**2
            assert 1 <= ran[number] <= attempts[number]
        else:
            assert type(ends[number]) is mpkit.WorkerDied
            assert number % 2 == 0
            assert ran[number] <= attempts[number] == 1
    assert len(lost) < TASKS / 4


def test_reports_of_a_packet_come_in_order_whoever_makes_them(
    make_cluster: Callable[..., Cluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last one came before one of the event loop, behind which nothing was heard."""
    monkeypatch.setattr("mpkit.dask._ledger.PATIENCE", 0.0002)
    cluster = make_cluster(2)
    with cluster.client() as client, TaskPool(client=client) as pool:
        client.run(sys.setswitchinterval, 1e-6)
        tasks = [pool.submit(poolwork.square, number) for number in range(10_000)]
        assert [task.result(PATIENCE) for task in tasks] == [n * n for n in range(10_000)]
        view = pool.options(timeout=0.003)
        late = [view.submit(poolwork.be_busy, 0.003 * (number % 2)) for number in range(100)]
        ends = {type(task.exception(PATIENCE)) for task in late}
        assert ends <= {type(None), mpkit.TaskTimeout}


@needs_proc
def test_a_worker_that_stood_still_for_too_long_comes_back(
    make_cluster: Callable[..., Cluster], tmp_path: Path
) -> None:
    """What it runs is lost, or runs again, and what it has not begun runs elsewhere: once."""
    path, behind = str(tmp_path / "notes"), str(tmp_path / "behind")
    go = mpkit.Signal()
    cluster = make_cluster(0, config=SOON)
    stopped = cluster.add_worker(threads=2)
    with cluster.client() as client, TaskPool(client=client) as pool:
        once = pool.submit(hold, path, "once", go)
        twice = pool.options(retries=1).submit(hold, path, "twice", go)
        until(lambda: len(poolwork.notes(path)) == 2)
        tasks = [pool.submit(work, behind, number) for number in range(100)]
        cluster.stop(stopped)
        cluster.add_worker(threads=2)
        assert [task.result(PATIENCE) for task in tasks] == [n * n for n in range(100)]
        until(lambda: len(poolwork.notes(path)) == 3)
        assert isinstance(once.exception(PATIENCE), mpkit.WorkerDied)
        cluster.cont(stopped)
        go.set()
        # It goes on with what it ran, and is told then that nobody wants it any more.
        assert cluster.wait(stopped) == 0
        assert pool.map(poolwork.square, range(100)) == [n * n for n in range(100)]
        assert twice.result(PATIENCE) == "twice"
        assert twice.attempts == 2
    assert Counter(poolwork.notes(path)) == {"once": 1, "twice": 2}
    assert set(executions(behind).values()) == {1}


def hold(path: str, name: str, go: mpkit.Signal) -> str:
    poolwork.note(path, name)
    assert go.wait(2 * PATIENCE)
    return name


PROGRAM = """
import sys
from distributed import Client
import mpkit
from mpkit.dask import TaskPool
from tests import poolwork

address, path = sys.argv[1:]
port = address.rpartition(":")[2]
began, go = mpkit.Signal(name=f"began-{port}"), mpkit.Signal(name=f"go-{port}")
with Client(address) as client, TaskPool(client=client) as pool:
    first = pool.submit(poolwork.note_and_wait, path, "first", began, go)
    tasks = [pool.submit(poolwork.note, path, number) for number in range(100)]
    assert began.wait(30)
    print("began", flush=True)
    input()
"""


def test_what_a_killed_program_has_not_begun_is_not_run(
    make_cluster: Callable[..., Cluster], tmp_path: Path
) -> None:
    path = str(tmp_path / "notes")
    cluster = make_cluster(1)
    go = mpkit.Signal(name=f"go-{cluster.address.rpartition(':')[2]}")
    with python(PROGRAM, cluster.address, path) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "began\n"
        program.kill()
    with cluster.client() as client, TaskPool(client=client) as pool:
        until(lambda: list(clients(client)) == [client.id])
        go.set()
        # It has one thread, so what was before this is over, or has never begun.
        assert pool.map(poolwork.square, range(10)) == [n * n for n in range(10)]
    assert poolwork.notes(path) == ["first"]


def clients(client: Any) -> list[str]:
    """Return the clients that a scheduler knows."""
    names: list[str] = client.run_on_scheduler(
        lambda dask_scheduler: [
            name for name in dask_scheduler.clients if name != "fire-and-forget"
        ]
    )
    return names


def test_a_large_argument_outlives_the_worker_that_has_it(
    make_cluster: Callable[..., Cluster],
) -> None:
    numpy = pytest.importorskip("numpy")
    array = numpy.arange(200_000)
    cluster = make_cluster(2)
    with cluster.client() as client, TaskPool(client=client, retries=2 * KILLS) as pool:
        for first in (0, 40, 80):
            tasks = [pool.submit(weigh, array, number) for number in range(first, first + 40)]
            cluster.kill(cluster.workers[0])
            cluster.add_worker()
            weights = [task.result(PATIENCE) for task in tasks]
            assert weights == [int(array.sum()) + number for number in range(first, first + 40)]


def test_a_pool_is_terminated_while_it_has_large_arguments(cluster: Cluster) -> None:
    numpy = pytest.importorskip("numpy")
    began, go = mpkit.Signal(), mpkit.Signal()
    with cluster.client() as client, TaskPool(client=client) as pool:
        running = pool.submit(wait_and_weigh, began, go, numpy.arange(200_000))
        assert began.wait(PATIENCE)
        pool.terminate()
        error = running.exception(PATIENCE)
        assert isinstance(error, mpkit.WorkerDied)
        assert "terminated" in str(error)
        assert pool.join(PATIENCE)
    go.set()


def wait_and_weigh(began: mpkit.Signal, go: mpkit.Signal, array: Any) -> int:
    began.set()
    go.wait(PATIENCE)
    return weigh(array, 0)


def weigh(array: Any, number: int) -> int:
    return int(array.sum()) + number
