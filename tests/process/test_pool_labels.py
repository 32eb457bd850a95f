"""What tasks and workers are called: in errors, in pictures, and in their own processes."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from typing import TYPE_CHECKING, Any, cast

import pytest

import mpkit
from tests import poolwork
from tests.support import PATIENCE

if TYPE_CHECKING:
    from concurrent.futures import Executor
    from pathlib import Path


def name_of_worker() -> str:
    return multiprocessing.current_process().name


def notes_of(error: BaseException | None) -> list[str]:
    return list(getattr(error, "__notes__", []))


@pytest.mark.usefixtures("start_method")
def test_workers_are_numbered_by_name_and_so_are_those_that_replace_them() -> None:
    with mpkit.TaskPool(1) as pool:
        assert pool.apply(name_of_worker) == "mpkit worker 1"
        killed = pool.submit(os.kill, pool.apply(os.getpid), signal.SIGKILL)
        assert isinstance(killed.exception(PATIENCE), mpkit.WorkerDied)
        assert pool.apply(name_of_worker) == "mpkit worker 2"


@pytest.mark.usefixtures("start_method")
def test_a_label_is_in_the_name_of_a_task_and_in_its_errors() -> None:
    with mpkit.TaskPool(1) as pool:
        page = pool.options(label="page 3")
        task = page.submit(poolwork.picky, -1)
        error = task.exception(PATIENCE)
        assert task.name == f"task {task.number} (tests.poolwork.picky, page 3)"
        assert notes_of(error) == ["(the label of the task: page 3)"]
        died = page.submit(poolwork.die, "SIGKILL").exception(PATIENCE)
        assert "page 3" in str(died)
        assert notes_of(died) == []
        with pytest.raises(ValueError, match="-1") as caught:
            page.apply(poolwork.picky, (-1,))
        assert notes_of(caught.value) == ["(the label of the task: page 3)"]


def test_the_error_of_a_map_has_its_label_once() -> None:
    with mpkit.TaskPool(2, label="all pages") as pool:
        error = pool.map_async(poolwork.picky, [1, -1, 2]).exception(PATIENCE)
    assert notes_of(error) == ["(the label of the task: all pages)"]


def test_the_error_of_an_item_has_its_label() -> None:
    with mpkit.TaskPool(1, label="all pages") as pool:
        results = pool.imap(poolwork.picky, [1, -1, 2])
        assert next(results) == 2
        with pytest.raises(ValueError, match="-1") as caught:
            next(results)
        assert list(results) == [4]
    assert notes_of(caught.value) == ["(the label of the task: all pages)"]


@pytest.mark.parametrize("how", ["inline", "on"])
def test_a_label_needs_no_workers_of_ones_own(how: str) -> None:
    executor = mpkit.TaskPool(1)
    settings: dict[str, Any] = {"on": executor.executor} if how == "on" else {"workers": 0}
    with executor, mpkit.TaskPool(**settings) as pool:
        error = pool.options(label="page 3").submit(poolwork.picky, -1).exception(PATIENCE)
    assert notes_of(error) == ["(the label of the task: page 3)"]


def test_a_picture_shows_labels(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    with mpkit.TaskPool(1) as pool, pool.trace(path):
        pool.options(label="page 3").submit(abs, -1).result(PATIENCE)
    events = json.loads(path.read_text())["traceEvents"]
    assert any("page 3" in event["name"] for event in events)


def test_a_label_is_a_text() -> None:
    with mpkit.TaskPool(0) as pool, pytest.raises(TypeError, match="label is a text, not 3"):
        pool.options(label=cast("str", 3))


def test_the_executor_of_a_labelled_pool_has_the_label_too() -> None:
    with mpkit.TaskPool(1, label="page 3") as pool:
        executor: Executor = pool.executor
        error = executor.submit(poolwork.picky, -1).exception(PATIENCE)
    assert notes_of(error) == ["(the label of the task: page 3)"]
