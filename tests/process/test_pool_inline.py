"""``workers=0``: what only a pool that runs its tasks in here can get wrong."""

from __future__ import annotations

import asyncio
import contextvars
import os
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import mpkit
from mpkit._pool import caller, gather
from tests import poolwork
from tests.support import PATIENCE, python

if TYPE_CHECKING:
    from pathlib import Path

# with a debugger

WORK = """
import sys, threading, mpkit

def halve(number):
    print("halving", number, threading.current_thread() is threading.main_thread(), flush=True)
    if number == 4:
        breakpoint()
    return number // 2

if __name__ == "__main__":
    with mpkit.TaskPool(0, timeout=0.2) as pool:
        print({how})
"""

WAYS = {
    "submit": "pool.submit(halve, 4).result()",
    "map": "pool.map(halve, [4, 6, 8])",
    "chunks": "pool.map(halve, [4, 6, 8], 2)",
    "imap": "list(pool.imap(halve, [4, 6, 8]))",
    "imap in chunks": "list(pool.imap_unordered(halve, [4, 6, 8], 2))",
}


@pytest.mark.parametrize("way", WAYS)
def test_a_breakpoint_stops_in_the_task_and_costs_it_no_time(way: str, tmp_path: Path) -> None:
    """Its prompt is in the frame that has it, of the main thread, and the program goes on."""
    program = tmp_path / "program.py"
    program.write_text(WORK.format(how=WAYS[way]))
    code = "import runpy, sys; runpy.run_path(sys.argv[1], run_name='__main__')"
    with python(code, str(program), PYTHONBREAKPOINT="") as debugged:
        commands = "p 'number is', number\nimport time\n!time.sleep(0.5)\nc\n"
        printed, _ = debugged.communicate(commands, timeout=PATIENCE)
    assert debugged.returncode == 0, printed
    assert "('number is', 4)" in printed
    assert "False" not in printed
    assert printed.splitlines()[-1].endswith("2" if way == "submit" else "[2, 3, 4]")


@pytest.mark.parametrize("way", WAYS)
def test_who_quits_the_debugger_ends_the_program(way: str, tmp_path: Path) -> None:
    """And is not asked once more in each item that is left."""
    program = tmp_path / "program.py"
    program.write_text(WORK.format(how=WAYS[way]).replace("if number == 4", "if number"))
    code = "import runpy, sys; runpy.run_path(sys.argv[1], run_name='__main__')"
    with python(code, str(program), PYTHONBREAKPOINT="") as debugged:
        printed, _ = debugged.communicate("q\ny\n", timeout=PATIENCE)
    assert printed.count("halving") == 1
    assert "[2, 3, 4]" not in printed


def test_a_hook_of_a_debugger_is_called_by_the_task_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    frames: list[str] = []

    def hook(*args: object, **kwargs: object) -> None:
        frames.append(sys._getframe(1).f_code.co_name)

    monkeypatch.setattr("sys.breakpointhook", hook)
    with mpkit.TaskPool(0, timeout=0.001) as pool:
        assert pool.apply(stop_twice_and_take_long) is None
        assert sys.breakpointhook is hook
        with pytest.raises(mpkit.TaskTimeout):
            pool.apply(poolwork.be_busy, (0.01,))
    assert frames == ["stop_twice_and_take_long"] * 2


def stop_twice_and_take_long() -> None:
    breakpoint()
    breakpoint()
    poolwork.be_busy(0.01)


# Ctrl-C


def press_ctrl_c(number: int) -> int:
    if number == 2:
        signal.raise_signal(signal.SIGINT)
    seen.append(number)
    return number


seen: list[int] = []


@pytest.mark.parametrize("chunksize", [None, 1, 3])
@pytest.mark.parametrize("slices", [False, True])
def test_a_ctrl_c_in_a_task_ends_the_map(
    chunksize: int | None, slices: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if slices:  # each item is one
        monkeypatch.setattr(gather, "SLICE_SECONDS", 1e-9)
    seen.clear()
    with mpkit.TaskPool(0) as pool:
        with pytest.raises(KeyboardInterrupt):
            pool.map(press_ctrl_c, range(20), chunksize)
        assert 2 not in seen
        assert len(seen) < 20
        ran = len(seen)
        assert pool.apply(poolwork.square, (3,)) == 9
    assert len(seen) == ran


def test_an_imap_goes_on_behind_the_item_in_which_a_ctrl_c_came() -> None:
    with mpkit.TaskPool(0) as pool:
        results = pool.imap(press_ctrl_c, range(5))
        assert [next(results), next(results)] == [0, 1]
        with pytest.raises(KeyboardInterrupt):
            next(results)
        assert list(results) == [3, 4]


def test_a_ctrl_c_in_what_a_callback_has_submitted_leaves_nobody_waiting() -> None:
    submitted: list[mpkit.Task[int]] = []
    with mpkit.TaskPool(0) as pool:

        def submit(_: int) -> None:
            submitted.extend(pool.submit(press_ctrl_c, number) for number in (1, 2, 3))

        with pytest.raises(KeyboardInterrupt):
            pool.apply_async(poolwork.square, (1,), callback=submit)
        assert [task.done() for task in submitted] == [True] * 3
        assert submitted[0].result() == 1
        assert submitted[2].cancelled()


def test_a_keyboard_interrupt_in_another_thread_is_the_task_s() -> None:
    found: list[BaseException | None] = []

    def run() -> None:
        with mpkit.TaskPool(0) as pool:
            found.append(pool.submit(poolwork.die, "KeyboardInterrupt").exception())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(PATIENCE)
    assert [type(error) for error in found] == [mpkit.RemoteError]


# as in a worker

variable = contextvars.ContextVar("variable", default="default")


def test_no_context_variables_of_the_caller_are_in_a_task() -> None:
    variable.set("mine")
    with mpkit.TaskPool(0) as pool:
        assert pool.apply(variable_here) == "default"
    assert variable.get() == "mine"


def variable_here() -> str:
    return variable.get()


def test_a_channel_end_moves_and_a_large_array_is_a_copy_to_write_to() -> None:
    numpy = pytest.importorskip("numpy")
    here, there = mpkit.channel(send=int, recv=int)
    array = numpy.zeros(300_000)
    with mpkit.TaskPool(0) as pool:
        pool.apply(send_and_close, (there, 7))
        assert here.recv(timeout=PATIENCE) == 7
        with pytest.raises(mpkit.EndOfChannel):
            here.recv(timeout=PATIENCE)
        with pytest.raises(mpkit.ChannelMoved):
            there.send(1)
        result = pool.apply(fill, (array, 5.0))
        assert (result == 5).all()
        assert not array.any()
        result[0] = 1
    here.close()


def send_and_close(end: mpkit.Channel[int, int], number: int) -> None:
    with end:
        end.send(number)


def fill(array: Any, number: float) -> Any:
    array[:] = number
    return array


def test_an_argument_that_cannot_arrive_fails_its_task_and_retries_try_it_again(
    tmp_path: Path,
) -> None:
    once = str(tmp_path / "once")
    with mpkit.TaskPool(0) as pool:
        task = pool.submit(str, poolwork.BadArrival("exception"))
        with pytest.raises(LookupError) as caught:
            task.result()
        assert "arguments of task" in caught.value.__notes__[0]
        again = pool.options(retries=1, retry_on=LookupError)
        assert again.submit(str, poolwork.BadArrival("exception", 0, once)).result() == "arrived"


def test_the_initializer_is_called_before_the_first_task_and_once(tmp_path: Path) -> None:
    path = str(tmp_path / "notes")
    with mpkit.TaskPool(0, initializer=poolwork.note, initargs=(path, "begun")) as pool:
        assert not poolwork.notes(path)
        assert pool.map(poolwork.square, range(3)) == [0, 1, 4]
        assert list(pool.imap(poolwork.square, range(3))) == [0, 1, 4]
    assert poolwork.notes(path) == ["begun"]


def test_an_initializer_that_cannot_travel_is_refused_where_it_would_have_to(
    start_method: str,
) -> None:
    def make() -> Any:
        return mpkit.TaskPool(0, initializer=print, initargs=(threading.Lock(),))

    if start_method == "fork":
        make().close()
    else:
        with pytest.raises(mpkit.NotPicklable, match="lock"):
            make()


def test_a_task_that_starts_before_the_others_do_as_its_priority_says() -> None:
    order: list[int] = []
    with mpkit.TaskPool(0) as pool:

        def submit(_: int) -> None:
            for priority in (0, 1, -1, 1):
                task = pool.options(priority=priority).submit(poolwork.square, 2)
                task.add_done_callback(lambda _, priority=priority: order.append(priority))  # type: ignore[misc]

        pool.apply_async(poolwork.square, (1,), callback=submit)
    assert order == [1, 1, 0, -1]


def test_callbacks_that_submit_the_next_may_do_so_for_ever() -> None:
    """Each by itself, and not within the one before."""
    left = 3000
    with mpkit.TaskPool(0) as pool:

        def submit(_: int) -> None:
            nonlocal left
            left -= 1
            if left:
                pool.apply_async(poolwork.square, (left,), callback=submit)

        submit(0)
        assert left == 0


def test_a_map_of_many_slices_is_no_deep_recursion(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (gather, caller):
        monkeypatch.setattr(module, "SLICE_SECONDS", 1e-9)
    with mpkit.TaskPool(0, timeout=60) as pool:
        assert pool.map(poolwork.square, range(3000)) == [n * n for n in range(3000)]
        assert pool.stats().submitted == 3000


# an imap


def test_an_imap_pulls_and_runs_what_is_asked_for_and_no_more(tmp_path: Path) -> None:
    path = str(tmp_path / "notes")
    pulled: list[int] = []

    def items() -> Any:
        for number in poolwork.endless():
            pulled.append(number)
            yield path, number

    with mpkit.TaskPool(0) as pool:
        results = pool.imap(poolwork.note_it, items())
        for number in range(3):
            assert pulled == list(range(number))
            assert results.next(timeout=0) == number
            assert poolwork.notes(path) == [str(n) for n in range(number + 1)]
        results.close()
        assert list(results) == []


def test_an_imap_of_a_block_that_was_left_says_so() -> None:
    with mpkit.TaskPool(0) as pool:
        results = pool.imap(poolwork.square, range(5))
        assert next(results) == 0
    with pytest.raises(mpkit.PoolClosed, match="before all of the input"):
        next(results)
    assert list(results) == []


def test_results_that_nobody_wants_keep_no_pool_open(tmp_path: Path) -> None:
    path = str(tmp_path / "notes")
    pool = mpkit.TaskPool(0)
    results = pool.imap(poolwork.note_it, [(path, n) for n in range(5)])
    assert next(results) == 0
    del results
    pool.close()
    assert pool.join(PATIENCE)
    assert poolwork.notes(path) == ["0"]


def test_others_have_their_turn_between_the_results_of_an_imap() -> None:
    async def main() -> list[str]:
        turns: list[str] = []

        async def other() -> None:
            for _ in range(3):
                turns.append("other")
                await asyncio.sleep(0)

        async with mpkit.TaskPool(0) as pool:
            task = asyncio.create_task(other())
            async for _ in pool.imap(poolwork.square, range(3)):
                turns.append("result")
            await task
        return turns

    assert sorted(asyncio.run(main())[:4]) == ["other", "other", "result", "result"]


# the end


def test_join_waits_for_the_tasks_of_other_threads() -> None:
    began, go = mpkit.Signal(), mpkit.Signal()
    pool = mpkit.TaskPool(0)
    thread = threading.Thread(target=pool.submit, args=(poolwork.tell_and_wait, began, go))
    thread.start()
    assert began.wait(PATIENCE)
    pool.close()
    assert not pool.join(0)
    go.set()
    assert pool.join(PATIENCE)
    thread.join(PATIENCE)


def test_a_forked_child_has_no_such_pool() -> None:
    with mpkit.TaskPool(0) as pool:
        pid = os.fork()
        if not pid:
            try:
                pool.submit(poolwork.square, 2)
            except mpkit.PoolClosed:
                os._exit(5)
            os._exit(6)
        _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 5


def test_backoff_is_a_pause_between_attempts(tmp_path: Path) -> None:
    with mpkit.TaskPool(0, retries=1, retry_on=ConnectionError, backoff=0.1) as pool:
        began = time.monotonic()
        assert pool.apply(poolwork.fail_so_often, (str(tmp_path / "notes"), 1)) == 2
        assert time.monotonic() - began >= 0.05


def test_a_trace_has_the_tasks(tmp_path: Path) -> None:
    with mpkit.TaskPool(0) as pool, pool.trace(tmp_path / "run.json"):
        pool.apply(poolwork.square, (2,))
    assert "square" in (tmp_path / "run.json").read_text()


def lock(_: int) -> Any:
    return threading.Lock()


@pytest.mark.parametrize("workers", [0, 1])
def test_each_item_of_a_chunk_whose_results_cannot_travel_raises(workers: int) -> None:
    done: list[int] = []
    with mpkit.TaskPool(workers) as pool:
        results = pool.imap(lock, range(5), 2, progress=lambda count, _: done.append(count))
        for _ in range(5):
            with pytest.raises(mpkit.NotPicklable, match="the result of task"):
                next(results)
        assert next(results, None) is None
    assert done[-1] == 5


@given(st.lists(st.integers(-3, 3), max_size=20))
def test_what_a_callback_submits_is_run_by_priority_and_then_in_order(
    priorities: list[int],
) -> None:
    order: list[int] = []
    with mpkit.TaskPool(0) as pool:

        def submit(_: object) -> None:
            for number, priority in enumerate(priorities):
                view = pool.options(priority=priority)
                view.apply_async(abs, (number,), callback=order.append)

        pool.apply_async(abs, (0,), callback=submit)
    assert order == sorted(range(len(priorities)), key=lambda n: -priorities[n])
