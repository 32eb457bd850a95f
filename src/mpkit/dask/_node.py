"""Where in a cluster this process is: a worker, or a client."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import weakref
from typing import TYPE_CHECKING, Any, Final

from mpkit.dask._client import check_process, client_of
from mpkit.dask._loop import asking, ended, runs_here

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator

    from distributed import Client, Worker

#: The operation by which one end of a channel comes to the worker that has the other one.
VISIT: Final = "mpkit_visit"


def dask(name: str) -> Any:
    """Return a module of Dask's, which has few types, and is imported when it is needed."""
    return importlib.import_module(name)


class Node:
    """The event loop of a worker or a client, and how that connects to others."""

    def __init__(self, owner: Any, address: str | None) -> None:
        self._owner = owner
        #: Where others can reach it, if it has a server of its own: a worker.
        self.address: str | None = address
        #: In which all of it happens.
        self.loop: asyncio.AbstractEventLoop = owner.loop.asyncio_loop
        self._role = "client" if address is None else "worker"

    @staticmethod
    def of_worker(worker: Worker) -> Node:
        """Return the place that a worker is."""
        return Node(worker, worker.address)

    @staticmethod
    def of_client(client: Client) -> Node:
        """Return the place that a client is."""
        return Node(client, None)

    async def connect(self, address: str) -> Any:
        """Return a connection to a server of the cluster, with its security."""
        return await dask("distributed.comm").connect(address, **self._owner.connection_args)

    async def connect_to_scheduler(self) -> Any:
        """Return a new connection to the scheduler."""
        return await self.connect(self._owner.scheduler.address)

    async def listen(self, handle: Callable[[Any], Awaitable[None]]) -> Any:
        """Return a listener, which has been started, where the scheduler can be reached from."""
        comm = dask("distributed.comm")
        address = comm.get_local_address_for(self._owner.scheduler.address)
        return await comm.listen(
            address, handle, **self._owner.security.get_listen_args(self._role)
        )

    @contextlib.contextmanager
    def cancelling(self, task: asyncio.Task[Any], ask: Callable[[], bool]) -> Generator[None]:
        """Cancel ``task`` if the client is closed in the block, and ``ask()`` is true then.

        That ends all by itself only if the client has a loop of its own: one that was made of a
        `LocalCluster` has the cluster's, which goes on. (A worker's end is told by the scheduler.)
        """
        # Dask has no hook for it: this is the task that hears the scheduler, as long as it is used.
        hearing: Any = getattr(self._owner, "_handle_report_task", None)

        def heard(_: object) -> None:
            if ended(self._owner) and ask():
                task.cancel()

        if hearing is not None:
            hearing.add_done_callback(heard)
        try:
            yield
        finally:
            if hearing is not None:
                hearing.remove_done_callback(heard)

    def receive(self, visited: Callable[[Any, str, int], Awaitable[Any]]) -> None:
        """Have the worker's server pass on who visits it."""
        if self.address is not None:
            self._owner.handlers[VISIT] = visited


def here(client: Client | None = None) -> Node:
    """Return the place of this thread in its cluster: its worker, or the client.

    Raises as `client_of` if it has none.
    """
    if client is None:
        worker = _worker()
        if worker is not None:
            return Node.of_worker(worker)
    return Node.of_client(client_of(client))


def _worker() -> Worker | None:
    worker = dask("distributed.worker")
    with contextlib.suppress(ValueError):
        found: Worker = worker.get_worker()
        return found
    # In a thread that a task has started, or in the finalizer of one's object. Several are in
    # one process in a LocalCluster without processes only: then any of them will do. But in such
    # a process the program has a client of its own, and is not any of the workers.
    with contextlib.suppress(ValueError):
        if dask("distributed").Client.current() not in worker.Worker._initialized_clients:
            return None
    running = [one for one in list(worker.Worker._instances) if one.status.name == "running"]
    return running[0] if running else None


#: The schedulers that have our plugin, by the clients that know it.
_prepared: weakref.WeakSet[Any] = weakref.WeakSet()


def have_broker(client: Client) -> None:
    """Have the scheduler of a client know of channels and jobs."""
    if client in _prepared:
        return
    from mpkit.dask import _broker  # noqa: PLC0415  only with `distributed`

    plugin: Any = _broker.Broker()
    try:
        with asking(client, "nothing was made"):
            client.register_plugin(plugin, name=_broker.NAME)  # pyright: ignore[reportUnknownMemberType]
    except ModuleNotFoundError as error:
        raise RuntimeError(
            f"the scheduler of {client!r} cannot import {error.name}: install mpkit where the "
            "scheduler runs, and on all workers"
        ) from error
    _prepared.add(client)


def check_thread(client: Any, what: str) -> None:
    """Raise where one would wait for ever: in the client's event loop, or in a forked child."""
    if runs_here(client):
        raise RuntimeError(
            f"{what} is waited for in the event loop of its client: await it, or use "
            "asyncio.to_thread"
        )
    check_process(client)
