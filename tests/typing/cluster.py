"""What type checkers make of mpkit on a cluster: see `api`."""

from __future__ import annotations

from typing import Any, Protocol, assert_type

from distributed import Client

import mpkit
import mpkit.dask


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


class Bounded(Protocol):
    """What both have: a semaphore, here or on a cluster."""

    @property
    def slots(self) -> int: ...
    @property
    def available(self) -> int: ...
    def acquire(self, block: bool = True, timeout: float | None = None) -> bool: ...
    async def acquire_async(self, timeout: float | None = None) -> bool: ...
    def release(self) -> None: ...
    def __enter__(self) -> Any: ...
    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None: ...


class Flag(Protocol):
    """What both have: a signal, here or on a cluster."""

    def set(self) -> None: ...
    def clear(self) -> None: ...
    def is_set(self) -> bool: ...
    def wait(self, timeout: float | None = None) -> bool: ...
    def __await__(self) -> Any: ...


def bounded(semaphore: Bounded, flag: Flag) -> None:
    with semaphore:
        flag.wait(1)


def either() -> None:
    bounded(mpkit.Semaphore(2), mpkit.Signal())
    bounded(mpkit.dask.Semaphore(2), mpkit.dask.Signal())
    bounded(mpkit.Signal(), mpkit.Semaphore(2))  # type: ignore[arg-type]
