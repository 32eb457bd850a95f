"""A slot whose holder is cut off: ``unshare --net python -m tests.fault.cut_off_limit``.

As `tests.fault.cut_off`. `test_dask_cut_off` runs it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import dask

import mpkit
from mpkit.dask import Semaphore
from tests import poolwork
from tests.cluster import Cluster, Host
from tests.fault.cut_off import FAR, NEAR, connect, switch
from tests.support import PATIENCE, until


def hold(semaphore: Semaphore, path: str, inside: mpkit.Signal, leave: mpkit.Signal) -> None:
    """Hold a slot; note what was raised at the end. (Signals of this machine, not of the cluster.)"""
    try:
        with semaphore:
            inside.set()
            assert leave.wait(PATIENCE * 2)
        poolwork.note(path, "left")
    except Exception as error:
        poolwork.note(path, type(error).__name__)


def main(folder: Path, config: dict[str, object]) -> None:
    notes = str(folder / "notes")
    Path(notes).touch()
    near, far = Host(), Host(["unshare", "--net"])
    far.wait_until_ready()
    connect(far)
    dask.config.set(config)
    with Cluster(near, folder, 0, address=NEAR, config=config) as cluster:
        (there,) = cluster.add_workers(1, host=far, address=FAR)
        with cluster.client(set_as_default=True) as client:
            semaphore, inside, leave = Semaphore(1), mpkit.Signal(), mpkit.Signal()
            future = client.submit(hold, semaphore, notes, inside, leave, workers=there.address)
            assert inside.wait(PATIENCE)
            refused = semaphore.acquire(False)
            switch("down")
            taken = semaphore.acquire(timeout=PATIENCE)
            leave.set()  # while nobody can be told
            switch("up")
            until(lambda: poolwork.notes(notes))
            future.result(PATIENCE)
            overbooked = semaphore.acquire(False)
            semaphore.release()
            until(lambda: semaphore.available == 1)
    near.close()
    far.close()
    told = {
        "refused": refused,
        "taken": taken,
        "overbooked": overbooked,
        "end": poolwork.notes(notes),
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
