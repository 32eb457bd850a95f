"""Pools on two hosts that are cut off from each other: ``unshare --net python -m tests.fault.cut_off``.

Each host is a network of its own (a namespace of Linux), and a cable is between them. They
end, and the cable too, when the processes do that are in them. `test_dask_cut_off` runs it.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import dask

import mpkit
from mpkit.dask import TaskPool
from tests import poolwork
from tests.cluster import Cluster, Host
from tests.support import PATIENCE, until

if TYPE_CHECKING:
    from collections.abc import Iterator

NEAR, FAR = "10.0.0.1", "10.0.0.2"


def hold(path: str, name: str, go: mpkit.Signal) -> int:
    """Note where this runs, wait, and return that."""
    poolwork.note(path, f"{name}:{os.getpid()}")
    assert go.wait(PATIENCE * 4)
    return os.getpid()


def work(path: str, number: int) -> int:
    poolwork.note(path, number)
    return number * number


def connect(far: Host) -> None:
    """Put a cable between this host and another."""
    there = ["nsenter", "--target", str(far.pid), "--net"]
    for command in (
        ["ip", "link", "set", "lo", "up"],
        [*there, "ip", "link", "set", "lo", "up"],
        ["ip", "link", "add", "near", "type", "veth", "peer", "name", "far", "netns", str(far.pid)],
        ["ip", "address", "add", f"{NEAR}/24", "dev", "near"],
        [*there, "ip", "address", "add", f"{FAR}/24", "dev", "far"],
        ["ip", "link", "set", "near", "up"],
        [*there, "ip", "link", "set", "far", "up"],
    ):
        subprocess.run(command, check=True)


def switch(state: str) -> None:
    """Have the cable be "up", or "down": plugged, or not."""
    subprocess.run(["ip", "link", "set", "near", state], check=True)


@contextlib.contextmanager
def all_there(far: Host, folder: Path, config: dict[str, object]) -> Iterator[mpkit.TaskPool]:
    """Have a pool on a cluster all of which, but for this program, is on another host."""
    with Cluster(far, folder, 1, address=FAR, config=config) as cluster:
        with cluster.client(timeout=1) as client, TaskPool(client=client) as pool:
            yield pool


def refusal(pool: mpkit.TaskPool) -> Exception | None:
    """Return why a pool takes nothing."""
    try:
        pool.submit(abs, -1)
    except mpkit.PoolClosed as error:
        return error
    return None


def main(folder: Path, config: dict[str, object]) -> None:
    held, notes = str(folder / "held"), str(folder / "notes")
    go = mpkit.Signal()
    near, far = Host(), Host(["unshare", "--net"])
    far.wait_until_ready()
    connect(far)
    dask.config.set(config)
    other = folder / "other"
    other.mkdir()
    with (
        contextlib.ExitStack() as stack,
        Cluster(near, folder, 0, address=NEAR, config=config) as cluster,
    ):
        (kept,) = cluster.add_workers(1, address=NEAR)
        (cut,) = cluster.add_workers(1, threads=3, host=far, address=FAR)
        with cluster.client() as client, TaskPool(client=client) as pool:
            # Three of these four are there, so one of each kind at least.
            holders = {
                f"{retries}{letter}": pool.options(retries=retries).submit(
                    hold, held, f"{retries}{letter}", go
                )
                for retries in (0, 1)
                for letter in "ab"
            }
            until(lambda: len(poolwork.notes(held)) == len(holders))
            began_on = dict(line.split(":") for line in poolwork.notes(held))
            behind = [pool.submit(work, notes, number) for number in range(1000)]
            lonely = stack.enter_context(all_there(far, other, config))
            tasks = [lonely.submit(hold, str(other / "held"), "it", go) for _ in range(3)]
            until(lambda: poolwork.notes(str(other / "held")))
            began = time.monotonic()
            switch("down")
            until(lambda: list(client.nthreads()) == [kept.address], 4 * PATIENCE)
            seconds = time.monotonic() - began
            go.set()
            results = [task.result(PATIENCE) for task in behind]
            ends = {
                name: task.exception(PATIENCE) or task.result() for name, task in holders.items()
            }
            alone = [str(task.exception(2 * PATIENCE)) for task in tasks]
            alone.append(str(refusal(lonely)))
            stack.close()
            switch("up")
            code = cluster.wait(cut)
            after = pool.map(poolwork.square, range(100))
    near.close()
    far.close()
    places = {kept.pid: "near", cut.pid: "far"}
    ran = Counter(poolwork.notes(notes))
    told = {
        "seconds": seconds,
        "began": {name: places[int(pid)] for name, pid in began_on.items()},
        "ended": {
            name: places[end] if isinstance(end, int) else f"{type(end).__name__}: {end}"
            for name, end in ends.items()
        },
        "begun": len(poolwork.notes(held)),
        "executed": [len(ran), max(ran.values())],
        "right": results == [number**2 for number in range(1000)],
        "goes on": after == [number**2 for number in range(100)],
        "exit code": code,
        "alone": alone,
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
