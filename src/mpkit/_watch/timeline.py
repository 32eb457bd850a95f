"""When workers were busy, in boxes of which there are never too many.

A box is a task, until there are too many: then those that are close to each other in one lane
are merged, so that no box of several tasks is wider than the *resolution*, which is doubled as
often as needed. A merged box knows how many tasks it has, how many failed, and how much of its
time was busy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from mpkit._watch.picture import Run

#: How many boxes there are at most, unless there are more lanes. (Each takes some 300 bytes here
#: and 50 in a page. Four screens wide they are one to a pixel.)
MOST_BOXES: Final = 10_000

#: The first resolution, in seconds. (Arbitrary; it is doubled until it does.)
_FINEST: Final = 0.0001


class Box:
    """One task, or several that were merged."""

    __slots__ = "began", "busy", "count", "ended", "failed", "what"

    def __init__(self, run: Run) -> None:
        self.began = run.began
        self.ended = run.ended
        self.busy = run.ended - run.began
        self.count = 1
        self.failed = int(run.outcome != "done")
        #: What its tasks are called, or None if they are not all called the same.
        self.what: str | None = run.what

    def takes(self, other: Box, resolution: float) -> bool:
        """Take in the next one, if both together are not wider than that; tell whether it did."""
        ended = max(self.ended, other.ended)
        if ended - self.began > resolution or other.began < self.began:
            return False
        self.ended = ended
        self.busy += other.busy
        self.count += other.count
        self.failed += other.failed
        if self.what != other.what:
            self.what = None
        return True


class Timeline:
    """The boxes of all lanes. For who holds a lock on it."""

    def __init__(self, most: int = MOST_BOXES) -> None:
        self.lanes: dict[int, list[Box]] = {}
        #: Seconds that a box of several tasks is wide at most; 0 if each task has its own.
        self.resolution = 0.0
        self._most = most
        self._count = 0

    def add(self, run: Run) -> None:
        """Take in a task that was run."""
        lane = self.lanes.setdefault(run.lane, [])
        box = Box(run)
        if lane and lane[-1].takes(box, self.resolution):
            return
        lane.append(box)
        self._count += 1
        if self._count > max(self._most, 4 * len(self.lanes)):
            self._thin_out()

    def _thin_out(self) -> None:
        """Merge boxes until half as many are left as there may be."""
        while self._count > max(self._most // 2, 2 * len(self.lanes)):
            self.resolution = 2 * self.resolution or _FINEST
            for number, lane in self.lanes.items():
                merged: list[Box] = []
                # Callers tell of the tasks that they waited for, and some tell late. In order
                # all of a lane can be merged, at some resolution: so this ends.
                for box in sorted(lane, key=_began):
                    if not (merged and merged[-1].takes(box, self.resolution)):
                        merged.append(box)
                self.lanes[number] = merged
            self._count = sum(map(len, self.lanes.values()))


def _began(box: Box) -> float:
    return box.began
