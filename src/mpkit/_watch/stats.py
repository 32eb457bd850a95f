"""What `TaskPool.stats` returns: what a pool did until then, in figures."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Spread:
    """How many seconds something took, of ``count`` times.

    ``p50``, ``p90`` and ``p99`` are percentiles, which are right to 7 per cent: however many there
    were, the pool keeps some hundred numbers of them.
    """

    count: int
    total: float
    p50: float
    p90: float
    p99: float
    longest: float

    @property
    def mean(self) -> float:
        """The mean, in seconds; 0 if there was none."""
        return self.total / self.count if self.count else 0.0


@dataclass(frozen=True, slots=True)
class FunctionStats:
    """What became of the runs of one function, or of the tasks of one ``name``.

    ``run`` is how long they took that returned or raised, ``wait`` how long they were there before a worker
    began with them (after a failure: since that, and the pause behind it). ``failed`` counts those
    that raised, ``lost`` those whose worker died, of which it is not known how long they took. In a
    map, a slice of its items is a run.
    """

    name: str
    failed: int
    lost: int
    run: Spread
    wait: Spread


@dataclass(frozen=True, slots=True)
class WorkerStats:
    """What one worker did. Times are in seconds, memory in bytes.

    ``lived`` is the time from its start to its end, or to now. All of it was either ``busy``, when it
    ran tasks; or ``wait``, when it did not though the next one was there (it was starting, or messages
    were on their way: much of it says that tasks are too short); or ``idle``, when there was nothing for it to do.

    ``number`` is its place among the workers, which the one has that replaces it; ``restarts`` is how
    many have died in that place before it. ``peak_memory`` is the most that it had resident, as seen
    after tasks, each quarter of a second at most, and when it was told to leave; 0 if the system does
    not tell (macOS). ``reason`` is how it ended, and empty while it lives.
    """

    pid: int
    number: int
    tasks: int
    failed: int
    busy: float
    wait: float
    idle: float
    lived: float
    restarts: int
    peak_memory: int
    reason: str


@dataclass(frozen=True, slots=True)
class Stats:
    """What a pool did until now, as `TaskPool.stats` returns it.

    Tasks are counted as they were submitted: a chunk of a map, or a slice of it, is one. Each is
    ``done``, which is to say that it returned; or has ``failed``, after its last attempt; or was ``cancelled``; or is `pending`.
    ``attempts`` counts how often tasks were run to some end, ``lost`` those of them whose worker died,
    and ``retries`` how often one was tried again. ``restarts`` counts the workers that died and were replaced.
    ``workers`` are those that live, and the latest of those that have ended (2,000 in all);
    ``functions`` the first 200 by name, and all others as one.

    Example:
        >>> import mpkit
        >>> with mpkit.TaskPool(1) as pool:
        ...     _ = pool.apply(pow, (2, 10))
        ...     stats = pool.stats()
        >>> stats.submitted, stats.done, stats.pending, stats.functions[0].name
        (1, 1, 0, 'pow')

    """

    submitted: int
    done: int
    failed: int
    cancelled: int
    attempts: int
    retries: int
    lost: int
    restarts: int
    workers: tuple[WorkerStats, ...]
    functions: tuple[FunctionStats, ...]

    @property
    def pending(self) -> int:
        """How many tasks have not ended, and wait or run."""
        return max(0, self.submitted - self.done - self.failed - self.cancelled)
