"""The future of a pool's task does all that one of the standard library does."""

from __future__ import annotations

import concurrent.futures
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpkit._platform.future import LightFuture
from tests.support import PATIENCE, interrupted_in_threading, left_taken

if TYPE_CHECKING:
    from collections.abc import Callable

STEPS: dict[str, Callable[[Future[Any]], Any]] = {
    "cancel": lambda future: future.cancel(),
    "run": lambda future: future.set_running_or_notify_cancel(),
    "result": lambda future: future.set_result(3),
    "error": lambda future: future.set_exception(KeyError("k")),
    "no error": lambda future: future.set_exception(None),
    "done": lambda future: future.done(),
    "cancelled": lambda future: future.cancelled(),
    "running": lambda future: future.running(),
    "get": lambda future: future.result(0),
    "ask": lambda future: repr(future.exception(0)),
    "wait": lambda future: [len(part) for part in concurrent.futures.wait([future], 0)],
    "condition": lambda future: future._condition.notify_all(),
}


def outcome(step: Callable[[Any], Any], future: Future[Any]) -> Any:
    try:
        return step(future)
    except BaseException as error:
        return type(error)


@given(st.lists(st.sampled_from([*STEPS, "call back"]), max_size=12))
def test_it_does_what_a_future_does(steps: list[str]) -> None:
    light, plain = LightFuture[int](), Future[int]()
    calls: dict[int, list[Any]] = {id(light): [], id(plain): []}
    for step in steps:
        if step == "call back":
            for future in (light, plain):
                calls_of = calls[id(future)]
                future.add_done_callback(lambda done, c=calls_of: c.append(done.done()))  # type: ignore[misc]
        else:
            assert outcome(STEPS[step], light) == outcome(STEPS[step], plain), step
    assert calls[id(light)] == calls[id(plain)]


def test_it_has_no_condition_before_somebody_asks_for_one() -> None:
    future = LightFuture[int]()
    assert future.set_running_or_notify_cancel()
    future.set_result(3)
    assert future.result() == 3
    assert future.exception() is None
    assert future._made_condition is None


@pytest.mark.parametrize("how", ["result", "exception", "wait", "as_completed", "callback"])
def test_whoever_waits_is_told_whenever_it_comes(how: str) -> None:
    """That is, before or after it is done, or in the midst of it."""
    for _ in range(300):
        future = LightFuture[int]()
        told = threading.Event()

        def wait(future: LightFuture[int] = future, told: threading.Event = told) -> None:
            if how == "callback":
                future.add_done_callback(lambda _: told.set())
                return
            if how == "result":
                assert future.result(PATIENCE) == 3
            elif how == "exception":
                assert future.exception(PATIENCE) is None
            elif how == "wait":
                assert concurrent.futures.wait([future], PATIENCE).done == {future}
            else:
                assert list(concurrent.futures.as_completed([future], PATIENCE)) == [future]
            told.set()

        waiter = threading.Thread(target=wait)
        waiter.start()
        future.set_running_or_notify_cancel()
        future.set_result(3)
        assert told.wait(PATIENCE)
        waiter.join(PATIENCE)


def test_it_is_cancelled_or_it_runs() -> None:
    for _ in range(300):
        future = LightFuture[int]()
        told: list[bool] = []
        canceller = threading.Thread(
            target=lambda future=future, told=told: told.append(future.cancel())  # type: ignore[misc]
        )
        canceller.start()
        runs = future.set_running_or_notify_cancel()
        canceller.join(PATIENCE)
        assert told == [not runs]
        assert future.running() == runs


def test_one_that_runs_can_wait_again() -> None:
    for asked in (False, True):
        future = LightFuture[int]()
        if asked:
            assert future._condition
        future.set_running_or_notify_cancel()
        future.wait_again()
        assert not future.running()
        assert future.cancel()
        future.wait_again()
        assert future.cancelled()


@pytest.mark.parametrize("call", ["cancel", "set_running_or_notify_cancel"])
def test_no_ctrl_c_leaves_it_locked(call: str) -> None:
    for after in range(20):
        future: LightFuture[int] = LightFuture()
        condition = future._condition
        with interrupted_in_threading(after):
            getattr(future, call)()
        assert not left_taken(condition), after
