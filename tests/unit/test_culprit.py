"""The error that says what cannot be pickled says where that is."""

from __future__ import annotations

import functools
import threading
from collections import deque
from typing import Any

import pytest

from mpkit import _call
from mpkit._culprit import path_to
from mpkit._errors import NotPicklable
from mpkit._pickling import dumps

LOCK = threading.Lock()


class Config:
    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)

    def method(self) -> None:
        """To be bound."""


class Slotted:
    __slots__ = ("__private", "lock", "other")


def slotted() -> Slotted:
    thing = Slotted()
    thing.lock = LOCK
    return thing


def enclosing(lock: Any) -> Any:
    def inner() -> Any:
        return lock

    return inner


PATHS: dict[str, tuple[Any, str]] = {
    "in a list": ([1, 2, LOCK], "[2]"),
    "in dicts": ({"a": {2: LOCK}}, "['a'][2]"),
    "as a key": ({LOCK: 1}, " (its key ...)"),
    "in a set": ({LOCK}, " (an element)"),
    "in a deque": (deque([LOCK]), "[0]"),
    "an attribute": (Config(a=Config(b=[LOCK])), ".a.b[0]"),
    "in a slot": ([slotted()], "[0].lock"),
    "of a bound method": (Config(a=LOCK).method, ".__self__.a"),
    "of a partial": (functools.partial(print, 1, file=LOCK), ".keywords['file']"),
    "of a closure": (enclosing(LOCK), " (its variable lock)"),
    "not there": (Config(), ""),
}


@pytest.mark.parametrize("where", PATHS)
def test_it_is_found(where: str) -> None:
    thing, path = PATHS[where]
    assert path_to(LOCK, thing) == path


def test_a_circle_has_an_end() -> None:
    circle: list[Any] = []
    circle.append(circle)
    assert path_to(LOCK, circle) == ""


def test_so_has_what_is_large() -> None:
    assert path_to(LOCK, [*map(str, range(100_000)), LOCK]) == ""


@pytest.mark.parametrize(
    ("args", "kwargs", "said"),
    [
        ((1, Config(a={"b": LOCK})), {}, "args[1].a['b'], which is <unlocked _thread.lock"),
        ((), {"lock": LOCK}, "kwargs['lock'], which is <unlocked _thread.lock"),
    ],
)
def test_a_call_is_told_by_its_parts(args: Any, kwargs: Any, said: str) -> None:
    with pytest.raises(NotPicklable) as caught:
        dumps((print, args, kwargs), "print(...)", names=_call.PARTS)
    assert f"(inside it: {said}" in str(caught.value)
