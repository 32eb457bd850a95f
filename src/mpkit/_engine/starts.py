"""`Starts`: how the starts of workers have gone lately, and whether to give up."""

from __future__ import annotations

#: How many workers in a row may say that they cannot start. Of those that end before they
#: have said anything, each of the pool may be killed by somebody, and so many more.
MOST_START_FAILURES = 3


class Starts:
    """Counts the workers that start, and those that fail to. A part of a `Schedule`."""

    def __init__(self, size: int) -> None:
        self._size = size
        # How many workers in a row said that their initializer failed, how many ended
        # before they had started, and how many the system would not even begin.
        self._init_failures = 0
        self._start_failures = 0
        self._spawn_failures = 0
        #: The system had no room for a process, and may have some a little later.
        self.out_of_room = False
        #: How many are to be spawned, and how many were and have not started.
        self.spawning = 0
        self.starting = 0

    def spawned(self) -> None:
        """A worker exists."""
        self.spawning -= 1
        self._spawn_failures = 0
        self.starting += 1

    def spawn_failed(self) -> None:
        """The system would not start a process."""
        self.spawning -= 1
        self._spawn_failures += 1
        self.out_of_room = True

    def started(self) -> None:
        """A worker has run its initializer."""
        self._init_failures = self._start_failures = 0
        self.starting -= 1

    def init_failed(self) -> None:
        """A worker's initializer raised."""
        self._init_failures += 1

    def ended(self, *, started: bool, retiring: bool) -> None:
        """A worker is gone, which had started or not."""
        self._spawn_failures, self.out_of_room = 0, False  # what it occupied is free
        self.starting -= not started
        if not started and not retiring:
            self._start_failures += 1

    def cannot(self) -> bool:
        """Whether it must be assumed that no worker can start."""
        return (
            self._init_failures >= MOST_START_FAILURES
            or self._start_failures >= MOST_START_FAILURES + self._size
        )

    def given_up(self) -> int:
        """Return after how many attempts no worker can be had, never or not now; or 0."""
        if self.cannot():
            return max(self._init_failures, self._start_failures)
        attempts = self._spawn_failures
        if attempts < MOST_START_FAILURES:
            return 0
        self._spawn_failures, self.out_of_room = 0, False  # the next task is tried anew
        return attempts
