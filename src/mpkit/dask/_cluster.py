"""`Cluster`: what a pool says to a Dask cluster, and hears from it.

Packets go as tasks of Dask. What becomes of their calls comes as events, through the `Claims` in
the scheduler; and that a packet is over, or cannot be run, from Dask itself. All that is heard
is put into a mailbox by the client's event loop, which does nothing else for us.
"""

from __future__ import annotations

import asyncio
import itertools
import pickle
import uuid
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from mpkit.dask import _arrival, _claims, _packet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from distributed import Client

    from mpkit.dask._loads import Large

#: Seconds to wait for an answer of the scheduler, which has to do no more than to look. (As long
#: as Dask itself waits for a connection.)
_PATIENCE: Final = 30.0

#: How many large arguments stay on the cluster that no task has just now: the next call may have
#: the same. (Arbitrary.)
_MOST_IDLE: Final = 8


class Ended(NamedTuple):
    """Dask has done with a packet: how it failed, or what it returned."""

    number: int
    error: BaseException | None
    outcomes: list[_packet.Outcome] | None


class _Kept:
    """Something large on the cluster, and how many packets have it."""

    def __init__(self, future: Any) -> None:
        self.future = future
        self.users = 0

    @property
    def is_there(self) -> bool:
        """Whether some worker still has it, as far as the client has heard."""
        return bool(self.future.status == "finished")


class Cluster:
    """A pool's side of a Dask client. One thread uses it, but where it says so."""

    def __init__(
        self, client: Client, heard: Callable[[Any], None], shared: list[bytes] | None
    ) -> None:
        """Events of `Claims` (dictionaries) and `Ended` are told to ``heard``, by the event loop.

        ``shared`` is what all tasks share, pickled.
        """
        self._client: Any = client
        #: The address of its scheduler, for errors. (A client that was closed has none.)
        self.scheduler = str(getattr(self._client.scheduler, "address", "") or "of the client")
        self._heard = heard
        self.name = f"mpkit-{uuid.uuid4().hex}"
        #: Packets of which outcomes have to be fetched. Of the event loop.
        self._to_fetch: set[int] = set()
        #: By digest; those that were used last are at the end.
        self._kept: dict[bytes, _Kept] = {}
        self._numbers = itertools.count()
        self.shared = shared
        self._shared_there: _Kept | None = None

    def open(self) -> dict[str, int]:
        """Make the pool known; return how large the cluster is."""
        try:
            self._client.register_plugin(_claims.Claims())
        except ModuleNotFoundError as error:
            raise RuntimeError(
                f"the scheduler at {self.scheduler} cannot import {error.name}: install mpkit "
                "where the scheduler runs, and on all workers"
            ) from error
        self._client.subscribe_topic(self.name, self._told)
        sizes: dict[str, int] = self._ask("open", client=self._client.id)
        return sizes

    def close(self) -> list[int]:
        """Have no more packets begin; return those that run. Raises OSError for no scheduler."""
        running: list[int] = self._ask("end")
        return running

    def forget(self) -> None:
        """Hear nothing any more, and have Dask free all there is of the pool."""
        self._kept.clear()
        self._shared_there = None
        if self.is_up():
            self._client.unsubscribe_topic(self.name)

    def close_client(self) -> None:
        """Close the connection, with its threads."""
        self._client.close()

    def is_up(self) -> bool:
        """Tell whether there is a connection. Any thread may ask."""
        return bool(self._client.status == "running")

    def in_event_loop(self) -> bool:
        """Tell whether the calling thread is the client's event loop."""
        return bool(self._client.asynchronous)

    def send(
        self,
        number: int,
        packet: _packet.Packet,
        larges: Sequence[Large],
        priority: int,
        workers: Sequence[str],
    ) -> Any:
        """Have Dask run a packet, with what does not lie in it; rather on ``workers``, if there are."""
        beside = [self._share()] if packet.shares else []
        kept: list[Large] = []
        try:
            for large in larges:
                beside.append(self._keep(large))
                kept.append(large)
            future: Any = self._client.submit(
                _arrival.enter,
                self.name,
                number,
                pickle.dumps(packet, 5),
                *beside,
                key=(self.name, number),
                priority=priority,
                workers=list(workers) or None,
                allow_other_workers=bool(workers),
                pure=False,
            )
        except BaseException:
            self.let_go(kept)
            raise
        loop: Any = self._client.loop
        asyncio.run_coroutine_threadsafe(self._watch(number, future), loop.asyncio_loop)
        return future

    def let_go(self, larges: Iterable[Large]) -> None:
        """A packet is over that had these."""
        for large in larges:
            self._kept[large.digest].users -= 1
        idle = [digest for digest, kept in self._kept.items() if not kept.users]
        for digest in idle[:-_MOST_IDLE]:
            del self._kept[digest]  # Dask frees what no future refers to

    def _keep(self, large: Large) -> Any:
        kept = self._kept.pop(large.digest, None)
        if kept is None or not kept.is_there:
            users = 0 if kept is None else kept.users
            kept = _Kept(self._put(large.data))
            kept.users = users
        self._kept[large.digest] = kept
        kept.users += 1
        return kept.future

    def _share(self) -> Any:
        if self._shared_there is None or not self._shared_there.is_there:
            self._shared_there = _Kept(self._put(_packet.SharedThere(self.shared or [])))
        return self._shared_there.future

    def _put(self, thing: bytes | _packet.SharedThere) -> Any:
        key = f"{self.name}-{next(self._numbers)}"
        future: Any = self._client.scatter({key: thing}, hash=False)[key]
        return future

    def withdraw(self, number: int) -> bool | None:
        """Take a packet back, if no worker has claimed it. Any thread may.

        Returns None if the scheduler has forgotten the pool. Raises OSError for no scheduler.
        """
        withdrawn: bool | None = self._ask("withdraw", number=number)
        return withdrawn

    def _ask(self, what: str, **arguments: Any) -> Any:
        if not self.is_up():
            raise ConnectionError(f"the Dask client is {self._client.status}")
        call = getattr(self._client.scheduler, f"{_claims.NAME}-{what}")
        return self._client.sync(
            call, pool=self.name, **arguments, callback_timeout=_PATIENCE, asynchronous=False
        )

    # the event loop

    def _told(self, event: tuple[float, dict[str, Any]]) -> None:
        what = event[1]
        if what.get("fetch"):
            self._to_fetch.add(what["number"])
        self._heard(what)

    async def _watch(self, number: int, future: Any) -> None:
        outcomes: list[_packet.Outcome] | None = None
        try:
            error = await future.exception()
            # The report has come before that: it went the same way. (And of a future that was
            # cancelled, as all are when the connection is lost, `exception` says nothing.)
            if error is None and (number in self._to_fetch or future.cancelled()):
                outcomes = await future
        except BaseException as failure:
            self._heard(Ended(number, failure, None))
            if not isinstance(failure, Exception):  # the loop itself ends
                raise
        else:
            self._heard(Ended(number, error, outcomes))
        finally:
            self._to_fetch.discard(number)
