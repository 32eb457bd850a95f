"""How each library opens a pool, and what its calls are named.

A pool is opened by a context manager that takes the number of workers and a start method,
None for the library's own choice. It yields `Calls`. None there stands for what a library
does not have; the reason is in `LACKS`.
"""

from __future__ import annotations

import contextlib
import functools
import operator
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

#: What goes into a message by libraries that have no choice of their own for it.
CHUNK = 256


@dataclass
class Calls:
    """What a pool can do; each under the same name, without a layer that costs anything."""

    #: ``map(fn, items, chunk)``: chunk is for libraries that make no choice themselves.
    map: Callable[[Any, Iterable[Any], int], Iterable[Any]]
    #: ``imap(fn, items)``: one item in a message, results in order, as they come.
    imap: Callable[..., Iterable[Any]]
    #: ``submit(fn)``, ``get(what that returned)`` and ``apply(fn)``, for calls without arguments.
    submit: Callable[..., Any] | None = None
    get: Callable[[Any], Any] | None = None
    apply: Callable[..., Any] | None = None


Open = Callable[[int, "str | None"], contextlib.AbstractContextManager[Calls]]


@contextlib.contextmanager
def _mpkit(workers: int, method: str | None) -> Iterator[Calls]:
    import mpkit

    with mpkit.TaskPool(workers, context=method) as pool:
        yield _of_pool(pool, pool.submit, "result")


@contextlib.contextmanager
def _multiprocessing(workers: int, method: str | None) -> Iterator[Calls]:
    import multiprocessing

    with multiprocessing.get_context(method).Pool(workers) as pool:
        yield _of_pool(pool, pool.apply_async, "get")
        # Its with statement would kill what runs; those of all others wait.
        pool.close()
        pool.join()


def _of_pool(pool: Any, submit: Callable[..., Any], get: str) -> Calls:
    return Calls(
        map=lambda fn, items, _: pool.map(fn, items),
        imap=pool.imap,
        submit=submit,
        get=operator.methodcaller(get),
        apply=pool.apply,
    )


def _of_executor(pool: Any) -> Calls:
    return Calls(
        map=lambda fn, items, chunk: pool.map(fn, items, chunksize=chunk),
        imap=pool.map,
        submit=pool.submit,
        get=operator.methodcaller("result"),
        apply=lambda fn: pool.submit(fn).result(),
    )


@contextlib.contextmanager
def _futures(workers: int, method: str | None) -> Iterator[Calls]:
    import concurrent.futures
    import multiprocessing

    context = multiprocessing.get_context(method)
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
        yield _of_executor(pool)


@contextlib.contextmanager
def _loky(workers: int, method: str | None) -> Iterator[Calls]:
    import loky
    import loky.backend

    context = None if method is None else loky.backend.get_context(method)
    with loky.ProcessPoolExecutor(workers, context=context) as pool:
        yield _of_executor(pool)


@contextlib.contextmanager
def _mpire(workers: int, method: str | None) -> Iterator[Calls]:
    import mpire

    with mpire.WorkerPool(workers, start_method=method or "fork", keep_alive=True) as pool:
        yield Calls(
            # It would make one array of results that are arrays, which takes a copy.
            map=lambda fn, items, _: pool.map(fn, items, concatenate_numpy_output=False),
            imap=functools.partial(pool.imap, chunk_size=1),
            submit=pool.apply_async,
            get=operator.methodcaller("get"),
            apply=pool.apply,
        )


@contextlib.contextmanager
def _pebble(workers: int, method: str | None) -> Iterator[Calls]:
    import multiprocessing

    import pebble

    context: Any = multiprocessing.get_context(method)
    with pebble.ProcessPool(workers, context=context) as pool:
        yield Calls(
            map=lambda fn, items, chunk: pool.map(fn, items, chunksize=chunk).result(),
            imap=lambda fn, items: pool.map(fn, items, chunksize=1).result(),
            submit=lambda fn: pool.submit(fn, None),
            get=operator.methodcaller("result"),
            apply=lambda fn: pool.submit(fn, None).result(),
        )


@contextlib.contextmanager
def _joblib(workers: int, method: str | None) -> Iterator[Calls]:
    import joblib

    assert method is None, LACKS["method"]
    lazily = joblib.Parallel(workers, return_as="generator", batch_size=1)
    with joblib.Parallel(workers) as parallel:
        yield Calls(
            map=lambda fn, items, _: parallel(joblib.delayed(fn)(item) for item in items),
            imap=lambda fn, items: lazily(joblib.delayed(fn)(item) for item in items),
        )


LIBRARIES: dict[str, Open] = {
    "mpkit": _mpkit,
    "multiprocessing": _multiprocessing,
    "concurrent.futures": _futures,
    "loky": _loky,
    "mpire": _mpire,
    "pebble": _pebble,
    "joblib": _joblib,
}

#: What joblib is without.
LACKS = {
    "submit": "no futures",
    "apply": "no single calls",
    "method": "no choice of start method",
}
