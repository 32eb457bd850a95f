"""The programs that `make demo` runs, under every start method."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.documents import ROOT, matches, run
from tests.support import PATIENCE, exists, settled, until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cluster import Cluster

pytestmark = pytest.mark.any_python

SURVEY = ROOT / "examples" / "survey.py"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Return a folder of two good files, and of one of every bad kind."""
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "long.py").write_text("def long(x):\n" + "    x += 1\n" * 20)
    (tmp_path / "complex.py").write_text("def choose(a, b):\n    return a if a and b else b\n")
    (tmp_path / "broken.py").write_text("def (:\n")
    (tmp_path / "zero.py").write_bytes(b"x = 1\0")
    (tmp_path / "gone.py").symlink_to("nowhere")
    return tmp_path


#: What the survey prints of that.
SURVEYED = """\
surveying 5 files below ...

5 of 5 files, 23 lines, 2 functions

  lines  largest files
     21  package/long.py
      2  complex.py

  lines  longest functions
     21  package/long.py:1 long
      2  complex.py:1 choose

  score  most complex functions
      3  complex.py:1 choose
      1  package/long.py:1 long

3 files cannot be read or parsed
         broken.py: SyntaxError: invalid syntax (broken.py, line 1)
         gone.py: FileNotFoundError: [Errno 2] No such file or directory...
         zero.py: S...

This took ... s. Now serially, to check it ...
Serially it takes ... s, with the same result:
...
"""


def test_the_survey_loses_nothing_but_the_files_that_are_broken(
    tree: Path, start_method: str
) -> None:
    ran = run(SURVEY, str(tree), "--start-method", start_method)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert matches(ran.stdout, SURVEYED), ran.stdout


def test_the_survey_of_a_cluster_is_the_same(tree: Path, cluster: Cluster) -> None:
    ran = run(SURVEY, str(tree), "--on", cluster.address)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert matches(ran.stdout, SURVEYED), ran.stdout
    assert f"on the cluster at {cluster.address}." in ran.stdout


@pytest.mark.parametrize("tell", ["the collector", "Ctrl-C"])
def test_the_survey_of_a_cluster_ends_early(tmp_path: Path, cluster: Cluster, tell: str) -> None:
    for number in range(300):
        (tmp_path / f"file{number}.py").write_text("def f(): pass\n")
    args = [sys.executable, str(SURVEY), str(tmp_path), "--on", cluster.address]
    if tell == "Ctrl-C":
        (tmp_path / "file0.py").unlink()
        os.mkfifo(tmp_path / "file0.py")
    else:
        args += ["--enough", "3"]
    with subprocess.Popen(
        args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as survey:
        if tell == "Ctrl-C":
            with open(tmp_path / "file0.py", "w") as file:  # when a worker reads it
                survey.send_signal(signal.SIGINT)
                until(lambda: not pending(survey.pid, signal.SIGINT))
                file.write("def g(): pass\n")
        printed, errors = survey.communicate(timeout=PATIENCE)
    assert (survey.returncode, errors) == (0, "")
    found = re.search(r"^(\d+) of 300 files, (\d+) lines", printed, re.MULTILINE)
    assert found, printed
    assert found[1] == found[2]
    assert "stopped early" in printed


def test_the_survey_reports_what_is_there_when_it_has_enough(
    tmp_path: Path, start_method: str
) -> None:
    for number in range(300):
        (tmp_path / f"file{number}.py").write_text("def f(): pass\n")
    ran = run(SURVEY, str(tmp_path), "--enough", "3", "--start-method", start_method)
    assert (ran.returncode, ran.stderr) == (0, "")
    found = re.search(
        r"^(\d+) of 300 files, (\d+) lines, (\d+) functions$", ran.stdout, re.MULTILINE
    )
    assert found, ran.stdout
    assert 3 <= int(found[1]) <= 300
    assert found[1] == found[2] == found[3]  # of one line and one function each


def test_ctrl_c_ends_the_survey_with_what_is_there(tmp_path: Path, start_method: str) -> None:
    """Nobody is left behind, and nobody prints a traceback."""
    (tmp_path / "first.py").write_text("def f(): pass\n")
    # Whoever reads this waits until the test writes: so the survey is in the middle.
    os.mkfifo(tmp_path / "second.py")
    survey = subprocess.Popen(
        [sys.executable, str(SURVEY), str(tmp_path), "--start-method", start_method],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        # This blocks until a worker has opened the file to read it.
        with open(tmp_path / "second.py", "w") as file:
            until(lambda: settled(survey.pid))
            os.killpg(survey.pid, signal.SIGINT)  # as a terminal does: to all of them
            until(lambda: not pending(survey.pid, signal.SIGINT))
            file.write("def g(): pass\n")
        printed, errors = survey.communicate(timeout=PATIENCE)
    finally:
        survey.kill()
        survey.communicate()
    assert (survey.returncode, errors) == (0, "")
    # The first file may have been done, and its measures be on their way.
    assert matches(printed, "...\n... of 2 files, ... lines, ... functions\n...")
    assert "stopped early" in printed
    until(lambda: not members(survey.pid))


def pending(pid: int, number: int) -> bool:
    """Tell whether a signal has not reached a process yet."""
    with open(f"/proc/{pid}/status") as file:
        masks = [line.split()[1] for line in file if line.startswith(("SigPnd", "ShdPnd"))]
    return any(int(mask, 16) >> (number - 1) & 1 for mask in masks)


def members(group: int) -> list[int]:
    """Return the processes of a process group."""
    found: list[int] = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.getpgid(int(name)) == group and exists(int(name)):
                found.append(int(name))
        except ProcessLookupError:
            continue
    return found


def test_a_pool_is_compared_with_a_process_for_each_task(start_method: str) -> None:
    program = ROOT / "examples" / "pool_vs_processes.py"
    ran = run(program, "--tasks", "9", "--start-method", start_method)
    assert (ran.returncode, ran.stderr) == (0, "")
    expected = (
        "9 small tasks with a pool of 4 workers: ... ms\n"
        "9 small tasks with a process each: ... ms\n"
        "the pool was ... times as fast\n"
    )
    assert matches(ran.stdout, expected), ran.stdout
