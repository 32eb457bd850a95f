"""What is very large, at its full size: there and back, and with a worker that dies on the way."""

from __future__ import annotations

import os
import signal
from typing import Any

import numpy as np
import pytest

import mpkit
from mpkit._platform import memory
from tests import poolwork
from tests.support import PATIENCE, available, until

SENT = 300_000_000
LARGEST = 3 * 2**30

needs_memfd = pytest.mark.skipif(not memory.HAS_MEMFD, reason="looks at what is sent")


def much() -> bytearray:
    return bytearray(SENT)


def segment_in_the_making(pid: int) -> int | None:
    """Return a descriptor of what a worker is about to send, if less than half of it is there."""
    folder = f"/proc/{pid}/fd"
    for path in [f"{folder}/{name}" for name in os.listdir(folder)]:
        try:
            if "memfd" in os.readlink(path):
                facts = os.stat(path)
                if facts.st_size >= SENT and facts.st_blocks * 512 < SENT // 2:
                    return os.open(path, os.O_RDONLY)
        except FileNotFoundError:  # it was closed meanwhile
            pass
    return None


@needs_memfd
def test_a_worker_that_is_killed_while_it_sends_300_mb_loses_that_alone(start_method: str) -> None:
    """Row 25 of the table of faults. That it was half done is seen from what it has left."""
    with mpkit.TaskPool(1) as pool:
        written = SENT
        while written >= SENT:  # or it was too quick for us
            pid = pool.apply(poolwork.pid_of_worker)
            sending = pool.submit(much)
            behind = pool.submit(poolwork.square, 3)
            found: list[int | None] = []
            until(
                lambda pid=pid, found=found, sending=sending: (  # type: ignore[misc]
                    found.append(segment_in_the_making(pid)) or found[-1] or sending.done()
                )
            )
            if found[-1] is not None:
                os.kill(pid, signal.SIGKILL)
                until(sending.done)
                written = os.fstat(found[-1]).st_blocks * 512
                os.close(found[-1])
            assert behind.result(PATIENCE) == 9
        assert isinstance(sending.exception(PATIENCE), mpkit.WorkerDied)
        assert len(pool.apply(much)) == SENT


@pytest.mark.parametrize("way", ["argument", "result"])
def test_a_worker_that_dies_within_300_mb_loses_that_alone(way: str) -> None:
    """The same, at the moments at which user code runs."""
    with mpkit.TaskPool(1) as pool:
        if way == "argument":
            call: Any = poolwork.take_two, bytes(SENT), poolwork.BadArrival("SIGKILL")
        else:
            call = poolwork.return_a_bad_departure, "SIGKILL", SENT
        bad = pool.submit(*call)
        behind = pool.submit(poolwork.square, 3)
        assert isinstance(bad.exception(PATIENCE), mpkit.WorkerDied)
        assert behind.result(PATIENCE) == 9


def largest() -> Any:
    """Return what takes no memory where it is made: most of it is never written."""
    array = np.zeros(LARGEST, "u1")
    array[-1] = 7
    return array


def end_of(array: Any) -> tuple[int, int]:
    return len(array), int(array[-1])


@pytest.mark.any_python
def test_3_gib_travel_there_and_back() -> None:
    """Row 17b of the table of faults."""
    if available() < 3 * LARGEST:
        pytest.skip(f"it takes {3 * LARGEST >> 30} GiB of memory")
    with mpkit.TaskPool(1) as pool:
        assert pool.apply(end_of, (largest(),)) == (LARGEST, 7)
        assert end_of(pool.apply(largest)) == (LARGEST, 7)
        assert pool.apply(poolwork.square, (3,)) == 9
