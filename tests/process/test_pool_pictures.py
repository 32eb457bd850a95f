"""What a pool tells of itself: counts that add up, a trace, and a report."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mpkit
from tests import poolwork
from tests.support import PATIENCE, until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mpkit import Stats


def die_at_first(note: str) -> str:
    """Kill the worker, but not the second time."""
    if poolwork.first_time(note):
        os.kill(os.getpid(), signal.SIGKILL)
    return "done"


def fail_at_first(note: str) -> str:
    if poolwork.first_time(note):
        raise LookupError(note)
    return "done"


def grow(size: int) -> int:
    return len(b"x" * size)


def events(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_bytes())["traceEvents"]
    return found


def spans(path: Path) -> list[dict[str, Any]]:
    return [event for event in events(path) if event["ph"] == "X"]


STEPS = ["returns", "raises", "dies", "dies once", "raises once", "unreadable", "is cancelled"]


def run_program(pool: mpkit.TaskPool, program: list[str], folder: Path) -> Counter[str]:
    """Submit tasks of these kinds; return how many of them came to which end."""
    again = pool.options(retries=1, retry_on=LookupError)
    tasks: list[mpkit.Task[Any]] = []
    go = mpkit.Signal()
    for number, step in enumerate(program):
        note = str(folder / str(number))
        if step == "returns":
            tasks.append(pool.submit(poolwork.square, number))
        elif step == "raises":
            tasks.append(pool.submit(poolwork.picky, -1))
        elif step == "dies":
            tasks.append(pool.submit(poolwork.die, "SIGKILL"))
        elif step == "dies once":
            tasks.append(again.submit(die_at_first, note))
        elif step == "raises once":
            tasks.append(again.submit(fail_at_first, note))
        elif step == "unreadable":
            tasks.append(pool.submit(poolwork.return_a_bad_arrival, "exception"))
        else:
            tasks.append(pool.options(priority=-1).submit(poolwork.wait_for, go))
            if not tasks[-1].cancel():  # it runs
                go.set()
    for task in tasks:
        if not task.cancelled():
            task.exception(PATIENCE)
    return Counter(
        "cancelled" if task.cancelled() else "failed" if task.exception() else "done"
        for task in tasks
    )


def check_counts(stats: Stats, program: list[str], ends: Counter[str]) -> None:
    told = {"done": stats.done, "failed": stats.failed, "cancelled": stats.cancelled}
    assert +Counter(told) == ends
    assert (stats.submitted, stats.pending) == (len(program), 0)
    steps = Counter(program)
    assert stats.lost == stats.restarts == steps["dies"] + steps["dies once"]
    assert stats.retries == steps["dies once"] + steps["raises once"]
    assert stats.attempts == stats.submitted - stats.cancelled + stats.retries
    assert sum(worker.tasks for worker in stats.workers) == stats.attempts - stats.lost
    assert sum(one.run.count for one in stats.functions) == stats.attempts - stats.lost
    assert sum(one.lost for one in stats.functions) == stats.lost
    assert sum(one.failed for one in stats.functions) == steps["raises"] + steps["raises once"]


@settings(deadline=None, max_examples=15)
@given(program=st.lists(st.sampled_from(STEPS), max_size=12), workers=st.integers(1, 3))
def test_each_task_is_counted_once_whatever_becomes_of_it(
    program: list[str], workers: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("notes")
    with mpkit.TaskPool(workers, context="fork") as pool, pool.trace(folder / "run.json"):
        ends = run_program(pool, program, folder)
    stats = pool.stats()
    check_counts(stats, program, ends)
    assert len(spans(folder / "run.json")) == stats.attempts


def test_counts_lanes_and_marks_of_a_pool_in_which_all_happens(
    start_method: str, tmp_path: Path
) -> None:
    path = tmp_path / "run.json"
    with mpkit.TaskPool(2) as pool, pool.trace(path), pool.report(tmp_path / "run.html"):
        ends = run_program(pool, STEPS, tmp_path)
        assert pool.options(name="named", label="a label").apply(poolwork.square, (3,)) == 9
    stats = pool.stats()
    check_counts(stats, [*STEPS, "returns"], ends + Counter(["done"]))
    found = events(path)
    outcomes = Counter(span["args"]["outcome"] for span in spans(path))
    assert outcomes == {"done": stats.done + 1, "failed": 2, "lost": 2}, "one could not be read"
    for span in spans(path):
        assert span["dur"] >= 0
        assert span["args"]["waited_ms"] >= 0
        assert span["args"]["bytes_sent"] > 0
        assert (span["args"]["bytes_received"] > 0) == (span["args"]["outcome"] != "lost")
        assert ("cname" in span) == (span["args"]["outcome"] != "done")
    again = [span for span in spans(path) if span["args"]["attempt"] == 2]
    assert {span["cat"].rpartition(".")[2] for span in again} == {"die_at_first", "fail_at_first"}
    assert any("(named, a label)" in span["name"] for span in spans(path))
    marks = [event["name"] for event in found if event["ph"] == "i"]
    assert sum("was killed by SIGKILL" in mark for mark in marks) == 2
    assert sum(mark.startswith("retry: task") for mark in marks) == 2
    lanes = {
        event["tid"]: event["args"]["name"] for event in found if event["name"] == "thread_name"
    }
    assert lanes == {1: "worker 1", 2: "worker 2"}, "who replaces a worker has its lane"
    assert {span["tid"] for span in spans(path)} <= lanes.keys()
    page = (tmp_path / "run.html").read_text(encoding="utf-8")
    assert page.count("was killed by SIGKILL</td>") == 2 * 2, "as an event, and as its end"
    assert page.count("is to be tried again</td>") == 2


def test_the_time_of_a_task_is_in_its_function_and_its_worker(start_method: str) -> None:
    with mpkit.TaskPool(1) as pool:
        pool.submit(poolwork.square, 2).result(PATIENCE)
        began, go = mpkit.Signal(), mpkit.Signal()
        task = pool.options(name="long").submit(poolwork.tell_and_wait, began, go)
        behind = pool.options(name="behind").submit(poolwork.square, 3)
        assert began.wait(PATIENCE)
        since = time.monotonic()
        until(lambda: pool.stats().pending == 2)  # and not the one before, which is told now
        least = time.monotonic() - since
        go.set()
        task.result(PATIENCE)
        behind.result(PATIENCE)
        functions = {one.name: one for one in pool.stats().functions}
        (worker,) = pool.stats().workers
    assert functions["long"].run.longest >= least
    assert functions["behind"].wait.longest >= least
    assert worker.busy >= functions["long"].run.total
    assert worker.busy + worker.wait + worker.idle == pytest.approx(worker.lived)


@pytest.mark.skipif(sys.platform != "linux", reason="the system does not tell")
def test_peak_memory_of_a_worker_is_known_after_it_has_left() -> None:
    with mpkit.TaskPool(1) as pool:
        pool.apply(poolwork.square, (2,))
        before = pool.stats().workers[0].peak_memory
        assert pool.apply(grow, (100_000_000,)) == 100_000_000
    (worker,) = pool.stats().workers
    assert worker.peak_memory > before + 90_000_000


@pytest.mark.parametrize("terminate", [False, True])
def test_what_ran_when_a_program_failed_is_in_the_pictures(tmp_path: Path, terminate: bool) -> None:
    path, page = tmp_path / "run.json", tmp_path / "run.html"
    began, go = mpkit.Signal(), mpkit.Signal()
    with pytest.raises(KeyError):
        with mpkit.TaskPool(1) as pool:
            pool.trace(path)
            pool.report(page)
            pool.submit(poolwork.tell_and_wait, began, go)
            waits = [pool.submit(poolwork.square, 1) for _ in range(3)]
            assert began.wait(PATIENCE)
            if terminate:
                pool.terminate()
            raise KeyError
    assert all(task.cancelled() for task in waits)
    (span,) = spans(path)
    assert (span["args"]["outcome"], span["dur"] > 0) == ("lost", True)
    stats = pool.stats()
    assert (stats.submitted, stats.failed, stats.cancelled, stats.pending) == (4, 1, 3, 0)
    assert "tell_and_wait), attempt 1: its worker died" in page.read_text(encoding="utf-8")


_KILLED = """
import os, signal, sys
import mpkit
from tests import poolwork

if __name__ == "__main__":
    pool = mpkit.TaskPool(2, context=sys.argv[1])
    pool.trace(sys.argv[2])
    pool.report(sys.argv[3])
    for number in range(3000):
        pool.submit(poolwork.square, number).result()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_trace_of_a_killed_program_is_valid(start_method: str, tmp_path: Path) -> None:
    program, path, page = tmp_path / "program.py", tmp_path / "run.json", tmp_path / "run.html"
    program.write_text(_KILLED)
    ran = subprocess.run(
        [sys.executable, str(program), start_method, str(path), str(page)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([os.getcwd(), *sys.path])},
        timeout=2 * PATIENCE,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == -signal.SIGKILL, ran.stderr
    assert len(spans(path)) >= 2000, "all but what was recorded last"
    assert "it was killed before that" in page.read_text()


def test_inline_pools_have_pictures_too(tmp_path: Path) -> None:
    with mpkit.TaskPool(0) as pool, pool.trace(tmp_path / "run.json"):
        again = pool.options(retries=1, retry_on=LookupError)
        assert again.apply(fail_at_first, (str(tmp_path / "note"),)) == "done"
        with pytest.raises(ValueError):
            pool.apply(poolwork.picky, (-1,))
    stats = pool.stats()
    assert (stats.submitted, stats.done, stats.failed, stats.attempts) == (2, 1, 1, 3)
    assert [span["args"]["outcome"] for span in spans(tmp_path / "run.json")] == [
        "failed",
        "done",
        "failed",
    ]


@pytest.mark.parametrize("kind", ["trace", "report"])
def test_pictures_begin_and_end_when_they_are_asked_to(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "run"
    with mpkit.TaskPool(1) as pool:
        begin: Callable[..., Any] = getattr(pool, kind)
        pool.options(name="before").apply(poolwork.square, (1,))
        with begin(path) as picture:
            pool.options(name="meanwhile").apply(poolwork.square, (1,))
        picture.close()
        text = path.read_text(encoding="utf-8")
        pool.options(name="after").apply(poolwork.square, (1,))
    assert path.read_text(encoding="utf-8") == text
    assert "(meanwhile)" in text
    assert "(before)" not in text
    assert "(after)" not in text


@pytest.mark.parametrize("kind", ["trace", "report"])
def test_a_path_that_cannot_be_written_fails_at_the_call(kind: str, tmp_path: Path) -> None:
    with mpkit.TaskPool(1) as pool:
        with pytest.raises(FileNotFoundError):
            getattr(pool, kind)(tmp_path / "nowhere" / "run")
        assert pool.apply(poolwork.square, (2,)) == 4


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("kind", ["trace", "report"])
def test_no_file_is_written_over_by_a_pool_that_has_ended(
    kind: str, workers: int, tmp_path: Path
) -> None:
    path = tmp_path / "picture"
    path.write_text("of an earlier pool")
    with mpkit.TaskPool(workers) as pool:
        pool.map(abs, range(3))
    with pytest.raises(mpkit.PoolClosed, match="nothing to record"):
        getattr(pool, kind)(path)
    assert path.read_text() == "of an earlier pool"


def test_statistics_cannot_be_changed() -> None:
    with mpkit.TaskPool(1) as pool:
        stats = pool.stats()
    with pytest.raises(AttributeError):
        stats.done = 5  # type: ignore[misc]
