"""What type checkers make of mpkit on a cluster: see `api`."""

from __future__ import annotations

import json
from typing import Any, assert_type

from distributed import Client

import mpkit
import mpkit.dask
from mpkit import protocols


def limits(client: Client) -> None:
    assert_type(mpkit.dask.limit(4), mpkit.dask.Semaphore)
    assert_type(mpkit.dask.limit(4, name="db", timeout=1.5, client=client), mpkit.dask.Semaphore)
    with mpkit.dask.limit(4, client="tcp://scheduler:8786") as held:
        assert_type(held, mpkit.dask.Semaphore)
    semaphore = mpkit.dask.Semaphore(2, name="db", client=client)
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
        assert_type(holder.host, str)
    mpkit.dask.limit("4")  # type: ignore[arg-type]
    mpkit.dask.limit(4, "db")  # type: ignore[call-arg]
    mpkit.dask.limit(4, client=8786)  # type: ignore[arg-type]
    semaphore.slots = 3  # type: ignore[misc]


@mpkit.dask.limit(2)
def limited(width: int) -> str:
    return "x" * width


@mpkit.dask.limit(2)
async def limited_async(width: int) -> str:
    return "x" * width


async def limits_async() -> None:
    async with mpkit.dask.limit(4) as held:
        assert_type(held, mpkit.dask.Semaphore)
    assert_type(await mpkit.dask.Semaphore(2).acquire_async(timeout=1), bool)
    assert_type(limited(3), str)
    assert_type(await limited_async(3), str)
    limited("3")  # type: ignore[arg-type]


def signals(client: Client) -> None:
    stop = mpkit.dask.Signal(name="stop", client=client)
    assert_type(stop.set(), None)
    assert_type(stop.clear(), None)
    assert_type(stop.is_set(), bool)
    assert_type(stop.wait(timeout=1), bool)
    stop.fileno()  # type: ignore[attr-defined]
    stop.wait(timeout="1")  # type: ignore[arg-type]
    mpkit.wait(stop)  # type: ignore[type-var]


async def signals_async() -> None:
    assert_type(await mpkit.dask.Signal(), bool)


# a function for either


def bounded(semaphore: protocols.Semaphore, flag: protocols.Signal) -> None:
    with semaphore:
        flag.wait(1)


def either() -> None:
    bounded(mpkit.Semaphore(2), mpkit.Signal())
    bounded(mpkit.dask.Semaphore(2), mpkit.dask.Signal())
    bounded(mpkit.Signal(), mpkit.Semaphore(2))  # type: ignore[arg-type]


def serve(end: protocols.Channel[str, int]) -> list[str]:
    for number in end:
        assert_type(number, int)
        end.send("x" * number)
        end.send(number)  # type: ignore[arg-type]
    return []


async def program(mp: protocols.Mpkit, width: int) -> None:
    with mp.limit(4, timeout=1), mp.Semaphore(2, name="db") as held:
        assert_type(held.acquire(timeout=1), bool)
    here, there = mp.channel(send=int, recv=str)
    assert_type(here, protocols.Channel[int, str])
    assert_type(there, protocols.Channel[str, int])
    with mp.start(serve, there) as job, here:
        assert_type(job, protocols.Job[list[str]])
        assert_type(here.request(width), str)
        assert_type(await here.recv_async(), str)
        here.send("3")  # type: ignore[arg-type]
    assert_type(job.result(timeout=1), list[str])
    assert_type(await job, list[str])
    stop = mp.Signal(name="stop")
    assert_type(stop.wait(1), bool)
    with mp.TaskPool(timeout=1) as pool:
        assert_type(pool.map(len, ["a"]), list[int])
        assert_type(pool.submit(serve, there), mpkit.Task[list[str]])
        pool.submit(serve, 3)  # type: ignore[arg-type]
    mp.start(serve, here)  # type: ignore[arg-type]
    mp.start(serve)  # type: ignore[call-arg]
    mp.limit("4")  # type: ignore[arg-type]
    mp.Signal("stop")  # type: ignore[call-arg]
    # What is on one side only, or means something else there:
    job.pid  # type: ignore[attr-defined]
    job.kill()  # type: ignore[attr-defined]
    here.fileno()  # type: ignore[attr-defined]
    mp.wait(here)  # type: ignore[attr-defined]


async def programs() -> None:
    await program(mpkit, 1)
    await program(mpkit.dask, 1)
    await program(json, 1)  # type: ignore[arg-type]


def channels(client: Client) -> None:
    here, there = mpkit.dask.channel(send=int, recv=str, client=client)
    assert_type(here, mpkit.dask.Channel[int, str])
    assert_type(there, mpkit.dask.Channel[str, int])
    untyped, _ = mpkit.dask.channel()
    assert_type(untyped, mpkit.dask.Channel[Any, Any])
    assert_type(here.recv(timeout=1), str)
    assert_type(here.request(3), str)
    assert_type(here.poll(), bool)
    assert_type(list(here), list[str])
    with here as end:
        assert_type(end, mpkit.dask.Channel[int, str])
    here.send("3")  # type: ignore[arg-type]
    mpkit.dask.channel(send=int, recv=str, client=3)  # type: ignore[call-overload]
    mpkit.dask.channel(send=int, recv=str, codec="json")  # type: ignore[call-overload]
    job = mpkit.dask.start(serve, there)
    assert_type(job, mpkit.dask.Job[list[str]])
    assert_type(job.cancel(), bool)
    assert_type(job.exception(), BaseException | None)
    mpkit.dask.start(serve, here)  # type: ignore[arg-type]
    mpkit.dask.start(serve, there, there)  # type: ignore[call-arg]
