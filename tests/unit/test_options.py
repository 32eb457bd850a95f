"""What a pool and its calls may be asked, and how that is refused."""

from __future__ import annotations

import pickle
import re
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

import mpkit

if TYPE_CHECKING:
    from collections.abc import Callable


def test_options_say_what_was_asked_and_nothing_else() -> None:
    options = mpkit.Options(timeout=5, retry_on=OSError)  # type: ignore[arg-type]
    assert repr(options) == f"Options(timeout=5, retry_on=({OSError!r},))"
    assert repr(mpkit.Options()) == "Options()"
    assert (options.timeout, options.retries, options.retry_on) == (5, 0, (OSError,))


def test_options_are_values() -> None:
    options = mpkit.Options(timeout=5, name="x")
    assert pickle.loads(pickle.dumps(options)) == options == mpkit.Options(name="x", timeout=5)
    assert hash(options) == hash(mpkit.Options(timeout=5, name="x"))
    assert options.changed(timeout=None) == mpkit.Options(name="x")
    with pytest.raises(AttributeError):
        options.timeout = 6  # type: ignore[misc]


WRONG = [
    ({"timeout": 0}, ValueError, "more than 0"),
    ({"timeout": "5"}, TypeError, "timeout"),
    ({"retries": -1}, ValueError, "not negative"),
    ({"retries": 1.5}, TypeError, "whole number"),
    ({"retry_on": "OSError"}, TypeError, "exception classes"),
    ({"backoff": -1}, ValueError, "0 or more"),
    ({"priority": None}, TypeError, "whole number"),
    ({"name": 5}, TypeError, "text"),
    ({"patience": 5}, TypeError, "'patience'"),
]


@pytest.mark.parametrize(("wrong", "kind", "words"), WRONG)
def test_what_makes_no_sense_is_refused_wherever_it_is_given(
    wrong: dict[str, Any], kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        mpkit.Options(**wrong)
    with pytest.raises(kind, match=words):
        mpkit.Options().changed(**wrong)
    with pytest.raises(kind, match=words):
        mpkit.TaskPool(1, **wrong)
    with mpkit.TaskPool(0) as pool, pytest.raises(kind, match=words):
        pool.options(**wrong)


def test_a_pool_has_the_options_it_is_given_and_those_by_name_change_them() -> None:
    patient = mpkit.Options(retries=3, priority=1)
    with mpkit.TaskPool(0, options=patient, priority=2) as pool:
        assert pool.submit(int).options == mpkit.Options(retries=3, priority=2)
        assert pool.options(retries=0).submit(int).options == mpkit.Options(priority=2)


def test_only_options_are_options() -> None:
    with pytest.raises(TypeError, match="mpkit.Options"):
        mpkit.TaskPool(0, options={"retries": 3})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "given", "hint"),
    [
        (mpkit.TaskPool, "worker", "did you mean 'workers'?"),
        (mpkit.TaskPool, "maxtaskperchild", "did you mean 'maxtasksperchild'?"),
        (mpkit.Options, "timout", "did you mean 'timeout'?"),
        (mpkit.Options, "workers", "there are backoff, label"),
    ],
)
def test_what_is_no_option_is_told_from_what_is(
    make: Callable[..., object], given: str, hint: str
) -> None:
    with pytest.raises(TypeError, match=f"no option {given!r}: {re.escape(hint)}"):
        make(**{given: 1})


SETTINGS = ["tasks_per_worker", "maxtasksperchild", "memory_limit"]


@pytest.mark.parametrize("setting", SETTINGS)
def test_what_needs_workers_is_refused_on_an_executor_and_harmless_here(setting: str) -> None:
    only: dict[str, Any] = {setting: 5}
    with mpkit.TaskPool(0, **only) as pool:
        assert pool.apply(abs, (-1,)) == 1
    with ThreadPoolExecutor() as executor:
        with pytest.raises(ValueError, match="on="):
            mpkit.TaskPool(on=executor, **only)


def test_another_executor_has_its_own_workers_and_initializer() -> None:
    with ThreadPoolExecutor() as executor:
        with pytest.raises(ValueError, match="workers= makes no sense"):
            mpkit.TaskPool(4, on=executor)
        with pytest.raises(ValueError, match="initializer= makes no sense"):
            mpkit.TaskPool(on=executor, initializer=int)
