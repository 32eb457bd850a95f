"""What a `Schedule` decides, for others to perform."""

from __future__ import annotations

from typing import NamedTuple


class Spawn(NamedTuple):
    """Start a worker, and tell of it by `Schedule.spawned`."""


class Send(NamedTuple):
    """Send these tasks to a worker, in one packet."""

    worker: int
    tasks: list[int]


class TakeBack(NamedTuple):
    """Take back what a worker has not taken yet, and tell of it by `Schedule.returned`."""

    worker: int


class Retire(NamedTuple):
    """Have a worker leave when it has done what it has."""

    worker: int


class Lose(NamedTuple):
    """Its worker died while it ran this task."""

    task: int
    worker: int


class Abandon(NamedTuple):
    """No worker could start in so many attempts, so this task will not run."""

    task: int
    attempts: int


Action = Spawn | Send | TakeBack | Retire | Lose | Abandon
