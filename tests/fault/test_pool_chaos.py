"""Pools whose workers are killed, stopped and starved at random: every call has its due."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from secrets import randbelow
from typing import TYPE_CHECKING

import pytest

from tests.fault.test_channel_soak import shared_memory
from tests.support import PATIENCE, until

if TYPE_CHECKING:
    from pathlib import Path

#: For how long; ``make chaos`` goes on for ten minutes.
SECONDS = float(os.environ.get("MPKIT_CHAOS_SECONDS", "8"))
#: At least so many tasks.
TASKS = 20_000 if SECONDS >= 600 else 500
#: What part of it each start method has.
SHARE = {"fork": 1.0, "forkserver": 0.2, "spawn": 0.2}
#: Bytes by which the process may have grown. Each round has 10 MB of arguments and results.
SLACK = 24 * 2**20


@pytest.mark.timeout(300 + 3 * SECONDS)
def test_every_call_has_its_due_whatever_becomes_of_the_workers(
    start_method: str, tmp_path: Path
) -> None:
    check(start_method, SHARE[start_method], tmp_path)


@pytest.mark.timeout(300 + 3 * SECONDS)
def test_the_same_where_inboxes_are_streams(tmp_path: Path) -> None:
    """What a dead worker had read was counted without the heads of packets: tasks ran twice."""
    check("fork", 0.4, tmp_path, MPKIT_PORTABLE="1")


def check(start_method: str, share: float, tmp_path: Path, **env: str) -> None:
    seed = int(os.environ.get("MPKIT_CHAOS_SEED") or randbelow(10**6))
    arguments = [start_method, str(int(TASKS * share)), str(SECONDS * share), str(seed)]
    print("once more:", *env, f"python -m tests.fault.pool_chaos {' '.join(arguments)}")
    before = shared_memory()
    program = subprocess.Popen(
        [sys.executable, "-m", "tests.fault.pool_chaos", *arguments],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "TMPDIR": str(tmp_path),
            **env,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # whoever is left of it is left in its group
    )
    try:
        printed, errors = program.communicate()
        assert errors == "", "no traceback, and nothing from a resource tracker"
        assert program.returncode == 0
        until(lambda: not group_exists(program.pid))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(program.pid, signal.SIGKILL)
        program.wait(PATIENCE)
    print(printed)
    facts = json.loads(printed)
    was, now = facts["before"], facts["after"]
    resident = now.pop("resident") - was.pop("resident")
    assert now == was
    assert resident < SLACK
    half = len(facts["resident"]) // 2
    assert max(facts["resident"][half:]) < max(facts["resident"][: half + 1]) + SLACK
    left = shared_memory() - before
    until(lambda: not left & shared_memory())  # other programs come and go
    assert not list(tmp_path.iterdir())


def group_exists(number: int) -> bool:
    try:
        os.killpg(number, 0)
    except ProcessLookupError:
        return False
    return True
