"""A semaphore of Dask's, in a process that uses it: who holds what, and whether it still does.

The scheduler keeps the slots; `distributed.Semaphore` asks for them, renews what it has got
(five times in each lease) and gives it back. This adds what that leaves open:

* Who holds how many here, so that a release too many is told, and a wait for oneself.
* *One question at a time.* Each question that waits takes one of the client's 512 connections,
  so that as many that wait would keep everybody from giving back. Those who wait here stand in
  line for a question, and the scheduler sees one of them.
* *Short questions.* The scheduler goes on with the question of a process that is dead, and may
  give it a slot. So nobody asks for longer than between two renewals, and then asks again.
* *An answer that nobody waits for is given back* (a cancelled task, Ctrl-C).
* *No renewal overtakes a release.* The scheduler takes up again what is renewed, in case that
  it has forgotten it: so a slot that has just been given back would be gone for a lease.
* *A lease that has ended is told.* The scheduler tells nobody, but when it last can have
  heard of a slot is known here: not before the last renewal that it has answered was sent.

Everything here belongs to the event loop of the client, and runs in it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import socket
import time
import weakref
from typing import TYPE_CHECKING, Any, Final

from mpkit._errors import LeaseLost, LimitMismatch, WouldDeadlock
from mpkit._platform.clocks import seconds
from mpkit._wait import Deadline
from mpkit.dask._client import dask_distributed
from mpkit.dask._loop import asking, duration, ended, lost, patience

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from distributed import Client

_log = logging.getLogger("mpkit.dask")

#: For how many seconds to ask, if leases are long or do not end: as with Dask's 30 s.
_ASK_FOR_AT_MOST: Final = 6.0


class Holding:
    """A slot that somebody here holds."""

    def __init__(self, owner: object, heard: float) -> None:
        self.owner = owner
        #: When the scheduler can have heard of it last, at the earliest.
        self.heard = heard
        #: For how long it can have heard nothing before that, at the most.
        self.silence = 0.0


class Leases:
    """The slots of one semaphore that this process has through one client."""

    def __init__(self, client: Client, key: str, slots: int, place: str) -> None:
        """Have none yet. To be made in the loop of ``client``."""
        self.pid = os.getpid()
        #: For how long the scheduler keeps a slot of which it hears nothing. It has what the first
        #: one who used the semaphore was configured with.
        self._lease = duration("distributed.scheduler.locks.lease-timeout")
        self._ask_for = min(self._lease / 5, _ASK_FOR_AT_MOST)
        self._patience = patience()
        self._slots = slots
        self._place = place
        self._held: list[Holding] = []
        self._line = asyncio.Lock()
        self._tasks: set[asyncio.Future[Any]] = set()
        self._dask = dask_distributed().Semaphore(
            max_leases=slots,
            name=key,
            scheduler_rpc=_Scheduler(client, self._held),
            loop=client.loop,
        )
        self._key = key
        weakref.finalize(self, _stop_renewing, self._dask).atexit = False

    async def open(self, client: Client, slots: int, place: str) -> None:
        """Make it known to the scheduler, if it is not yet, and compare what both know.

        Raises:
            LimitMismatch: it is known with another number of slots.

        """
        if slots != self._slots:
            raise LimitMismatch(place, slots, self._slots)
        try:
            with asking(client, f"{place} was not opened"):
                await self._dask
        except ValueError as error:
            # In its words is the only place where the scheduler tells the number.
            told = re.search(r"Inconsistent max leases: \d+, expected: (\d+)", str(error))
            if told is None:
                raise
            raise LimitMismatch(place, slots, int(told[1])) from error

    async def take(self, client: Client, owner: object, timeout: float | None) -> bool:
        """Take a slot for ``owner``; tell whether that worked within ``timeout`` seconds.

        Raises:
            WouldDeadlock: the owner has all of them, and would wait for ever.

        """
        if timeout is None and sum(each.owner == owner for each in self._held) == self._slots:
            raise WouldDeadlock(self._place, self._slots)
        with asking(client, f"no slot of {self._place} was taken"):
            if timeout == 0:
                heard = await self._asked(0.0, self._patience)
            else:
                heard = await self._stand_in_line(Deadline(timeout))
        if heard is None:
            return False
        self._held.append(Holding(owner, heard))
        return True

    async def give(self, client: Client, owners: Sequence[object]) -> None:
        """Give a slot back: one of these owners, in this order, or else of anybody here.

        Raises:
            LeaseLost: another may have held it, too.
            ValueError: this process holds none.

        """
        holding = self._one_of((*owners, *(each.owner for each in self._held)))
        if holding is None:
            raise ValueError(
                f"process {self.pid} released {self._place} without holding a slot of it"
            )
        self._held.remove(holding)
        silence = max(holding.silence, seconds() - holding.heard)
        # Shielded: who is cancelled while he leaves the block has left it.
        if not await asyncio.shield(self._task(self._dask.release())):
            what = f"the release of a slot of {self._place} did not arrive"
            raise lost(
                client, what, "Dask's log has the reason; the slot is free when its lease ends"
            )
        if silence > self._lease:
            raise LeaseLost(self._place, silence, self._lease)

    def give_back(self, owner: object) -> None:
        """Give back what nobody waits for any more."""
        holding = self._one_of((owner,))
        if holding is not None:
            self._held.remove(holding)
            self._task(self._dask.release())

    async def count(self, client: Client) -> int:
        """Return how many slots are held, by whomever."""
        with asking(client, f"nothing is known of {self._place}"):
            held: int = await self._dask.get_value()
        return held

    async def labels(self, client: Client) -> list[str]:
        """Return what was noted on each slot that is held; see `label`."""
        key = self._key

        # By value, as it is no name of a module: the scheduler may be without mpkit.
        def leases(dask_scheduler: Any) -> list[str]:
            return list(dask_scheduler.extensions["semaphores"].leases.get(key, ()))

        found: Any = client
        with asking(client, f"nothing is known of {self._place}"):
            told: list[str] = await found.run_on_scheduler(leases)
        return told

    async def _stand_in_line(self, deadline: Deadline) -> float | None:
        try:
            async with asyncio.timeout(deadline.left()):
                await self._line.acquire()
        except TimeoutError:
            return None
        try:
            while True:
                left = deadline.left()
                if left is None:  # to wait for ever is, if need be, to wait for the scheduler
                    heard = await self._asked(self._ask_for, None)
                else:
                    heard = await self._asked(min(left, self._ask_for), self._patience)
                if heard is not None or deadline.passed():
                    return heard
        finally:
            self._line.release()

    async def _asked(self, wait: float, patience: float | None) -> float | None:
        """Ask for a slot; return when the scheduler can have given it at the earliest."""
        question = self._task(self._ask(wait))
        try:
            await asyncio.wait({question}, timeout=None if patience is None else wait + patience)
        except asyncio.CancelledError:
            question.add_done_callback(self._give_back_answer)
            raise
        if not question.done():
            question.add_done_callback(self._give_back_answer)
            raise TimeoutError(f"it did not answer in {patience:g} s")
        heard: float | None = question.result()
        return heard

    async def _ask(self, wait: float) -> float | None:
        while True:
            sent = seconds()
            if not await self._granted(wait):
                return None
            # This process was stopped while it waited? Then it may be another's by now.
            if seconds() - sent <= self._lease:
                return sent
            await self._dask.release()

    async def _granted(self, wait: float) -> bool:
        granted: bool
        try:
            granted = await self._dask.acquire(timeout=wait)
        except RuntimeError as error:
            if "not known" not in str(error):
                raise
            # It is another scheduler, started anew at its address; or somebody has closed the
            # semaphore there.
            self._dask._registered = False
            await self._dask
            granted = await self._dask.acquire(timeout=wait)
        return granted

    def _give_back_answer(self, question: asyncio.Future[float | None]) -> None:
        if question.cancelled() or question.exception() is not None:
            return  # there was no answer
        if question.result() is not None:
            self._task(self._dask.release())

    def _one_of(self, owners: Sequence[object]) -> Holding | None:
        for owner in owners:
            for holding in reversed(self._held):
                if holding.owner == owner:
                    return holding
        return None

    def _task(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run it to its end, whether or not somebody waits for that."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _stop_renewing(semaphore: Any) -> None:
    renewal: Any = getattr(semaphore, "refresh_callback", None)
    if renewal is not None:
        semaphore.loop.add_callback(renewal.stop)


class _Scheduler:
    """What a semaphore of Dask's calls the scheduler: puts in order what it asks, and notes it."""

    def __init__(self, client: Client, held: list[Holding]) -> None:
        self._scheduler: Any = client.scheduler
        self._held = held
        self._id: str = client.id
        self._client = weakref.ref(client)
        #: What was noted on each slot that we have, by Dask's name of it; and on those that are
        #: being given back, which Dask may be told to try again.
        self._labels: dict[str, str] = {}
        self._leaving: dict[str, str] = {}
        #: Held while a renewal or a release is under way.
        self._alone = asyncio.Lock()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        asked: Callable[..., Any] = getattr(self._scheduler, name)
        return asked

    async def semaphore_acquire(self, *, name: str, timeout: float | None, lease_id: str) -> bool:
        noted = label(lease_id, self._id)
        granted: bool = await self._scheduler.semaphore_acquire(
            name=name, timeout=timeout, lease_id=noted
        )
        if granted:
            self._labels[lease_id] = noted
        return granted

    async def semaphore_refresh_leases(self, *, name: str, lease_ids: list[str]) -> None:
        client = self._client()
        if client is None or ended(client):  # its loop may go on, and so does Dask in there
            return
        held = list(self._held)  # before anybody can get one that is not among these
        async with self._alone:
            # Dask has listed them before it was our turn: some may have been given back.
            ours = [self._labels[each] for each in lease_ids if each in self._labels]
            if not ours:
                return
            sent = seconds()
            try:
                await self._scheduler.semaphore_refresh_leases(name=name, lease_ids=ours)
            except (OSError, RuntimeError) as error:  # cut off; or the client was closed
                # Who holds a slot learns of it at the end, by how long this goes on.
                _log.warning("%d slots of %s were not renewed: %s", len(ours), name, error)
                return
            for holding in held:
                holding.silence = max(holding.silence, seconds() - holding.heard)
                holding.heard = sent

    async def semaphore_release(self, *, name: str, lease_id: str) -> None:
        if lease_id in self._labels:
            self._leaving[lease_id] = self._labels.pop(lease_id)  # from now on nobody renews it
        async with self._alone:
            await self._scheduler.semaphore_release(name=name, lease_id=self._leaving[lease_id])
        del self._leaving[lease_id]


#: What is used by call site or name, for as long as there is the client: `limit` makes a new
#: object for each block. And what is used by an object only.
_kept: weakref.WeakKeyDictionary[Client, dict[str, Leases]] = weakref.WeakKeyDictionary()
_lent: weakref.WeakKeyDictionary[Client, weakref.WeakValueDictionary[str, Leases]] = (
    weakref.WeakKeyDictionary()
)


def leases_of(client: Client, key: str, slots: int, place: str) -> Leases:
    """Return what this process has of a semaphore through a client. In the loop of that."""
    known: Any
    if key.startswith("one-"):
        known = _lent.setdefault(client, weakref.WeakValueDictionary())
    else:
        known = _kept.setdefault(client, {})
    leases: Leases | None = known.get(key)
    if leases is None:
        leases = known[key] = Leases(client, f"mpkit-{key}", slots, place)
    return leases


def label(lease: str, client: str) -> str:
    """Return a name for a lease that tells who has it."""
    return json.dumps([lease, os.getpid(), _process(client), time.time(), socket.gethostname()])


def read_label(noted: str) -> tuple[int, str, float, str] | None:
    """Return what `label` was given and has added; None for what is none of ours."""
    try:
        told = json.loads(noted)
    except ValueError:  # somebody uses a semaphore of Dask's by our name
        return None
    match told:
        case [str(), int(pid), str(process), float(since), str(host)]:
            return pid, process, since, host
        case _:
            return None


def _process(client: str) -> str:
    try:
        return str(dask_distributed().get_worker().address)
    except ValueError:
        return client
