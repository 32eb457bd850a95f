"""What channels and jobs of a cluster say when its processes are killed, stopped or closed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.support import PATIENCE, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.cluster import Cluster

pytest.importorskip("distributed")

import mpkit.dask as mpkit
from mpkit.dask import _job, _link


@pytest.fixture
def own(make_cluster: Callable[..., Cluster]) -> Iterator[tuple[Cluster, Any]]:
    """Make a cluster of this test's own, and a client of it the current one."""
    cluster = make_cluster(2, config={"distributed.scheduler.worker-ttl": "4s"})
    with cluster.client() as client, client.as_current():
        yield cluster, client
        until(lambda: not _link._busy and not _job._unfinished)


def tell_pid(end: mpkit.Channel[int, Any]) -> None:
    """Say who this is, and answer."""
    end.send(os.getpid())
    for _ in end:
        end.send(os.getpid())


def die(end: mpkit.Channel[Any, Any]) -> None:
    end.recv()
    os.kill(os.getpid(), signal.SIGKILL)


def note(path: str, end: mpkit.Channel[Any, Any]) -> None:
    """Leave a trace, and wait."""
    with open(path, "a") as file:
        file.write(f"{os.getpid()}\n")
    end.send("here")
    for _ in end:
        pass


def of(cluster: Cluster, pid: int) -> Any:
    return next(worker for worker in cluster.workers if worker.pid == pid)


def test_a_killed_worker_is_told_to_the_other_end_and_the_job_is_not_run_again(
    own: tuple[Cluster, Any], tmp_path: Path
) -> None:
    cluster, _ = own
    path = tmp_path / "trace"
    here, there = mpkit.channel()
    job = mpkit.start(note, str(path), there)
    assert here.recv(PATIENCE) == "here"
    worker = of(cluster, int(path.read_text()))
    cluster.kill(worker)
    with pytest.raises(mpkit.PeerDied, match="the connection to tcp://.* was lost"):
        here.recv(PATIENCE)
    with pytest.raises(mpkit.BrokenChannel, match="was lost"):
        here.send(1)
    with pytest.raises(mpkit.PeerDied):
        list(here)
    here.close()
    with pytest.raises(mpkit.WorkerDied) as caught:
        job.result(PATIENCE)
    assert worker.address in str(caught.value)
    # The other worker is free, and has not begun with it.
    assert mpkit.start(abs, -1).result(PATIENCE) == 1
    assert path.read_text() == f"{worker.pid}\n"


def test_what_a_killed_worker_had_sent_is_received_first(own: tuple[Cluster, Any]) -> None:
    here, there = mpkit.channel()
    job = mpkit.start(tell_pid, there)
    pid = here.recv(PATIENCE)
    for _ in range(100):
        here.send(None)
    until(lambda: len(here._link._inbox) == 100)
    own[0].kill(of(own[0], pid))
    until(lambda: here._link.over)
    assert [here.recv(0) for _ in range(100)] == [pid] * 100
    with pytest.raises(mpkit.PeerDied):
        here.recv(PATIENCE)
    assert isinstance(job.exception(PATIENCE), mpkit.WorkerDied)
    here.close()


def test_a_killed_worker_is_told_to_another_worker(own: tuple[Cluster, Any]) -> None:
    left, right = mpkit.channel()
    mine, theirs = mpkit.channel()
    first = mpkit.start(die, right)
    second = mpkit.start(provoke, left, theirs)
    assert mine.recv(PATIENCE) == "PeerDied"
    assert isinstance(first.exception(PATIENCE), mpkit.WorkerDied)
    second.result(PATIENCE)
    mine.close()


def provoke(end: mpkit.Channel[Any, Any], report: mpkit.Channel[Any, Any]) -> None:
    """Have the other end die, and tell how that looks."""
    end.send("now")
    try:
        end.recv()
    except mpkit.EndOfChannel as error:
        report.send(type(error).__name__)
    report.close()


CLIENT = """
import sys
from distributed import Client
import mpkit.dask as mpkit
from tests.fault.test_dask_deaths import watch
if __name__ == "__main__":
    client = Client(sys.argv[1])
    here, there = mpkit.channel()
    unused, other = mpkit.channel()
    job = mpkit.start(watch, there, sys.argv[2])
    job = mpkit.start(watch, other, sys.argv[2])
    assert here.recv(30) == "here" and unused.poll(30)
    print("ready", flush=True)
    input()
    {}
"""


def watch(end: mpkit.Channel[Any, Any], path: str) -> None:
    """Wait for the end of a channel, and write down what it was."""
    end.send("here")
    try:
        end.recv()
    except mpkit.EndOfChannel as error:
        with open(path, "a") as file:
            file.write(f"{type(error).__name__}\n")


@pytest.mark.parametrize(
    ("how", "end"), [("killed", "PeerDied"), ("ends", "EndOfChannel"), ("closed", "EndOfChannel")]
)
def test_the_end_of_a_client_is_told_to_its_jobs(
    cluster: Cluster, tmp_path: Path, how: str, end: str
) -> None:
    """A normal end says goodbye by itself."""
    path = tmp_path / "ends"
    code = CLIENT.format("here.close(); unused.close(); client.close()" if how == "closed" else "")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", code, cluster.address, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=env,
    ) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "ready\n"
        if how == "killed":
            program.kill()
        program.communicate("\n", timeout=PATIENCE)
    until(lambda: path.exists() and path.read_text() == f"{end}\n" * 2)


def test_a_worker_that_is_retired_ends_its_channels_and_jobs(own: tuple[Cluster, Any]) -> None:
    """It dies for all that the other end can know, and what ran on it is not run again."""
    cluster, client = own
    here, there = mpkit.channel()
    job = mpkit.start(tell_pid, there)
    worker = of(cluster, here.recv(PATIENCE))
    client.retire_workers([worker.address])
    cluster.wait(worker)
    with pytest.raises(mpkit.EndOfChannel):
        here.recv(PATIENCE)
    assert isinstance(job.exception(PATIENCE), mpkit.WorkerDied)
    here.close()


def test_a_stopped_worker_is_not_dead_until_the_scheduler_gives_it_up(
    own: tuple[Cluster, Any],
) -> None:
    cluster, _ = own
    here, there = mpkit.channel()
    job = mpkit.start(tell_pid, there)
    worker = of(cluster, here.recv(PATIENCE))
    cluster.stop(worker)
    here.send(None)  # nobody reads it
    with pytest.raises(mpkit.ChannelTimeout):
        here.recv(timeout=0)
    with pytest.raises(mpkit.PeerDied, match="the scheduler has given up its worker"):
        here.recv(PATIENCE)
    assert isinstance(job.exception(PATIENCE), mpkit.WorkerDied)
    here.close()
    cluster.cont(worker)


def test_a_worker_that_goes_on_in_time_has_lost_nothing(cluster: Cluster) -> None:
    with cluster.client() as client, client.as_current():
        here, there = mpkit.channel()
        job = mpkit.start(tell_pid, there)
        worker = of(cluster, here.recv(PATIENCE))
        cluster.stop(worker)
        try:
            for _ in range(50):
                here.send(None)
            with pytest.raises(mpkit.ChannelTimeout):
                here.recv(timeout=0.2)
        finally:
            cluster.cont(worker)
        assert [here.recv(PATIENCE) for _ in range(50)] == [worker.pid] * 50
        here.close()
        job.result(PATIENCE)


def test_closing_does_not_wait_for_ever_for_one_that_stands_still(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mpkit.dask._port._LINGER", 0.05)
    with cluster.client() as client, client.as_current():
        here, there = mpkit.channel()
        job = mpkit.start(tell_pid, there)
        worker = of(cluster, here.recv(PATIENCE))
        cluster.stop(worker)
        try:
            here.close()
            assert _link._busy  # it has still to hear it
        finally:
            cluster.cont(worker)
        job.result(PATIENCE)
        until(lambda: not _link._busy)


def test_a_dead_scheduler_leaves_those_that_talk_talking(
    make_cluster: Callable[..., Cluster],
) -> None:
    cluster = make_cluster(2)
    with cluster.client(timeout=2) as client, client.as_current():
        here, there = mpkit.channel()
        job = mpkit.start(tell_pid, there)
        pid = here.recv(PATIENCE)
        alone, _ = mpkit.channel()
        alone.poll()
        cluster.stop(of(cluster, pid))  # it would end, too, without a scheduler
        cluster.kill_scheduler()
        with pytest.raises(mpkit.BrokenChannel, match="the scheduler (is gone|cannot)"):
            alone.recv(PATIENCE)
        with pytest.raises(mpkit.ChannelTimeout):
            here.recv(timeout=0)
        with pytest.raises(mpkit.SchedulerLost):
            job.result(PATIENCE)
        cluster.kill(of(cluster, pid))
        with pytest.raises(mpkit.PeerDied):
            here.recv(PATIENCE)
        here.close()
        alone.close()


def test_workers_killed_at_random_leave_no_end_and_no_job_waiting(
    make_cluster: Callable[..., Cluster],
) -> None:
    """Each channel ends, each job has an outcome, and those whose worker lived have theirs."""
    cluster = make_cluster(3)
    chance = random.Random(7)
    with cluster.client() as client, client.as_current():
        for _ in range(4):
            ends = [mpkit.channel() for _ in range(6)]
            jobs = [mpkit.start(tell_pid, there) for _, there in ends]
            first, second = mpkit.channel()
            piped = mpkit.start(tell_pid, second), mpkit.start(provoke, first, ends.pop()[0])
            victim = chance.choice(cluster.workers)
            cluster.kill(victim)
            cluster.add_worker()
            for here, _ in ends:
                here.close()
            for job in (*jobs, *piped):
                error = job.exception(PATIENCE)
                assert error is None or isinstance(error, mpkit.MpkitError), error
        until(lambda: not _link._busy and not _job._unfinished)
