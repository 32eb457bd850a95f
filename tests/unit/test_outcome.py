"""What became of a call: results and exceptions, on their way to another process."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from typing import Any

import numpy as np
import pytest

from mpkit import _outcome
from mpkit._errors import NotPicklable, RemoteError, RemoteTraceback, TaskExit


def arrived(error: BaseException) -> BaseException:
    """Raise ``error``, and return what is raised in the process that waits."""
    try:
        raise_it(error)
    except BaseException as raised:
        with contextlib.closing(_outcome.pack_error("task f", raised, skip_frames=1)) as parcel:
            data, fds = parcel.seal()
            return _outcome.unpack_error(data, [os.dup(fd) for fd in fds])
    raise AssertionError


def raise_it(error: BaseException) -> None:
    raise error


class TwoFacts(Exception):
    """Pickle replays the constructor with one argument."""

    def __init__(self, name: str, number: int) -> None:
        super().__init__(f"{name} {number}")
        self.name = name
        self.number = number


class TwoFactsKept(Exception):
    def __init__(self, name: str, number: int) -> None:
        super().__init__(name, number)
        self.name = name
        self.number = number


class Secretive(Exception):
    def __str__(self) -> str:
        raise ValueError("no words")


class Changeling(Exception):
    def __reduce__(self) -> Any:
        return KeyError, ("another",)


class Holder(Exception):
    """Holds what cannot travel."""

    def __init__(self) -> None:
        super().__init__("held")
        self.lock = threading.Lock()


class Ending(BaseException):
    pass


class Explosive(Exception):
    """Its rebuilding ends the process, if nobody is careful."""

    def __reduce__(self) -> Any:
        return raise_it, (SystemExit(3),)


class Fickle(Exception):
    """Can be rebuilt where it was raised, and nowhere else."""

    def __init__(self, pid: int) -> None:
        super().__init__(pid)
        if pid != os.getpid():
            raise OSError("not at home")


def test_an_exception_arrives_with_its_traceback_as_the_cause() -> None:
    error = arrived(ValueError("wrong", 7))
    assert type(error) is ValueError
    assert error.args == ("wrong", 7)
    assert isinstance(error.__cause__, RemoteTraceback)
    assert "in raise_it" in error.__cause__.text
    assert "in arrived" not in error.__cause__.text  # the frame that was skipped
    assert str(error.__cause__).startswith('\n"""\nTraceback')


@pytest.mark.parametrize(
    "error",
    [
        TwoFactsKept("a", 1),
        OSError(2, "No such file", "name"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid"),
        KeyError("key"),
        StopIteration(3),
        np.linalg.LinAlgError("singular"),
        ValueError(np.arange(50_000)),
    ],
    ids=lambda error: type(error).__name__,
)
def test_it_keeps_its_facts(error: Exception) -> None:
    there = arrived(error)
    assert type(there) is type(error)
    assert repr(there) == repr(error)
    assert {**vars(there)} == {**vars(error)}


def test_notes_arrive() -> None:
    error = ValueError("wrong")
    error.add_note("while parsing line 7")
    there = arrived(error)
    assert there.__notes__ == ["while parsing line 7"]
    assert isinstance(there.__cause__, RemoteTraceback)
    assert "while parsing line 7" in there.__cause__.text


def test_causes_are_in_the_text() -> None:
    error = ValueError("wrong")
    error.__cause__ = KeyError("the reason")
    there = arrived(error)
    assert isinstance(there.__cause__, RemoteTraceback)
    assert "KeyError: 'the reason'" in there.__cause__.text
    assert "direct cause" in there.__cause__.text


def test_groups_arrive_whole() -> None:
    there = arrived(ExceptionGroup("both", [ValueError(1), ExceptionGroup("in", [KeyError(2)])]))
    assert isinstance(there, ExceptionGroup)
    assert (
        repr(there)
        == "ExceptionGroup('both', [ValueError(1), ExceptionGroup('in', [KeyError(2)])])"
    )


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (TwoFacts("a", 1), "missing 1 required positional argument: 'number'"),
        (Holder(), "the exception cannot be pickled"),
        (Changeling("x"), "it becomes a KeyError when it is unpickled"),
        (Explosive("x"), "could not travel"),
        (Ending("x"), "it is not an Exception"),
        (KeyboardInterrupt(), "it is not an Exception"),
        (GeneratorExit(), "it is not an Exception"),
        (BaseExceptionGroup("b", [Ending("x")]), "it is not an Exception"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_one_that_cannot_travel_is_replaced(error: BaseException, why: str) -> None:
    there = arrived(error)
    assert type(there) is RemoteError
    assert why in there.why
    assert there.type_name.endswith(type(error).__name__)
    assert there.message == str(error)
    assert "in raise_it" in there.traceback
    assert isinstance(there.__cause__, RemoteTraceback)


def test_one_without_words_arrives() -> None:
    there = arrived(Secretive("x"))
    assert type(there) is Secretive
    assert isinstance(there.__cause__, RemoteTraceback)


def test_the_stand_in_of_one_without_words_has_some() -> None:
    class Local(Secretive):
        def __reduce__(self) -> Any:
            raise ValueError("never")

    there = arrived(Local())
    assert isinstance(there, RemoteError)
    assert there.message == "<its __str__ raised ValueError>"


def test_one_that_cannot_be_rebuilt_here_is_replaced_here(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        raise Fickle(os.getpid())
    except Fickle as raised:
        parts = _outcome.Raised.of("task f", raised)
    assert type(parts.error()) is Fickle
    monkeypatch.setattr(os, "getpid", lambda: -1)
    there = parts.error()
    assert isinstance(there, RemoteError)
    assert there.why == "the original could not be rebuilt: not at home"


@pytest.mark.parametrize("code", [None, 0, 3, "a message"])
def test_an_exit_arrives_as_an_ordinary_exception(code: object) -> None:
    there = arrived(SystemExit(code))
    assert isinstance(there, TaskExit)
    assert isinstance(there, Exception)
    assert there.code == code
    assert str(there) == f"task f called sys.exit({code!r})"


def travelled(value: object) -> Any:
    kind, parcel = _outcome.pack_result("task f", len, value)
    with contextlib.closing(parcel):
        data, packed = parcel.seal()
        fds = [os.dup(fd) for fd in packed]
    if kind == _outcome.FAILED:
        raise _outcome.unpack_error(data, fds)
    assert kind == _outcome.DONE
    return _outcome.unpack_result("task f", data, fds)


def test_a_result_arrives_equal() -> None:
    assert travelled({"a": [1, 2]}) == {"a": [1, 2]}
    assert np.array_equal(travelled(np.arange(100_000)), np.arange(100_000))


def test_a_returned_exception_is_a_value() -> None:
    """Row 27 of the table of faults."""
    assert repr(travelled(ValueError(1))) == "ValueError(1)"


def test_a_result_that_cannot_travel_is_a_failure_of_the_call() -> None:
    with pytest.raises(
        NotPicklable, match=r"the result of task f \(len\) cannot be pickled: .*lock"
    ):
        travelled(threading.Lock())


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), SystemExit(2)])
def test_what_pickling_the_result_raises_is_a_failure_of_the_call(error: BaseException) -> None:
    with pytest.raises((NotPicklable, RemoteError, TaskExit)) as caught:
        travelled(Raises(error))
    assert type(error).__name__ in str(caught.value) or isinstance(error, SystemExit)


class Raises:
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        raise self.error


class RaisesThere:
    def __reduce__(self) -> Any:
        return raise_it, (EOFError("mine"),)


def test_what_unpickling_the_result_raises_says_where() -> None:
    with pytest.raises(EOFError, match="mine") as caught:
        travelled(RaisesThere())
    assert "while the result of task f was unpickled" in caught.value.__notes__[0]


class Callable:
    def __call__(self) -> None: ...


def test_a_call_is_described_by_its_name() -> None:
    assert _outcome.describe(len) == "len"
    assert _outcome.describe(os.path.join).endswith("path.join")
    assert _outcome.describe(functools.partial(functools.partial(len))) == "len"
    assert _outcome.describe(raise_it) == f"{__name__}.raise_it"
    assert _outcome.describe(Callable()).endswith("Callable")
