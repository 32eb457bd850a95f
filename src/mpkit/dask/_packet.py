"""What runs on the workers of a cluster: packets of calls, each call of which is reported.

A packet is short by what is known of its functions. If a call takes longer all the same, the
worker's event loop tells so, reports what was done before, and gives those behind it back to the
pool, so that nobody waits for one. Which of them are begun is decided here under one lock.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import distributed

from mpkit import _outcome, _parcel, _reader
from mpkit._describe import describe
from mpkit._errors import NotPicklable
from mpkit._worker import chunks, packing, shared
from mpkit.dask import _arrival, _claims, _message

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

#: Bytes of outcomes that are reported through the scheduler. More than that is left to the
#: client to fetch, as it does with what other tasks of Dask return. (Arbitrary.)
MOST_REPORTED: Final = 2**20


class Load(NamedTuple):
    """One call in a packet. A number in place of bytes is a place in what lies beside the packet."""

    task: int
    #: As of `packing.pack`; and the rest of it, if that is not all.
    head: bytes
    stream: bytes | int = b""
    buffers: Sequence[bytes | int] = ()
    #: Which of the packet's functions it is called with, if that is not in the call; or -1.
    common: int = -1
    timeout: float | None = None


class Packet(NamedTuple):
    """Calls that run one after the other."""

    loads: list[Load]
    #: Functions, packed, that several of them have.
    commons: list[bytes]
    #: Whether the first thing that lies beside it is what the pool shares.
    shares: bool
    #: Seconds after which a call gives back those behind it.
    patience: float


class Outcome(NamedTuple):
    """What became of a call, and how many seconds that took. ``kind`` is one of `_outcome`'s."""

    place: int
    kind: bytes
    stream: bytes
    buffers: list[bytes]
    seconds: float

    @property
    def size(self) -> int:
        """How many bytes it has."""
        return len(self.stream) + sum(map(len, self.buffers))


class SharedThere:
    """What the pool shares, unpickled when a task first asks for it."""

    def __init__(self, parts: list[Any]) -> None:
        self.parts = parts
        self._made: tuple[Any] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return _arrival.share, ([pickle.PickleBuffer(part) for part in self.parts],)

    def __sizeof__(self) -> int:
        return sum(memoryview(part).nbytes for part in self.parts)

    def thing(self) -> Any:
        """Return the object, which all threads of a worker have in common."""
        if self._made is None:
            stream, *buffers = [memoryview(part).toreadonly() for part in self.parts]
            try:
                self._made = (pickle.loads(stream, buffers=buffers),)
            except BaseException as error:
                error.add_note("(raised while a worker unpickled what its pool shares)")
                _reader.note_missing(error)
                raise
        return self._made[0]

    def close(self) -> None:
        """Dask frees it when the pool has ended."""


def run(pool: str, number: int, packed: bytes, *beside: Any) -> list[Outcome] | None:
    """Run a packet, if it is not claimed by another worker; return outcomes too large to report.

    One that was claimed before is passed over without a word: whatever a task of Dask raises, its
    worker logs. The pool knows by the reports, of which there are none.
    """
    worker: Any = distributed.get_worker()
    claim = getattr(worker.scheduler, f"{_claims.NAME}-claim")
    granted = distributed.sync(
        worker.loop,
        claim,
        pool=pool,
        number=number,
        worker=worker.contact_address,
        pid=os.getpid(),
    )
    if not granted:
        return None
    packet: Packet = pickle.loads(packed)
    return _Run(worker, pool, number, packet, beside).run()


class _Run:
    """A packet that runs, in a thread of a worker, and is watched by the event loop."""

    def __init__(
        self, worker: Any, pool: str, number: int, packet: Packet, beside: Sequence[Any]
    ) -> None:
        self._worker = worker
        self._pool = pool
        self._number = number
        self._packet = packet
        self._shared: SharedThere | None = beside[0] if packet.shares else None
        self._beside = beside
        self._thread = threading.get_ident()
        self._lock = threading.Condition(threading.Lock())
        # What follows is under the lock, and so is what is put on its way for a report: the last
        # one must be behind all others, as the scheduler hears nothing of a packet after that.
        #: The call that runs, since when, and the one that is not begun any more.
        self._place = 0
        self._since = time.monotonic()
        self._end = len(packet.loads)
        #: What was not reported.
        self._outcomes: list[Outcome] = []
        #: The call that was told to be a long one, and the one that has run for too long, of which nobody wants to hear any more.
        self._long = self._late = -1
        #: Whether that is being told, by another connection than reports.
        self._telling = False
        self._over = False

    def run(self) -> list[Outcome] | None:
        """Run all of it, but for what is given back meanwhile."""
        self._worker.loop.add_callback(self._watch)
        try:
            while self._begin_next():
                outcome = self._try(self._packet.loads[self._place])
                with self._lock:
                    if self._place != self._late:
                        self._outcomes.append(outcome)
                    self._place += 1
        except BaseException:  # no memory, say: Dask tells of it
            with self._lock:
                self._over = True  # or what runs here next would be taken for a call that is late
            raise
        with self._lock:
            self._over = True
            self._lock.wait_for(lambda: not self._telling)
            outcomes = self._outcomes
            if sum(outcome.size for outcome in outcomes) <= MOST_REPORTED:
                self._report(outcomes, last=True)
                return None
            self._report([], last=True, fetch=True)
            return outcomes

    def _begin_next(self) -> bool:
        with self._lock:
            self._since = time.monotonic()
            return self._place < self._end

    def _report(self, outcomes: list[Outcome], *, last: bool, **what: Any) -> None:
        """Have the event loop send a report, in the order of these calls. Holds the lock."""
        message = {"op": _claims.REPORT, **self._message(outcomes, last=last, **what)}
        self._worker.loop.add_callback(self._worker.batched_send, message)

    def _message(self, outcomes: list[Outcome], *, last: bool, **what: Any) -> dict[str, Any]:
        return {
            "pool": self._pool,
            "number": self._number,
            "last": last,
            "thread": self._thread,
            "outcomes": pickle.dumps(outcomes, 5),
            **what,
        }

    # the event loop

    async def _watch(self) -> None:
        """Give back what waits behind a long call, and tell of one that takes too long."""
        wake_at: float | None = self._since + self._packet.patience
        while wake_at is not None:
            await asyncio.sleep(max(0.0, wake_at - time.monotonic()))
            wake_at = await self._look()

    async def _look(self) -> float | None:
        """Do what it is time for; return when to look again, if that is needed."""
        with self._lock:
            if self._over:
                return None
            loads, now = self._packet.loads, time.monotonic()
            place, ran = self._place, now - self._since
            limit = loads[place].timeout if place < self._end else None
            late = limit is not None and ran >= limit and self._late != place
            if late:
                self._late = place
            outcomes: list[Outcome] = []
            long = ran >= self._packet.patience and self._long != place
            if long or late:
                self._long, self._end = place, min(self._end, place + 1)
                outcomes, self._outcomes = self._outcomes, []
            again = self._again(limit)
            self._telling = late
            if long and not late:
                self._report(outcomes, last=False, rest=place + 1, long=True)
        if late:
            try:
                await self._tell_late(place, outcomes)
            finally:
                with self._lock:
                    self._telling = False
                    self._lock.notify_all()
        return again

    def _again(self, limit: float | None) -> float | None:
        """Return when to look again. Holds the lock."""
        times: list[float] = []
        if limit is not None and self._late != self._place:
            times.append(self._since + limit)
        if self._long != self._place:
            times.append(self._since + self._packet.patience)
        return min(times, default=None)

    async def _tell_late(self, place: int, outcomes: list[Outcome]) -> None:
        """Tell of a call that takes too long, and end this process if that harms nobody else."""
        ends = self._is_alone()
        report = getattr(self._worker.scheduler, f"{_claims.NAME}-report")
        # Waits until the scheduler has it, since this process may be about to end.
        message = self._message(
            outcomes, last=False, rest=place + 1, long=True, late=place, ends=ends
        )
        await report(worker=self._worker.contact_address, **message)
        with self._lock:
            still = self._place == place and not self._over
        # (By now it may have a pool, to which it has left its place.)
        if ends and still and self._is_alone():
            os.kill(os.getpid(), signal.SIGKILL)  # the nanny starts another one

    def _is_alone(self) -> bool:
        """Tell whether this process has but this call, and will be replaced when it dies."""
        worker, state = self._worker, self._worker.state
        if worker.nanny is None or state.nthreads != 1 or state.actors:
            return False
        # Jobs run beside what has the thread, and so do calls that have a pool of their own.
        if len(state.all_running_tasks) > 1:
            return False
        return all(_is_replaceable(key, state.tasks.get(key)) for key in worker.data)

    # a call

    def _try(self, load: Load) -> Outcome:
        began = time.monotonic()
        before = shared.use_here(self._shared)
        try:
            kind, stream, buffers = _outcome_of(self._call_of(load), load)
        finally:
            shared.use_here(before)
        return Outcome(self._place, kind, stream, buffers, time.monotonic() - began)

    def _call_of(self, load: Load) -> Callable[[], tuple[Any, Any, Any]]:
        """Return what unpickles a call."""
        stream = load.stream if isinstance(load.stream, bytes) else self._bytes(load.stream)
        # A task may write in what is its own.
        buffers = [
            bytearray(it) if isinstance(it, bytes) else bytearray(self._bytes(it))
            for it in load.buffers
        ]
        if load.common < 0:
            return lambda: packing.unpack_beside(load.head, stream, buffers)
        common = self._packet.commons[load.common]
        return lambda: packing.unpack_each_beside(common, load.head, stream, buffers)

    def _bytes(self, place: int) -> Any:
        return self._beside[place]


def _is_replaceable(key: Any, held: Any) -> bool:
    """Tell whether nobody lacks what a worker has, if it is lost: pools send again what they sent.

    But the results of a packet, which are too large to be reported, or of a job are nowhere else.
    """
    if isinstance(key, tuple):
        nothing = held is not None and held.get_nbytes() <= sys.getsizeof(None)
        return nothing and str(key[0]).startswith("mpkit-")  # pyright: ignore[reportUnknownArgumentType]
    return str(key).startswith("mpkit-") and not str(key).startswith("mpkit-job-")


def _outcome_of(
    unpack: Callable[[], tuple[Any, Any, Any]], load: Load
) -> tuple[bytes, bytes, list[bytes]]:
    """Run a call, as a worker of a pool on one machine does."""
    what = f"task {load.task}"
    try:
        with _message.arriving():
            fn, args, kwargs = unpack()
    except BaseException as error:  # noqa: BLE001  unpickling is user code
        error.add_note(f"(raised while a worker unpickled the arguments of {what})")
        _reader.note_missing(error)
        return _packed(_outcome.FAILED, _outcome.pack_error(what, error))
    named = args[0] if fn is chunks.run_each else fn
    try:
        value = fn(*args, **kwargs)
    except BaseException as error:  # noqa: BLE001  to be raised where the pool is
        text = f"{what} ({describe(named)})"
        return _packed(_outcome.FAILED, _outcome.pack_error(text, error, skip_frames=1))
    kind, parcel = _outcome.pack_result(what, named, value)
    if parcel.movables:
        parcel.close()
        refused = NotPicklable(
            f"the result of {what} ({describe(named)})",
            "the end of a channel of one machine does not move over a cluster (mpkit.dask.channel "
            "makes those that do)",
        )
        return _packed(_outcome.FAILED, _outcome.pack_error(what, refused))
    return _packed(kind, parcel)


def _packed(kind: bytes, parcel: _parcel.Parcel) -> tuple[bytes, bytes, list[bytes]]:
    return kind, parcel.stream, [bytes(buffer.raw()) for buffer in parcel.buffers]
