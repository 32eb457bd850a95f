"""What a schedule knows of a worker, and the workers that it spares.

To wake a worker that has slept for long costs 0.3 to 0.6 ms of some processor: its pages, its
caches and a switch. Tasks of which the supervisor can keep only a few workers busy are done
none the earlier by more of these. So the others are left alone, as long as what is expected of
the tasks is true.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

#: So many workers are used in any case.
FEW: Final = 8

#: Seconds that a worker needs for a task besides its length, and the supervisor at the least.
WORKER_SECONDS, SUPERVISOR_SECONDS = 8e-6, 5e-6

#: How many times as many workers are used as he can keep busy by that.
AMPLE: Final = 4

#: After how many moments without a report a worker is left out of account. (One moment is
#: enough if nobody reports anything. But who works may have to wait for a processor.)
LONG: Final = 4


class WorkerState:
    """What is known of one worker."""

    def __init__(self, quota: int | None) -> None:
        #: What it was sent and has not reported, in order.
        self.tasks: deque[int] = deque()
        #: How many more tasks it may be sent, if that is limited.
        self.quota = quota
        self.started = False
        self.retiring = False
        #: Nothing came back when last asked, and nothing was sent since.
        self.empty_handed = False
        #: How many moments have passed while it had tasks, since it last reported one.
        self.moments = 0
        #: How many tasks all workers had done by then; and whether so many more are done since
        #: that it is to get no others.
        self.done_by_all = 0
        self.overtaken = False

    def can_take(self) -> bool:
        overtaken = self.overtaken and self.tasks
        return not (self.retiring or overtaken) and self.quota != 0

    def can_give(self) -> int:
        """Return how many tasks it may have that it has not taken."""
        if self.empty_handed or not self.tasks:
            return 0
        return len(self.tasks) - self.started


class Reserve:
    """Workers that have nothing to do, and are not to be woken. A part of a `Schedule`."""

    def __init__(self, few: int = FEW, ample: float = AMPLE) -> None:
        self.few, self._ample = few, ample
        #: By number; who had something to do last comes last.
        self.spared: dict[int, WorkerState] = {}
        #: Whether nobody is spared, as things are not as expected.
        self.lifted = False
        #: Whether somebody has reported in this moment; and how many have not for long.
        self._reported = False
        self._stuck = 0

    def reported(self, state: WorkerState, *, more: bool) -> None:
        """A worker has done what it was sent, or some of it. ``more``: other tasks are there."""
        state.moments = 0
        self._reported = more  # of what comes later it tells nothing
        self.lifted = False

    def useful(self, seconds: float) -> int:
        """Return how many workers can be kept busy with tasks that take so long."""
        busy = (seconds + WORKER_SECONDS) / SUPERVISOR_SECONDS
        return max(self.few, int(self._ample * busy)) + self._stuck

    def spare(self, open_: dict[int, WorkerState], workers: int, useful: int) -> None:
        """Take out of the ``open_`` ones who is not needed, or put some back."""
        idle = [number for number, state in open_.items() if not state.tasks]
        busy = workers - len(self.spared) - len(idle)
        wanted = max(0, useful - busy)
        for number in idle[: max(0, len(idle) - wanted)]:
            self.spared[number] = open_.pop(number)
        for _ in range(min(wanted - len(idle), len(self.spared))):
            number, state = self.spared.popitem()
            open_[number] = state

    def release(self, open_: dict[int, WorkerState]) -> None:
        """Spare nobody."""
        open_.update(reversed(self.spared.items()))  # who has slept for the longest comes last
        self.spared.clear()

    def moment_passed(self, workers: Iterable[WorkerState]) -> None:
        """See who has reported since this was last told, or since somebody is spared."""
        self._stuck = 0
        for state in workers:
            if state.tasks:
                state.moments += 1
                self._stuck += state.moments >= LONG
        self.lifted, self._reported = not self._reported, False
