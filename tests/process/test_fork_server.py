"""What the fork server imports for mpkit's processes, so that each of them need not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import mpkit
from tests.support import PATIENCE

SOURCE = str(Path(mpkit.__file__).parents[1])

#: What is there when its main module begins, a process has from the server that forked it.
PROGRAM = """
import multiprocessing, sys
there = set(sys.modules)
sys.path[:0] = sys.argv[2:]
import mpkit

def of_server(name):
    return name in there

def by_pool(name):
    with mpkit.TaskPool(1) as pool:
        return pool.apply(of_server, (name,))

def by_job(name):
    return mpkit.start(of_server, name).result()

if __name__ == "__main__":
    multiprocessing.set_start_method("forkserver")
    multiprocessing.set_forkserver_preload(["colorsys"])
    run = {"pool": by_pool, "job": by_job}[sys.argv[1]]
    print(run("mpkit._worker.worker"), run("colorsys"))
    from multiprocessing import forkserver
    print(forkserver._forkserver._preload_modules)
"""


def ran(tmp_path: Path, *args: str, path: str) -> list[str]:
    """Run the program, and return what it prints."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, program, *args],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path},
    )
    return done.stdout.splitlines()


@pytest.mark.parametrize("first", ["pool", "job"])
def test_it_imports_what_our_processes_need_and_what_the_program_wants(
    first: str, tmp_path: Path
) -> None:
    assert ran(tmp_path, first, path=SOURCE) == ["True True", "['colorsys']"]


def test_it_imports_no_other_mpkit_than_the_programs(tmp_path: Path) -> None:
    """Only the program has ours in its path; a new interpreter would find the other one."""
    (tmp_path / "other" / "mpkit").mkdir(parents=True)
    (tmp_path / "other" / "mpkit" / "__init__.py").write_text("raise SystemExit", encoding="utf-8")
    printed = ran(tmp_path, "pool", SOURCE, path=str(tmp_path / "other"))
    assert printed == ["False True", "['colorsys']"]
