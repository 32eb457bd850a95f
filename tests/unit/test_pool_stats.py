"""What a pool notes of itself."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpkit._task.options import Options
from mpkit._task.task import Task
from mpkit._watch import recorder as recorder_
from mpkit._watch.recorder import MOST_WORKERS, Recorder

if TYPE_CHECKING:
    from pathlib import Path

    from mpkit._watch.stats import Stats


def task(what: str = "f", since: float = 0.0) -> Task[object]:
    made: Task[object] = Task(what, Options())
    made.since = since
    return made


def test_what_is_known_of_workers_that_have_ended_has_bounds() -> None:
    recorder = Recorder()
    recorder.worker_started(1)
    for pid in range(2, 3 * MOST_WORKERS):
        recorder.worker_started(pid)
        recorder.worker_ended(pid, "was killed by SIGKILL", False)
    stats = recorder.stats()
    assert stats.restarts == 3 * MOST_WORKERS - 2
    assert len(stats.workers) == MOST_WORKERS
    assert stats.workers[0].pid == 1, "it lives"
    assert stats.workers[-1].pid == 3 * MOST_WORKERS - 1


def test_who_replaces_a_worker_has_its_place() -> None:
    recorder = Recorder()
    for pid in (1, 2, 3):
        recorder.worker_started(pid)
    recorder.worker_ended(2, "was killed by SIGKILL", False)
    recorder.worker_started(4)
    recorder.worker_ended(4, "was killed by SIGKILL", False)
    recorder.worker_started(5)
    recorder.worker_started(6)  # before 1, which it replaces, has left
    recorder.worker_ended(1, "exited with code 0", True)
    recorder.worker_started(7)
    places = {worker.pid: (worker.number, worker.restarts) for worker in recorder.stats().workers}
    assert places == {1: (1, 0), 2: (2, 0), 3: (3, 0), 4: (2, 1), 5: (2, 2), 6: (4, 0), 7: (1, 0)}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Have the time be what the test says, for the recorder."""
    now = [100.0]
    monkeypatch.setattr(recorder_.time, "monotonic", lambda: now[0])
    return now


def test_the_life_of_a_worker_is_busy_waits_or_is_idle(clock: list[float]) -> None:
    recorder = Recorder()
    recorder.worker_started(1)
    recorder.tasks_ended(
        1,
        [
            (task(since=90), 101, 103, False),  # was there before it: it waits for 1 s
            (task(since=110), 112, 115, False),  # idle for 7 s, waits for 2 s
            (task(since=111), 115.5, 116, True),  # waits for 0.5 s
        ],
    )
    clock[0] = 120
    (worker,) = recorder.stats().workers
    assert (worker.busy, worker.wait, worker.idle, worker.lived) == (5.5, 3.5, 11, 20)
    assert (worker.tasks, worker.failed) == (3, 1)


class Interrupting:
    """A task of which as much as its name is not told before a Ctrl-C comes."""

    since, attempts, name = 0.0, 0, "task 1"

    @property
    def what(self) -> str:
        raise KeyboardInterrupt


def test_what_was_counted_as_submitted_is_done_though_a_ctrl_c_came() -> None:
    """Of what its caller has settled nobody else would ever tell that it is done."""
    recorder = Recorder()
    recorder.worker_started(1)
    with pytest.raises(KeyboardInterrupt):
        recorder.tasks_ended(1, [(Interrupting(), 0, 1, False)], untold=1)
    assert recorder.stats().pending == 0


def test_one_that_died_was_busy_from_when_it_can_have_begun(clock: list[float]) -> None:
    recorder = Recorder()
    recorder.worker_started(1)
    recorder.tasks_ended(1, [(task(since=100), 100, 101, False)])
    clock[0] = 110
    recorder.worker_ended(1, "was killed by SIGKILL", False)
    recorder.task_lost(1, task(since=104))
    clock[0] = 120
    stats = recorder.stats()
    (worker,) = stats.workers
    assert (worker.busy, worker.lived, stats.lost, stats.attempts) == (7, 10, 1, 2)
    assert stats.functions[0].lost == 1
    assert stats.functions[0].run.count == 1, "how long that one took is not known"


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["f", "g", "h"]), st.floats(0, 100), st.floats(0, 100), st.booleans()
        ),
        max_size=600,
    ),
    st.integers(1, 70),
)
def test_each_function_has_its_own_figures(
    runs: list[tuple[str, float, float, bool]], batch: int
) -> None:
    """Whatever comes in one report, and in which order."""
    recorder = Recorder()
    recorder.worker_started(1)
    spans = [(task(what), wait, wait + took, failed) for what, wait, took, failed in runs]
    for start in range(0, len(spans), batch):
        recorder.tasks_ended(1, spans[start : start + batch])
    stats = recorder.stats()
    assert stats.done == sum(not failed for *_, failed in runs)
    assert stats.attempts == len(runs)
    assert {function.name for function in stats.functions} == {what for what, *_ in runs}
    for function in stats.functions:
        ours = [run for run in runs if run[0] == function.name]
        assert function.failed == sum(failed for *_, failed in ours)
        assert (function.run.count, function.wait.count) == (len(ours), len(ours))
        assert function.run.total == pytest.approx(sum(took for _, _, took, _ in ours), abs=1e-6)
        assert function.run.mean * len(ours) == pytest.approx(function.run.total)
        assert function.wait.longest == max(wait for _, wait, _, _ in ours)
    (worker,) = stats.workers
    assert worker.tasks == len(runs)


def test_functions_that_take_turns_are_folded_in_time() -> None:
    """Also one that is never the last in a report."""
    recorder = Recorder()
    recorder.worker_started(1)
    for _ in range(2000):
        recorder.tasks_ended(1, [(task("f"), 0, 1, False), (task("g"), 0, 1, False)])
    for record in recorder._functions.records.values():
        assert len(record.runs._fresh) <= 256
        assert len(record.waits._fresh) <= 256


def test_who_tells_nothing_of_a_task_does_no_harm() -> None:
    recorder = Recorder()
    recorder.worker_started(1)
    recorder.tasks_ended(1, [])
    recorder.worker_ended(2, "was never started", False)
    recorder.worker_leaves(2)
    recorder.task_lost(2, task())
    recorder.task_retried(2, "task")
    recorder.task_retried(None, "task")
    stats: Stats = recorder.stats()
    assert (stats.attempts, stats.lost, stats.retries, stats.restarts) == (1, 1, 2, 0)


def test_peak_memory_is_that_of_the_process() -> None:
    recorder = Recorder()
    recorder.worker_started(os.getpid())
    (worker,) = recorder.stats().workers
    if not os.path.exists("/proc/self/status"):
        assert worker.peak_memory == 0
        return
    # At most a page or a few of them are in none of the kernel's counts yet.
    assert worker.peak_memory > 5_000_000
    now = time.monotonic()
    ballast = b"x" * 50_000_000
    recorder.tasks_ended(os.getpid(), [(task(), now, now + 1, False)])
    del ballast
    after = recorder.stats().workers[0].peak_memory
    assert after >= worker.peak_memory


def test_an_error_of_a_picture_does_not_end_its_pool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recorder = Recorder()
    recorder.worker_started(1)
    first, second = tmp_path / "first.html", tmp_path / "second.json"
    report = recorder.report(first)
    recorder.trace(second)
    monkeypatch.setattr(type(report), "_page", lambda _: 1 / 0)
    recorder.close()
    assert "ZeroDivisionError" in capsys.readouterr().err
    assert second.read_text().endswith("\n]}\n"), "the other one is written"
    report.close()  # it was, as far as that went
    assert not recorder.pictured
