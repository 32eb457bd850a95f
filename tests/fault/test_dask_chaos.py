"""A pool on Dask whose workers come, go, stand still and come back at random, whatever it does."""

from __future__ import annotations

import concurrent.futures
import os
import random
import time
from collections import Counter
from secrets import randbelow
from typing import TYPE_CHECKING, Any

import pytest

import mpkit
from tests import poolwork
from tests.support import PATIENCE, until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.cluster import Cluster, Server

pytest.importorskip("distributed")
from mpkit.dask import TaskPool

#: For how long; ``make chaos`` goes on for ten minutes.
SECONDS = float(os.environ.get("MPKIT_CHAOS_SECONDS", "6"))
#: Workers that run, or are about to.
WORKERS = 3
#: What a death, or lack of time, makes of a task; and who cancels it.
ENDS = mpkit.WorkerDied, mpkit.TaskTimeout, concurrent.futures.CancelledError


def work(path: str, number: int, seconds: float, array: Any) -> int:
    poolwork.note(path, number)
    if seconds:
        poolwork.be_busy(seconds)
    return number * number + (0 if array is None else len(array))


class Chaos:
    """What happens, and the tasks there were since the last `settle`."""

    def __init__(self, cluster: Cluster, pool: mpkit.TaskPool, path: str, seed: int) -> None:
        self.cluster = cluster
        self.pool = pool
        self.path = path
        self.chance = random.Random(seed)
        self.large = b"x" * 2**21
        self.stopped: list[Server] = []
        self.number = 0
        self.tasks: list[tuple[int, int, mpkit.Task[int]]] = []
        self.told: Counter[str] = Counter()

    def noted(self) -> int:
        return os.path.getsize(self.path) if os.path.exists(self.path) else 0

    def running(self) -> list[Server]:
        return self.cluster.workers[-WORKERS:]

    def submit(self) -> None:
        chance = self.chance
        seconds = chance.choice([0, 0, 0, 0.001, 0.02])
        count = chance.choice([1, 10, 30] if seconds > 0.01 else [1, 10, 300, 1500])
        array = self.large if chance.random() < 0.15 and count <= 300 else None
        view = self.pool.options(retries=chance.choice([0, 0, 20]))
        if chance.random() < 0.2:
            view = view.options(timeout=chance.choice([0.05, 5.0]))
        begin, self.number = self.number, self.number + count
        value = 0 if array is None else len(array)
        batch = [
            (number, number * number + value, view.submit(work, self.path, number, seconds, array))
            for number in range(begin, self.number)
        ]
        if chance.random() < 0.2:
            for _, _, task in chance.sample(batch, max(1, count // 5)):
                task.cancel()
        self.tasks += batch

    def map(self) -> None:
        """Wait for a map, or an imap, while nothing else happens but what has been begun."""
        items = range(self.chance.choice([3, 100, 3000]))
        try:
            if self.chance.random() < 0.5:
                results = self.pool.map_async(poolwork.square, items).result(PATIENCE)
            else:
                results = list(self.pool.imap(poolwork.square, items))
        except mpkit.WorkerDied:
            self.told["a map died"] += 1
        else:
            assert results == [item * item for item in items]

    def kill(self) -> None:
        # Not before something runs: to start the next one takes longer than most tasks.
        before = self.noted()
        until(lambda: self.noted() > before or all(task.done() for _, _, task in self.tasks))
        self.cluster.kill(self.chance.choice(self.running()))
        self.cluster.add_worker(threads=self.chance.choice([1, 1, 2]))

    def stop(self) -> None:
        worker = self.chance.choice(self.running())
        self.cluster.stop(worker)
        self.cluster.workers.remove(worker)  # from those that run
        self.cluster.workers.insert(0, worker)
        self.stopped.append(worker)
        self.cluster.add_worker()

    def cont(self) -> None:
        if self.stopped:
            self.cluster.cont(self.stopped.pop(0))

    def settle(self) -> None:
        """Every task ends, as it may, and was executed as often as it may."""
        for number, value, task in self.tasks:
            try:
                assert task.result(PATIENCE) == value
            except ENDS as error:
                self.told[type(error).__name__] += 1
            else:
                self.told["done"] += 1
        ran = Counter(map(int, poolwork.notes(self.path)))
        for number, _, task in self.tasks:
            assert ran[number] <= task.attempts, f"task {number}, {task!r}"
            if not task.cancelled() and task.exception(0) is None:
                assert ran[number] >= 1
        self.tasks.clear()


@pytest.mark.timeout(300 + 3 * SECONDS)
def test_every_call_on_a_cluster_has_its_due(
    make_cluster: Callable[..., Cluster], tmp_path: Path
) -> None:
    seed = int(os.environ.get("MPKIT_CHAOS_SEED") or randbelow(10**6))
    print(f"once more: MPKIT_CHAOS_SEED={seed}")
    cluster = make_cluster(WORKERS, config={"distributed.scheduler.worker-ttl": "1 s"})
    with cluster.client() as client, TaskPool(client=client) as pool:
        chaos = Chaos(cluster, pool, str(tmp_path / "notes"), seed)
        weights = {
            chaos.submit: 10,
            chaos.map: 2,
            chaos.kill: 3,
            chaos.stop: 0.4,
            chaos.cont: 0.6,
            chaos.settle: 1,
        }
        end = time.monotonic() + SECONDS
        while time.monotonic() < end or chaos.number < 1000:
            (step,) = chaos.chance.choices(list(weights), list(weights.values()))
            step()
        chaos.settle()
        print(chaos.number, "tasks:", dict(chaos.told))
        assert chaos.told["done"] > 100
        assert pool.stats().pending == 0
