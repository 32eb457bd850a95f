"""Jobs on a real Dask cluster."""

from __future__ import annotations

import asyncio
import concurrent.futures
import multiprocessing
import os
import threading
from typing import TYPE_CHECKING, Any

import pytest

from tests.cluster import current_client
from tests.support import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.cluster import Cluster

pytest.importorskip("distributed")

from distributed.comm import CommClosedError

import mpkit.dask as mpkit


@pytest.fixture
def client(cluster: Cluster) -> Iterator[Any]:
    with current_client(cluster) as client:
        yield client


def where(*args: object, **kwargs: object) -> tuple[int, tuple[object, ...], dict[str, object]]:
    return os.getpid(), args, kwargs


def echo(end: mpkit.Channel[Any, Any]) -> None:
    """Answer what comes with where this is."""
    for what in end:
        end.send((os.getpid(), what))


class Odd(Exception):
    """One that another process can raise."""


def fail(end: mpkit.Channel[Any, Any] | None = None) -> None:
    try:
        {}["a"]
    except KeyError as error:
        raise Odd("no") from error


def leave() -> None:
    raise SystemExit(3)


def fail_unpickling() -> Any:
    raise Odd("on the way")


class Fails:
    def __reduce__(self) -> tuple[Any, ...]:
        return fail_unpickling, ()


def test_it_runs_on_a_worker_and_returns(cluster: Cluster, client: object) -> None:
    job = mpkit.start(where, 1, "b", c=[2])
    pid, *rest = job.result(PATIENCE)
    assert pid in {worker.pid for worker in cluster.workers}
    assert rest == [(1, "b"), {"c": [2]}]
    assert job.result(0) == (pid, *rest)
    assert not job.is_alive()
    assert job.exception() is None
    assert repr(job) == f"<job {__name__}.where: ended>"


def test_large_arguments_and_results_travel(client: object) -> None:
    numpy = pytest.importorskip("numpy")
    array = numpy.arange(500_000)
    doubled = mpkit.start(numpy.multiply, array, 2).result(PATIENCE)
    assert (doubled == 2 * array).all()
    doubled[0] = 1


def test_jobs_take_no_places_of_tasks(cluster: Cluster, client: Any) -> None:
    """More of them than there are threads, all at the same time."""
    made = [mpkit.channel() for _ in range(2 * len(cluster.workers) + 1)]
    jobs = [mpkit.start(echo, there) for _, there in made]
    for number, (here, _) in enumerate(made):
        assert here.request(number, PATIENCE)[1] == number
        assert client.submit(abs, -number, pure=False).result(PATIENCE) == number
    for (here, _), job in zip(made, jobs, strict=True):
        assert job.is_alive()
        here.close()
        assert job.join(PATIENCE)


def test_what_it_raises_comes_with_its_traceback(client: object) -> None:
    job = mpkit.start(fail)
    with pytest.raises(Odd, match="no") as caught:
        job.result(PATIENCE)
    assert isinstance(caught.value.__cause__, KeyError)
    text = str(caught.value.__cause__.__cause__)
    assert "in fail" in text
    assert "_job.py" not in text
    with pytest.raises(mpkit.TaskExit, match="leave called sys.exit\\(3\\)"):
        mpkit.start(leave).result(PATIENCE)
    with pytest.raises(mpkit.NotPicklable, match="the result of a job"):
        mpkit.start(threading.Lock).result(PATIENCE)
    with pytest.raises(Odd, match="on the way") as caught:
        mpkit.start(where, Fails()).result(PATIENCE)
    assert "where(...))" in str(caught.value.__notes__)


def test_what_it_raises_keeps_no_channel_open(client: object) -> None:
    here, there = mpkit.channel()
    job = mpkit.start(fail, there)
    assert list(here) == []
    assert isinstance(job.exception(PATIENCE), Odd)
    here.close()


def test_lambdas_travel(client: object) -> None:
    factor = 21
    assert mpkit.start(lambda n: n * factor, 2).result(PATIENCE) == 42


def test_it_is_awaited(client: object) -> None:
    async def both() -> list[int]:
        return await asyncio.gather(mpkit.start(abs, -1), mpkit.start(abs, -2))

    assert asyncio.run(both()) == [1, 2]

    async def impatient() -> None:
        here, there = mpkit.channel()
        job = mpkit.start(echo, there)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await job
        here.close()
        assert await job is None  # it was the waiting that was cancelled

    asyncio.run(impatient())


def test_a_job_starts_jobs(client: object) -> None:
    assert mpkit.start(start_two).result(PATIENCE) == [1, 2]


def start_two() -> list[int]:
    return [job.result() for job in [mpkit.start(abs, -1), mpkit.start(abs, -2)]]


def test_a_job_that_nobody_has_runs_all_the_same(client: object) -> None:
    here, there = mpkit.channel()
    mpkit.start(echo, there)
    assert here.request("here", PATIENCE)[1] == "here"
    here.close()


def test_one_that_has_not_begun_is_cancelled_and_one_that_runs_is_not(
    cluster: Cluster, client: Any
) -> None:
    here, there = mpkit.channel()
    running = mpkit.start(echo, there)
    assert here.request(1, PATIENCE)
    with pytest.raises(mpkit.ResultTimeout, match="echo has no result after 0 s"):
        running.result(timeout=0)
    assert not running.cancel()
    with pytest.raises(RuntimeError, match="which nothing can end from outside"):
        running.terminate()
    # Tasks that have all threads until we say so.
    ends = [mpkit.channel() for _ in cluster.workers]
    tasks = [client.submit(echo, end, pure=False) for _, end in ends]
    pids = {here.request(2, PATIENCE)[0] for here, _ in ends}
    assert pids == {worker.pid for worker in cluster.workers}
    mine, theirs = mpkit.channel()
    waiting = mpkit.start(echo, theirs)
    assert waiting.is_alive()
    waiting.kill()
    assert waiting.cancel()
    with pytest.raises(concurrent.futures.CancelledError, match="echo was cancelled"):
        waiting.result(PATIENCE)
    with pytest.raises(mpkit.PeerDied):  # its end will never come there
        mine.recv(PATIENCE)
    for end in (mine, here, *(end for end, _ in ends)):
        end.close()
    client.gather(tasks)
    running.result(PATIENCE)
    running.terminate()  # it has ended


def test_a_block_waits_for_it_unless_it_raises(client: object) -> None:
    with mpkit.start(abs, -1) as job:
        pass
    assert not job.is_alive()
    here, there = mpkit.channel()
    with pytest.raises(Odd), mpkit.start(echo, there) as job:
        here.request(1, PATIENCE)
        raise Odd
    assert job.is_alive()
    here.close()
    assert job.join(PATIENCE)


def test_wrong_arguments_fail_at_the_call(client: object) -> None:
    with pytest.raises(TypeError, match="start\\(\\) takes a function"):
        mpkit.start(3)  # type: ignore[arg-type]
    with pytest.raises(mpkit.NotPicklable, match="where\\(...\\) cannot be"):
        mpkit.start(where, threading.Lock())
    with pytest.raises(TypeError, match="makes none"):
        mpkit.Job()


def test_a_result_that_is_lost_on_its_way_is_told_as_that(
    client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def lose(*args: object, **kwargs: object) -> None:
        raise CommClosedError("reset")

    monkeypatch.setattr(client, "_gather", lose)
    with pytest.raises(mpkit.SchedulerLost, match="what became of job pow .*reset") as told:
        mpkit.start(pow, 2, 3).result(PATIENCE)
    assert isinstance(told.value.__cause__, CommClosedError)


def in_a_fork(job: mpkit.Job[Any], answer: Any) -> None:
    """Tell what comes of using the parent's client, in each of these ways."""
    for use in (
        lambda: mpkit.start(pow, 2, 3),
        mpkit.channel,
        mpkit.TaskPool,
        job.result,
        job.cancel,
        lambda: asyncio.run(job._result_async()),
    ):
        try:
            answer.send(use())
        except RuntimeError as error:
            answer.send(str(error))


def test_a_forked_child_is_told_that_it_has_no_client(client: object) -> None:
    context = multiprocessing.get_context("fork")
    end, there = mpkit.channel(send=int, recv=int)
    job = mpkit.start(echo, there)
    mine, its = context.Pipe()
    child = context.Process(target=in_a_fork, args=(job, its))
    with mine, its, end:
        child.start()
        try:
            for _ in range(6):
                assert mine.poll(PATIENCE)
                assert "make a Client here" in mine.recv()
        finally:
            child.kill()
            child.join()
    job.result(PATIENCE)


def test_the_event_loop_of_the_client_cannot_wait_to_cancel_a_job(client: Any) -> None:
    end, there = mpkit.channel(send=int, recv=int)
    job = mpkit.start(echo, there)

    async def cancel() -> bool:
        return job.cancel()

    with end, pytest.raises(RuntimeError, match=r"asyncio\.to_thread"):
        client.sync(cancel)
    job.result(PATIENCE)


def test_without_a_client_nothing_is_started_and_ends_stay(cluster: Cluster) -> None:
    with pytest.raises(RuntimeError, match="there is no current dask.distributed Client"):
        mpkit.start(where)
    with cluster.client() as client:
        here, there = mpkit.channel(client=client)
        with pytest.raises(RuntimeError):
            mpkit.start(echo, there)
        there.send(1)
        assert here.recv(PATIENCE) == 1
        here.close()
        there.close()
