"""The clusters that tests have: see `tests.cluster`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from mpkit._platform import memory
from tests.cluster import Cluster
from tests.support import PATIENCE, exists, python, stopped, until

if TYPE_CHECKING:
    from collections.abc import Callable

pytest.importorskip("distributed")
needs_proc = pytest.mark.skipif(not memory.HAS_PROC, reason="needs /proc")


def test_its_workers_are_processes_that_run_what_a_client_asks_for(cluster: Cluster) -> None:
    with cluster.client() as client:
        pids = client.run(os.getpid)
        assert pids == {worker.address: worker.pid for worker in cluster.workers}
        futures = [client.submit(pow, 2, n, pure=False) for n in range(50)]
        assert client.gather(futures) == [2**n for n in range(50)]


@pytest.mark.parametrize("nth", range(2))
def test_nothing_of_a_client_is_left_in_the_process_of_the_tests(
    cluster: Cluster, nth: int
) -> None:
    """Twice, and the fixture that every test has looks."""
    with cluster.client() as client, cluster.client(set_as_default=True) as other:
        assert client.submit(abs, -nth).result() == nth
        assert other.get_executor().submit(abs, -nth).result(PATIENCE) == nth


@needs_proc
def test_workers_can_be_killed_stopped_and_added(make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster(2, config={"distributed.scheduler.allowed-failures": 0})
    first, second = cluster.workers
    with cluster.client() as client:
        cluster.kill(first)
        assert not exists(first.pid)
        until(lambda: len(client.scheduler_info()["workers"]) == 1)
        third = cluster.add_worker(threads=2)
        assert sorted(client.nthreads().values()) == [1, 2]
        cluster.stop(second)
        assert stopped(second.pid)
        assert client.submit(os.getpid, pure=False, workers=third.address).result() == third.pid
        cluster.cont(second)
        assert client.submit(os.getpid, pure=False, workers=second.address).result() == second.pid
        dead = client.submit(os._exit, 3, workers=second.address)
        assert cluster.wait(second) == 3
        assert dead.exception(PATIENCE) is not None
    assert cluster.workers == [third]


PROGRAM = """
import sys
from pathlib import Path
from mpkit._platform import memory
from tests.cluster import Cluster, Host
cluster = Cluster(Host(), Path(sys.argv[1]), 1)
print(cluster.host.pid, cluster.scheduler.pid, cluster.workers[0].pid, flush=True)
cluster.stop(cluster.workers[0])
input()
"""


@needs_proc
def test_a_killed_program_leaves_no_cluster(tmp_path: os.PathLike[str]) -> None:
    with python(PROGRAM, str(tmp_path)) as program:
        assert program.stdout is not None
        pids = [int(pid) for pid in program.stdout.readline().split()]
        assert len(pids) == 3
        program.kill()
        until(lambda: not any(map(exists, pids)))
