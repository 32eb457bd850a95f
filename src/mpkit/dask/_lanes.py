"""What the threads of a cluster's workers did, for `stats`: each of them is a worker there."""

from __future__ import annotations

import dataclasses
import itertools
from typing import TYPE_CHECKING

from mpkit._watch.recorder import Recorder

if TYPE_CHECKING:
    from mpkit._watch.stats import Stats


class Lanes:
    """Notes who ran what. The engine's thread tells it; any thread may ask for `stats`."""

    def __init__(self) -> None:
        self.recorder = Recorder()
        # A recorder knows workers by their pids, which are unique on one machine only, and of
        # which it looks at the memory. So it has numbers here that are no pids.
        self._numbers = itertools.count(-1, -1)
        self._lanes: dict[tuple[str, int], int] = {}
        self._pids: dict[int, int] = {}

    def lane(self, worker: str, pid: int, thread: int) -> int:
        """Return the number of a thread of a worker."""
        lane = self._lanes.get((worker, thread))
        if lane is None:
            lane = self._lanes[worker, thread] = next(self._numbers)
            self._pids[lane] = pid
            self.recorder.worker_started(lane)
        return lane

    def gone(self, worker: str) -> None:
        """A worker is gone."""
        for key, lane in list(self._lanes.items()):
            if key[0] == worker:
                del self._lanes[key]
                self.recorder.worker_ended(lane, f"was lost ({worker})", expected=False)

    def stats(self) -> Stats:
        """Return what was noted, with the pids that the workers have on their machines."""
        stats = self.recorder.stats()
        workers = (
            dataclasses.replace(worker, pid=self._pids[worker.pid]) for worker in stats.workers
        )
        return dataclasses.replace(stats, workers=tuple(workers))
