"""What a pool on a Dask cluster is measured by, beside the client of that cluster.

The cluster is Dask's own of this machine, with two workers of one thread each. What the client
does one task at a time takes milliseconds for each, so it does a part of the work and the rest
is reckoned. (Of 20,000 each took no less than of 2,000.)
"""

from __future__ import annotations

import contextlib
import itertools
import pickle
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.pools import WORKERS, seconds
from benchmarks.registry import Case, case
from benchmarks.work import noop

MAP = case("on Dask: map, no-op, a list of 100,000", "µs", count=100_000, quick=0)
BY_HAND = case("on Dask: the same, beside a few packs made by hand", "µs", count=100_000, quick=0)
SUBMIT = case("on Dask: submit + result, no-op, all at once", "µs", count=20_000, quick=0)

#: How many the client gets.
PART = 2_000

#: Four for each worker.
PACKS = 4 * WORKERS


@contextlib.contextmanager
def _client() -> Iterator[Any]:
    import dask
    from distributed import Client, LocalCluster

    with (
        tempfile.TemporaryDirectory() as scratch,  # where Dask leaves an empty folder
        dask.config.set({"temporary-directory": scratch}),
        LocalCluster(
            n_workers=WORKERS, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        Client(cluster) as client,
    ):
        # All workers have imported what they run.
        client.run(noop)
        yield client


@contextlib.contextmanager
def _pool() -> Iterator[Any]:
    from mpkit.dask import TaskPool

    with _client() as client, TaskPool(client=client) as pool:
        pool.map(noop, range(10))
        yield pool


@MAP.run("mpkit")
@BY_HAND.run("mpkit")
def _map(count: int) -> float:
    with _pool() as pool:
        items = list(range(count))
        return seconds(lambda: pool.map(noop, items))


@MAP.run(f"client.map ({PART:,} of them)")
def _map_of_client(count: int) -> float:
    def work(client: Any, part: int) -> float:
        items = list(range(part))
        return seconds(lambda: client.gather(client.map(noop, items, pure=False)))

    return _reckoned(work, count)


@BY_HAND.run(f"client.map of {PACKS} ranges, results pickled")
def _packed(count: int) -> float:
    """What who knows how long they take, and what Dask takes for lists, can do by hand."""
    with _client() as client:
        bounds = [count * pack // PACKS for pack in range(PACKS + 1)]
        packs = [range(begin, end) for begin, end in itertools.pairwise(bounds)]

        def work() -> list[None]:
            done = client.gather(client.map(_noops, packs, pure=False))
            return [result for pack in done for result in pickle.loads(pack)]

        return seconds(work)


def _noops(items: range) -> bytes:
    return pickle.dumps([noop(item) for item in items])


@SUBMIT.run("mpkit")
def _submit(count: int) -> float:
    with _pool() as pool:
        return seconds(
            lambda: [task.result() for task in [pool.submit(noop) for _ in range(count)]]
        )


@SUBMIT.run(f"client.submit ({PART:,} of them)")
def _submit_of_client(count: int) -> float:
    def work(client: Any, part: int) -> float:
        return seconds(
            lambda: client.gather([client.submit(noop, pure=False) for _ in range(part)])
        )

    return _reckoned(work, count)


def _reckoned(work: Callable[[Any, int], float], count: int) -> float:
    """Return the seconds of all from those of a part."""
    part = min(count, PART)
    with _client() as client:
        return work(client, part) * (count / part)


CASES: list[Case] = [MAP, BY_HAND, SUBMIT]
