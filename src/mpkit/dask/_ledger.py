"""`Ledger`: which tasks a pool on a cluster has, which of them wait, and which are in which packet."""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from typing import TYPE_CHECKING, Any

from mpkit.dask import _packet
from mpkit.dask._plan import AHEAD, PATIENCE, Plan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from mpkit._task.task import Task
    from mpkit.dask._cluster import Ended
    from mpkit.dask._loads import Large, Packed


class Entry:
    """A task, and its call. ``alone``: it has a packet of its own."""

    def __init__(self, task: Task[Any], load: Packed, *, alone: bool = False) -> None:
        self.task = task
        self.load = load
        self.what = task.what
        self.size = load.size
        self.alone = alone
        self.priority = task.options.priority
        #: Where it is, if it was sent.
        self.packet: Sent | None = None
        #: On which workers it had better run; none if it does not matter.
        self.workers: Sequence[str] = ()
        #: How often it was sent, and could not be begun.
        self.in_vain = 0


class Sent:
    """A packet that Dask has, or is about to."""

    def __init__(self, number: int, entries: list[Entry]) -> None:
        self.number = number
        #: Until it is sent.
        self.entries = entries
        #: Those of which nothing was heard, by their places.
        self.open = dict(enumerate(entries))
        #: What lies beside it, while it does.
        self.larges: list[Large] = []
        self.future: Any = None
        #: Who has reported it; see `Lanes`.
        self.lane = 0
        #: Whether its worker may go on with it for ever.
        self.late = False
        #: How many ask for it to be taken back, and what of it was heard meanwhile.
        self.held = 0
        self.deferred: Ended | None = None
        #: On which workers it had better run, if there are any.
        self.workers: Sequence[str] = ()
        for entry in entries:
            self.workers, entry.workers = self.workers or entry.workers, ()
            entry.packet = self
            entry.task.attempts += 1

    def packed(self, *, shares: bool) -> _packet.Packet:
        """Return it as it is sent, once, and note what lies beside it."""
        # Not those that are open: it may have been taken back meanwhile, and is refused then.
        entries, self.entries = self.entries, []
        commons: dict[bytes, int] = {}
        places: dict[bytes, int] = {}

        def placed(part: bytes | Large) -> bytes | int:
            if isinstance(part, bytes):
                return part
            if part.digest not in places:
                places[part.digest] = len(self.larges) + shares
                self.larges.append(part)
            return places[part.digest]

        loads: list[_packet.Load] = []
        for entry in entries:
            head, stream, buffers, common = entry.load
            loads.append(
                _packet.Load(
                    entry.task.number,
                    head,
                    placed(stream),
                    [placed(part) for part in buffers],
                    commons.setdefault(common, len(commons)) if common else -1,
                    entry.task.options.timeout,
                )
            )
        return _packet.Packet(loads, list(commons), shares, PATIENCE)


class Ledger:
    """Any thread may use it. It calls nobody's code, and waits for nothing."""

    def __init__(self, wake: Callable[[], None]) -> None:
        """``wake`` has the engine's thread look at what waits."""
        # Re-entrant: what becomes garbage may be cancelled at any time.
        self._lock = threading.RLock()
        self._wake_thread = wake
        self._plan: Plan[Entry] = Plan()
        self._entries: dict[Task[Any], Entry] = {}
        self._packets: dict[int, Sent] = {}
        self._numbers = itertools.count()
        #: Those that are to be tried again, and when.
        self._pauses: list[tuple[float, int, Entry]] = []
        #: Until when nothing is sent; 0 if it is.
        self._rests_until = 0.0
        #: Whether the thread will look, before it sleeps.
        self._awake = False

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, entry: Entry) -> None:
        """There is another task."""
        with self._lock:
            self._entries[entry.task] = entry
            self._plan.add(entry)
        self.wake()

    def wake(self) -> None:
        """Have the thread look, if it will not anyway."""
        with self._lock:
            asleep, self._awake = not self._awake, True
        if asleep:
            self._wake_thread()

    def forget(self, entry: Entry) -> None:
        """A task is about to be settled."""
        with self._lock:
            self._entries.pop(entry.task, None)

    def tasks(self) -> list[Task[Any]]:
        """Return all that are not settled."""
        with self._lock:
            return list(self._entries)

    def packet_of(self, task: Task[Any]) -> Sent | None:
        """Return the packet that has a task; None if it waits, or is settled."""
        with self._lock:
            entry = self._entries.get(task)
            return None if entry is None else entry.packet

    def packet(self, number: int) -> Sent | None:
        """Return a packet, if it is not over."""
        with self._lock:
            return self._packets.get(number)

    def packets(self) -> list[Sent]:
        """Return all that are not over."""
        with self._lock:
            return list(self._packets.values())

    # what waits

    def next_packet(self, threads: int, most: int | None) -> tuple[Sent | None, int]:
        """Return what is to be sent, if there is room; and how many turned out to be cancelled."""
        cancelled: list[Entry] = []

        def begin(entry: Entry) -> bool:
            wanted = entry.task.set_running_or_notify_cancel()
            if not wanted:
                cancelled.append(entry)
            return wanted

        with self._lock:
            self._awake = False
            self._end_pauses()
            if time.monotonic() >= self._rests_until:
                self._rests_until = 0.0
            while self._plan and self._plan.first().task.cancelled():  # for these there is room
                begin(self._plan.pop())
            room = bool(self._plan) and self._has_room(threads, most)
            at_once = max(1, threads if most is None else min(threads, most))
            entries = self._plan.take(at_once, begin) if room else []
            for entry in cancelled:
                self._entries.pop(entry.task, None)
            packet = None
            if entries:
                packet = Sent(next(self._numbers), entries)
                self._packets[packet.number] = packet
            if packet is not None or cancelled:
                self._awake = True  # there may be more
            return packet, len(cancelled)

    def _has_room(self, threads: int, most: int | None) -> bool:
        if self._rests_until:
            return False
        if most is not None and len(self._packets) >= most:
            return False
        first = self._plan.first()
        if not threads and first.load.larges:
            return False  # nobody could have what is large
        ahead = 1 if self._plan.is_long(first) else AHEAD
        return len(self._packets) < ahead * max(1, threads)

    def take_waiting(self) -> list[Entry]:
        """Take all that waits, or pauses."""
        with self._lock:
            entries = [*self._plan.take_all(), *(entry for _, _, entry in self._pauses)]
            self._pauses.clear()
            return entries

    def pause(self, entry: Entry, seconds: float) -> None:
        """Have a task wait again, after a pause."""
        entry.packet = None
        with self._lock:
            entry.task.wait_again()
            at = time.monotonic() + seconds
            heapq.heappush(self._pauses, (at, entry.task.number, entry))

    def left_to_pause(self, most: float) -> float | None:
        """Return the seconds until there is something to do without being told; None for ever."""
        with self._lock:
            times = [self._pauses[0][0]] if self._pauses else []
            if self._rests_until:
                times.append(self._rests_until)
            return min(max(0.0, min(times) - time.monotonic()), most) if times else None

    def rest(self, seconds: float) -> None:
        """Have nothing sent for a while."""
        with self._lock:
            self._rests_until = max(self._rests_until, time.monotonic() + seconds)

    def end_pause(self, task: Task[Any]) -> None:
        """A task was cancelled, and need not wait."""
        with self._lock:
            for place, (_, number, entry) in enumerate(self._pauses):
                if entry.task is task:
                    self._pauses[place] = (0.0, number, entry)
                    heapq.heapify(self._pauses)
                    break
        self.wake()

    def _end_pauses(self) -> None:
        while self._pauses and self._pauses[0][0] <= time.monotonic():
            self._plan.add(heapq.heappop(self._pauses)[2])

    # what was sent

    def ran(self, sums: Iterable[tuple[str, int, float]]) -> None:
        """So many calls of these functions took so many seconds together."""
        with self._lock:
            for what, count, seconds in sums:
                self._plan.ran(what, count, seconds)

    def take(self, packet: Sent, place: int) -> Entry | None:
        """It is known what became of a call; return it, the first time."""
        with self._lock:
            return packet.open.pop(place, None)

    def take_all(self, packet: Sent) -> list[Entry]:
        """It is known what became of all that a packet has."""
        with self._lock:
            entries = list(packet.open.values())
            packet.open.clear()
            return entries

    def give_back(self, packet: Sent, start: int, workers: Sequence[str] = ()) -> None:
        """The calls of a packet from this place on were not begun: they wait again, before others.

        They had better run on one of ``workers``, if there are.
        """
        with self._lock:
            places = sorted(place for place in packet.open if place >= start)
            entries = [packet.open.pop(place) for place in places]
            for entry in entries:
                entry.packet = None
                entry.workers = workers
                entry.task.attempts -= 1
                entry.task.wait_again()
            self._plan.put_back(entries)
        self.wake()

    def hold(self, packet: Sent, change: int) -> None:
        """One more, or one less, asks for a packet."""
        with self._lock:
            packet.held += change

    def drop(self, packet: Sent) -> bool:
        """A packet is over; False if that was known."""
        with self._lock:
            known = self._packets.pop(packet.number, None) is not None
        self.wake()
        return known
