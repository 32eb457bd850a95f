"""What ends a task before its time: timeout, cancel, kill, memory; and what tries it again."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import threading
from typing import TYPE_CHECKING, Any

import pytest

import mpkit
from mpkit._engine import crew, ledger
from mpkit._platform import descriptors, memory
from mpkit._task.options import pause_before
from tests import poolwork
from tests.support import (
    PATIENCE,
    exists,
    expect_short_tasks,
    stopped,
    supervisor_held,
    supervisor_of,
    until,
)

if TYPE_CHECKING:
    from pathlib import Path

needs_packets = pytest.mark.skipif(
    not descriptors.HAS_PACKETS, reason="what was sent cannot be taken back"
)


# timeout


def test_a_task_that_is_too_late_may_clean_up_first(start_method: str, tmp_path: Path) -> None:
    log, began = str(tmp_path / "log"), mpkit.Signal()
    with mpkit.TaskPool(1) as pool:
        late = pool.options(timeout=0.3).submit(poolwork.clean_up_at_sigterm, log, began)
        error = late.exception(PATIENCE)
        assert isinstance(error, mpkit.TaskTimeout)
        assert error.pid
        assert isinstance(error.__cause__, mpkit.TaskExit), "it is told how it did end"
        assert poolwork.notes(log) == ["cleaned"]
        another = pool.apply(poolwork.pid_of_worker)
        assert another != error.pid, "its worker might be in any state"


@pytest.mark.parametrize("how", ["blocks signals", "holds the GIL", "ignores SIGTERM", "stopped"])
def test_a_task_that_is_too_late_is_ended_whatever_it_does(start_method: str, how: str) -> None:
    began = mpkit.Signal()
    with mpkit.TaskPool(1) as pool:
        limited = pool.options(timeout=0.3)
        if how == "blocks signals":
            late = limited.submit(poolwork.block_signals, began)
        elif how == "holds the GIL":
            late = limited.submit(poolwork.hold_the_gil)
        elif how == "ignores SIGTERM":
            pool.apply(poolwork.ignore_sigterm)
            late = limited.submit(poolwork.sleep_for_ever, began)
        else:
            late = limited.submit(poolwork.die, "SIGSTOP")
        after = pool.submit(poolwork.square, 3)
        assert after.result(PATIENCE) == 9
        assert isinstance(late.exception(PATIENCE), mpkit.TaskTimeout)
        error: Any = late.exception()
        until(lambda: not exists(error.pid))


def test_the_time_of_a_task_is_counted_from_its_start() -> None:
    go = mpkit.Signal()
    with mpkit.TaskPool(1) as pool:
        first = pool.submit(poolwork.wait_for, go)
        second = pool.options(timeout=0.2).submit(poolwork.square, 3)
        with pytest.raises(mpkit.ResultTimeout):
            second.result(0.5)
        go.set()
        assert first.result(PATIENCE)
        assert second.result(PATIENCE) == 9


def test_a_task_that_a_stopped_worker_never_took_runs_elsewhere_and_once(
    start_method: str, tmp_path: Path
) -> None:
    log = str(tmp_path / "log")
    with mpkit.TaskPool(1) as pool:
        pid = pool.apply(poolwork.pid_of_worker)
        os.kill(pid, signal.SIGSTOP)
        until(lambda: stopped(pid))
        task = pool.options(timeout=0.5).submit(poolwork.note, log, "ran")
        assert task.result(PATIENCE) == "ran"
        assert poolwork.notes(log) == ["ran"]
        until(lambda: not exists(pid))


def test_timeouts_of_tasks_that_have_ended_do_not_pile_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ledger, "MOST_PASSED_OVER", 10)
    with mpkit.TaskPool(1) as pool:
        supervisor = supervisor_of(pool)
        late = pool.options(timeout=0.5).submit(poolwork.sleep_for_ever)
        tasks = [pool.options(timeout=3600.0).submit(poolwork.square, n) for n in range(50)]
        assert isinstance(late.exception(PATIENCE), mpkit.TaskTimeout)
        assert [task.result(PATIENCE) for task in tasks] == [n * n for n in range(50)]
        assert len(supervisor._ledger._deadlines) <= 12


# cancel and kill


@needs_packets
def test_cancel_takes_back_what_is_in_the_inbox_of_a_worker(
    start_method: str, tmp_path: Path
) -> None:
    log, began, go = str(tmp_path / "log"), mpkit.Signal(), mpkit.Signal()
    with mpkit.TaskPool(1) as pool:
        expect_short_tasks(pool)
        running = pool.submit(poolwork.tell_and_wait, began, go)
        assert began.wait(PATIENCE)
        tasks = [pool.submit(poolwork.note, log, n) for n in range(10)]
        until(tasks[0].running)  # it was sent
        assert [task.cancel() for task in tasks[::2]] == [True] * 5
        assert not running.cancel()
        go.set()
    assert sorted(poolwork.notes(log)) == ["1", "3", "5", "7", "9"]
    assert [task.result(0) for task in tasks[1::2]] == [1, 3, 5, 7, 9]


@needs_packets
def test_any_number_of_threads_cancel_what_others_submit(tmp_path: Path) -> None:
    """Each task ran once or was cancelled, and never both."""
    log = str(tmp_path / "log")
    tasks: list[mpkit.Task[Any]] = []
    with mpkit.TaskPool(2) as pool:
        expect_short_tasks(pool)

        def submit(first: int) -> None:
            for n in range(first, first + 300):
                tasks.append(pool.submit(poolwork.note, log, n))

        def cancel() -> None:
            for _ in range(600):
                if tasks:
                    random.choice(tasks).cancel()

        threads = [threading.Thread(target=submit, args=(n,)) for n in (0, 300)]
        threads += [threading.Thread(target=cancel) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    ran = sorted(map(int, poolwork.notes(log)))
    assert ran == sorted(task.result(0) for task in tasks if not task.cancelled())


def test_kill_ends_what_runs_and_harms_nobody_else(start_method: str, tmp_path: Path) -> None:
    log, began = str(tmp_path / "log"), mpkit.Signal()
    with mpkit.TaskPool(1) as pool:
        expect_short_tasks(pool)
        with supervisor_held(pool):
            victim = pool.options(retries=3).submit(poolwork.sleep_for_ever, began)
            others = [pool.submit(poolwork.note, log, n) for n in range(10)]
        assert began.wait(PATIENCE)
        assert victim.kill()
        with pytest.raises(mpkit.WorkerDied, match=r"killed by Task\.kill\(\)"):
            victim.result(PATIENCE)
        assert not victim.kill()
        assert [task.result(PATIENCE) for task in others] == [*range(10)]
    assert sorted(map(int, poolwork.notes(log))) == [*range(10)]


def test_kill_waits_for_its_turn_in_a_packet_that_a_worker_has_opened(tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    began, go = mpkit.Signal(), mpkit.Signal()
    with mpkit.TaskPool(1) as pool:
        expect_short_tasks(pool)
        with supervisor_held(pool):
            first = pool.submit(poolwork.note_and_wait, log, "first", began, go)
            victim = pool.submit(poolwork.sleep_for_ever)
            last = pool.submit(poolwork.note, log, "last")
        assert began.wait(PATIENCE)
        assert victim.kill()
        go.set()
        assert first.result(PATIENCE) == "first"
        assert last.result(PATIENCE) == "last"
        assert victim.cancelled() or isinstance(victim.exception(PATIENCE), mpkit.WorkerDied)
    assert poolwork.notes(log) == ["first", "last"]


def test_kill_never_hits_the_task_behind_the_one_that_it_is_for(tmp_path: Path) -> None:
    """The victim is done, which lies unread when we kill: its worker does the next thing."""
    log = str(tmp_path / "log")
    began, go, began_next, go_next = (mpkit.Signal() for _ in range(4))
    with mpkit.TaskPool(1) as pool:
        expect_short_tasks(pool)
        with supervisor_held(pool):
            pool.submit(poolwork.tell_and_wait, began, go)
            victim = pool.submit(poolwork.square, 3)
            innocent = pool.submit(poolwork.note_and_wait, log, "once", began_next, go_next)
        assert began.wait(PATIENCE)
        # The first may have gone straight to the worker, before the supervisor knew of the rest.
        until(lambda: supervisor_of(pool)._schedule._sent == 3)
        with supervisor_held(pool):
            go.set()
            assert began_next.wait(PATIENCE)
            assert victim.kill(), "as far as is known by now"
        assert victim.result(PATIENCE) == 9
        go_next.set()
        assert innocent.result(PATIENCE) == "once"
    assert poolwork.notes(log) == ["once"]


@pytest.mark.skipif(not memory.HAS_PROC, reason="needs /proc")
def test_a_worker_stands_still_while_we_see_what_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or it would report the victim, and begin the next task, between the look and the kill."""
    seen: list[bool] = []
    has_reports = crew.Worker.has_reports

    def look(worker: crew.Worker) -> bool:
        seen.append(exists(worker.pid) and stopped(worker.pid))
        return has_reports(worker)

    began = mpkit.Signal()
    with mpkit.TaskPool(1) as pool:
        victim = pool.submit(poolwork.sleep_for_ever, began)
        assert began.wait(PATIENCE)
        monkeypatch.setattr(crew.Worker, "has_reports", look)
        assert victim.kill()
        assert isinstance(victim.exception(PATIENCE), mpkit.WorkerDied)
    assert seen[0]


def test_many_kills_at_random_end_what_they_are_for_and_nothing_else(tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    with mpkit.TaskPool(2) as pool:
        expect_short_tasks(pool)
        tasks = [pool.submit(poolwork.note, log, n) for n in range(2000)]
        killed: set[int] = set()
        for number in range(0, 2000, 50):
            task = tasks[number]
            until(lambda task=task: task.running() or task.done())  # type: ignore[misc]
            if task.kill():
                killed.add(number)
    ran = poolwork.notes(log)
    assert len(ran) == len(set(ran)), "one ran twice"
    for number, task in enumerate(tasks):
        if number not in killed:
            assert task.result(0) == number


def test_kill_of_a_map_ends_all_of_it(start_method: str) -> None:
    began = mpkit.Signal()
    with mpkit.TaskPool(2) as pool:
        whole = pool.map_async(poolwork.sleep_for_ever, [began] * 8, 1)
        assert began.wait(PATIENCE)
        assert not whole.cancel(), "some of it runs"
        assert whole.kill()
        assert isinstance(
            whole.exception(PATIENCE), (mpkit.WorkerDied, asyncio.CancelledError)
        ) or (whole.exception(PATIENCE) is not None)
        assert pool.apply(poolwork.square, (3,)) == 9


def test_a_pool_that_runs_tasks_elsewhere_cannot_kill_them() -> None:
    with mpkit.TaskPool(0) as pool:
        assert not pool.submit(abs, -1).kill()


def test_a_coroutine_that_is_cancelled_cancels_what_it_awaits(tmp_path: Path) -> None:
    log, began, go = str(tmp_path / "log"), mpkit.Signal(), mpkit.Signal()

    async def main() -> None:
        async with mpkit.TaskPool(1) as pool:
            running = pool.submit(poolwork.note_and_wait, log, "running", began, go)
            waiting = pool.submit(poolwork.note, log, "waiting")
            awaiting = [asyncio.ensure_future(_await(task)) for task in (running, waiting)]
            await asyncio.sleep(0)  # they begin to wait
            await began
            for each in awaiting:
                each.cancel()
            await asyncio.wait(awaiting)
            assert all(each.cancelled() for each in awaiting)
            assert waiting.cancelled()
            assert running.running(), "only kill() ends what runs"
            go.set()

    async def _await(task: mpkit.Task[Any]) -> Any:
        return await task

    asyncio.run(main())
    assert poolwork.notes(log) == ["running"]


# retries


def test_every_attempt_is_counted_and_told(start_method: str, tmp_path: Path) -> None:
    with mpkit.TaskPool(1) as pool:
        patient = pool.options(retries=2, retry_on=ConnectionError)
        good = patient.submit(poolwork.fail_so_often, str(tmp_path / "good"), 2)
        assert good.result(PATIENCE) == 3
        assert good.attempts == 3
        bad = patient.submit(poolwork.fail_so_often, str(tmp_path / "bad"), 9)
        with pytest.raises(ConnectionError, match="call 3") as caught:
            bad.result(PATIENCE)
        (note,) = [note for note in caught.value.__notes__ if "attempt" in note]
        assert note.splitlines() == [
            "attempt 1 failed with ConnectionError: no answer to call 1",
            "attempt 2 failed with ConnectionError: no answer to call 2",
            "this was attempt 3",
        ]
        assert patient.submit(poolwork.picky, -1).exception(PATIENCE).args == (-1,)  # type: ignore[union-attr]


def test_a_crash_and_a_timeout_are_tried_again_and_nothing_more_than_asked() -> None:
    with mpkit.TaskPool(1) as pool:
        crashed = pool.options(retries=1).submit(poolwork.die, "SIGKILL")
        late = pool.options(retries=1, timeout=0.1).submit(poolwork.sleep_for_ever)
        once = pool.submit(poolwork.die, "SIGKILL")
        assert isinstance(crashed.exception(PATIENCE), mpkit.WorkerDied)
        assert isinstance(late.exception(PATIENCE), mpkit.TaskTimeout)
        assert isinstance(once.exception(PATIENCE), mpkit.WorkerDied)
        assert (crashed.attempts, late.attempts, once.attempts) == (2, 2, 1)
        assert "attempt 1 failed with WorkerDied" in crashed.exception().__notes__[-1]  # type: ignore[union-attr]


def test_the_pauses_between_attempts_grow_and_differ() -> None:
    with mpkit.TaskPool(0) as pool:
        options = pool.options(backoff=1.0)._options
    for retry, longest in ((1, 1.0), (2, 2.0), (4, 8.0), (9, 60.0), (10_000, 60.0)):
        pauses = {pause_before(options, retry) for _ in range(50)}
        assert len(pauses) > 10
        assert all(longest / 2 <= pause <= longest for pause in pauses)


def test_others_run_while_a_task_rests_and_a_closed_pool_waits_for_it(tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    with mpkit.TaskPool(1) as pool:
        resting = pool.options(retries=1, retry_on=ConnectionError, backoff=0.5)
        task = resting.submit(poolwork.fail_so_often, log, 1)
        until(lambda: poolwork.notes(log))
        assert pool.apply(poolwork.square, (3,)) == 9
        assert not task.done()
    assert task.result(0) == 2


def test_nobody_waits_for_the_next_attempt_of_a_task_that_was_cancelled(tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    with mpkit.TaskPool(1) as pool:
        resting = pool.options(retries=1, retry_on=ConnectionError, backoff=1000)
        task = resting.submit(poolwork.fail_so_often, log, 1)
        until(lambda: task.attempts == 1 and not task.running())
        assert task.cancel()
    assert poolwork.notes(log) == ["try"]


def note_and_crash_once(path: str, number: int, once: str) -> int:
    poolwork.note(path, number)
    if number == 6 and poolwork.first_time(once):
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def test_of_a_map_only_the_chunk_repeats_that_was_not_reported(
    start_method: str, tmp_path: Path
) -> None:
    """As docs/faults.md says: the items of it that come before the one that killed the worker."""
    log, once = str(tmp_path / "log"), str(tmp_path / "once")
    with mpkit.TaskPool(1, retries=1) as pool:
        items = [(log, n, once) for n in range(12)]
        assert pool.starmap(note_and_crash_once, items, 4) == [*range(12)]
    assert sorted(map(int, poolwork.notes(log))) == sorted([*range(12), 4, 5, 6])


# memory


@pytest.mark.skipif(not memory.HAS_PROC, reason="needs /proc")
def test_a_task_that_takes_too_much_memory_is_ended_alone(start_method: str) -> None:
    with mpkit.TaskPool(1) as pool:  # this process may have much that a worker has not
        base = pool.apply(memory.resident_bytes)
    limit = base + 150_000_000
    began = mpkit.Signal()
    with mpkit.TaskPool(1, memory_hard_limit=limit) as pool:
        large = pool.submit(poolwork.grow, 300_000_000, began)
        small = pool.submit(poolwork.square, 3)
        with pytest.raises(mpkit.MemoryLimitExceeded) as caught:
            large.result(PATIENCE)
        assert caught.value.limit == limit
        assert limit < caught.value.resident < base + 500_000_000
        assert f"{caught.value.resident:,}" in str(caught.value)
        assert small.result(PATIENCE) == 9


def test_the_kernel_is_asked_whether_memory_ran_out(monkeypatch: pytest.MonkeyPatch) -> None:
    kills = 5
    monkeypatch.setattr(memory, "oom_kills", lambda: kills)
    with mpkit.TaskPool(1) as pool:
        plain = pool.submit(poolwork.die, "SIGKILL").exception(PATIENCE)
        assert "memory" not in str(plain)
        kills = 6
        starved = pool.submit(poolwork.die, "SIGKILL").exception(PATIENCE)
        assert "killed by SIGKILL (out of memory, it seems" in str(starved)
        kills = 7
        other = pool.submit(poolwork.die, "SIGSEGV").exception(PATIENCE)
        assert "memory" not in str(other), "that is not how the kernel does it"


def test_the_count_of_the_kernel_is_read() -> None:
    assert memory.oom_kills() >= 0
