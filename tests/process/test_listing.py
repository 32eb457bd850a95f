"""``python -m mpkit limits``: the kernel's truth, and nothing is disturbed by looking."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import mpkit
from mpkit import __main__ as command
from tests.support import PATIENCE, python, until

HOLDER = """
import sys, threading
import mpkit

semaphore = mpkit.Semaphore(2, name="db")
with semaphore, mpkit.limit(1):
    print("held", flush=True)
    sys.stdin.read()
"""

WAITER = """
import mpkit

semaphore = mpkit.Semaphore(2, name="db")
with semaphore, semaphore:
    print("held", flush=True)
"""


def ask(home: Path, *arguments: str) -> str:
    ran = subprocess.run(
        [sys.executable, "-m", "mpkit", *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "MPKIT_RUNTIME_DIR": str(home),
        },
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    return ran.stdout


def listed(home: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(ask(home, "limits", "--json"))
    return found


def test_it_shows_who_holds_and_who_waits_and_changes_nothing(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with python(HOLDER, MPKIT_RUNTIME_DIR=str(home)) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == "held\n"
        with python(WAITER, MPKIT_RUNTIME_DIR=str(home)) as waiter:
            until(lambda: listed(home)[0]["waiting"])
            before = sorted(path.name for path in home.rglob("*"))
            named, unnamed = listed(home)
            text = ask(home, "limits")
            assert sorted(path.name for path in home.rglob("*")) == before

            assert (named["name"], named["key"], named["slots"]) == ("db", "db", 2)
            assert named["place"] == "limit 'db'"
            assert os.path.exists(named["path"])
            pids = {party["pid"]: party for party in named["holders"]}
            assert pids.keys() == {holder.pid, waiter.pid}
            assert pids[holder.pid]["seconds"] > 0
            assert pids[holder.pid]["process"] == "MainProcess"
            assert "import mpkit" in pids[holder.pid]["command"]
            assert [party["pid"] for party in named["waiting"]] == [waiter.pid]
            assert (unnamed["name"], unnamed["slots"]) == (None, 1)
            assert unnamed["place"] == "limit at <string>:6"
            assert [party["pid"] for party in unnamed["holders"]] == [holder.pid]

            first, *lines = text.splitlines()
            assert first == "limit 'db': 2 of 2 slots held, 1 waiting"
            assert [line.split()[:2] for line in lines if line.startswith("  waits")] == [
                ["waits", str(waiter.pid)]
            ]
            assert all(len(line) < 80 for line in lines)

            holder.kill()  # what it held is free, and who waited has it
            assert waiter.communicate(timeout=PATIENCE)[0] == "held\n"
        assert waiter.returncode == 0
    assert listed(home) == []


def test_a_limit_that_nobody_holds_is_shown_with_one_who_has_it_open(tmp_path: Path) -> None:
    code = "import sys, mpkit; s = mpkit.Semaphore(3, name='x'); print(1, flush=True); input()"
    with python(code, MPKIT_RUNTIME_DIR=str(tmp_path)) as user:
        assert user.stdout
        user.stdout.readline()
        (limit,) = listed(tmp_path)
        assert (limit["holders"], limit["waiting"]) == ([], [])
        assert limit["user"]["pid"] == user.pid
        assert f"  uses  {user.pid:>7}  " in ask(tmp_path, "limits")
        user.communicate("\n", timeout=PATIENCE)


@pytest.mark.parametrize("content", [b"", b"mpkit\0s", b"garbage" * 1000])
def test_what_is_no_semaphore_is_passed_over(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "named").mkdir()
    (tmp_path / "named" / "sem-odd").write_bytes(content)
    (tmp_path / "named" / "sem-link").symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "named" / "sem-pipe")
    (tmp_path / "unrelated").mkdir()
    assert listed(tmp_path) == []
    assert ask(tmp_path, "limits") == "No limit is in use.\n"
    assert (tmp_path / "named" / "sem-odd").read_bytes() == content


def test_without_a_runtime_directory_there_are_none_and_none_is_made(tmp_path: Path) -> None:
    assert ask(tmp_path / "none", "limits") == "No limit is in use.\n"
    assert not (tmp_path / "none").exists()


def test_alone_it_says_what_it_can_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([]) == 0
    assert "limits" in capsys.readouterr().out
    for arguments, code in (["--version"], 0), (["nonsense"], 2):
        with pytest.raises(SystemExit) as caught:
            command.main(arguments)
        assert caught.value.code == code
    assert mpkit.__version__ in capsys.readouterr().out


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (59.9, "59.9 s"), (90, "2 min"), (7200, "2 h"), (200_000, "2 d")],
)
def test_durations_are_for_humans(seconds: float, text: str) -> None:
    assert command._duration(seconds) == text
