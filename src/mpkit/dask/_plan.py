"""`Plan`: which calls go into the next packet, by what is known of how long they take.

Pure: no thread, clock or cluster in it.
"""

from __future__ import annotations

import heapq
import itertools
import math
from typing import TYPE_CHECKING, Final, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

#: Seconds that a packet should take, at least. (What Dask does for one takes some 2 ms of its
#: scheduler and this process, and twice as long until the next one is there.)
SECONDS: Final = 0.02
#: And for each thread of the cluster: a scheduler manages some thousand packets in a second.
PER_THREAD: Final = 0.0005
#: Seconds after which a call is a long one, that gives back what is behind it.
PATIENCE: Final = 0.05

#: How many calls there may be in a packet, and bytes.
MOST: Final = 4096
MOST_BYTES: Final = 2**20
#: The first packet of a function has one call, and each so many times as many as those before.
GROWTH: Final = 8

#: How many packets there are for each thread: one that it runs, and one that is there when that
#: ends; not, if they take so long that a pause between them is nothing.
AHEAD: Final = 2
LONG: Final = 1.0

#: Seconds that a call takes at least, as far as that matters.
_LEAST: Final = 1e-7

#: Of how many functions it is known how long they take.
_MOST_KNOWN: Final = 1000


class Waiting(Protocol):
    """A call that waits."""

    @property
    def what(self) -> str:
        """Its function."""
        ...

    @property
    def size(self) -> int:
        """Its bytes."""
        ...

    #: Whether it is to have a packet of its own.
    alone: bool
    priority: int


W = TypeVar("W", bound=Waiting)


class _Known:
    """What is known of a function."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.most = 0

    def note(self, count: int, seconds: float) -> None:
        each = max(seconds / count, _LEAST)
        # Between them as a factor: one call of a minute says little of thousands of 1 ms.
        self.seconds = math.sqrt(self.seconds * each) if self.most else each
        self.most = max(self.most, count)


class Plan(Generic[W]):
    """The calls that wait. One lock of its owner's guards it."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, W]] = []
        self._behind = itertools.count()
        self._before = itertools.count(-1, -1)
        self._known: dict[str, _Known] = {}

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, call: W) -> None:
        """Have it wait behind all of its priority."""
        heapq.heappush(self._heap, (-call.priority, next(self._behind), call))

    def put_back(self, calls: list[W]) -> None:
        """Have them wait before all of their priority, in their order."""
        for call in reversed(calls):
            heapq.heappush(self._heap, (-call.priority, next(self._before), call))

    def ran(self, what: str, count: int, seconds: float) -> None:
        """So many calls of a function in a packet took so long together."""
        known = self._known.pop(what, None) or _Known()
        if len(self._known) >= _MOST_KNOWN:
            del self._known[next(iter(self._known))]
        self._known[what] = known  # at the end: those that are used stay
        known.note(count, seconds)

    def seconds(self, call: W) -> float | None:
        """Return how long a call takes, if that is known."""
        known = self._known.get(call.what)
        return None if known is None or call.alone else known.seconds

    def is_long(self, call: W) -> bool:
        """Tell whether a call takes so long that no other one need be sent ahead."""
        return (self.seconds(call) or 0.0) > LONG

    def first(self) -> W:
        """Return the one whose turn it is."""
        return self._heap[0][2]

    def pop(self) -> W:
        """Take that one."""
        return heapq.heappop(self._heap)[2]

    def take_all(self) -> list[W]:
        """Take all that waits."""
        calls = [call for _, _, call in sorted(self._heap)]
        self._heap.clear()
        return calls

    def take(self, threads: int, begin: Callable[[W], bool]) -> list[W]:
        """Take the calls of a packet: those of which ``begin`` tells that they are still wanted."""
        calls: list[W] = []
        left, room = 0.0, MOST_BYTES
        most: dict[str, int] = {}
        while self._heap:
            first = self._heap[0][2]
            takes = self.seconds(first)
            if calls:
                counts = most.setdefault(first.what, self._most(first))
                too_many = counts <= 0 or len(calls) >= MOST
                if takes is None or takes > left or first.size > room or too_many:
                    break
            else:
                left = self._budget(takes, threads)
            self.pop()
            if not begin(first):
                continue
            calls.append(first)
            if takes is None:
                break
            left -= takes
            room -= first.size
            most[first.what] = most.get(first.what, self._most(first)) - 1
        return calls

    def _most(self, call: W) -> int:
        return GROWTH * self._known[call.what].most if call.what in self._known else 1

    def _budget(self, takes: float | None, threads: int) -> float:
        """Return the seconds of a packet: no more than a share of what waits, if that is like this."""
        share = (takes or 0.0) * len(self._heap) / threads
        return min(max(SECONDS, PER_THREAD * threads), max(share, SECONDS / 20))
