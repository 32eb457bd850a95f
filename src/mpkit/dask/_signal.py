"""Signal on a Dask cluster: a flag that the scheduler keeps, a `distributed.Event`.

What that leaves open is here. Each wait takes one of the client's 512 connections, so that as
many that wait would keep everybody from setting what they wait for: those of a process who wait
for the same signal share one. And the scheduler goes on with the wait of a process that is dead,
for ever if the signal is never set: so nobody asks for longer than a minute, and then asks again.
"""

from __future__ import annotations

import asyncio
import os
import weakref
from typing import TYPE_CHECKING, Any, Final

from mpkit import _wait
from mpkit._signal import check_name
from mpkit.dask._client import dask_distributed
from mpkit.dask._loop import ask, ask_async, asking, check_client, client_again, patience

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from distributed import Client

#: For how many seconds to ask. It is for this long that the scheduler remembers who died.
_ASK_FOR: Final = 60.0


class Signal:
    """A flag that any process of a Dask cluster can set, clear and wait for.

    The scheduler keeps it. A worker that dies takes nothing with it, whatever it was doing. With
    the scheduler the flag is gone, and whoever waits for it is told at once: `SchedulerLost`.

    Otherwise as `mpkit.Signal`, and as easily pickled: as an argument of a task or a job, in
    a closure, through a `channel`. What is promised of `wait` there is promised here, of the
    moments at which the scheduler deals with the calls. It has no ``fileno``: no descriptor of
    this machine knows of it, so it is nothing for `mpkit.wait` or `selectors`. And `set` waits for
    the scheduler's answer, so it does not belong in a signal handler.

    Each call waits for that, a millisecond or more. So in a coroutine use ``await signal`` and
    ``await asyncio.to_thread(signal.set)``: to wait in the event loop of the client or of the
    worker is a RuntimeError. A forked child needs a client of its own. Thousands may wait in a
    process: those who wait for the same signal share one connection.

    The scheduler keeps a signal for as long as it is set or somebody waits for it.

    Args:
        name: shared by all programs that use the same scheduler and give the same name
            (letters, digits and ``_.:@+-``); None makes a signal of its own.
        client: a `distributed.Client` or the address of a scheduler; None for the current
            client, which in a task is its worker's. It is looked for at each use, and
            does not travel.

    Raises:
        SchedulerLost: when it is used: the scheduler cannot be asked.
        RuntimeError: when it is used: there is no current client.

    Example:
        >>> import mpkit.dask as mpkit
        >>> done = mpkit.Signal(name="done")
        >>> done.set()  # doctest: +SKIP
        >>> done.wait(timeout=5)  # doctest: +SKIP
        True

    """

    def __init__(self, *, name: str | None = None, client: Client | str | None = None) -> None:
        check_client(client)
        if name is not None:
            check_name(name)
        self._set_up(f"one-{os.urandom(8).hex()}" if name is None else f"name-{name}", client)

    @classmethod
    def _of(cls, key: str) -> Signal:
        """Unpickle: the same one by the same name."""
        signal = cls.__new__(cls)
        signal._set_up(key, None)
        return signal

    def _set_up(self, key: str, client: Client | str | None) -> None:
        self._key = key
        self._given = client
        self._client: Client | None = None

    def set(self) -> None:
        """Set it: all who wait go on. Returns when the scheduler has done it.

        Raises:
            SchedulerLost: the scheduler cannot be asked.

        """
        client = self._found()
        ask(client, lambda: _asked(client, self._key, "set"))

    def clear(self) -> None:
        """Unset it: who waits from now on, waits for the next `set`.

        Raises:
            SchedulerLost: the scheduler cannot be asked.

        """
        client = self._found()
        ask(client, lambda: _asked(client, self._key, "clear"))

    def is_set(self) -> bool:
        """Tell whether it is set.

        Raises:
            SchedulerLost: the scheduler cannot be asked.

        """
        client = self._found()
        return ask(client, lambda: _is_set(client, self._key))

    def wait(self, timeout: float | None = None) -> bool:
        """Block until it is set, for ``timeout`` seconds at most; tell whether it was set.

        Args:
            timeout: seconds to wait; None waits for ever, 0 only looks. The time that the
                scheduler takes to answer comes on top.

        Raises:
            SchedulerLost: the scheduler cannot be asked. If it is there but silent, then after
                ``timeout`` and ``distributed.comm.timeouts.connect`` (30 s); never, without a
                ``timeout``, for as long as the connection stands.

        """
        _wait.check_timeout(timeout)
        client = self._found()
        return ask(client, lambda: _wait_for(client, self._key, timeout))

    def __await__(self) -> Generator[Any, None, bool]:
        return self._wait_async().__await__()

    async def _wait_async(self) -> bool:
        client = self._found()
        return await ask_async(client, lambda: _wait_for(client, self._key, None))

    def _found(self) -> Client:
        self._client = client_again(self._client, self._given)
        return self._client

    def __reduce__(self) -> tuple[Callable[..., Signal], tuple[object, ...]]:
        return Signal._of, (self._key,)

    def __repr__(self) -> str:
        kind, _, name = self._key.partition("-")
        return f"<Signal {name if kind == 'one' else repr(name)}, on a Dask cluster>"


# What follows runs in the loop of the client.


async def _asked(client: Client, key: str, method: str, **options: object) -> Any:
    """Call a method of Dask's event."""
    found: Any = client
    with asking(client, f"the signal was not asked to {method}"):
        await found  # one for asyncio may be just connecting
        event = dask_distributed().Event(f"mpkit-{key}", client=client)
        return await getattr(event, method)(**options)


async def _is_set(client: Client, key: str) -> bool:
    return bool(await _asked(client, key, "is_set"))


async def _wait_for(client: Client, key: str, timeout: float | None) -> bool:
    if timeout == 0:
        return await _is_set(client, key)
    try:
        async with asyncio.timeout(_wait.Deadline(timeout).left()):
            await _crowd(client, key).wait()
        return True
    except TimeoutError:
        pass
    # One more look, which begins after the time is up. It has to end, too.
    with asking(client, "it is not known whether the signal is set"):
        async with asyncio.timeout(patience()):
            return await _is_set(client, key)


class _Crowd:
    """Those of this process who wait for the same signal through the same client."""

    def __init__(self, client: Client, key: str) -> None:
        self._client = client
        self._key = key
        self._waiting: set[asyncio.Future[None]] = set()
        self._asking: asyncio.Task[None] | None = None

    async def wait(self) -> None:
        """Return once it was set at a moment after this was called."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.add(waiter)
        if self._asking is None:
            self._asking = asyncio.ensure_future(self._ask())
        try:
            await waiter
        finally:
            self._waiting.discard(waiter)

    async def _ask(self) -> None:
        try:
            while self._waiting:
                # Who comes while the answer is on its way asks again: what it tells of may
                # have been before he came.
                asked = set(self._waiting)
                if await _asked(self._client, self._key, "wait", timeout=_ASK_FOR):
                    self._waiting -= asked
                    for waiter in asked:
                        if not waiter.done():
                            waiter.set_result(None)
        except Exception as error:  # noqa: BLE001  passed on to those whom it concerns
            for waiter in self._waiting:
                if not waiter.done():
                    waiter.set_exception(error)
        finally:
            # No await since the last look at who waits: nobody has come meanwhile.
            self._asking = None
            _crowds[self._client].pop(self._key, None)


#: Those who wait, as long as there are any.
_crowds: weakref.WeakKeyDictionary[Client, dict[str, _Crowd]] = weakref.WeakKeyDictionary()


def _crowd(client: Client, key: str) -> _Crowd:
    crowds = _crowds.setdefault(client, {})
    return crowds.get(key) or crowds.setdefault(key, _Crowd(client, key))
