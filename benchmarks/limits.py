"""What limits and semaphores are measured by."""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import signal
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.registry import Case, case

PAIR = case("acquire + release, nobody waits", "µs", count=20_000, quick=2_000)
HAND_OVER = case("release after work, a waiting process goes on", "µs", count=1_000, quick=200)
BY_BELL = case("the same, where all of 4 slots were held", "µs", count=1_000, quick=200)
COLD = case("release after a sleep, a waiting process goes on", "µs", count=1_000, quick=200)
DEATH = case("SIGKILL of the holder, a waiting process goes on", "ms", count=40, quick=8)
LONGEST = case("longest wait of 50 processes, at 3 slots", "ms", count=200, quick=40)
USUAL = case("median wait of 50 processes, at 3 slots", "ms", count=200, quick=40)

# Each yields a function that makes the library's semaphore of so many slots, for a child.
Make = Callable[[int], Any]
Library = Callable[[], contextlib.AbstractContextManager[Make]]


@contextlib.contextmanager
def _mpkit() -> Iterator[Make]:
    import mpkit

    yield mpkit.Semaphore


@contextlib.contextmanager
def _multiprocessing() -> Iterator[Make]:
    yield multiprocessing.Semaphore


@contextlib.contextmanager
def _filelock() -> Iterator[Make]:
    import filelock

    def make(slots: int) -> Any:
        if slots > 1:
            raise NotImplementedError("a filelock has one slot")
        return filelock.FileLock(os.path.join(folder, "lock"), thread_local=False)

    with tempfile.TemporaryDirectory() as folder:
        yield make


@contextlib.contextmanager
def _portalocker() -> Iterator[Make]:
    import portalocker

    with tempfile.TemporaryDirectory() as folder:
        yield lambda slots: portalocker.BoundedSemaphore(
            slots, name="bench", directory=folder, timeout=60, check_interval=0.001
        )


@contextlib.contextmanager
def _posix_ipc() -> Iterator[Make]:
    import posix_ipc

    def make(slots: int) -> Any:
        semaphore = posix_ipc.Semaphore(None, posix_ipc.O_CREX, initial_value=slots)
        semaphore.unlink()
        return semaphore

    yield make


CRASH_SAFE: dict[str, Library] = {
    "mpkit": _mpkit,
    "filelock": _filelock,
    "portalocker": _portalocker,
}
OTHERS: dict[str, Library] = {"multiprocessing": _multiprocessing, "posix_ipc": _posix_ipc}


def _pairs(library: Library, count: int) -> float:
    with library() as make:
        semaphore = make(1 if library is _filelock else 4)
        acquire, release = semaphore.acquire, semaphore.release
        began = time.perf_counter()
        for _ in range(count):
            acquire()
            release()
        return time.perf_counter() - began


def _visit(semaphore: Any, pipe: Any) -> None:
    """Each time it is asked to: wait for a slot, and say when that was there."""
    while pipe.recv():
        pipe.send("here I go")
        semaphore.acquire()
        now = time.perf_counter()
        semaphore.release()
        pipe.send(now)


def _wait_until_asleep(pid: int | None) -> None:
    while True:
        with open(f"/proc/{pid}/stat") as file:
            if file.read().rpartition(")")[2].split()[0] == "S":
                return


def _work(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


@contextlib.contextmanager
def _visitor(
    semaphore: Any, busy: Callable[[float], None] = time.sleep
) -> Iterator[Callable[[], Callable[[], float]]]:
    """Start a process; yield what sends it to wait, and returns what hears it went on.

    Meanwhile we are ``busy``.
    """
    pipe, end = multiprocessing.Pipe()
    process = multiprocessing.Process(target=_visit, args=(semaphore, end))
    process.start()

    def send() -> Callable[[], float]:
        pipe.send(True)
        pipe.recv()
        busy(0.001)  # it is on its way from here to there
        _wait_until_asleep(process.pid)
        return pipe.recv  # type: ignore[no-any-return]

    yield send
    pipe.send(False)
    process.join()


def _hand_over(
    library: Library, count: int, slots: int = 1, busy: Callable[[float], None] = _work
) -> float:
    seconds = 0.0
    with library() as make:
        semaphore = make(slots)
        for _ in range(slots - 1):
            semaphore.acquire()
        with _visitor(semaphore, busy) as send:
            for _ in range(count):
                semaphore.acquire()
                hear = send()
                began = time.perf_counter()
                semaphore.release()
                seconds += hear() - began
    return seconds


def _hold(semaphore: Any, pipe: Any) -> None:
    semaphore.acquire()
    pipe.send("I have it")
    signal.pause()


def _death(library: Library, count: int) -> float:
    seconds = 0.0
    with library() as make:
        semaphore = make(1)
        with _visitor(semaphore) as send:
            for _ in range(count):
                pipe, end = multiprocessing.Pipe()
                holder = multiprocessing.Process(target=_hold, args=(semaphore, end))
                holder.start()
                pipe.recv()
                hear = send()
                began = time.perf_counter()
                holder.kill()
                seconds += hear() - began
                holder.join()
    return seconds


def _lost(library: Library, count: int) -> float:
    raise RuntimeError("the slot is lost")


def _queue_up(semaphore: Any, count: int, go: Any, pipe: Any) -> None:
    waits: list[float] = []
    pipe.send("I am here")
    go.wait()
    for _ in range(count):
        began = time.perf_counter()
        semaphore.acquire()
        waits.append(time.perf_counter() - began)
        time.sleep(0.0005)
        semaphore.release()
    pipe.send(waits)


def _crowd(library: Library, count: int) -> list[float]:
    with library() as make:
        semaphore, go = make(3), multiprocessing.Event()
        pipes: list[Any] = []
        for _ in range(50):
            pipe, end = multiprocessing.Pipe()
            multiprocessing.Process(target=_queue_up, args=(semaphore, count, go, end)).start()
            pipe.recv()
            pipes.append(pipe)
        go.set()
        waits = [wait for pipe in pipes for wait in pipe.recv()]
        for process in multiprocessing.active_children():
            process.join()
    return waits


def _longest(library: Library, count: int) -> float:
    return max(_crowd(library, count)) * count  # the figure is for one


def _usual(library: Library, count: int) -> float:
    return statistics.median(_crowd(library, count)) * count


def _register(
    row: Case,
    measure: Callable[[Library, int], float],
    libraries: dict[str, Library],
    note: str = "",
) -> None:
    for name, library in libraries.items():
        row.run(name + note)(lambda count, library=library: measure(library, count))


_register(PAIR, _pairs, CRASH_SAFE)
_register(PAIR, _pairs, OTHERS, " (not crash-safe)")
# A filelock looks every 50 ms.
_WAITED_FOR = {"mpkit": _mpkit, "portalocker": _portalocker} | OTHERS
_register(HAND_OVER, _hand_over, _WAITED_FOR)
_register(BY_BELL, functools.partial(_hand_over, slots=4), _WAITED_FOR)
_register(COLD, functools.partial(_hand_over, busy=time.sleep), _WAITED_FOR)
_register(DEATH, _death, {"mpkit": _mpkit, "portalocker": _portalocker})
_register(DEATH, _lost, OTHERS)
for _row, _measure in ((LONGEST, _longest), (USUAL, _usual)):
    _register(_row, _measure, _WAITED_FOR)

CASES: list[Case] = [PAIR, HAND_OVER, BY_BELL, COLD, DEATH, LONGEST, USUAL]
