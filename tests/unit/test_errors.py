"""Every exception of mpkit: what it keeps, what it derives from, how it travels."""

from __future__ import annotations

import copy
import inspect
import multiprocessing
import pickle
import traceback

import pytest

import mpkit
from mpkit import _errors

CASES: dict[str, tuple[tuple[object, ...], type[BaseException] | None]] = {
    "MpkitError": (("anything", 7), None),
    "RuntimeDirectoryError": (("/tmp/x", "is not yours"), OSError),
    "LimitMismatch": (("limit 'x'", 4, 3), ValueError),
    "LimitTimeout": (("limit 'x'", 4, 0.5), TimeoutError),
    "WouldDeadlock": (("limit 'x'", 1), RuntimeError),
    "LeaseLost": (("limit 'x'", 45.0, 30.0), RuntimeError),
    "SchedulerLost": (("limit 'x'", "tcp://127.0.0.1:8786", "no answer"), ConnectionError),
    "ChannelClosed": (("left end", "was closed"), ValueError),
    "ChannelMoved": (("left end", "moved to process 7"), ValueError),
    "ChannelTimeout": (("left end", "had no message", 2.0), TimeoutError),
    "EndOfChannel": (("left end",), EOFError),
    "PeerDied": (("left end", 17, "was killed by SIGKILL"), EOFError),
    "BrokenChannel": (("left end", "half a message"), BrokenPipeError),
    "MessageTypeError": (("left end", "Expected `int`"), TypeError),
    "WorkerDied": (("task f", 17, -9, "was killed by SIGKILL"), None),
    "WorkerInitError": ((3, "ValueError: no"), None),
    "TaskTimeout": (("task f", 1.5, 17), TimeoutError),
    "MemoryLimitExceeded": (("task f", 17, 2000, 1000), MemoryError),
    "TaskExit": (("task f", 3), None),
    "RemoteError": (("builtins.X", "wrong", "Traceback ...", "no pickle", "X(...)"), None),
    "RemoteTraceback": (("Traceback ...",), None),
    "NotPicklable": (("the message", "it is a lock", "<lock>"), pickle.PicklingError),
    "ResultTimeout": (("job f", 2.0), multiprocessing.TimeoutError),
    "PoolClosed": (("TaskPool", "it was closed"), ValueError),
}

ALL = {
    name: kind
    for name, kind in vars(_errors).items()
    if inspect.isclass(kind) and issubclass(kind, BaseException)
}


def made(name: str) -> _errors.MpkitError:
    error: _errors.MpkitError = ALL[name](*CASES[name][0])
    return error


def test_every_exception_is_in_the_table() -> None:
    assert set(ALL) == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_it_is_exported(name: str) -> None:
    assert getattr(mpkit, name) is ALL[name]


@pytest.mark.parametrize("name", CASES)
def test_a_traceback_names_it_as_it_is_caught(name: str) -> None:
    assert traceback.format_exception_only(made(name))[0].startswith(f"mpkit.{name}: ")


def test_a_kind_of_it_that_a_program_makes_is_the_programs() -> None:
    class Ours(_errors.WorkerDied):
        pass

    assert Ours.__module__ == __name__


@pytest.mark.parametrize("name", CASES)
def test_it_is_ours_and_the_promised_builtin(name: str) -> None:
    assert issubclass(ALL[name], _errors.MpkitError)
    builtin = CASES[name][1]
    assert builtin is None or issubclass(ALL[name], builtin)


def test_some_are_two_builtins_at_once() -> None:
    """Programs that were moved over go on catching what they caught."""
    assert issubclass(_errors.PoolClosed, RuntimeError)
    assert issubclass(_errors.ResultTimeout, TimeoutError)
    assert issubclass(_errors.PeerDied, _errors.EndOfChannel)
    assert issubclass(_errors.ChannelMoved, _errors.ChannelClosed)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("name", CASES)
def test_it_survives_pickle(name: str, protocol: int) -> None:
    check(made(name), lambda error: pickle.loads(pickle.dumps(error, protocol)))


@pytest.mark.parametrize("copying", [copy.copy, copy.deepcopy])
@pytest.mark.parametrize("name", CASES)
def test_it_can_be_copied(name: str, copying: object) -> None:
    check(made(name), copying)


def check(error: _errors.MpkitError, journey: object) -> None:
    assert callable(journey)
    error.add_note("a note")
    error.extra = "what a user attached"  # type: ignore[attr-defined]
    there = journey(error)
    assert type(there) is type(error)
    assert there.args == error.args
    assert vars(there) == vars(error)
    assert str(there) == str(error)
    assert there.__notes__ == ["a note"]


@pytest.mark.parametrize("name", CASES)
def test_its_facts_are_attributes_and_args(name: str) -> None:
    error, facts = made(name), CASES[name][0]
    assert error.args == facts
    names = list(inspect.signature(type(error).__init__).parameters)[1:]
    if names != ["facts"]:
        assert [getattr(error, fact) for fact in names] == list(facts)


@pytest.mark.parametrize("name", CASES)
def test_its_sentence_names_what_it_is_about(name: str) -> None:
    """The first fact is the thing that it happened to, and no fact is hidden but the codes."""
    error = made(name)
    assert str(error.args[0]) in str(error)
    assert str(error) in "".join(traceback.format_exception_only(error))


def test_an_os_error_keeps_its_facts_out_of_errno() -> None:
    assert _errors.RuntimeDirectoryError("/tmp/x", "is not yours").errno is None
    assert _errors.BrokenChannel("left end", "why").errno is None
    assert "Errno" not in str(_errors.BrokenChannel("left end", "why"))


def test_a_death_is_told_as_far_as_it_is_known() -> None:
    assert "process 17 at the other end" in str(made("PeerDied"))
    assert "(was killed by SIGKILL)" in str(made("PeerDied"))
    assert str(_errors.PeerDied("left end")).startswith("the process at the other end of left end")
