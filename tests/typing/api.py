"""What type checkers make of mpkit: every public name, right and wrong uses.

Nothing here is run. mypy (strict) and pyright (strict) check it as part of
`make types`. Each ``type: ignore`` marks a wrong use. Both checkers report one that
ignores nothing, so what is wrong has to be wrong for both of them.
"""

from __future__ import annotations

import io
import multiprocessing
import threading
from collections.abc import AsyncIterator, Generator, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Optional, assert_type

import mpkit
import mpkit.dask as on_dask
from mpkit.joblib import MpkitBackend


def area(width: int, height: float) -> float:
    return width * height


def shout(text: str, *, times: int = 1) -> str:
    return text.upper() * times


def hello() -> str:
    return "hello"


async def fetch(url: str) -> bytes:
    return url.encode()


def take_float(value: float) -> None: ...
def take_floats(values: list[float]) -> None: ...
def take_int(value: int) -> None: ...
def take_error(error: BaseException) -> None: ...


# what there is not


def unknown() -> None:
    mpkit.Pool  # type: ignore[attr-defined]
    mpkit.typing  # type: ignore[attr-defined]


# limit and Semaphore


def limits() -> None:
    assert_type(mpkit.limit(4), mpkit.Semaphore)
    assert_type(mpkit.limit(4, name="db", timeout=1.5), mpkit.Semaphore)
    with mpkit.limit(4) as held:
        assert_type(held, mpkit.Semaphore)
    semaphore = mpkit.Semaphore(2, name="db")
    assert_type(semaphore.acquire(), bool)
    assert_type(semaphore.acquire(True, 0.5), bool)
    assert_type(semaphore.release(), None)
    assert_type(semaphore.slots, int)
    assert_type(semaphore.available, int)
    assert_type(semaphore.key, str)
    for holder in semaphore.holders():
        assert_type(holder.pid, int)
        assert_type(holder.process, str)
        assert_type(holder.since, float)
    mpkit.limit("4")  # type: ignore[arg-type]
    mpkit.limit(4, "db")  # type: ignore[call-arg]
    mpkit.limit()  # type: ignore[call-arg]
    semaphore.slots = 3  # type: ignore[misc]


@mpkit.limit(2)
def limited(width: int) -> str:
    return "x" * width


@mpkit.limit(2)
async def limited_async(width: int) -> str:
    return "x" * width


async def limits_async() -> None:
    async with mpkit.limit(4) as held:
        assert_type(held, mpkit.Semaphore)
    assert_type(await mpkit.Semaphore(2).acquire_async(timeout=1), bool)
    assert_type(limited(3), str)
    assert_type(await limited_async(3), str)
    limited("3")  # type: ignore[arg-type]


# Signal


def signals() -> None:
    stop = mpkit.Signal(name="stop")
    assert_type(stop.set(), None)
    assert_type(stop.clear(), None)
    assert_type(stop.is_set(), bool)
    assert_type(stop.wait(timeout=1), bool)
    assert_type(stop.fileno(), int)
    assert_type(mpkit.Signal.over(threading.Event()), mpkit.Signal)
    assert_type(mpkit.Signal.over(multiprocessing.Event()), mpkit.Signal)
    assert_type(mpkit.Signal.over(multiprocessing.Manager().Event()), mpkit.Signal)
    stop.wait("1")  # type: ignore[arg-type]
    mpkit.Signal("stop")  # type: ignore[call-arg]
    mpkit.Signal.over(3)  # type: ignore[arg-type]


async def signals_async(stop: mpkit.Signal) -> None:
    assert_type(await stop, bool)


# Channel


def channels() -> None:
    here, there = mpkit.channel(send=str, recv=int)
    assert_type(here, mpkit.Channel[str, int])
    assert_type(there, mpkit.Channel[int, str])
    assert_type(here.send("x", timeout=1), None)
    assert_type(here.recv(timeout=1), int)
    assert_type(here.request("x"), int)
    assert_type(here.poll(1), bool)
    assert_type(here.fileno(), int)
    assert_type(here.closed, bool)
    assert_type(here.close_send(), None)
    assert_type(here.close(), None)
    for message in there:
        assert_type(message, str)
    with there as entered:
        assert_type(entered, mpkit.Channel[int, str])
    here.send(5)  # type: ignore[arg-type]
    there.request("x")  # type: ignore[arg-type]
    text: str = here.recv()  # type: ignore[assignment]
    print(text)
    for number in there:
        take_int(number)  # type: ignore[arg-type]
    swapped: mpkit.Channel[int, str] = here  # type: ignore[assignment]
    print(swapped)
    take_end(there)
    take_end(here)  # type: ignore[arg-type]

    anything, _ = mpkit.channel()
    assert_type(anything, mpkit.Channel[Any, Any])
    mpkit.channel(send=str, recv=int, codec="msgspec")
    mpkit.channel(send=str)  # type: ignore[call-overload]
    mpkit.channel(str, int, codec="json")  # type: ignore[call-overload]
    mpkit.channel(5, int)  # type: ignore[call-overload]
    mpkit.channel(str, [int])  # type: ignore[call-overload]


def take_end(end: mpkit.Channel[int, str]) -> int:
    end.send(len(end.recv()))
    return end.recv()  # type: ignore[return-value]


@dataclass
class Load:
    path: str


class Stop: ...


Request = Load | Stop


def channels_of_unions() -> None:
    """Whatever can stand in an annotation."""
    here, there = mpkit.channel(send=Load | Stop, recv=Optional[int])  # noqa: UP045
    assert_type(here, mpkit.Channel[Load | Stop, int | None])
    assert_type(there, mpkit.Channel[int | None, Load | Stop])
    here.send(Load("x"))
    here.send(Stop())
    there.send(None)
    here.send(Load)  # type: ignore[arg-type]
    here.send(None)  # type: ignore[arg-type]
    there.send("x")  # type: ignore[arg-type]
    only_load: Load = there.recv()  # type: ignore[assignment]
    print(only_load)
    request = there.recv()
    if isinstance(request, Load):
        assert_type(request.path, str)
    else:
        assert_type(request, Stop)
    narrow: mpkit.Channel[Load, int | None] = here
    wide: mpkit.Channel[Load | Stop, int] = here  # type: ignore[assignment]
    print(narrow, wide)

    assert_type(mpkit.channel(Request, None)[0], mpkit.Channel[Load | Stop, None])
    assert_type(mpkit.channel(None, list[int])[1], mpkit.Channel[list[int], None])
    assert_type(mpkit.channel(object, int | None)[1].recv(), object)
    assert_type(
        mpkit.channel(Literal["on", "off"], dict[str, int] | None)[0],
        mpkit.Channel[Literal["on", "off"], dict[str, int] | None],
    )
    mpkit.channel(None, int)[0].send(5)  # type: ignore[arg-type]


def variance(narrow: mpkit.Channel[int, bool], wide: mpkit.Channel[object, bool]) -> None:
    """What sends anything can stand for what sends ints, and not the other way round."""
    sends_bools: mpkit.Channel[bool, int] = narrow
    sends_ints: mpkit.Channel[int, int] = wide
    wide = narrow  # type: ignore[assignment]
    print(sends_bools, sends_ints)


async def channels_async(here: mpkit.Channel[str, int]) -> None:
    assert_type(await here.send_async("x", timeout=1), None)
    assert_type(await here.recv_async(timeout=1), int)
    assert_type(await here.request_async("x"), int)
    async for message in here:
        assert_type(message, int)
    await here.send_async(5)  # type: ignore[arg-type]


# start and Job


def jobs() -> None:
    job = mpkit.start(area, 2, height=1.5)
    assert_type(job, mpkit.Job[float])
    assert_type(job.result(timeout=1), float)
    assert_type(job.exception(), BaseException | None)
    assert_type(job.exitcode, int | None)
    assert_type(job.pid, int)
    assert_type(job.name, str)
    assert_type(job.is_alive(), bool)
    assert_type(job.join(timeout=1), bool)
    assert_type(job.terminate(), None)
    assert_type(job.kill(), None)
    assert_type(job.stop(), bool)
    assert_type(job.stop(grace=1.5), bool)
    job.stop(None)  # type: ignore[arg-type]
    job.stop("1")  # type: ignore[arg-type]
    with mpkit.start(hello) as entered:
        assert_type(entered, mpkit.Job[str])
    broader: mpkit.Job[object] = job
    print(broader)
    mpkit.start(area, "2", 1.5)  # type: ignore[arg-type]
    mpkit.start(area, 2)  # type: ignore[call-arg]
    mpkit.start(shout, "x", loud=1)  # type: ignore[call-arg]
    mpkit.start(shout, "x", times="2")  # type: ignore[arg-type]
    mpkit.start(hello, 1)  # type: ignore[call-arg]
    mpkit.start(hello())  # type: ignore[arg-type]
    mpkit.start(5)  # type: ignore[arg-type]
    count: int = job.result()  # type: ignore[assignment]
    narrower: mpkit.Job[int] = job  # type: ignore[assignment]
    print(count, narrower)
    take_int(mpkit.start(hello).result())  # type: ignore[arg-type]
    here, there = mpkit.channel(send=str, recv=int)
    assert_type(mpkit.start(take_end, there), mpkit.Job[int])
    mpkit.start(take_end, here)  # type: ignore[arg-type]


async def jobs_async(job: mpkit.Job[str]) -> None:
    assert_type(await job, str)
    assert_type(await job.stop_async(grace=1.5), bool)
    count: int = await job  # type: ignore[assignment]
    print(count)


# TaskPool: making one


USER: ContextVar[str] = ContextVar("USER")


class Tracing:
    def capture(self) -> dict[str, str]:
        return {}

    @contextmanager
    def attach(self, captured: dict[str, str], /) -> Generator[None, None, None]:
        yield


def pools(path: Path) -> None:
    with mpkit.TaskPool() as pool:
        assert_type(pool, mpkit.TaskPool)
    mpkit.TaskPool(
        4,
        shout,
        ("x",),
        100,
        "spawn",
        memory_limit=10**9,
        memory_hard_limit=2 * 10**9,
        log="INFO",
        capture=True,
        timeout=5,
        retries=2,
    )
    mpkit.TaskPool(processes=4, maxtasksperchild=10, context=multiprocessing.get_context("fork"))
    mpkit.TaskPool(on=ThreadPoolExecutor())
    assert_type(pool.executor, mpkit.PoolExecutor)
    assert_type(pool.options(retries=1).executor, mpkit.PoolExecutor)
    executor: Executor = pool.executor
    executor.shutdown(wait=False, cancel_futures=True)
    assert_type(pool.executor.submit(area, 2, height=1.5), mpkit.Task[float])
    assert_type(pool.executor.map(area, [1], [2.5], timeout=1), Iterator[float])
    assert_type(pool.executor.map(hello, chunksize=2, buffersize=4), Iterator[str])
    pool.executor.submit(area, "2", 1.5)  # type: ignore[arg-type]
    pool.executor.map(area, 2)  # type: ignore[arg-type]
    pool.executor.map(area, [2], buffersize="4")  # type: ignore[arg-type]
    pool.executor.shutdown(True, True)  # type: ignore[call-arg]
    mpkit.TaskPool(propagate=USER)
    pool.options(propagate=[USER, Tracing()])
    pool.options(propagate=5)  # type: ignore[arg-type]
    pool.options(propagate=Tracing)  # type: ignore[arg-type]
    mpkit.TaskPool(seed=42)
    mpkit.rng("x")  # type: ignore[call-arg]
    mpkit.TaskPool(seed="42")  # type: ignore[arg-type]
    mpkit.TaskPool(shared={"x": 1})
    assert_type(mpkit.shared(), Any)
    mpkit.shared("x")  # type: ignore[call-arg]
    mpkit.TaskPool(finalizer=hello)
    mpkit.TaskPool(finalizer=shout)  # type: ignore[arg-type]
    mpkit.TaskPool(4, threads_per_worker=2)
    assert_type(pool.threads_per_worker, int | None)
    assert_type(pool.close(), None)
    assert_type(pool.terminate(), None)
    assert_type(pool.join(timeout=1), bool)
    stats = pool.stats()
    assert_type(stats, mpkit.Stats)
    assert_type(stats.done, int)
    assert_type(stats.workers, tuple[mpkit.WorkerStats, ...])
    assert_type(stats.pending, int)
    assert_type(stats.workers[0].peak_memory, int)
    assert_type(stats.functions, tuple[mpkit.FunctionStats, ...])
    assert_type(stats.functions[0].run, mpkit.Spread)
    assert_type(stats.functions[0].wait.p99, float)
    stats.done = 3  # type: ignore[misc]
    stats.jobs  # type: ignore[attr-defined]
    with pool.trace(path) as trace, pool.report(path) as report:
        assert_type(trace, mpkit.Trace)
        assert_type(report, mpkit.Report)
    pool.report()  # type: ignore[call-arg]
    pool.trace(3)  # type: ignore[arg-type]
    assert_type(mpkit.worker_state(), dict[str, Any])
    mpkit.TaskPool("4")  # type: ignore[arg-type]
    mpkit.TaskPool(timeout="5")  # type: ignore[arg-type]
    mpkit.TaskPool(log=1.5)  # type: ignore[arg-type]
    mpkit.TaskPool(capture="all")  # type: ignore[arg-type]
    mpkit.TaskPool(patience=5)  # type: ignore[call-arg]
    mpkit.TaskPool(memory_limit="1 GB")  # type: ignore[arg-type]
    mpkit.TaskPool(threads_per_worker="2")  # type: ignore[arg-type]
    mpkit.TaskPool(4, None, (), 100, "spawn", 10**9)  # type: ignore[call-arg]
    mpkit.TaskPool(on=4)  # type: ignore[arg-type]
    mpkit.TaskPool(options={"timeout": 5})  # type: ignore[arg-type]


def options(pool: mpkit.TaskPool) -> None:
    patient = mpkit.Options(timeout=60, retries=3)
    assert_type(patient.changed(retries=0), mpkit.Options)
    assert_type(patient.timeout, float | None)
    assert_type(pool.submit(hello).options, mpkit.Options)
    mpkit.TaskPool(4, options=patient, priority=1)
    patient.timeout = 5  # type: ignore[misc]
    mpkit.Options(60)  # type: ignore[call-arg]
    mpkit.Options(retries="3")  # type: ignore[arg-type]
    mpkit.Options(patience=5)  # type: ignore[call-arg]
    patient.changed(patience=5)  # type: ignore[call-arg]


def pools_on_dask(client: Any, local: mpkit.TaskPool) -> None:
    with on_dask.TaskPool(client=client) as pool:
        assert_type(pool, on_dask.TaskPool)
        assert_type(pool.map(area_of, [1, 2]), list[float])
        assert_type(pool.submit(area, 1, 2.0), mpkit.Task[float])
        assert_type(pool.apply(area, (1, 2.0)), float)
        assert_type(pool.imap(area_of, [1]), on_dask.Results[float])
        assert_type(pool.stats(), on_dask.Stats)
        either(pool)
        pool.submit(area, "1", 2.0)  # type: ignore[arg-type]
    either(local)
    on_dask.TaskPool(2, client="tcp://127.0.0.1:8786", retries=1, shared={"a": 1})
    on_dask.TaskPool(client=3)  # type: ignore[arg-type]
    on_dask.TaskPool(2, None, (), None, None, client)  # type: ignore[call-arg]
    on_dask.TaskPool(clients=client)  # type: ignore[call-arg]


def either(pool: mpkit.TaskPool) -> list[int]:
    return pool.map(len, ["one", "three"])


def area_of(width: int) -> float:
    return area(width, 1.0)


def joblib_backends(pool: mpkit.TaskPool) -> None:
    assert_type(MpkitBackend(), MpkitBackend)
    MpkitBackend(pool, timeout=5, retries=2)
    MpkitBackend(pool.options(priority=1), nesting_level=0)
    MpkitBackend(5)  # type: ignore[arg-type]
    MpkitBackend(retries="2")  # type: ignore[arg-type]
    MpkitBackend(patience=5)  # type: ignore[call-arg]


# TaskPool: in the accent of concurrent.futures


def submitting(pool: mpkit.TaskPool) -> None:
    task = pool.submit(area, 2, height=1.5)
    assert_type(task, mpkit.Task[float])
    future: Future[float] = task
    print(future)
    assert_type(task.result(timeout=1), float)
    assert_type(task.get(), float)
    assert_type(task.wait(1), None)
    assert_type(task.ready(), bool)
    assert_type(task.successful(), bool)
    assert_type(task.cancel(), bool)
    assert_type(task.kill(), bool)
    assert_type(task.attempts, int)
    assert_type(task.name, str)
    assert_type(task.output, str)
    assert_type(task.number, int)
    calls = pool.options(
        timeout=5, retries=2, retry_on=(OSError,), backoff=0.5, priority=1, name="area"
    )
    assert_type(pool.options(label="page 3"), mpkit.Calls)
    pool.options(label=3)  # type: ignore[arg-type]
    assert_type(calls, mpkit.Calls)
    assert_type(calls.submit(hello), mpkit.Task[str])
    pool.submit(area, "2", 1.5)  # type: ignore[arg-type]
    pool.submit(area, 2)  # type: ignore[call-arg]
    pool.options(retries="2")  # type: ignore[arg-type]
    pool.options(tries=2)  # type: ignore[call-arg]
    count: int = task.result()  # type: ignore[assignment]
    print(count)


async def submitting_async(pool: mpkit.TaskPool) -> None:
    assert_type(await pool.submit(area, 2, 1.5), float)
    async for number in pool.imap(len, ["x"]):
        assert_type(number, int)
    async with mpkit.TaskPool() as entered:
        assert_type(entered, mpkit.TaskPool)


# TaskPool: in the accent of multiprocessing


def applying(pool: mpkit.TaskPool) -> None:
    assert_type(pool.apply(hello), str)
    assert_type(pool.apply(area, (2, 1.5)), float)
    assert_type(pool.apply(shout, ("x",), {"times": 2}), str)
    assert_type(pool.apply(shout, kwds={"text": "x"}), str)
    assert_type(pool.apply(area, [2, 1.5]), float)  # as multiprocessing has it, unchecked
    assert_type(pool.apply_async(area, [2, 1.5]), mpkit.Task[float])
    assert_type(pool.apply_async(hello), mpkit.Task[str])
    assert_type(pool.apply_async(area, (2, 1.5)), mpkit.Task[float])
    assert_type(
        pool.apply_async(area, (2, 1.5), callback=take_float, error_callback=take_error),
        mpkit.Task[float],
    )
    assert_type(pool.apply_async(shout, ("x",), {"times": 2}, print, print), mpkit.Task[str])
    pool.apply(area, ("2", 1.5))  # type: ignore[arg-type]
    pool.apply(area, (2,))  # type: ignore[arg-type]
    pool.apply_async(area, (2, "x"))  # type: ignore[arg-type]
    pool.apply_async(hello, callback=take_int)  # type: ignore[misc]


class OwnBar:
    def update(self, n: float = 1) -> bool:
        return n > 0

    def close(self) -> None:
        """It has nothing to put away."""


async def words() -> AsyncIterator[str]:
    yield "x"


async def numbers() -> AsyncIterator[int]:
    yield 1


def mapping(pool: mpkit.TaskPool) -> None:
    pairs = [(2, 1.5), (3, 2.5)]
    assert_type(pool.map(len, ["x"], 10, progress=True), list[int])
    assert_type(pool.map_async(len, ["x"], callback=print), mpkit.Task[list[int]])
    assert_type(pool.starmap(area, pairs, progress="areas"), list[float])
    assert_type(pool.starmap_async(area, pairs, callback=take_floats), mpkit.Task[list[float]])
    results = pool.imap(len, ["x"], chunksize=2, progress=lambda done, total: print(done, total))
    assert_type(results, mpkit.Results[int])
    assert_type(results.next(timeout=1), int)
    assert_type(next(results), int)
    assert_type(results.close(), None)
    assert_type(pool.imap_unordered(len, ["x"]), mpkit.Results[int])
    for number in results:
        assert_type(number, int)
    with pool.aimap(len, words()) as lengths:
        assert_type(lengths, mpkit.Results[int])
    assert_type(pool.aimap_unordered(len, ["x"], progress=OwnBar()), mpkit.Results[int])
    pool.aimap(shout, numbers())  # type: ignore[arg-type]
    pool.imap(len, words())  # type: ignore[arg-type]
    pool.map(len, ["x"], progress=io.StringIO())  # type: ignore[arg-type]
    pool.map(shout, [1])  # type: ignore[arg-type]
    pool.imap(shout, [1])  # type: ignore[arg-type]
    pool.map(len, ["x"], progress=3)  # type: ignore[arg-type]
    pool.starmap(area, [(2, "x")])  # type: ignore[arg-type]
    pool.map_async(len, ["x"], callback=take_int)  # type: ignore[arg-type]
    texts: list[str] = pool.map(len, ["x"])  # type: ignore[arg-type]
    print(texts)


# wait


def waiting(
    signal: mpkit.Signal, here: mpkit.Channel[str, int], job: mpkit.Job[int], task: mpkit.Task[int]
) -> None:
    assert_type(mpkit.wait(signal, timeout=1), list[mpkit.Signal])
    ready = mpkit.wait(signal, here, job, task)
    if here in ready:
        print(here.recv())
    mpkit.wait(signal, timeout="1")  # type: ignore[arg-type]
    mpkit.wait(signal, 5)  # type: ignore[type-var]


# errors


def errors() -> None:
    family: list[type[mpkit.MpkitError]] = [
        mpkit.BrokenChannel,
        mpkit.ChannelClosed,
        mpkit.ChannelMoved,
        mpkit.ChannelTimeout,
        mpkit.EndOfChannel,
        mpkit.LeaseLost,
        mpkit.LimitMismatch,
        mpkit.LimitTimeout,
        mpkit.MemoryLimitExceeded,
        mpkit.MessageTypeError,
        mpkit.NotPicklable,
        mpkit.PeerDied,
        mpkit.PoolClosed,
        mpkit.RemoteError,
        mpkit.RemoteTraceback,
        mpkit.ResultTimeout,
        mpkit.RuntimeDirectoryError,
        mpkit.SchedulerLost,
        mpkit.TaskExit,
        mpkit.TaskTimeout,
        mpkit.WorkerDied,
        mpkit.WorkerInitError,
        mpkit.WouldDeadlock,
    ]
    builtin: list[type[Exception]] = [*family]
    timeouts: list[type[TimeoutError]] = [
        mpkit.ChannelTimeout,
        mpkit.LimitTimeout,
        mpkit.ResultTimeout,
        mpkit.TaskTimeout,
    ]
    print(builtin, timeouts)


def facts(
    died: mpkit.WorkerDied,
    peer: mpkit.PeerDied,
    mismatch: mpkit.LimitMismatch,
    lease: mpkit.LeaseLost,
    scheduler: mpkit.SchedulerLost,
    remote: mpkit.RemoteError,
    unpicklable: mpkit.NotPicklable,
) -> None:
    assert_type(died.pid, int | None)
    assert_type(died.exitcode, int | None)
    assert_type(died.reason, str)
    assert_type(remote.repr, str)
    assert_type(unpicklable.repr, str)
    assert_type(peer.reason, str | None)
    assert_type(mismatch.wanted, int)
    assert_type(lease.silence, float)
    assert_type(scheduler.address, str)
