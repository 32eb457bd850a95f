"""Where x how a job can go wrong: its error names the cause, under every start method."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import faulthandler
import os
import resource
import signal
import sys
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from mpkit import (
    Job,
    NotPicklable,
    RemoteError,
    RemoteTraceback,
    TaskExit,
    WorkerDied,
    start,
)
from mpkit._platform import descriptors
from tests.support import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.usefixtures("start_method")


def die(how: str) -> Any:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    faulthandler.disable()
    match how:
        case "exception":
            raise LookupError("no such thing")
        case "interrupt":
            raise KeyboardInterrupt
        case "SIGINT":
            signal.raise_signal(signal.SIGINT)
        case "sys.exit":
            sys.exit(3)
        case "os._exit":
            os._exit(3)
        case "null pointer":
            ctypes.string_at(0)
        case "abort":
            os.abort()
        case _:
            number = signal.Signals[how]
            if number != signal.SIGKILL:  # a fork hands down the tests' own handlers
                signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)


#: How the code of a call ends, what its job raises, and what the message says.
ENDS: dict[str, tuple[type[BaseException], str]] = {
    "exception": (LookupError, "no such thing"),
    "interrupt": (RemoteError, "KeyboardInterrupt"),
    "SIGINT": (RemoteError, "KeyboardInterrupt"),
    "sys.exit": (TaskExit, r"sys.exit\(3\)"),
    "os._exit": (WorkerDied, "exited with code 3"),
    "null pointer": (WorkerDied, "killed by SIGSEGV"),
    "abort": (WorkerDied, "killed by SIGABRT"),
    "SIGKILL": (WorkerDied, "killed by SIGKILL"),
}


class AtPacking:
    """Dies where it is pickled."""

    def __init__(self, how: str) -> None:
        self.how = how

    def __reduce__(self) -> Any:
        return AtPacking, (self.how, die(self.how))


class AtArrival:
    """Dies where it is unpickled; as a result, that is here."""

    def __init__(self, how: str) -> None:
        self.how = how

    def __setstate__(self, state: dict[str, Any]) -> None:
        die(state["how"])


class FailsAtPacking(Exception):
    def __reduce__(self) -> Any:
        return FailsAtPacking, (die(self.args[0]),)


class FailsAtArrival(Exception):
    def __setstate__(self, state: dict[str, Any] | None) -> None:
        die(self.args[0])


def return_one(kind: Callable[[str], Any], how: str) -> Any:
    return kind(how)


def raise_one(kind: Callable[[str], Exception], how: str) -> NoReturn:
    error = kind(how)
    error.attribute = None  # type: ignore[attr-defined]  # so that it has a state to set
    raise error


def check(job: Job[Any], kind: type[BaseException], text: str) -> BaseException:
    with job:
        with pytest.raises(kind, match=text) as caught:
            job.result(PATIENCE)
        assert caught.value is job.exception()
    return caught.value


@pytest.mark.parametrize("how", ENDS)
def test_a_call_that_ends_badly(how: str) -> None:
    check(start(die, how), *ENDS[how])


def is_fatal(number: signal.Signals) -> bool:
    quiet = {"SIGCHLD", "SIGCONT", "SIGURG", "SIGWINCH", "SIGINFO"}  # do nothing to a process
    stops = {"SIGSTOP", "SIGTSTP", "SIGTTIN", "SIGTTOU"}
    ignored = {"SIGPIPE", "SIGXFSZ", "SIGXFZ"}  # by Python
    return number.name not in quiet | stops | ignored | {"SIGINT"}


def test_every_signal_is_named() -> None:
    fatal = sorted(filter(is_fatal, signal.Signals))
    assert len(fatal) > 15
    for first in range(0, len(fatal), 4):
        with contextlib.ExitStack() as stack:
            some = {n: stack.enter_context(start(die, n.name)) for n in fatal[first : first + 4]}
            for number, job in some.items():
                error = job.exception(PATIENCE)
                assert isinstance(error, WorkerDied)
                assert error.exitcode == -number
                assert error.reason == f"was killed by {number.name}"


@pytest.mark.parametrize("how", ENDS)
def test_a_result_that_ends_it_where_it_is_pickled(how: str) -> None:
    kind, text = ENDS[how]
    if kind is LookupError:
        kind = NotPicklable  # which says so
    error = check(start(return_one, AtPacking, how), kind, text)
    if kind is NotPicklable:
        assert isinstance(error.__cause__, LookupError)
        assert "AtPacking" in error.repr  # type: ignore[attr-defined]


@pytest.mark.parametrize("how", ENDS)
def test_an_exception_that_ends_it_where_it_is_pickled(how: str) -> None:
    kind, text = ENDS[how]
    if kind is not WorkerDied:  # that code ran in vain, and the exception has a stand-in
        kind, text = RemoteError, "FailsAtPacking"
    error = check(start(raise_one, FailsAtPacking, how), kind, text)
    if isinstance(error, RemoteError):
        assert error.repr == f"FailsAtPacking('{how}')"
        assert "in raise_one" in error.traceback


def test_a_result_that_raises_where_it_is_unpickled_says_so() -> None:
    error = check(start(return_one, AtArrival, "exception"), LookupError, "no such thing")
    assert "result of job" in error.__notes__[0]


def test_an_exception_that_raises_where_it_is_unpickled_has_a_stand_in() -> None:
    error = check(start(raise_one, FailsAtArrival, "exception"), RemoteError, "no such thing")
    assert isinstance(error.__cause__, RemoteTraceback)


@pytest.mark.parametrize("how", ENDS)
def test_an_argument_that_ends_it_where_it_is_unpickled(how: str, start_method: str) -> None:
    if start_method == "fork":
        pytest.skip("fork pickles nothing")
    error = check(start(print, AtArrival(how)), *ENDS[how])
    if isinstance(error, LookupError):
        assert error.__notes__ == ["(raised in the new process, which unpickled print(...))"]


def starved(size: int) -> bytes:
    """Return a result for which there is no descriptor, or raise such an exception."""
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, lowest))
    return bytes(size)


def starve_and_raise(size: int) -> None:
    raise ValueError(starved(size))


def test_a_result_for_which_no_descriptor_is_left(capfd: pytest.CaptureFixture[str]) -> None:
    job = start(starved, 10_000_000)
    error = check(job, OSError, "Too many open files")
    assert error.__notes__ == [
        f"(raised while the result of job {starved.__module__}.starved was sent)"
    ]
    assert isinstance(error.__cause__, RemoteTraceback)
    assert job.exitcode == 1
    assert capfd.readouterr().err == ""


def test_an_exception_for_which_no_descriptor_is_left() -> None:
    job = start(starve_and_raise, 10_000_000)
    error = check(job, OSError, "Too many open files")
    assert "exception of job" in error.__notes__[0]
    assert job.exitcode == 1


def test_small_results_need_no_descriptor() -> None:
    with start(starved, 10) as job:
        assert job.result(PATIENCE) == bytes(10)


def test_a_job_for_which_no_descriptor_was_left_to_watch_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def none_left(pid: int) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(descriptors, "open_pidfd", none_left)
    check(start(die, "SIGKILL"), WorkerDied, "killed by SIGKILL")
    with start(signal.pause) as job:
        assert job.stop(PATIENCE)
    assert job.exitcode == -signal.SIGTERM
