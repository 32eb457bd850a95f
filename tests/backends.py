"""What a pool can run on, and in what that makes a difference: ``docs/backends.md``, for tests."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import mpkit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: What each of them is given besides ``workers``, and what a pool on an executor refuses.
POOL_OPTIONS: dict[str, Any] = {
    "initializer": abs,
    "tasks_per_worker": 2,
    "context": "spawn",
    "memory_limit": 10**12,
    "memory_hard_limit": 10**12,
    "finalizer": os.getpid,
    "shared": {"a": 1},
    "log": True,
    "capture": True,
    "threads_per_worker": 1,
}
TASK_OPTIONS: dict[str, Any] = {"timeout": 60.0, "priority": 1, "backoff": 0.001}


@dataclass(frozen=True)
class Kind:
    """One of them. The usual values are those of workers."""

    name: str
    #: Where tasks run: in other processes, and so ahead of who waits for them.
    elsewhere: bool = True
    #: Whether they begin before anybody waits for them, and several at a time.
    ahead: bool = True
    #: Whether a task has a copy of its arguments, and its caller one of the result.
    copies: bool = True
    #: Whether what cannot travel is told by the call, and not by the task.
    checks_at_the_call: bool = True
    #: Whether the exception of a task has a traceback as its last cause.
    tells_traceback: bool = True
    #: Whether it can be ended that a task runs.
    stops: bool = True
    #: Options that it has no means for.
    refused: frozenset[str] = field(default_factory=frozenset)
    executor: Callable[[int], Executor] | None = None
    #: Whether it runs on a cluster of Dask; and what gives a client of one with so many workers.
    on_dask: bool = False
    client: Callable[[int], contextlib.AbstractContextManager[Any]] | None = None

    @contextlib.contextmanager
    def pool(self, workers: int = 2, **options: Any) -> Iterator[mpkit.TaskPool]:
        """Return a pool of this kind; leave it and its executor."""
        if self.on_dask:
            from mpkit.dask import TaskPool  # here, lest all tests import it

            assert self.client is not None
            with self.client(workers) as client, TaskPool(client=client, **options) as pool:
                yield pool
        elif self.executor is None:
            with mpkit.TaskPool(workers if self.elsewhere else 0, **options) as pool:
                yield pool
        else:
            with self.executor(workers) as executor:
                with mpkit.TaskPool(on=executor, **options) as pool:
                    yield pool


def _processes(workers: int) -> Executor:
    return ProcessPoolExecutor(workers, multiprocessing.get_context())


_NO_MEANS = frozenset({*POOL_OPTIONS, *TASK_OPTIONS})

KINDS = {
    kind.name: kind
    for kind in (
        Kind("workers"),
        Kind("inline", elsewhere=False, ahead=False, stops=False),
        Kind(
            "threads",
            elsewhere=False,
            copies=False,
            checks_at_the_call=False,
            tells_traceback=False,
            stops=False,
            refused=_NO_MEANS,
            executor=ThreadPoolExecutor,
        ),
        Kind(
            "processes",
            checks_at_the_call=False,
            stops=False,
            refused=_NO_MEANS,
            executor=_processes,
        ),
        # (Its workers have no nanny here, so that nobody would replace one.)
        Kind("dask", stops=False, refused=frozenset({*POOL_OPTIONS} - {"shared"}), on_dask=True),
    )
}

#: With the start methods that make a difference for it. (To fork is no good idea for an executor
#: whose threads are there already.)
CASES = [
    ("workers", "fork"),
    ("workers", "forkserver"),
    ("workers", "spawn"),
    ("inline", "fork"),
    ("inline", "spawn"),
    ("threads", "spawn"),
    ("processes", "forkserver"),
    ("processes", "spawn"),
    ("dask", "spawn"),
]
