"""A channel between two hosts, one of which is cut off: as `tests.fault.cut_off`."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import dask

import mpkit.dask as mpkit
from tests.cluster import Cluster, Host
from tests.fault.cut_off import FAR, NEAR, connect, switch
from tests.support import PATIENCE


def wait(end: mpkit.Channel[Any, Any]) -> None:
    """Wait for the end of a channel."""
    end.send("here")
    end.recv()


def main(folder: Path, config: dict[str, object]) -> None:
    near, far = Host(), Host(["unshare", "--net"])
    far.wait_until_ready()
    connect(far)
    dask.config.set(config)
    with Cluster(near, folder, 0, address=NEAR, config=config) as cluster:
        cluster.add_workers(1, host=far, address=FAR)
        with cluster.client() as client, client.as_current():
            here, other = mpkit.channel()
            job = mpkit.start(wait, other)
            assert here.recv(PATIENCE) == "here"
            switch("down")
            began = time.monotonic()
            error = ""
            try:
                here.recv(4 * PATIENCE)
            except mpkit.EndOfChannel as end:
                error = type(end).__name__
            seconds = time.monotonic() - began
            told = {
                "here": error,
                "job": type(job.exception(4 * PATIENCE)).__name__,
                "seconds": seconds,
            }
            here.close()
    near.close()
    far.close()
    print(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
