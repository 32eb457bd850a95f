"""Objects to bytes, and the words for those that cannot become any."""

from __future__ import annotations

import builtins
import errno
import os
import pickle
import socket
import sys
import threading
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import mpkit
from mpkit import _pickling
from mpkit._errors import MpkitError, NotPicklable, WouldDeadlock
from mpkit._parcel import pack

if TYPE_CHECKING:
    from collections.abc import Callable


def travelled(thing: object) -> Any:
    stream, buffers = _pickling.dumps(thing, "it")
    return pickle.loads(stream, buffers=buffers)


@pytest.fixture
def _no_cloudpickle(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "cloudpickle":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    monkeypatch.delitem(sys.modules, "cloudpickle", raising=False)


def a_lambda() -> Callable[[int], int]:
    return lambda number: number + 1


def a_closure() -> Callable[[int], int]:
    one = 1

    def add(number: int) -> int:
        return number + one

    return add


def a_local_class() -> Any:
    class Local:
        def __call__(self, number: int) -> int:
            return number + 1

    return Local()


class Grumpy:
    def __reduce__(self) -> Any:
        raise ValueError("not today")


class Deadlocked:
    def __reduce__(self) -> Any:
        raise WouldDeadlock("limit 'x'", 1)


class Interrupted:
    def __reduce__(self) -> Any:
        raise KeyboardInterrupt


@pytest.mark.parametrize("make", [a_lambda, a_closure, a_local_class])
def test_what_pickle_cannot_do_cloudpickle_does(make: Callable[[], Any]) -> None:
    pytest.importorskip("cloudpickle")
    assert travelled(make())(41) == 42


@pytest.mark.usefixtures("_no_cloudpickle")
@pytest.mark.parametrize("make", [a_lambda, a_closure, a_local_class])
def test_without_cloudpickle_the_error_says_what_to_do(make: Callable[[], Any]) -> None:
    with pytest.raises(NotPicklable) as caught:
        _pickling.dumps([make()], "the message")
    text = str(caught.value)
    assert text.startswith("the message cannot be pickled: ")
    assert "top level of a module" in text
    assert "mpkit[cloudpickle]" in text
    assert isinstance(caught.value.__cause__, (AttributeError, pickle.PicklingError))


@pytest.mark.usefixtures("_no_cloudpickle")
def test_without_cloudpickle_no_hint_is_given_where_it_would_not_help() -> None:
    with pytest.raises(NotPicklable) as caught:
        _pickling.dumps(threading.Lock(), "the message")
    assert "cloudpickle" not in str(caught.value)


@pytest.mark.parametrize("thing", [threading.Lock(), (number for number in ()), sys._getframe()])
def test_what_nothing_can_pickle_is_named(thing: object) -> None:
    with pytest.raises(NotPicklable) as caught:
        _pickling.dumps({"key": thing}, "the argument")
    assert isinstance(caught.value, pickle.PicklingError)
    assert caught.value.what == "the argument"
    assert type(thing).__name__ in str(caught.value)
    assert caught.value.__cause__ is not None


def test_an_error_of_the_objects_own_is_the_cause() -> None:
    with pytest.raises(NotPicklable, match="it cannot be pickled: ValueError: not today") as caught:
        _pickling.dumps([Grumpy()], "it")
    assert isinstance(caught.value.__cause__, ValueError)


def test_our_own_errors_are_not_wrapped() -> None:
    with pytest.raises(WouldDeadlock):
        _pickling.dumps([Deadlocked()], "it")
    with pytest.raises(MpkitError):
        _pickling.dumps([a_lambda(), Deadlocked()], "it")


def test_an_interrupt_is_not_an_unpicklable_object() -> None:
    with pytest.raises(KeyboardInterrupt):
        _pickling.dumps([Interrupted()], "it")


def test_a_deep_recursion_is_an_error_and_no_crash() -> None:
    nested: list[Any] = []
    for _ in range(200_000):
        nested = [nested]
    with pytest.raises(NotPicklable, match="recursion"):
        _pickling.dumps(nested, "it")
    while nested:  # its own deallocation is not the subject
        nested = nested[0]


class Scarce:
    def __reduce__(self) -> Any:
        raise OSError(errno.EMFILE, "Too many open files")


class Missing:
    def __reduce__(self) -> Any:
        raise FileNotFoundError(errno.ENOENT, "No such file", "data")


def test_that_descriptors_ran_out_says_nothing_of_the_object(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nor can another pickler do anything about it: it has files to open itself."""
    monkeypatch.setattr(_pickling, "_again", None)
    with pytest.raises(OSError, match="Too many open files") as caught:
        _pickling.dumps([Scarce()], "the message")
    assert not isinstance(caught.value, NotPicklable)
    assert "the message" in caught.value.__notes__[0]
    with pytest.raises(NotPicklable, match="FileNotFoundError"):
        _pickling.dumps([Missing()], "the message")


def test_only_large_buffers_travel_beside_the_stream() -> None:
    small, large = np.zeros(100), np.zeros(_pickling.OUT_OF_BAND)
    stream, buffers = _pickling.dumps([small, large], "it")
    assert [buffer.raw().nbytes for buffer in buffers] == [large.nbytes]
    assert len(stream) < 2000
    for buffer in buffers:
        buffer.release()


def test_the_second_pickler_starts_from_nothing() -> None:
    """A buffer that the first one had put aside is not sent twice."""
    pytest.importorskip("cloudpickle")
    array = np.arange(50_000)
    stream, buffers = _pickling.dumps([array, a_lambda()], "it")
    assert len(buffers) == 1
    arrived, function = pickle.loads(stream, buffers=buffers)
    assert np.array_equal(arrived, array)
    assert function(1) == 2


def test_sockets_and_connections_travel_with_multiprocessings_reducers() -> None:
    import multiprocessing

    here, there = socket.socketpair()
    reader, writer = multiprocessing.Pipe(duplex=False)
    # To rebuild them needs a process that serves them: to pickle them is the subject.
    with here, there, reader, writer:
        assert len(_pickling.dumps([here, writer], "it")[0]) > 50
    from multiprocessing import resource_sharer

    resource_sharer.stop()


def test_reducers_that_are_registered_later_are_used() -> None:
    from multiprocessing.reduction import ForkingPickler

    class Odd:
        """Its class cannot be found by name."""

    assert travelled(Decimal("1.5")) == Decimal("1.5")
    ForkingPickler.register(Odd, lambda odd: (str, ("an odd one",)))
    try:
        assert travelled(Odd()) == "an odd one"
    finally:
        ForkingPickler._extra_reducers.pop(Odd)  # type: ignore[attr-defined]


def test_a_failed_packing_keeps_no_descriptor() -> None:
    from mpkit import channel

    here, there = channel()
    before = os.listdir("/dev/fd")
    with pytest.raises(NotPicklable):
        pack([there, Grumpy()], "it")
    assert os.listdir("/dev/fd") == before
    here.send("still here")
    assert there.recv() == "still here"
    here.close()
    there.close()


class Program:
    """One that has a pool among its attributes."""

    def __init__(self, pool: mpkit.TaskPool) -> None:
        self.pool = pool

    def run(self, number: int) -> int:
        return number


def test_a_pool_says_itself_that_it_cannot_travel() -> None:
    with mpkit.TaskPool(0) as pool:
        method = Program(pool).run
        with pytest.raises(mpkit.NotPicklable, match=r"TaskPool objects stay.*self__\.pool, which"):
            pool.map(method, [1])
        of_it: list[object] = [pool.options(), pool.executor, pool.submit(abs, 1)]
        for thing in [*of_it, pool.imap(abs, [1])]:
            with pytest.raises(mpkit.NotPicklable, match=f"{type(thing).__name__} objects stay"):
                pool.submit(abs, thing)  # type: ignore[arg-type]
