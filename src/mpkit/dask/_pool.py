"""`TaskPool` on a Dask cluster: the facade of the pool on one machine, with another backend."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any, NoReturn

import mpkit
from mpkit._engine.settings import settled
from mpkit.dask._client import client_of, rejoin, secede
from mpkit.dask._engine import DaskEngine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from multiprocessing.context import BaseContext

    from distributed import Client
    from typing_extensions import Unpack

    from mpkit._engine.settings import PoolSettings
    from mpkit._watch.report import Report
    from mpkit._watch.stats import Stats
    from mpkit._watch.trace import Trace


class TaskPool(mpkit.TaskPool):
    """A pool whose workers are those of a Dask cluster: as `mpkit.TaskPool`, on many machines.

    What it takes as arguments beyond ``client`` is what `mpkit.TaskPool` takes, and the methods
    are the same. Short calls are sent many at a time, by how long those before them took. Large
    arguments (from 1 MiB) are sent to the cluster once, however many calls have equal ones.

    A task whose worker dies fails with `WorkerDied`, and is not run again unless ``retries`` says
    so, whatever Dask does with tasks of its own; one with which no worker had begun runs
    elsewhere. With a worker, of each of its threads the calls are lost that went to it together
    and were not reported: short ones, of some 20 ms in all, or one that takes longer. A worker that
    leaves is like one that dies. (Adaptive clusters let those leave that have nothing to do; but they
    do not grow by what waits in a pool, which they do not see: give them a ``minimum``.) One that
    is cut off from the scheduler is dead to the pool when it is to Dask (see
    ``distributed.scheduler.worker-ttl``). What it still reports is not heard; but what it runs may go
    on, and with ``retries`` run a second time meanwhile.

    Args:
        workers: how many calls run at a time at most; None is as many as the cluster has threads.
        initializer: refused, as all that a process is given from its start: give it to Dask's
            workers.
        initargs: likewise.
        tasks_per_worker: likewise.
        context: likewise.
        client: a `distributed.Client`, which is not closed with the pool; or the address of a
            scheduler; None is the current client, which in a task is its worker's. (A task of Dask
            that makes a pool secedes until that ends: another one may have its thread.)
        **settings: ``shared``, ``options``, and the options of `options` one by one. A ``timeout`` ends the
            worker if that has one thread, a nanny that replaces it, and nothing of others that runs
            or is kept there; elsewhere the task fails, but its thread is busy until the call returns. ``seed`` is refused.

    Raises:
        ImportError: `distributed` is not installed.
        RuntimeError: there is no current client, or mpkit is not installed at the scheduler.
        OSError: there is no scheduler at the address.
        TypeError: an argument is of the wrong type.
        ValueError: an argument makes no sense, or a cluster has no means for it.
        NotPicklable: ``shared`` cannot travel.

    Example:
        >>> import mpkit.dask as mpkit
        >>> from distributed import LocalCluster
        >>> cluster = LocalCluster(n_workers=1, processes=False, dashboard_address=":0")
        >>> with cluster, mpkit.TaskPool(client=cluster.scheduler_address) as pool:
        ...     pool.map(abs, [-1, -2, -3])
        [1, 2, 3]

    """

    def __init__(
        self,
        workers: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        tasks_per_worker: int | None = None,
        context: BaseContext | str | None = None,
        *,
        client: Client | str | None = None,
        **settings: Unpack[PoolSettings],
    ) -> None:
        shared = settings.pop("shared", None)
        made = settled(workers, initializer, initargs, tasks_per_worker, context, **settings)
        most = made.given["workers"]
        given = {**made.given, "workers": None, "on": made.on}
        for name, value in given.items():
            if value is not None:
                raise ValueError(
                    f"a pool on a cluster cannot honour {name}=: its workers are Dask's, and are "
                    "made, set up and replaced by that"
                )
        if most == 0:
            raise ValueError(
                "there is no cluster to a pool with workers=0: that is mpkit.TaskPool(0)"
            )
        found: Any = client_of(client)
        ours = isinstance(client, str)
        try:
            engine = DaskEngine(
                found, ours=ours, most=made.workers if most else None, shared=shared
            )
        except BaseException:
            if ours:
                found.close()
            raise
        self._engine = engine
        # By its thread, which has to rejoin.
        self._seceded = threading.get_ident() if secede() else None
        try:
            self._begin(engine, made.options)
        except BaseException:
            engine.terminate()
            engine.join(None)
            if self._seceded is not None:
                rejoin()
            raise

    def join(self, timeout: float | None = None) -> bool:
        """As `mpkit.TaskPool.join`. In a task, this waits for a thread of its worker, too."""
        over = super().join(timeout)
        if over and self._seceded == threading.get_ident():
            self._seceded = None
            rejoin()
        return over

    def stats(self) -> Stats:
        """As `mpkit.TaskPool.stats`; a worker is one thread of a Dask worker that has run something.

        Times are by the clock of this process, as what happened was heard here. Nothing is known
        of the memory of workers.
        """
        return self._engine.lanes.stats()

    def trace(self, path: str | os.PathLike[str]) -> Trace:
        """Raise ValueError: what workers do is shown by Dask's dashboard."""
        self._refuse_to("trace")

    def report(self, path: str | os.PathLike[str]) -> Report:
        """Raise ValueError: what workers do is shown by Dask's dashboard."""
        self._refuse_to("report on")

    def _refuse_to(self, what: str) -> NoReturn:
        raise ValueError(
            f"a pool on a cluster cannot {what} its workers, which Dask's dashboard shows"
        )
