"""``python -m mpkit doctor``: what this machine gives, and whether everything works on it."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import mpkit
from mpkit import __main__ as command
from mpkit import _doctor, _selftest
from mpkit._platform.cores import affinity
from tests.support import PATIENCE, exists, python, until

# It is asked on every Python by `make release-check`.
pytestmark = pytest.mark.any_python

METHODS = multiprocessing.get_all_start_methods()

#: A program that tries what never ends, in place of everything.
HANGS = (
    "import signal, sys; from mpkit import _selftest;"
    "_selftest.TRIALS.clear(); _selftest.TRIALS['limit'] = signal.pause;"
    "_selftest.main(sys.argv[1])"
)


def ask(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Ask the doctor, in a program with a runtime directory of its own."""
    variables = {"PYTHONPATH": os.pathsep.join(sys.path), "MPKIT_RUNTIME_DIR": str(folder)}
    ran = subprocess.run(
        [sys.executable, "-m", "mpkit", "doctor", *arguments],
        capture_output=True,
        text=True,
        timeout=4 * PATIENCE,
        env={**os.environ, **variables, **environment},
        check=False,
    )
    assert ran.stderr == ""
    return ran


def test_it_says_what_there_is_tries_everything_and_leaves_nothing(tmp_path: Path) -> None:
    home = tmp_path / "far" / "away"
    ran = ask(home, "--json", MPKIT_WORKERS="3", OMP_NUM_THREADS="5")
    found = json.loads(ran.stdout)
    assert found["problems"] == []
    assert ran.returncode == 0
    assert found["mpkit"] == mpkit.__version__
    assert found["start_methods"] == METHODS
    assert found["default_start_method"] == METHODS[0]
    assert (found["cores"]["environment"], found["cores"]["workers"]) == ("3", 3)
    assert found["cores"]["thread_variables"] == {"OMP_NUM_THREADS": "5"}
    assert found["cores"]["affinity"] == affinity()
    assert (found["directory"]["path"], found["directory"]["exists"]) == (str(home), False)
    tried = [(trial["start_method"], trial["part"]) for trial in found["trials"]]
    assert tried == [(method, part) for method in METHODS for part in _selftest.TRIALS]
    assert all(trial["problem"] is None for trial in found["trials"])
    assert list(tmp_path.iterdir()) == []


def test_it_says_so_in_plain_words(tmp_path: Path) -> None:
    ran = ask(tmp_path)
    assert ran.returncode == 0, ran.stdout
    lines = ran.stdout.splitlines()
    assert lines[-1] == "All is well."
    for method in METHODS:
        assert any(re.match(rf"  {method} +limit, .*, TaskPool work \(", line) for line in lines)
    assert re.search(rf"  {re.escape(str(tmp_path))}( on .*)?: can be used\n", ran.stdout)
    assert all(len(line) < 100 for line in lines if str(tmp_path) not in line)
    assert list(tmp_path.iterdir()) == []


def test_what_is_wrong_is_said_and_makes_it_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MPKIT_RUNTIME_DIR", str(tmp_path / "file"))
    monkeypatch.setenv("MPKIT_WORKERS", "many")
    assert command.main(["doctor", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["cores"]["workers"] is None
    assert "MPKIT_WORKERS" in found["cores"]["problem"]
    assert "is not a directory" in found["directory"]["problem"]
    failed = {trial["part"]: trial["problem"] for trial in found["trials"] if trial["problem"]}
    assert failed.keys() >= {"limit", "Semaphore", "Signal"}
    assert failed["limit"].startswith("RuntimeDirectoryError: ")
    for problem in (found["cores"]["problem"], found["directory"]["problem"]):
        assert problem in found["problems"]


def test_a_problem_is_also_said_in_words() -> None:
    trials = [
        _selftest.Trial("fork", "limit", 0.5, None),
        _selftest.Trial("fork", "Signal", 0.0, "it hung"),
    ]
    cores = _doctor.Cores(8, 4, 1.5, "x", None, None, {"OMP_NUM_THREADS": "2"}, "x is no number")
    place = _doctor.Directory("/x", True, "tmpfs", True, None)
    report = _doctor.Report("1", "P", "p", "S", ["fork"], "fork", cores, place, [], [], trials)
    text = "\n".join(_doctor.lines(report))
    assert report.problems == ["x is no number", "Signal under fork: it hung"]
    assert text.endswith("\nPROBLEM  x is no number\nPROBLEM  Signal under fork: it hung")
    assert "  fork        FAILED: Signal" in text
    assert "  CPU quota              the time of 1.5\n" in text
    assert "  OMP_NUM_THREADS        2\n" in text
    assert "  /x on tmpfs (in memory): can be used\n" in text
    assert "All is well" not in text


def test_a_program_that_is_killed_has_told_what_it_had_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    line = '{"part": "limit", "seconds": 1.5, "problem": null}\\n{"part": "Sem'
    dies = f"import os; os.write(1, b'{line}'); os.kill(os.getpid(), 9)"
    monkeypatch.setattr(_selftest, "_TRY", dies)
    first, second, *others = _selftest.run(["spawn"])
    assert first == _selftest.Trial("spawn", "limit", 1.5, None)
    assert second.part == "Semaphore"
    assert second.problem == "the program that tried it was killed by SIGKILL"
    assert {trial.problem for trial in others} == {"was not tried"}
    assert [trial.part for trial in (first, second, *others)] == list(_selftest.TRIALS)


def test_a_program_that_ends_by_an_error_is_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_selftest, "_TRY", "import nothing_of_that_name")
    first, *_ = _selftest.run(["spawn"])
    assert first.problem is not None
    assert first.problem.startswith("the program that tried it exited with code 1: ModuleNotFound")


def test_what_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_selftest, "_TRY", HANGS)
    monkeypatch.setattr(_selftest, "MOST_SECONDS", 0.5)
    first, second, *_ = _selftest.run(["fork", "spawn"])
    assert first.problem == "it did not end within 0.5 s"
    assert second.problem == "was not tried"


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="needs /proc")
def test_what_hangs_ends_with_a_doctor_who_is_killed(tmp_path: Path) -> None:
    trial = (
        "import os, pathlib, signal, sys; from mpkit import _selftest\n"
        "def trial():\n"
        f"    pathlib.Path({str(tmp_path / 'new')!r}).write_text(str(os.getpid()))\n"
        f"    os.rename({str(tmp_path / 'new')!r}, {str(tmp_path / 'pid')!r})\n"
        "    signal.pause()\n"
        "_selftest.TRIALS.clear(); _selftest.TRIALS['limit'] = trial\n"
        "_selftest.main(sys.argv[1])"
    )
    program = f"from mpkit import _selftest; _selftest._TRY = {trial!r}; _selftest.run(['fork'])"
    with python(program) as doctor:
        until((tmp_path / "pid").exists)
        pid = int((tmp_path / "pid").read_text())
        assert exists(pid)
        doctor.kill()
        doctor.communicate(timeout=PATIENCE)
    until(lambda: not exists(pid))


SABOTAGE = {
    "Semaphore.acquire = lambda *args, **kwargs: True": ("Semaphore", "two processes had one slot"),
    "Semaphore.holders = lambda self: []": ("limit", r"\[\] were said to hold the slot, not"),
    "Signal.set = lambda self: None": ("Signal", "a signal did not wake who waited"),
    "Channel.request = lambda *args, **kwargs: b''": ("Channel", "of 5 bytes came back as another"),
    "PeerDied = _selftest.EndOfChannel": ("Channel", "a goodbye was taken for a death"),
    "start = lambda *args: 1 / 0": ("start", "ZeroDivisionError: "),
    "WorkerDied = KeyError": ("TaskPool", "a task that was killed ended as WorkerDied"),
}


@pytest.mark.parametrize("broken", SABOTAGE)
def test_what_is_broken_is_found(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    part, problem = SABOTAGE[broken]
    monkeypatch.setattr(
        _selftest,
        "_TRY",
        "import sys; from mpkit import _selftest; _selftest.PATIENCE = 5\n"
        f"trial = _selftest.TRIALS[{part!r}]; _selftest.TRIALS.clear()\n"
        f"_selftest.TRIALS[{part!r}] = trial; _selftest.{broken}\n"
        "_selftest.main(sys.argv[1])",
    )
    found = {trial.part: trial.problem for trial in _selftest.run(["fork"])}
    assert re.search(problem, found[part] or "nothing was found")


def test_every_extra_is_looked_for() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    extras: dict[str, Any] = project["project"]["optional-dependencies"]
    for name in extras.keys() - {"clients", "test", "dev", "docs", "bench"}:
        for requirement in extras[name]:
            assert re.split("[^a-z]", requirement)[0] in _doctor.EXTRAS
