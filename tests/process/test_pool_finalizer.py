"""The last word of each worker: `TaskPool(finalizer=...)`."""

from __future__ import annotations

import functools
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

import mpkit
from tests import poolwork

if TYPE_CHECKING:
    from pathlib import Path


def begin(path: str) -> None:
    mpkit.worker_state()["path"] = path
    poolwork.note(path, f"begin-{os.getpid()}")


def end() -> None:
    poolwork.note(mpkit.worker_state()["path"], f"end-{os.getpid()}")


def fail_at_the_end(how: str = "raise") -> None:
    if how == "exit":
        sys.exit(3)
    raise OSError("the log is full")


def work(_: object) -> int:
    poolwork.note(mpkit.worker_state()["path"], f"task-{os.getpid()}")
    return os.getpid()


def pids(path: str, word: str) -> list[str]:
    said = [note.split("-") for note in poolwork.notes(path)]
    return sorted(pid for what, pid in said if what == word)


@pytest.mark.parametrize("tasks_per_worker", [None, 2])
def test_each_worker_that_leaves_has_the_last_word_once(
    start_method: str, tmp_path: Path, tasks_per_worker: int | None
) -> None:
    log = str(tmp_path / "log")
    with mpkit.TaskPool(2, begin, (log,), tasks_per_worker, finalizer=end) as pool:
        ran = set(pool.map(work, range(6), chunksize=1))
    assert pids(log, "end") == pids(log, "begin")
    assert {str(pid) for pid in ran} <= set(pids(log, "end"))
    for pid in pids(log, "end"):
        said = [note for note in poolwork.notes(log) if note.endswith(f"-{pid}")]
        assert said[-1] == f"end-{pid}"


def test_a_worker_that_is_killed_says_nothing(start_method: str, tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    with mpkit.TaskPool(1, begin, (log,), finalizer=end) as pool:
        killed = pool.apply(work, (0,))
        with pytest.raises(mpkit.WorkerDied):
            pool.apply(os.kill, (killed, signal.SIGKILL))
        other = pool.apply(work, (0,))
    assert pids(log, "end") == [str(other)]


def test_nor_does_one_of_a_pool_that_is_terminated(start_method: str, tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    with pytest.raises(ZeroDivisionError):
        with mpkit.TaskPool(1, begin, (log,), finalizer=end) as pool:
            pool.apply(work, (0,))
            raise ZeroDivisionError
    assert pids(log, "begin")
    assert not pids(log, "end")


@pytest.mark.parametrize("how", ["raise", "exit"])
def test_what_it_raises_is_reported_and_harms_nobody(
    start_method: str, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    said: list[BaseException] = []
    monkeypatch.setattr(sys, "excepthook", lambda kind, error, trace: said.append(error))
    final = functools.partial(fail_at_the_end, how)
    with mpkit.TaskPool(1, tasks_per_worker=1, finalizer=final) as pool:
        tasks = [pool.submit(poolwork.square, number) for number in range(3)]
    assert [task.result() for task in tasks] == [0, 1, 4]
    assert len(said) >= 3
    kind = OSError if how == "raise" else mpkit.TaskExit
    for error in said:
        assert isinstance(error, kind)
        assert "raised by the finalizer of worker" in error.__notes__[-1]
        assert "in fail_at_the_end" in str(error.__cause__)


def test_it_runs_here_where_tasks_run_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = str(tmp_path / "log")
    with mpkit.TaskPool(0, begin, (log,), finalizer=end) as pool:
        pool.apply(work, (0,))
    pool.close()
    assert pids(log, "end") == [str(os.getpid())]
    said: list[BaseException] = []
    monkeypatch.setattr(sys, "excepthook", lambda kind, error, trace: said.append(error))
    with mpkit.TaskPool(0, finalizer=fail_at_the_end) as pool:
        pass
    assert [type(error) for error in said] == [OSError]


def test_it_runs_after_the_last_of_an_input_that_is_still_read(tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    with mpkit.TaskPool(0, begin, (log,), finalizer=end) as pool:
        results = pool.imap(work, range(100))
        pool.close()
        assert len(list(results)) == 100
    assert poolwork.notes(log)[-1].startswith("end-")


def test_what_cannot_be_one_is_refused() -> None:
    with pytest.raises(TypeError, match="finalizer is a function"):
        mpkit.TaskPool(1, finalizer=5)  # type: ignore[arg-type]
    with ThreadPoolExecutor(1) as executor:
        with pytest.raises(ValueError, match="finalizer= makes no sense"):
            mpkit.TaskPool(on=executor, finalizer=end)


def test_one_that_cannot_travel_is_refused_where_it_has_to() -> None:
    final = functools.partial(print, signal.default_int_handler, (n for n in range(3)))
    with pytest.raises(mpkit.NotPicklable, match="print"):
        mpkit.TaskPool(1, context="spawn", finalizer=final)
