"""What the tests have workers do."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import mpkit

if TYPE_CHECKING:
    from collections.abc import Iterator


def square(number: int) -> int:
    return number * number


def add(left: int, right: int = 0) -> int:
    return left + right


def set_and_wait(began: threading.Event, go: threading.Event) -> bool:
    """As `tell_and_wait`, in this process."""
    began.set()
    return go.wait(60)


def append_to(items: list[int], number: int) -> list[int]:
    items.append(number)
    return items


def be_busy(seconds: float) -> None:
    """Take so long, whoever sleeps meanwhile."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.01)


def thread_name(_: object = None) -> str:
    return threading.current_thread().name


#: What tests give to those tasks that run in this process.
pools: dict[str, mpkit.TaskPool] = {}


def use_pool() -> int:
    return pools["it"].apply(square, (2,))


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
    if how == "out of memory":
        run_out_of_memory()
    if how == "recursion limit":
        recurse()
    if how == "lambda":
        return threading.Lock()
    os.kill(os.getpid(), getattr(signal, how))
    signal.pause()
    return None


def run_out_of_memory() -> None:
    """Take all memory that there is, of a little that is left."""
    import resource

    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 20_000_000, limits[1]))
    try:
        hoard = [bytes(100_000)]
        while True:
            hoard += [bytes(100_000) for _ in range(100)]
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


class Unhashable(type):
    """The class of a class that has no hash."""

    def __eq__(cls, other: object) -> bool:
        return cls is other

    __hash__ = None  # type: ignore[assignment]


class OfUnhashable(metaclass=Unhashable): ...


def recurse() -> None:
    recurse()


class TwoArguments(Exception):
    def __init__(self, left: str, right: str) -> None:
        super().__init__(f"{left} and {right}")


class Unpicklable(Exception):
    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("not this one")


class Rude(BaseException):
    pass


class BadArrival:
    """Can be pickled, and fails, or kills, where it is unpickled.

    Not in the process ``spared``; and only once, if there is a file to note that in.
    """

    def __init__(self, how: str, spared: int = 0, once: str = "") -> None:
        self.facts = how, spared, once

    def __reduce__(self) -> tuple[Any, ...]:
        return arrive, self.facts


def arrive(how: str, spared: int, once: str) -> str:
    if os.getpid() != spared and (not once or first_time(once)):
        die(how)
    return "arrived"


def first_time(path: str) -> bool:
    try:
        open(path, "x").close()
    except FileExistsError:
        return False
    return True


class BadDeparture:
    """Fails, or kills, where it is pickled."""

    def __init__(self, how: str) -> None:
        self.how = how

    def __reduce__(self) -> tuple[Any, ...]:
        die(self.how)
        return str, ("departed",)


class BadDepartureError(Exception):
    def __reduce__(self) -> tuple[Any, ...]:
        die(self.args[0])
        return BadDepartureError, self.args


class BadArrivalError(Exception):
    def __init__(self, how: str, spared: int = 0) -> None:
        super().__init__(how)
        self.spared = spared

    def __reduce__(self) -> tuple[Any, ...]:
        return arrive_error, (self.args[0], self.spared)


def arrive_error(how: str, spared: int) -> BadArrivalError:
    if os.getpid() != spared:
        die(how)
    return BadArrivalError(how, spared)


def fail_in_its_departure(how: str) -> None:
    raise BadDepartureError(how)


def fail_in_its_arrival(how: str, *, here: bool = False) -> None:
    """Raise what cannot be unpickled: anywhere, or not ``here``, in the worker."""
    raise BadArrivalError(how, os.getpid() if here else 0)


def return_a_bad_departure(how: str, size: int = 0) -> object:
    return [bytes(size), BadDeparture(how)]


def return_a_bad_arrival(how: str, size: int = 0) -> object:
    return [bytes(size), BadArrival(how, os.getpid())]


def take_two(ballast: bytes, last: object) -> object:
    return last


def die_once(how: str, path: str) -> None:
    if first_time(path):
        die(how)


def die_when_told(how: str, go: mpkit.Signal, done: mpkit.Signal) -> int:
    """Leave a thread behind that does it while this worker is idle."""

    def wait_and_die() -> None:
        go.wait(60)
        try:
            die(how)
        except BaseException:
            pass
        done.set()

    threading.Thread(target=wait_and_die, daemon=True).start()
    return os.getpid()


def wait_and_die(how: str, began: mpkit.Signal, go: mpkit.Signal) -> Any:
    began.set()
    go.wait(60)
    return die(how)


def die_at_sigterm(how: str, began: mpkit.Signal) -> Any:
    signal.signal(signal.SIGTERM, lambda number, frame: die(how))
    began.set()
    while True:
        signal.pause()


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


def note(path: str, word: object) -> object:
    """Write a word to a file, which so counts how often this ran; return it."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, f"{word}\n".encode())
    os.close(fd)
    return word


def note_it(item: tuple[str, object]) -> object:
    """Note a word, as an item of a map."""
    return note(*item)


def note_much(path: str, word: object) -> bytes:
    """Note it, and return as much as a packet takes."""
    note(path, word)
    return os.urandom(60_000)


def notes(path: str) -> list[str]:
    """Return what was noted."""
    try:
        with open(path) as file:
            return file.read().split()
    except FileNotFoundError:
        return []


def note_and_wait(path: str, word: str, began: mpkit.Signal, go: mpkit.Signal) -> str:
    note(path, word)
    began.set()
    go.wait(60)
    return word


def clean_up_at_sigterm(path: str, began: mpkit.Signal) -> None:
    """Wait, and note when asked to end."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(7))
    try:
        began.set()
        while True:
            signal.pause()
    finally:
        note(path, "cleaned")


def block_signals(began: mpkit.Signal) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals))
    sleep_for_ever(began)


def hold_the_gil() -> None:
    import re

    re.match("(a+)+$", "a" * 40 + "b")  # for years, in C


def fail_so_often(path: str, times: int) -> int:
    """Raise until this was called so many times; then return how often that was."""
    note(path, "try")
    tries = len(notes(path))
    if tries <= times:
        raise ConnectionError(f"no answer to call {tries}")
    return tries


def grow(size: int, began: mpkit.Signal) -> int:
    """Occupy so many bytes, and wait."""
    ballast = b"x" * size
    began.set()
    sleep_for_ever()
    return len(ballast)


def occupy(size: int) -> int:
    """Occupy so many bytes, and let go of them."""
    return len(b"x" * size)


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


def long_or_meet(item: Any) -> Any:
    """Take longer than a slice of a map (``"long"``), or wait until another one is there."""
    if item == "long":
        time.sleep(0.05)
    elif item != "quick":
        mine, other = item
        mine.set()
        return other.wait(60)
    return item


def note_and_act(item: tuple[str, int, str]) -> int:
    """Note in a file that this was run; then be long, wait, or die."""
    path, number, how = item
    with open(path, "a") as file:
        file.write(f"{number}\n")
    if how == "long":
        time.sleep(0.05)
    elif how == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "wait":
        sleep_for_ever()
    return number
