"""A host of a Dask cluster whose cable is pulled. (Linux, as root or where users may be.)"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.support import PATIENCE

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("distributed")

#: Nothing heard for so long is an end; each is the least that Dask has.
CONFIG = {
    "distributed.scheduler.worker-ttl": "5 s",  # of a worker: ten heartbeats
    "distributed.comm.timeouts.tcp": "11 s",  # of a connection: ten probes
}


@pytest.fixture(scope="module")
def elsewhere() -> list[str]:
    """Return what runs a command in a network of its own."""
    if not all(map(shutil.which, ("unshare", "nsenter", "ip"))):
        pytest.skip("needs util-linux and iproute2")
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    command = ["unshare", *user, "--net"]
    probe = [*command, "ip", "link", "add", "one", "type", "veth", "peer", "name", "other"]
    done = subprocess.run(probe, check=False, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no network of its own for a process here: {done.stderr.strip()}")
    return command


def run(program: str, elsewhere: list[str], folder: Path, config: dict[str, str]) -> Any:
    """Return what a program says that is run there."""
    done = subprocess.run(
        [*elsewhere, sys.executable, "-m", program, str(folder), json.dumps(config)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
        capture_output=True,
        text=True,
        timeout=6 * PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_host_is_cut_off_and_comes_back(elsewhere: list[str], tmp_path: Path) -> None:
    """What it runs is lost when Dask gives it up; all else runs on the other one, and once."""
    told = run("tests.fault.cut_off", elsewhere, tmp_path, CONFIG)
    print(told)
    cut = {name for name, place in told["began"].items() if place == "far"}
    assert len(cut) == 3
    for name, end in told["ended"].items():
        if name in cut and name.startswith("0"):
            assert end.startswith("WorkerDied: ")
            assert "10.0.0.2" in end
        else:
            assert end == "near"
    # Those with retries=1 that were there, a second time.
    assert told["begun"] == 4 + sum(name.startswith("1") for name in cut)
    assert told["right"]
    assert told["executed"] == [1000, 1]
    assert told["goes on"]
    assert told["exit code"] == 0
    # And a program with a cluster that is all there has lost it.
    assert len(told["alone"]) == 4
    assert all("connection to the scheduler (tcp://10.0.0.2:" in why for why in told["alone"])


def test_a_holder_is_cut_off_for_longer_than_its_lease(
    elsewhere: list[str], tmp_path: Path
) -> None:
    """It lives, and is inside with the next one; when it can be told, it is."""
    config = {
        "distributed.scheduler.locks.lease-timeout": "2 s",
        "distributed.scheduler.locks.lease-validation-interval": "0.1 s",
    }
    told = run("tests.fault.cut_off_limit", elsewhere, tmp_path, config)
    assert not told["refused"]
    assert told["taken"]
    assert not told["overbooked"]
    assert told["end"] == ["LeaseLost"]


def test_the_end_of_a_channel_learns_that_the_other_one_is_cut_off(
    elsewhere: list[str], tmp_path: Path
) -> None:
    """By TCP; 11 seconds are the least that Dask has. (A worker without its scheduler ends.)"""
    config = {
        "distributed.comm.timeouts.tcp": "11 s",
        "distributed.scheduler.worker-ttl": "10 minutes",
    }
    told = run("tests.fault.cut_off_channel", elsewhere, tmp_path, config)
    seconds = told.pop("seconds")
    assert told == {"here": "PeerDied", "job": "WorkerDied"}
    print(seconds)
