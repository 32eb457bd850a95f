"""What pools are measured by. Each function runs one library once, in a fresh process."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from benchmarks.registry import Case, case

WORKERS = 2


def noop(*_: object) -> None:
    return None


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _mpkit() -> Any:
    import mpkit

    return mpkit.TaskPool(WORKERS)


def _multiprocessing() -> Any:
    import multiprocessing

    return multiprocessing.Pool(WORKERS)


def _futures() -> Any:
    import concurrent.futures

    return concurrent.futures.ProcessPoolExecutor(WORKERS)


def _loky() -> Any:
    import loky

    return loky.ProcessPoolExecutor(WORKERS)


def _mpire() -> Any:
    import mpire

    return mpire.WorkerPool(n_jobs=WORKERS)


def _pebble() -> Any:
    import pebble

    return pebble.ProcessPool(max_workers=WORKERS)


SUBMIT = case("submit + result, no-op, all at once", "µs", count=20_000, quick=2_000)
APPLY = case("apply, one after the other", "µs", count=2_000, quick=300)
MAP = case("map, no-op, default chunks", "µs", count=20_000, quick=20_000)
IMAP = case("imap, no-op, chunk 1", "µs", count=10_000, quick=1_000)
LIFE = case("start, 2 tasks, stop", "ms", count=10, quick=3)


def _futures_at_once(submit: Callable[..., Any], count: int) -> float:
    submit(noop).result()
    return _seconds(lambda: [f.result() for f in [submit(noop) for _ in range(count)]])


def _got_at_once(apply_async: Callable[..., Any], count: int) -> float:
    apply_async(noop).get()
    return _seconds(lambda: [r.get() for r in [apply_async(noop) for _ in range(count)]])


@SUBMIT.run("mpkit")
def _(count: int) -> float:
    with _mpkit() as pool:
        return _futures_at_once(pool.submit, count)


@SUBMIT.run("multiprocessing")
def _(count: int) -> float:
    with _multiprocessing() as pool:
        return _got_at_once(pool.apply_async, count)


@SUBMIT.run("concurrent.futures")
def _(count: int) -> float:
    with _futures() as pool:
        return _futures_at_once(pool.submit, count)


@SUBMIT.run("loky")
def _(count: int) -> float:
    with _loky() as pool:
        return _futures_at_once(pool.submit, count)


@SUBMIT.run("mpire")
def _(count: int) -> float:
    with _mpire() as pool:
        return _got_at_once(pool.apply_async, count)


@SUBMIT.run("pebble")
def _(count: int) -> float:
    with _pebble() as pool:
        return _futures_at_once(lambda fn: pool.submit(fn, None), count)


def _one_by_one(call: Callable[..., Any], count: int) -> float:
    call(noop)
    return _seconds(lambda: [call(noop) for _ in range(count)])


@APPLY.run("mpkit")
def _(count: int) -> float:
    with _mpkit() as pool:
        return _one_by_one(pool.apply, count)


@APPLY.run("multiprocessing")
def _(count: int) -> float:
    with _multiprocessing() as pool:
        return _one_by_one(pool.apply, count)


@APPLY.run("concurrent.futures")
def _(count: int) -> float:
    with _futures() as pool:
        return _one_by_one(lambda fn: pool.submit(fn).result(), count)


@APPLY.run("loky")
def _(count: int) -> float:
    with _loky() as pool:
        return _one_by_one(lambda fn: pool.submit(fn).result(), count)


@APPLY.run("mpire")
def _(count: int) -> float:
    with _mpire() as pool:
        return _one_by_one(pool.apply, count)


def _mapped(run: Callable[..., Any], count: int) -> float:
    items = list(range(count))
    list(run(noop, items[:10]))
    return _seconds(lambda: sum(1 for _ in run(noop, items)))


@MAP.run("mpkit")
def _(count: int) -> float:
    with _mpkit() as pool:
        return _mapped(pool.map, count)


@MAP.run("multiprocessing")
def _(count: int) -> float:
    with _multiprocessing() as pool:
        return _mapped(pool.map, count)


@MAP.run("concurrent.futures")
def _(count: int) -> float:
    with _futures() as pool:
        return _mapped(lambda fn, items: pool.map(fn, items, chunksize=256), count)


@MAP.run("loky")
def _(count: int) -> float:
    with _loky() as pool:
        return _mapped(lambda fn, items: pool.map(fn, items, chunksize=256), count)


@MAP.run("mpire")
def _(count: int) -> float:
    with _mpire() as pool:
        return _mapped(pool.map, count)


@MAP.run("joblib")
def _(count: int) -> float:
    import joblib

    with joblib.Parallel(n_jobs=WORKERS) as parallel:
        return _mapped(lambda fn, items: parallel(joblib.delayed(fn)(i) for i in items), count)


@IMAP.run("mpkit")
def _(count: int) -> float:
    with _mpkit() as pool:
        return _mapped(pool.imap, count)


@IMAP.run("multiprocessing")
def _(count: int) -> float:
    with _multiprocessing() as pool:
        return _mapped(pool.imap, count)


@IMAP.run("concurrent.futures")
def _(count: int) -> float:
    with _futures() as pool:
        return _mapped(pool.map, count)


def _life(make: Callable[[], Any], two: Callable[[Any], object], count: int) -> float:
    def once() -> None:
        with make() as pool:
            two(pool)

    once()  # imports the library
    return _seconds(lambda: [once() for _ in range(count)])


@LIFE.run("mpkit")
def _(count: int) -> float:
    return _life(_mpkit, lambda pool: pool.map(noop, [1, 2]), count)


@LIFE.run("multiprocessing")
def _(count: int) -> float:
    def two(pool: Any) -> None:
        pool.map(noop, [1, 2])
        pool.close()
        pool.join()

    return _life(_multiprocessing, two, count)


@LIFE.run("concurrent.futures")
def _(count: int) -> float:
    return _life(_futures, lambda pool: list(pool.map(noop, [1, 2])), count)


CASES: list[Case] = [SUBMIT, APPLY, MAP, IMAP, LIFE]
