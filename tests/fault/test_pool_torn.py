"""A signal handler that raises (Ctrl-C) anywhere inside of a call to a pool tears nothing."""

from __future__ import annotations

import os
import sys
import threading
from concurrent.futures import CancelledError
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import mpkit
from tests import poolwork
from tests.support import PATIENCE, until

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

PACKAGE = str(Path(mpkit.__file__).parent)


def is_ours(frame: FrameType | None) -> bool:
    return frame is not None and frame.f_code.co_filename.startswith(PACKAGE)


def is_in_finalizer(frame: FrameType | None) -> bool:
    """Tell whether Python itself drops what is raised here (the other one is WeakSet's)."""
    while frame and frame.f_code.co_name not in ("__del__", "_remove"):
        frame = frame.f_back
    return frame is not None


def interrupted(step: int, call: Callable[[], object]) -> bool:
    """Have a call raise KeyboardInterrupt where a handler may; tell if there are so many places.

    Handlers run as a function of Python begins, and when one of C has returned. (Inside of
    the standard library's functions a lock may be left taken, and a thread be half begun.)
    """
    left, process = step, os.getpid()

    def look(frame: FrameType, event: str, argument: object) -> None:
        nonlocal left
        ours = is_ours(frame) or (event == "call" and is_ours(frame.f_back))
        if event not in ("call", "c_return") or not ours or is_in_finalizer(frame):
            return
        left -= 1
        if left < 0 and os.getpid() == process:
            sys.setprofile(None)
            raise KeyboardInterrupt

    sys.setprofile(look)
    try:
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.setprofile(None)
    return False


GIVE: dict[str, Callable[[mpkit.TaskPool], object]] = {
    "submit": lambda pool: pool.submit(abs, -1),
    "apply": lambda pool: pool.apply(abs, (-1,)),
    "map": lambda pool: pool.map(abs, [-1, -2], 1),
    "map, sliced": lambda pool: pool.map(abs, range(-8, 0)),
    "imap": lambda pool: list(pool.imap(abs, [-1, -2])),
}


@pytest.mark.parametrize("how", GIVE)
def test_a_call_that_is_interrupted_leaves_the_pool_at_work(how: str) -> None:
    """Its supervisor was never woken again, if that came just before it would have been."""
    with mpkit.TaskPool(1) as pool:
        step = 0
        while interrupted(step, lambda: GIVE[how](pool)):
            assert pool.submit(abs, -2).result(PATIENCE) == 2, f"after step {step}"
            step += 1
        assert step > 10


@pytest.mark.parametrize("how", ["cancel", "kill"])
def test_a_task_that_is_ended_by_an_interrupted_call_ends_once_and_no_other_does(how: str) -> None:
    with mpkit.TaskPool(1) as pool:
        step, goes_on = 0, True
        while goes_on:
            began, go = mpkit.Signal(), mpkit.Signal()
            first = pool.submit(poolwork.tell_and_wait, began, go)
            assert began.wait(PATIENCE)
            others = [pool.submit(poolwork.square, n) for n in range(2)]
            victim = first if how == "kill" else others[0]
            goes_on = interrupted(step, getattr(victim, how))
            go.set()
            until(lambda victim=victim: victim.done())  # type: ignore[misc]
            try:
                assert victim.result(0) in (True, 0)
            except (CancelledError, mpkit.WorkerDied):
                pass
            assert others[1].result(PATIENCE) == 1, f"after step {step}"
            step += 1
        assert step > 1  # how many depends on how far the pool was


ENDS: dict[str, Callable[[mpkit.TaskPool], object]] = {
    "close": lambda pool: pool.close(),
    "terminate": lambda pool: pool.terminate(),
    "leave": lambda pool: pool.__exit__(None, None, None),
}


@pytest.mark.parametrize("how", ENDS)
def test_a_pool_whose_end_is_interrupted_can_be_ended(how: str) -> None:
    """It had noted that it is closed, and would not do the rest of that the next time."""
    step, goes_on = 0, True
    while goes_on:
        pool = mpkit.TaskPool(1)
        tasks = [pool.submit(abs, -n) for n in range(2)]
        goes_on = interrupted(step, lambda pool=pool: ENDS[how](pool))  # type: ignore[misc]
        ENDS[how](pool)
        assert pool.join(PATIENCE), f"after step {step}"
        assert all(task.done() for task in tasks)
        step += 1
    assert step > 5


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_pool_whose_making_is_interrupted_leaves_nothing(
    when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a Ctrl-C just before its supervisor runs, or just when it does."""
    start = threading.Thread.start

    def interrupted_start(thread: threading.Thread) -> None:
        if when == "after":
            start(thread)
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted_start)
    with pytest.raises(KeyboardInterrupt):
        mpkit.TaskPool(2)
