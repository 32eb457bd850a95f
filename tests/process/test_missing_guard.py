"""A program without its guard, as every stranger writes it once, is told so in few words."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.documents import run

if TYPE_CHECKING:
    from pathlib import Path

GUARD = 'that has to be below `if __name__ == "__main__":`'
UNGUARDED = """
import multiprocessing
import mpkit

def square(number):
    return number * number

if "METHOD" == "forkserver, which imports main":
    import newer
multiprocessing.set_start_method("METHOD".partition(",")[0], force=True)
with mpkit.TaskPool(2) as pool:  # line 11
    print(pool.map(square, range(4)))
"""
UNGUARDED_JOB = UNGUARDED[: UNGUARDED.index("with")] + "print(mpkit.start(square, 3).result())\n"
# What newer Pythons do, and the older ones mean to: its server imports the main module, too.
NEWER = """
import multiprocessing.spawn
before = multiprocessing.spawn.get_preparation_data

def get_preparation_data(name):
    data = before(name)
    if name == "ignore":
        data["main_path"] = data["init_main_from_path"]
    return data

multiprocessing.spawn.get_preparation_data = get_preparation_data
"""
METHODS = ["spawn", "forkserver", "forkserver, which imports main"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("what", ["pool", "job"])
def test_a_missing_guard_is_told_in_few_words(what: str, method: str, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    code = UNGUARDED if what == "pool" else UNGUARDED_JOB
    program.write_text(code.replace("METHOD", method), encoding="utf-8")
    (tmp_path / "newer.py").write_text(NEWER, encoding="utf-8")

    ran = run(program)

    assert ran.returncode == 1
    assert not ran.stdout
    said = ran.stderr.splitlines()
    told = [line for line in said if line.startswith(f"{program}:11: each new process imports")]
    assert told, ran.stderr
    assert all(line.endswith(GUARD) for line in told)
    assert "bootstrapping phase" not in ran.stderr  # multiprocessing's forty lines
    if what == "pool":
        assert said[-1].startswith("mpkit.WorkerInitError: ")
        assert GUARD in said[-1]
    elif "ConnectionError" in said[-1]:
        assert "the fork server has started no process" in said[-1]
        assert GUARD in said[-1]
    else:
        assert said[-1].startswith("mpkit.WorkerDied: ")


def test_who_catches_it_goes_on(tmp_path: Path) -> None:
    """A program may have its own way to do without processes; its other errors are as ever."""
    program = tmp_path / "program.py"
    program.write_text(
        """
import multiprocessing, sys, mpkit

def nothing():
    pass

if __name__ == "__main__":
    multiprocessing.set_start_method("spawn", force=True)
    job = mpkit.start(nothing)
    job.join()
    print(job.exitcode)
else:
    try:
        mpkit.start(nothing)
    except RuntimeError as error:
        print(error, flush=True)
    raise LookupError("another")
""",
        encoding="utf-8",
    )

    ran = run(program)

    caught, exitcode = ran.stdout.splitlines()
    assert caught.endswith(GUARD)
    assert exitcode == "1"
    assert ran.stderr.startswith("Traceback")
    assert ran.stderr.endswith("LookupError: another\n")
