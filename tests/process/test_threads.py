"""Libraries of numbers start no more threads in all workers than the machine has cores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mpkit._platform.cores import usable_cores
from mpkit._platform.threads import VARIABLES
from tests.documents import run

#: What a worker finds in its environment before it imports anything, and how many threads NumPy's
#: library is told to start, in the program and its workers.
PROGRAM = """
import os
SEEN = os.environ.get("OMP_NUM_THREADS")
import json, multiprocessing, sys
import numpy, threadpoolctl
import mpkit

def look(_):
    blas = [lib["num_threads"] for lib in threadpoolctl.threadpool_info() if lib["user_api"] == "blas"]
    name = multiprocessing.current_process().name
    return SEEN, os.environ.get("OMP_NUM_THREADS"), max(blas), type(name) is str

if __name__ == "__main__":
    changes = []
    sys.addaudithook(lambda event, _: event in ("os.putenv", "os.unsetenv") and changes.append(event))
    settings = json.loads(sys.argv[1])
    before = dict(os.environ), look(0)
    with mpkit.TaskPool(2, tasks_per_worker=1, **settings) as pool:
        found = [pool.apply(look, (number,)) for number in range(4)]
        each = pool.threads_per_worker
    assert (dict(os.environ), look(0)) == before and not changes, "the program's own has changed"
    print(json.dumps([each, found, look(0)[2]]))
"""


def ask(
    folder: Path, start_method: str, settings: dict[str, object], **environment: str
) -> tuple[int | None, list[list[Any]], int]:
    """Return what workers are told, what they have found, and how many threads the program has."""
    program = folder / "program.py"
    program.write_text(PROGRAM)
    variables = {**dict.fromkeys(VARIABLES, ""), **environment}
    ran = run(program, json.dumps(settings), start_method=start_method, **variables)
    assert ran.returncode == 0, ran.stderr
    each, found, own = json.loads(ran.stdout)
    return each, found, own


@pytest.fixture(autouse=True)
def numpy_can_be_asked() -> None:
    pytest.importorskip("numpy")
    pytest.importorskip("threadpoolctl")


def test_each_worker_has_its_share_of_the_cores(tmp_path: Path, start_method: str) -> None:
    share = max(1, usable_cores() // 2)
    each, found, _ = ask(tmp_path, start_method, {})
    assert each == share
    # Also those that have replaced others. Who is forked has imported everything before.
    seen = "" if start_method == "fork" else str(share)
    assert found == [[seen, str(share), share, True]] * 4


def test_a_variable_of_the_user_is_left_alone(tmp_path: Path, start_method: str) -> None:
    _, found, own = ask(tmp_path, start_method, {}, OMP_NUM_THREADS="2")
    assert found == [["2", "2", own, True]] * 4


def test_who_asks_for_a_number_has_it(tmp_path: Path, start_method: str) -> None:
    settings: dict[str, object] = {"threads_per_worker": 1}
    each, found, _ = ask(tmp_path, start_method, settings, OMP_NUM_THREADS="2")
    assert each == 1
    assert found == [["2" if start_method == "fork" else "1", "1", 1, True]] * 4


def test_nobody_is_told_anything_if_that_is_asked_for(tmp_path: Path, start_method: str) -> None:
    each, found, own = ask(tmp_path, start_method, {"threads_per_worker": 0})
    assert each is None
    assert found == [["", "", own, True]] * 4
