"""What the calls of pools are measured by, with small tasks and with unequal ones."""

from __future__ import annotations

import contextlib
import functools
import os
import random
import signal
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from benchmarks.libraries import CHUNK, LACKS, LIBRARIES, Calls
from benchmarks.registry import Case, case
from benchmarks.work import noop, own_pid

WORKERS = 2

SUBMIT = case("submit + result, no-op, all at once", "µs", count=20_000, quick=2_000)
APPLY = case("apply, one after the other", "µs", count=2_000, quick=300)
FLOOR = case("apply, beside a bare pipe there and back", "µs", count=2_000, quick=300)
MAPS = {
    ("list", 20_000): case("map, no-op, a list of 20,000", "µs", count=20_000, quick=20_000),
    ("generator", 20_000): case("map, no-op, 20,000 generated", "µs", count=20_000, quick=20_000),
    ("list", 1_000_000): case("map, no-op, a list of 1,000,000", "µs", count=1_000_000, quick=0),
    ("generator", 1_000_000): case(
        "map, no-op, 1,000,000 generated", "µs", count=1_000_000, quick=0
    ),
}
IMAP = case("imap, no-op, chunk 1", "µs", count=10_000, quick=1_000)
# The count is the optimum in ms.
SKEWED = case(
    "map, 400 skewed sleeps, shortest first, 8 workers", "x the optimum", count=2_500, quick=600
)

DEATH = case("SIGKILL of a worker, until its task has failed", "ms", count=20, quick=5)


def seconds(work: Callable[[], object]) -> float:
    """Return how long it takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def at_once(calls: Calls, count: int) -> float:
    """Return how long it takes to submit so many, and then to have all their results."""
    submit, get = calls.submit, calls.get
    assert submit is not None
    assert get is not None
    get(submit(noop))
    return seconds(lambda: [get(task) for task in [submit(noop) for _ in range(count)]])


def _one_by_one(apply: Callable[..., Any], count: int) -> float:
    apply(noop)
    return seconds(lambda: [apply(noop) for _ in range(count)])


def _ping_pong(count: int) -> float:
    """Bytes, a pipe, and a process that sends back what comes: less no pool can do."""
    import multiprocessing

    here, there = multiprocessing.Pipe()
    process = multiprocessing.Process(target=_echo, args=(there,), daemon=True)
    process.start()

    def there_and_back(_: object) -> bytes:
        here.send_bytes(b"x" * 100)
        return here.recv_bytes()

    return _one_by_one(there_and_back, count)


def _echo(end: Any) -> None:
    while True:
        end.send_bytes(end.recv_bytes())


def _use_up(results: Iterable[Any]) -> None:
    deque(results, maxlen=0)


def _mapped(calls: Calls, kind: str, count: int) -> float:
    _use_up(calls.map(noop, range(10), 1))
    # The list is made before, the generator's items meanwhile.
    items: Iterable[int] = list(range(count)) if kind == "list" else (i for i in range(count))
    return seconds(lambda: _use_up(calls.map(noop, items, CHUNK)))


def _streamed(calls: Calls, count: int) -> float:
    items = list(range(count))
    _use_up(calls.imap(noop, items[:10]))
    return seconds(lambda: _use_up(calls.imap(noop, items)))


def _be_killed(began: str, *_: object) -> None:
    with open(began, "w"):
        """The other end of this is waited for."""
    signal.pause()


def _dies(library: str, count: int) -> float:
    """Return the seconds of so many deaths. Each in a pool of its own, as others lose theirs."""
    total = 0.0
    for _ in range(count):
        with tempfile.TemporaryDirectory() as folder, contextlib.suppress(Exception):
            began = os.path.join(folder, "began")
            os.mkfifo(began)
            with LIBRARIES[library](1, "fork") as calls:
                assert calls.submit is not None
                assert calls.get is not None
                pid = calls.get(calls.submit(own_pid))
                task = calls.submit(functools.partial(_be_killed, began))
                open(began).close()  # it is there
                killed = time.perf_counter()
                os.kill(pid, signal.SIGKILL)
                with contextlib.suppress(Exception):
                    calls.get(task)
                total += time.perf_counter() - killed
    return total


CROWD = 8


def skewed(optimum: float) -> list[float]:
    """Return sleeps that `CROWD` workers can do in so many seconds, and in no less.

    The seed is one for which the order given, one at a time and at no cost, takes 1.36 times
    as long: the longest begins last. Who does better begins with others first. In chunks of
    equal length, four for each worker, it is 3.2 times.
    """
    chance = random.Random(28)
    raw = sorted(chance.lognormvariate(0, 1.6) for _ in range(400))
    assert raw[-1] < sum(raw) / CROWD  # so that this is the optimum
    return [length * optimum * CROWD / sum(raw) for length in raw]


def _unequal(calls: Calls, optimum_ms: int) -> float:
    return _makespan(lambda fn, items: calls.map(fn, items, 1), optimum_ms)


def _unequal_by_ones(calls: Calls, optimum_ms: int) -> float:
    return _makespan(calls.imap, optimum_ms)


def _makespan(run: Callable[..., Iterable[Any]], optimum_ms: int) -> float:
    # So that all workers are there, whoever starts them when they are needed.
    _use_up(run(time.sleep, [0.05] * CROWD))
    lengths = skewed(optimum_ms / 1e3)
    ratio = seconds(lambda: _use_up(run(time.sleep, lengths))) / (optimum_ms / 1e3)
    return ratio * optimum_ms  # the figure is for one


def in_pool(
    row: Case,
    library: str,
    work: Callable[[Calls, int], float],
    workers: int = WORKERS,
    note: str = "",
) -> None:
    """Register that ``work`` is done in a pool of a library."""

    @row.run(library + note)
    def _(count: int) -> float:
        with LIBRARIES[library](workers, None) as calls:
            return work(calls, count)


def _apply(calls: Calls, count: int) -> float:
    assert calls.apply is not None
    return _one_by_one(calls.apply, count)


for _library in LIBRARIES:
    for (_kind, _), _row in MAPS.items():
        in_pool(_row, _library, lambda calls, count, kind=_kind: _mapped(calls, kind, count))
    in_pool(IMAP, _library, _streamed)
    in_pool(SKEWED, _library, _unequal, CROWD)
    if _library != "joblib":
        in_pool(SUBMIT, _library, at_once)
        in_pool(APPLY, _library, _apply)
for _library, _note in {
    "mpkit": "",
    "pebble": "",
    "concurrent.futures": " (loses its pool: not crash-safe)",
    "loky": " (loses its pool: not crash-safe)",
}.items():
    DEATH.run(_library + _note)(lambda count, library=_library: _dies(library, count))
DEATH.cannot("multiprocessing", "it waits for ever")
DEATH.cannot("joblib", LACKS["submit"])
SUBMIT.cannot("joblib", LACKS["submit"])
APPLY.cannot("joblib", LACKS["apply"])
in_pool(FLOOR, "mpkit", _apply)
FLOOR.run("multiprocessing.Pipe")(_ping_pong)
# Its other way, by which it does as well as it can.
in_pool(SKEWED, "multiprocessing", _unequal_by_ones, CROWD, ", chunk 1")

CASES: list[Case] = [SUBMIT, APPLY, FLOOR, *MAPS.values(), IMAP, SKEWED, DEATH]
