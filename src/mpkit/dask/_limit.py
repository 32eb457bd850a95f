"""limit() and Semaphore on a Dask cluster: at most so many at once, on all its machines.

What the scheduler and this process know of slots is in `_leases`. Here is what they mean to a
caller, and by which name a semaphore goes: only that, and the number of slots, travel.
"""

from __future__ import annotations

import math
import os
import sys
import threading
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, TypeVar

from mpkit import _wait
from mpkit._decorated import decorated
from mpkit._errors import LeaseLost, LimitTimeout, SchedulerLost
from mpkit._semaphore import check_slots, current_task, line
from mpkit._signal import check_name
from mpkit.dask._leases import leases_of, read_label
from mpkit.dask._loop import ask, ask_async, check_client, client_again, ended, lost
from mpkit.dask._site import site, site_key

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

    from distributed import Client

    from mpkit.dask._leases import Leases

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class Holder(NamedTuple):
    """Who holds a slot: ``pid`` on the machine ``host``, and the ``process``, ``since`` when.

    ``process`` is a worker's address, or the id of the client of a program. ``since`` is in
    seconds as by `time.time` there, and for one who had to wait it may be a fifth of a lease
    too early. Of somebody who uses Dask's own `distributed.Semaphore` by the name of ours only
    that is known: ``pid`` is -1, ``since`` is NaN.
    """

    pid: int
    process: str
    since: float
    host: str


class Semaphore:
    """So many slots for a whole Dask cluster; those of a dead holder are free when its lease ends.

    That is, with Dask's settings, 24 to 40 seconds after its death. A worker that is killed or
    cut off keeps its slots until the scheduler has heard nothing of them for longer than
    ``distributed.scheduler.locks.lease-timeout`` (30 s; who holds a slot renews it five times in
    that time), and then looks, which it does every ``lease-validation-interval`` (10 s). As long
    as no lease of a living holder ends, there are never more than ``slots`` inside. But one that
    *lives* and gives no sign for so long (it was stopped, or cut off, or runs C code that keeps
    the interpreter's lock) loses its slot to the next, and until it leaves both are inside. It is
    told when it leaves: `LeaseLost`. Who is killed while he waits may take a slot with him, too,
    for a fifth of a lease longer.

    Otherwise as `mpkit.Semaphore`, and as easily pickled: as an argument of a task or a job, in
    a closure, through a `channel`. Without a ``name`` it is one of its own, shared by those who
    got it from somebody; with a name it is shared by all programs that use the same scheduler
    and give the same name. To share one without passing it around see `limit`.

    To make one asks nobody. The scheduler learns of it when it is first used, by a program or in
    a task, and keeps its name and its number of slots for as long as it runs.

    It is a ``with`` block (also ``async with``) and a decorator for functions (``def`` and
    ``async def``), which holds a slot during each call. It is not re-entrant: who acquires
    twice holds two slots. Who waits is not served in the order of arrival.

    Each call waits for the scheduler's answer, a millisecond or more. So in a coroutine use
    ``async with`` or `acquire_async`: to wait in the event loop of the client or of the worker is
    a RuntimeError. A forked child needs a client of its own.

    Args:
        slots: how many may be held at once, 1 to 1,000,000.
        name: letters, digits and ``_.:@+-``; None for one of its own.
        client: a `distributed.Client` or the address of a scheduler; None for the current
            client, which in a task is its worker's. It is looked for at each use, and
            does not travel.

    Raises:
        LimitMismatch: when it is used: it is known with another number of slots.
        SchedulerLost: when it is used: the scheduler cannot be asked.
        RuntimeError: when it is used: there is no current client.

    Example:
        >>> import mpkit.dask as mpkit
        >>> semaphore = mpkit.Semaphore(2, name="db")
        >>> with semaphore:  # doctest: +SKIP
        ...     semaphore.available
        1

    """

    def __init__(
        self, slots: int, *, name: str | None = None, client: Client | str | None = None
    ) -> None:
        check_slots(slots)
        check_client(client)
        if name is None:
            frame = sys._getframe(1)
            place = f"Semaphore made at {line(frame)}"
            self._set_up(slots, f"one-{os.urandom(8).hex()}", place, None, client)
        else:
            check_name(name)
            self._set_up(slots, f"name-{name}", f"limit {name!r}", None, client)

    @classmethod
    def _of(
        cls,
        slots: int,
        key: str,
        place: str,
        timeout: float | None,
        client: Client | str | None = None,
    ) -> Self:
        """Return that one; also unpickles."""
        semaphore = cls.__new__(cls)
        semaphore._set_up(slots, key, place, timeout, client)
        return semaphore

    def _set_up(
        self,
        slots: int,
        key: str,
        place: str,
        timeout: float | None,
        client: Client | str | None,
    ) -> None:
        self._count = slots
        self._key = key
        self._place = place
        self._timeout = timeout
        self._given = client
        #: The client that was used last: who took a slot through it gives it back through it.
        self._client: Client | None = None
        # In the loop of that client.
        self._leases: Leases | None = None

    @property
    def slots(self) -> int:
        """How many slots there are, free or not."""
        return self._count

    @property
    def available(self) -> int:
        """How many slots are free at this moment, as the scheduler knows."""
        client = self._found()
        return ask(client, lambda: self._free(client))

    @property
    def key(self) -> str:
        """The name that it is shared by, or a hash of the call site."""
        return self._key.partition("-")[2]

    def acquire(self, block: bool = True, timeout: float | None = None) -> bool:
        """Take a slot; tell whether that worked.

        Blocks while none is free, for ``timeout`` seconds at most, and for the time that the
        scheduler takes to answer. In a coroutine use `acquire_async`.

        Args:
            block: False only looks, and takes a slot if one is free.
            timeout: seconds to wait; None waits for ever, 0 only looks.

        Raises:
            LimitMismatch: it is known with another number of slots.
            SchedulerLost: the scheduler cannot be asked. If it is there but silent, then after
                ``timeout`` and ``distributed.comm.timeouts.connect`` (30 s); never, without a
                ``timeout``, for as long as the connection stands.
            WouldDeadlock: this thread holds all slots, and would wait for ever.

        """
        _wait.check_timeout(timeout)
        client, owner, wait = self._found(), threading.get_ident(), timeout if block else 0
        return ask(client, lambda: self._take(client, owner, wait), self._give_back(owner))

    async def acquire_async(self, timeout: float | None = None) -> bool:
        """Take a slot; tell whether that worked. As `acquire`, without blocking the event loop.

        The slot belongs to the task. A task that is cancelled while it waits takes nothing.

        Args:
            timeout: seconds to wait; None waits for ever, 0 only looks.

        Raises:
            LimitMismatch: it is known with another number of slots.
            SchedulerLost: the scheduler cannot be asked.
            WouldDeadlock: this task holds all slots, and would wait for ever.

        """
        _wait.check_timeout(timeout)
        client, owner = self._found(), current_task()
        return await ask_async(
            client, lambda: self._take(client, owner, timeout), self._give_back(owner)
        )

    def release(self) -> None:
        """Give a slot back, from any thread or task of the process that holds it.

        Raises:
            LeaseLost: another may have held the slot, too. It has been given back.
            SchedulerLost: the scheduler cannot be asked. It takes the slot back when the
                lease ends.
            ValueError: this process holds none: it released too often, or another
                process is the holder.

        """
        client, owners = self._used(), (threading.get_ident(), current_task())
        ask(client, lambda: self._give(client, *owners))

    def __enter__(self) -> Self:
        if not self.acquire(True, self._timeout):
            raise self._too_late()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        client, owner = self._used(), threading.get_ident()
        with _Beside(error):
            ask(client, lambda: self._give(client, owner))

    async def __aenter__(self) -> Self:
        if not await self.acquire_async(self._timeout):
            raise self._too_late()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        client, owner = self._used(), current_task()
        with _Beside(error):
            await ask_async(client, lambda: self._give(client, owner))

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """Decorate ``function``: each call of it holds a slot.

        Raises:
            TypeError: it is a generator function, whose body runs after the call.

        """
        return decorated(function, self)

    def holders(self) -> list[Holder]:
        """Return who holds slots at this moment, an entry for each slot, as the scheduler knows.

        A dead holder is among them until its lease ends. The scheduler is asked by running a
        function on it (`distributed.Client.run_on_scheduler`), which it can forbid.

        """
        client = self._found()
        return ask(client, lambda: self._holders(client))

    def __reduce__(self) -> tuple[Callable[..., Semaphore], tuple[object, ...]]:
        return Semaphore._of, (self._count, self._key, self._place, self._timeout)

    def __repr__(self) -> str:
        return f"<{self._place}: {self._count} slots, on a Dask cluster>"

    def _too_late(self) -> LimitTimeout:
        return LimitTimeout(self._place, self._count, self._timeout or 0.0)

    def _found(self) -> Client:
        client = client_again(self._client, self._given)
        if client is not self._client:
            self._client, self._leases = client, None
        return client

    def _used(self) -> Client:
        """Return the client by which a slot was taken, if this object knows."""
        if self._client is not None and ended(self._client):
            raise lost(
                self._client, f"a slot of {self._place} was not given back", "the client was closed"
            )
        return self._found()

    # What follows runs in the loop of the client.

    async def _opened(self, client: Client) -> Leases:
        if self._leases is None:
            found: Any = client
            await found  # one for asyncio may be just connecting
            self._leases = leases_of(client, self._key, self._count, self._place)
        await self._leases.open(client, self._count, self._place)
        return self._leases

    async def _take(self, client: Client, owner: object, timeout: float | None) -> bool:
        leases = await self._opened(client)
        return await leases.take(client, owner, timeout)

    async def _give(self, client: Client, *owners: object) -> None:
        leases = await self._opened(client)
        await leases.give(client, owners)

    def _give_back(self, owner: object) -> Callable[[bool], None]:
        def undo(taken: bool) -> None:
            if taken and self._leases is not None:
                self._leases.give_back(owner)

        return undo

    async def _free(self, client: Client) -> int:
        leases = await self._opened(client)
        # It may be overbooked.
        return max(0, self._count - await leases.count(client))

    async def _holders(self, client: Client) -> list[Holder]:
        leases = await self._opened(client)
        return [_holder(noted) for noted in await leases.labels(client)]


def limit(
    slots: int,
    *,
    name: str | None = None,
    timeout: float | None = None,
    client: Client | str | None = None,
) -> Semaphore:
    """Let at most ``slots`` run a block or a function at once, on a whole Dask cluster.

    A holder that is killed or cut off keeps its slot until its lease ends, 24 to 40 seconds with
    Dask's settings. One that lives, but gives no sign for so long, loses its slot to the next, and
    is told by `LeaseLost` when it leaves. See `Semaphore` for that, and for all else.

    ``with mpkit.limit(4):`` needs nothing passed around: whoever runs *this line* shares the same
    four slots, in a task on whatever worker, in a job or in the program itself, and no other line
    does. With a ``name`` all share them who give the same name. In either case these are all who
    use the same *scheduler*, be it one program or several.

    A line is told by the name of its module (``__main__`` for the program), its function, its
    place in it, and what the code of the function is. So files may lie elsewhere on each host, and
    functions may come by value (cloudpickle). Python and its options for optimizing must be the
    same everywhere. After an edit of the function it is another line: the limit of a changed
    program is not in conflict with what the scheduler still knows. Two programs that have the
    same function in the same line share its limit.

    Args:
        slots: how many may run it at once, 1 to 1,000,000.
        name: letters, digits and ``_.:@+-``; None for this place in the program.
        timeout: seconds for which ``with`` waits for a slot; None waits for ever.
        client: a `distributed.Client` or the address of a scheduler; None for the current
            client, which in a task is its worker's.

    Raises:
        LimitMismatch: from ``with``: the scheduler knows it with another number of slots. It does
            for as long as it runs.
        LimitTimeout: from ``with``: no slot became free within ``timeout``.
        LeaseLost: at the end of ``with``: another may have held the slot, too. (If the block
            raises something, then that has this as a note.)
        SchedulerLost: the scheduler cannot be asked.
        WouldDeadlock: from ``with``: this thread holds all slots, and would wait for ever.

    Example:
        >>> import mpkit.dask as mpkit
        >>> def fetch(n: int) -> int:
        ...     with mpkit.limit(2):
        ...         return n * n
        >>> client.submit(fetch, 3).result()  # doctest: +SKIP
        9

    """
    check_slots(slots)
    _wait.check_timeout(timeout)
    check_client(client)
    if name is not None:
        check_name(name)
        return Semaphore._of(slots, f"name-{name}", f"limit {name!r}", timeout, client)
    frame = sys._getframe(1)
    key, place = f"site-{site_key(frame)}", f"limit at {site(frame)}"
    return Semaphore._of(slots, key, place, timeout, client)


def _holder(noted: str) -> Holder:
    told = read_label(noted)
    return Holder(-1, "distributed.Semaphore", math.nan, "") if told is None else Holder(*told)


class _Beside:
    """Has the error of leaving a block not hide that of the block, which gets it as a note."""

    def __init__(self, error: BaseException | None) -> None:
        self._error = error

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> bool:
        if self._error is None or not isinstance(error, (LeaseLost, SchedulerLost)):
            return False
        self._error.add_note(f"{type(error).__name__}: {error}")
        return True
