"""Many large messages while either side is killed: nothing is left of any of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.support import until

if TYPE_CHECKING:
    from pathlib import Path

#: How many large messages are exchanged in all; CI exchanges 10,000.
MESSAGES = int(os.environ.get("MPKIT_MESSAGES", "1000"))
#: How many of them under each start method: a kill costs a start, and some are slow.
SHARE = {"fork": 0.7, "forkserver": 0.15, "spawn": 0.15}
#: Bytes by which the process may have grown, whatever went through it: one message
#: has 0.9 MB on average, so less than 10 of 1,000 would show.
SLACK = 16 * 2**20


@pytest.mark.timeout(900)
def test_nothing_is_left_of_large_messages_when_either_side_is_killed(
    start_method: str, tmp_path: Path
) -> None:
    count = max(1, int(MESSAGES * SHARE[start_method]))
    before = shared_memory()
    program = subprocess.run(
        [sys.executable, "-m", "tests.fault.channel_soak", start_method, str(count)],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "TMPDIR": str(tmp_path),  # what is no memory is written here
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert program.stderr == "", "no traceback, and nothing from a resource tracker"
    assert program.returncode == 0
    print(program.stdout)
    facts = json.loads(program.stdout)
    assert facts["arrived"] >= count
    was, now = facts["before"], facts["after"]
    assert now["descriptors"] == was["descriptors"]
    assert now["threads"] == was["threads"]
    assert now["resident"] - was["resident"] < SLACK
    left = shared_memory() - before
    until(lambda: not left & shared_memory())  # other programs come and go
    assert not list(tmp_path.iterdir())


def shared_memory() -> set[str]:
    """Return the names of all shared memory of this machine (Linux)."""
    return set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()
