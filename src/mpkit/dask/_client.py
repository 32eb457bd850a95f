"""The connection to a cluster: one that was given, one to an address, or the current one."""

from __future__ import annotations

import os
import threading
import weakref
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distributed import Client

_INSTALL = 'pip install "mpkit[dask]"'

#: Which process uses a client.
_users: weakref.WeakKeyDictionary[Client, int] = weakref.WeakKeyDictionary()


def client_of(given: Client | str | None, *, for_asyncio: bool = False) -> Client:
    """Return the client that was given, one that is new for an address, or the current one.

    In a task on a worker the current one is the worker's. Who gives an address has to close
    what is returned. (It does not become the current one.) One that is for asyncio is good
    for those only who do not wait in its loop: ``for_asyncio``.

    Raises:
        ImportError: `distributed` is not installed.
        OSError: there is no scheduler at the address.
        RuntimeError: there is no current client; or it is that of the parent, from which this
            process was forked.
        TypeError: this is neither a client nor an address.
        ValueError: the client was closed, or is for asyncio.

    """
    distributed = dask_distributed()
    if isinstance(given, str):
        opened: Client = distributed.Client(given, set_as_default=False)
        _users[opened] = os.getpid()
        return opened
    client: Any = _current(distributed) if given is None else given
    if not isinstance(client, distributed.Client):
        raise TypeError(f"client is a dask.distributed Client or an address, not {client!r}")
    if client.asynchronous and not for_asyncio:
        raise ValueError(
            f"{client!r} is for asyncio, and here are calls that wait: give one that was made "
            "without asynchronous=True, and not in a coroutine"
        )
    if client.status in ("closing", "closed"):
        raise ValueError(f"{client!r} was closed: give one that is running")
    found: Client = client
    if not client.asynchronous:
        check_process(found)
    _users.setdefault(found, os.getpid())
    return found


def check_process(client: Client) -> None:
    """Raise in a forked child, where nobody runs the event loop of its parent's client.

    For a thread that does not run that loop itself. So somebody else has to; of a fork only one
    thread is left.
    """
    if _users.get(client) not in (None, os.getpid()) or threading.active_count() == 1:
        raise RuntimeError(
            f"{client!r} is of the process that has forked this one, where its connection and "
            "its threads are: make a Client here"
        )


def secede() -> bool:
    """Have other tasks run in place of the one of Dask that runs this, which is to wait for some.

    Tells whether there is one, and its thread is to `rejoin` when it has waited. Without that,
    tasks that wait for others could have all threads of a cluster.
    """
    distributed = dask_distributed()
    try:
        distributed.secede()
    # In this order: no task of Dask's runs this; it is a coroutine; it has seceded before.
    except (ValueError, AttributeError, KeyError):
        return False
    return True


def rejoin() -> None:
    """Be one of the worker's threads again, as soon as another one has done with its task."""
    dask_distributed().rejoin()


def dask_distributed() -> Any:
    """Return the module `distributed`, which has few types, or say how to install it."""
    try:
        import distributed  # noqa: PLC0415  an extra; and slow to import
    except ImportError as error:
        raise ImportError(f"mpkit.dask needs dask.distributed: {_INSTALL}") from error
    return distributed


def _current(distributed: Any) -> Any:
    try:
        return distributed.get_client()
    except ValueError as error:
        raise RuntimeError(
            "there is no current dask.distributed Client: make one, or give client= one, or "
            "the address of a scheduler"
        ) from error
