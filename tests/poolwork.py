"""What the tests have workers do."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

import mpkit

if TYPE_CHECKING:
    from collections.abc import Iterator


def square(number: int) -> int:
    return number * number


def add(left: int, right: int = 0) -> int:
    return left + right


def picky(number: int) -> int:
    """Fail for what is negative."""
    if number < 0:
        raise ValueError(number)
    return number * 2


def pid_of_worker(_: object = None) -> int:
    return os.getpid()


def wait_for(signal_: mpkit.Signal) -> bool:
    return signal_.wait(60)


def tell_and_wait(began: mpkit.Signal, go: mpkit.Signal) -> bool:
    began.set()
    return go.wait(60)


def sleep_for_ever(began: mpkit.Signal | None = None) -> None:
    if began is not None:
        began.set()
    while True:
        time.sleep(3600)


def die(how: str) -> Any:
    """End, or fail, in one of the ways in which calls do."""
    if how == "exception":
        raise LookupError("no such thing")
    if how == "two-argument exception":
        raise TwoArguments("left", "right")
    if how == "unpicklable exception":
        raise Unpicklable
    if how == "BaseException":
        raise Rude("base")
    if how == "KeyboardInterrupt":
        raise KeyboardInterrupt
    if how == "sys.exit":
        sys.exit(3)
    if how == "os._exit":
        os._exit(3)
    if how == "garbage":
        os.write(1, b"\0garbage\n")
        return "printed"
    if how == "no descriptors":
        os.closerange(3, 1000)
        return "closed"
    if how == "lambda":
        import threading

        return threading.Lock()
    os.kill(os.getpid(), getattr(signal, how))
    signal.pause()
    return None


class TwoArguments(Exception):
    def __init__(self, left: str, right: str) -> None:
        super().__init__(f"{left} and {right}")


class Unpicklable(Exception):
    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("not this one")


class Rude(BaseException):
    pass


class BadArrival:
    """Can be pickled, and fails, or kills, where it is unpickled."""

    def __init__(self, how: str) -> None:
        self.how = how

    def __reduce__(self) -> tuple[Any, ...]:
        return die, (self.how,)


def bad_result() -> BadArrival:
    return BadArrival("exception")


def count_and_maybe_die(number: int, path: str) -> int:
    """Note in a file that this ran; every twentieth call kills its worker."""
    with open(path, "a") as file:
        file.write(f"{number}\n")
    if number % 20 == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


def ignore_sigterm() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def fail_in_initializer() -> None:
    raise OSError("no database")


def remember(value: str) -> None:
    mpkit.worker_state()["value"] = value


def recall(_: object = None) -> object:
    return mpkit.worker_state().get("value")


def nested(number: int) -> list[int]:
    with mpkit.TaskPool(2) as pool:
        return pool.map(square, range(number))


def crash_once(path: str) -> str:
    """Kill the worker unless another attempt did."""
    try:
        open(path, "x").close()
    except FileExistsError:
        return "survived"
    os.kill(os.getpid(), signal.SIGKILL)
    return "dead"


def echo_on(end: mpkit.Channel[int, int]) -> int:
    for message in end:
        end.send(message + 1)
    return os.getpid()


def in_limit(number: int, semaphore: mpkit.Semaphore) -> int:
    with semaphore:
        return number


def endless() -> Iterator[int]:
    number = 0
    while True:
        yield number
        number += 1
