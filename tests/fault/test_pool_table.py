"""Where x how: every cell of the table in docs/faults.md, with real processes.

Each cell is one call that goes wrong, with others queued behind it. It holds what the letter
of the cell promises for that call (`pool_table.LEGEND`), and that the others have run exactly
once, that the pool has all its workers and works as before, and (by the fixture of all tests)
that no process, thread or descriptor is left.

Under fork every cell has a pool of its own. Under forkserver and spawn, where a process takes
long to start, the cells of a row share one, which goes on through all of them; and of rows that
need a pool for each cell several are at work at once.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

import mpkit
from mpkit._platform import processes
from tests import poolwork
from tests.documents import ROOT
from tests.fault.pool_table import HOWS, LEGEND, TABLE, expected, rendered
from tests.support import (
    PATIENCE,
    exists,
    stopped,
    until,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = [
    # What unpickles badly in a dying worker may be reported when it is garbage.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

WORKERS = 2
LARGE = 300_000
BEHIND = 6

#: How many cells to try at once where each needs a pool: mostly they wait for processes.
AT_ONCE = 4

KINDS: dict[str, type[BaseException]] = {
    "R": mpkit.RemoteError,
    "X": mpkit.TaskExit,
    "D": mpkit.WorkerDied,
    "T": mpkit.TaskTimeout,
    "N": mpkit.NotPicklable,
    "I": mpkit.WorkerInitError,
}

#: What is raised by the hows that raise, and what its message says.
RAISED: dict[str, tuple[type[BaseException], str]] = {
    "exception": (LookupError, "no such thing"),
    "two-argument exception": (poolwork.TwoArguments, "left and right"),
    "BaseException": (poolwork.Rude, "base"),
    "sys.exit": (SystemExit, "3"),
    "out of memory": (MemoryError, ""),
    "recursion limit": (RecursionError, "recursion"),
    "garbage": (Exception, "garbage"),  # of those rows in which all fails
}

#: How a process ends by the hows that end it.
EXITCODES = {
    "os._exit": 3,
    "SIGKILL": -signal.SIGKILL,
    "SIGTERM": -signal.SIGTERM,
    "SIGSEGV": -signal.SIGSEGV,
    "no descriptors": 0,
}


class Cell:
    """One place and kind of fault, in a pool."""

    def __init__(self, where: str, how: str, method: str, folder: Path) -> None:
        self.where, self.how, self.method = where, how, method
        self.letter = expected(where, how)
        folder = folder / f"{where} {how}"
        folder.mkdir()
        self.log = str(folder / "log")
        self.once = str(folder / "once")
        self.began, self.go = mpkit.Signal(), mpkit.Signal()

    def pool(self, *init: Any) -> mpkit.TaskPool:
        return mpkit.TaskPool(WORKERS, *init, context=self.method)

    def calls(self, pool: mpkit.TaskPool) -> mpkit.Calls:
        """Return what to submit by: with a timeout where something stops."""
        return pool.options(timeout=0.3 if self.how == "SIGSTOP" else None)

    def check(self, pool: mpkit.TaskPool, provoke: Callable[[Cell, Any], mpkit.Task[Any]]) -> None:
        """Have it go wrong, and see what becomes of it and of all others."""
        if self.letter == "c":
            kind, text = RAISED[self.how]
            with pytest.raises(kind, match=text):
                provoke(self, self.calls(pool))
        elif self.letter == "N" and self.where == "pickling an argument":
            with pytest.raises(mpkit.NotPicklable, match=r"args\[1\].*BadDeparture"):
                provoke(self, self.calls(pool))
        else:
            bad = provoke(self, self.calls(pool))
            behind = self.submit_others(pool)
            self.check_outcome(bad)
            self.check_others(behind)
        self.check_pool(pool)

    def submit_others(self, pool: mpkit.TaskPool) -> list[mpkit.Task[Any]]:
        return [pool.submit(poolwork.note, self.log, n) for n in range(BEHIND)]

    def check_others(self, behind: list[mpkit.Task[Any]]) -> None:
        assert [task.result(PATIENCE) for task in behind] == [*range(BEHIND)], self
        assert sorted(map(int, poolwork.notes(self.log))) == [*range(BEHIND)], self

    def check_pool(self, pool: mpkit.TaskPool) -> None:
        """It is as good as it was."""
        assert pool.map(poolwork.square, range(8), 1) == [n * n for n in range(8)], self
        until(lambda: len([w for w in pool.stats().workers if not w.reason]) == WORKERS)

    def check_outcome(self, bad: mpkit.Task[Any]) -> None:
        error = bad.exception(PATIENCE)
        if self.letter in "olw":
            assert error is None, self
            return
        assert error is not None, self
        if self.letter == "E":
            kind, text = RAISED[self.how]
            assert isinstance(error, kind), self
            assert re.search(text, str(error)), self
            return
        assert type(error) is KINDS[self.letter], f"{self} raised {error!r}"
        if isinstance(error, mpkit.WorkerDied):
            assert error.what == bad.name
            assert error.pid
            assert error.exitcode == EXITCODES[self.how], self
            said = f"{error.pid} {processes.exit_reason(error.exitcode)}"
            assert said in str(error), self
            assert bad.name in str(error), self
        elif isinstance(error, mpkit.TaskTimeout):
            assert error.pid
            assert str(error.pid) in str(error)
            assert bad.name in str(error)
            until(lambda: not exists(error.pid))
        elif isinstance(error, mpkit.TaskExit):
            assert error.code == 3
        elif isinstance(error, mpkit.NotPicklable):
            assert "[1], which is <tests.poolwork.BadDeparture" in str(error), self
        elif isinstance(error, mpkit.RemoteError):
            assert "poolwork" in error.traceback, self

    def __repr__(self) -> str:
        return f"<{self.where} x {self.how}: {self.letter}>"


# How to have it go wrong in a place, in a pool that has been running before.


def callback_task(cell: Cell, calls: mpkit.Calls) -> mpkit.Task[Any]:
    reported: list[BaseException] = []
    before, sys.excepthook = sys.excepthook, lambda kind, error, trace: reported.append(error)
    try:
        task = calls.apply_async(poolwork.square, (3,), callback=lambda _: poolwork.die(cell.how))
        assert task.result(PATIENCE) == 9
    finally:
        sys.excepthook = before
    if cell.letter == "l":
        assert [type(error) for error in reported] == [RAISED[cell.how][0]]
        assert task.name in reported[0].__notes__[0]
    else:
        assert not reported
    return task


def has_closed_its_descriptors(pid: int) -> bool:
    try:
        return len(os.listdir(f"/proc/{pid}/fd")) <= 3
    except FileNotFoundError:  # it was killed for that
        return True


def idle_task(cell: Cell, calls: mpkit.Calls) -> mpkit.Task[Any]:
    done = mpkit.Signal()
    task = calls.submit(poolwork.die_when_told, cell.how, cell.go, done)
    pid = task.result(PATIENCE)
    cell.go.set()
    if cell.how == "SIGSTOP":
        until(lambda: stopped(pid))
        go = mpkit.Signal()
        tasks = [calls.submit(poolwork.wait_for, go) for _ in range(WORKERS)]
        until(lambda: all(task.running() for task in tasks))  # each worker has one
        go.set()
        assert all(task.result(PATIENCE) for task in tasks)
        until(lambda: not exists(pid))
    elif cell.how == "no descriptors":
        until(lambda: has_closed_its_descriptors(pid))
    elif cell.how in EXITCODES:
        until(lambda: not exists(pid))
    else:
        assert done.wait(PATIENCE)
    return task


PROVOKE: dict[str, Callable[[Cell, mpkit.Calls], mpkit.Task[Any]]] = {
    "pickling an argument": lambda cell, calls: calls.submit(
        poolwork.take_two, b"", poolwork.BadDeparture(cell.how)
    ),
    "unpickling it": lambda cell, calls: calls.submit(
        poolwork.take_two, b"", poolwork.BadArrival(cell.how)
    ),
    "a large argument, half unpickled": lambda cell, calls: calls.submit(
        poolwork.take_two, bytes(LARGE), poolwork.BadArrival(cell.how)
    ),
    "running": lambda cell, calls: calls.submit(poolwork.die, cell.how),
    "pickling its exception": lambda cell, calls: calls.submit(
        poolwork.fail_in_its_departure, cell.how
    ),
    "unpickling it, tried in the worker": lambda cell, calls: calls.submit(
        poolwork.fail_in_its_arrival, cell.how
    ),
    "unpickling it here": lambda cell, calls: calls.submit(
        poolwork.fail_in_its_arrival, cell.how, here=True
    ),
    "pickling its result": lambda cell, calls: calls.submit(
        poolwork.return_a_bad_departure, cell.how
    ),
    "a large result, half pickled": lambda cell, calls: calls.submit(
        poolwork.return_a_bad_departure, cell.how, LARGE
    ),
    "unpickling it in the program": lambda cell, calls: calls.submit(
        poolwork.return_a_bad_arrival, cell.how
    ),
    "a callback": callback_task,
    "idle (in a thread that a task left)": idle_task,
}


# Rows in which each cell is about the beginning or the end of a pool.


def starting(cell: Cell) -> None:
    """One worker fails to start, and then one does not; and then all fail."""
    if cell.where == "the initializer":
        init: Any = poolwork.die_once
        once: tuple[Any, ...] = (cell.how, cell.once)
        always: tuple[Any, ...] = (poolwork.die, (cell.how,))
    else:
        init, once = id, (poolwork.BadArrival(cell.how, once=cell.once),)
        always = (id, (poolwork.BadArrival(cell.how),))
    with cell.pool(init, once) as pool:
        cell.check_others(cell.submit_others(pool))
        if cell.letter == "W":
            pool.terminate()  # which does not wait for who is stopped
            return
        cell.check_pool(pool)
    if cell.letter == "I":
        with cell.pool(*always) as pool:
            tasks = [pool.submit(poolwork.square, n) for n in range(BEHIND)]
            for task in tasks:
                check_start_failure(cell, task.exception(PATIENCE))
        assert len(pool.stats().workers) <= 3 * WORKERS, "it goes on trying"


def check_start_failure(cell: Cell, error: Any) -> None:
    assert type(error) is mpkit.WorkerInitError, cell
    if cell.how in EXITCODES:
        reason = processes.exit_reason(EXITCODES[cell.how])
        assert reason in str(error), cell
    else:
        assert RAISED[cell.how][1] in str(error), cell
        causes = "".join(str(cause) for cause in causes_of(error))
        assert "poolwork" in causes, f"{cell}: there is no traceback"


def causes_of(error: BaseException) -> Iterator[BaseException]:
    while error.__cause__ is not None:
        error = error.__cause__
        yield error


def closing(cell: Cell) -> None:
    pool = cell.pool()
    calls = pool.options(timeout=2.0 if cell.how == "SIGSTOP" else None)
    bad = calls.submit(poolwork.wait_and_die, cell.how, cell.began, cell.go)
    behind = cell.submit_others(pool)
    assert cell.began.wait(PATIENCE)
    pool.close()
    cell.go.set()
    assert pool.join(PATIENCE)
    cell.check_outcome(bad)
    cell.check_others(behind)


def terminating(cell: Cell) -> None:
    pool = cell.pool()
    bad = pool.submit(poolwork.die_at_sigterm, cell.how, cell.began)
    assert cell.began.wait(PATIENCE)
    # Behind it, and behind one that keeps the other worker.
    other = pool.submit(poolwork.sleep_for_ever)
    behind = cell.submit_others(pool)
    pool.terminate()
    assert pool.join(PATIENCE)
    for task in (bad, other, *behind):
        assert task.done(), cell
        assert task.cancelled() or task.exception(0) is not None, cell


OWN_POOL: dict[str, Callable[[Cell], None]] = {
    "the initializer": starting,
    "starting (unpickling its arguments)": starting,
    "while the pool is closed": closing,
    "while it is terminated": terminating,
}


def happens(where: str, how: str, method: str) -> bool:
    """Tell whether a cell is one that leaves the program alive."""
    if expected(where, how) in "p–":
        return False
    # Under fork the arguments of the initializer are inherited.
    return method != "fork" or not where.startswith("starting")


@pytest.fixture(autouse=True)
def quick_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two seconds from SIGTERM to SIGKILL, for each cell that does not end by it, add up."""
    monkeypatch.setattr("mpkit._engine.roster.GRACE", 0.2)


@pytest.mark.parametrize(
    ("where", "how"),
    [(where, how) for where in TABLE for how in HOWS if happens(where, how, "fork")],
)
def test_a_cell_of_the_table(where: str, how: str, tmp_path: Path) -> None:
    cell = Cell(where, how, "fork", tmp_path)
    if where in OWN_POOL:
        OWN_POOL[where](cell)
    else:
        with cell.pool() as pool:
            cell.check(pool, PROVOKE[where])


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
@pytest.mark.parametrize("where", TABLE)
def test_a_row_of_the_table(where: str, method: str, tmp_path: Path) -> None:
    if where in OWN_POOL:
        cells = [Cell(where, how, method, tmp_path) for how in HOWS]
        with ThreadPoolExecutor(AT_ONCE) as threads:
            list(threads.map(OWN_POOL[where], cells))  # raises what the first to fail raised
        return
    with mpkit.TaskPool(WORKERS, context=method) as pool:
        for how in HOWS:
            if happens(where, how, method):
                Cell(where, how, method, tmp_path).check(pool, PROVOKE[where])


# What ends the program.

PROGRAM = """
import sys
import mpkit
from tests.fault.test_pool_table import PROVOKE, Cell
from pathlib import Path

if __name__ == "__main__":
    where, how, method, folder = sys.argv[1:]
    pool = mpkit.TaskPool(2, context=method)
    pool.map(abs, range(8), 1)
    print(*(worker.pid for worker in pool.stats().workers), flush=True)
    task = PROVOKE[where](Cell(where, how, method, Path(folder)), pool)
    task.result()
"""


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
@pytest.mark.parametrize("where", [where for where, cells in TABLE.items() if "p" in cells])
def test_the_cells_of_a_row_that_end_the_program_leave_no_worker(
    where: str, method: str, tmp_path: Path
) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    with contextlib.ExitStack() as stack:
        running = {
            how: stack.enter_context(
                subprocess.Popen(
                    [sys.executable, str(program), where, how, method, str(tmp_path)],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    env={**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(ROOT)])},
                )
            )
            for how in HOWS
            if expected(where, how) == "p"
        }
        for ran in running.values():
            stack.callback(ran.kill)  # before it is waited for, if something fails
        for how, ran in running.items():
            assert ran.stdout is not None
            pids = [int(word) for word in ran.stdout.readline().split()]
            assert len(pids) >= WORKERS
            assert ran.wait(PATIENCE) == EXITCODES[how], f"{where} x {how}"
            until(lambda pids=pids: not any(exists(pid) for pid in pids))  # type: ignore[misc]


# The page.


def test_the_page_has_the_table() -> None:
    page = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")
    assert rendered() in page, "run python -m tests.fault.pool_table, and put that there"


def test_every_letter_has_a_meaning() -> None:
    used = {letter for cells in TABLE.values() for letter in cells.split()}
    assert used == set(LEGEND)
