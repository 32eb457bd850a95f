"""Processes, descriptors or memory run out: a pool is slow or says so, and goes on after that."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

import mpkit
from mpkit import _parcel
from mpkit._engine import crew
from tests import poolwork
from tests.support import PATIENCE, supervisor_of, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: What the start of a process raises where there is no room for one. EOFError is what is
#: heard of a fork server that had none.
SHORTAGES: list[BaseException] = [
    BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    OSError(errno.EMFILE, "Too many open files"),
    MemoryError(),
    EOFError("unexpected EOF"),
]


class Room:
    """How many more processes may be started."""

    def __init__(self, error: BaseException) -> None:
        self.left, self.refused = 10**6, 0
        self._error = error

    def take(self) -> None:
        if not self.left:
            self.refused += 1
            raise self._error
        self.left -= 1


@pytest.fixture(params=SHORTAGES, ids=lambda error: error.args[-1] if error.args else "memory")
def room(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Room:
    room = Room(request.param)

    def start(*args: Any) -> Any:
        room.take()
        return child(*args)

    child: Callable[..., Any] = crew.Child
    monkeypatch.setattr(crew, "Child", start)
    return room


@pytest.fixture
def forks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Room]:
    """Have `os.fork` itself fail."""
    room = Room(SHORTAGES[0])

    def fork() -> int:
        room.take()
        return fork_()

    fork_ = os.fork
    monkeypatch.setattr(os, "fork", fork)
    return room


def meet(mine: mpkit.Signal, theirs: mpkit.Signal) -> bool:
    mine.set()
    return theirs.wait(PATIENCE)


def test_a_task_for_which_no_process_can_be_started_says_why(room: Room) -> None:
    room.left = 0
    with mpkit.TaskPool(3) as pool:
        tasks = [pool.submit(poolwork.square, n) for n in range(5)]
        for task in tasks:
            with pytest.raises(mpkit.WorkerInitError, match="would not start a process") as caught:
                task.result(PATIENCE)
            assert isinstance(caught.value.__cause__, (OSError, MemoryError, EOFError))
        room.left = 10**6
        assert pool.map(poolwork.square, range(9)) == [n * n for n in range(9)]


def test_a_pool_goes_on_with_the_workers_that_it_has_and_gets_the_others_later(room: Room) -> None:
    room.left = 1
    here, there = mpkit.Signal(), mpkit.Signal()
    with mpkit.TaskPool(2) as pool:
        assert pool.map(poolwork.square, range(9)) == [n * n for n in range(9)]
        tasks = [pool.submit(meet, here, there), pool.submit(meet, there, here)]
        assert here.wait(PATIENCE)
        refused = room.refused
        until(lambda: room.refused > refused)  # it asks again, while a task waits
        room.left = 1
        assert all(task.result(PATIENCE) for task in tasks), "one alone meets nobody"


def test_who_waits_for_room_costs_nothing_when_there_is_nothing_to_do(room: Room) -> None:
    room.left = 1
    with mpkit.TaskPool(2) as pool:
        assert pool.apply(poolwork.square, (3,)) == 9
        supervisor = supervisor_of(pool)
        until(lambda: not supervisor._schedule.short)
        assert supervisor._next_round() is None


def test_tasks_of_a_pool_whose_last_worker_dies_are_not_forgotten(room: Room) -> None:
    room.left = 1
    with mpkit.TaskPool(1) as pool:
        dead = pool.submit(poolwork.die, "SIGKILL")
        left = [pool.submit(poolwork.square, n) for n in range(3)]
        with pytest.raises(mpkit.WorkerDied):
            dead.result(PATIENCE)
        for task in left:
            with pytest.raises(mpkit.WorkerInitError):
                task.result(PATIENCE)
        room.left = 10**6
        assert pool.apply(poolwork.square, (3,)) == 9


def test_a_fork_that_fails_leaves_no_descriptors(forks: Room) -> None:
    """multiprocessing leaves four pipe ends each time; the fixture of all tests sees them."""
    forks.left = 0
    fork = mpkit.TaskPool(2, context="fork")
    with fork as pool:
        with pytest.raises(mpkit.WorkerInitError, match="temporarily unavailable"):
            pool.apply(poolwork.square, (3,))
        assert forks.refused >= 3
        with pytest.raises(BlockingIOError):
            mpkit.start(poolwork.square, 3)
        forks.left = 10**6
        assert pool.apply(poolwork.square, (3,)) == 9


FEW_DESCRIPTORS = """
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
with mpkit.TaskPool(40, context="fork") as pool:
    check(pool)
    print(1 <= working(pool) < 40)
"""

FEW_PROCESSES = """
os.setuid(61_234)  # root is exempt; threads are counted, and this has two
resource.setrlimit(resource.RLIMIT_NPROC, (10, 10))
with mpkit.TaskPool(4, context="fork") as pool:
    check(pool)
    try:
        mpkit.TaskPool(40, context="fork")  # its workers take what its thread needs
    except RuntimeError as error:
        print(error)
    check(pool)
    resource.setrlimit(resource.RLIMIT_NPROC, (3, 10))
    check(pool)
    try:
        pool.imap(abs, range(9))
    except RuntimeError as error:
        print(error)
    while working(pool) > 1:
        check(pool)
    resource.setrlimit(resource.RLIMIT_NPROC, (10, 10))
    check(pool)
"""

LIMITED = """
import os, resource
import mpkit
from mpkit import Stats, TaskPool  # now: the user that this becomes may not read their files
from tests import poolwork

def check(pool):
    assert pool.map(poolwork.square, range(200), 1) == [n * n for n in range(200)]
    task = pool.submit(poolwork.die, "SIGKILL")
    assert isinstance(task.exception(), mpkit.WorkerDied)
    assert pool.map(poolwork.square, range(200), 1) == [n * n for n in range(200)]

def working(pool):
    return sum(not worker.reason for worker in pool.stats().workers)
"""


@pytest.mark.parametrize(
    ("code", "printed"),
    [
        pytest.param(FEW_DESCRIPTORS, "True\n", id="descriptors"),
        pytest.param(
            FEW_PROCESSES,
            "can't start new thread\n" * 2,
            id="processes",
            marks=pytest.mark.skipif(
                os.getuid() != 0 or sys.platform != "linux",
                reason="only root has a user of its own to limit",
            ),
        ),
    ],
)
def test_a_pool_makes_do_with_what_the_system_allows(code: str, printed: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", LIMITED + code],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    assert (ran.stderr, ran.stdout) == ("", printed)


@pytest.mark.timeout(300)
def test_five_hundred_workers_work() -> None:
    needed, (soft, hard) = 500 * 5 + 100, resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        pytest.skip("so many descriptors are not allowed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, needed), hard))
    try:
        with mpkit.TaskPool(500, context="fork") as pool:
            assert pool.map(poolwork.square, range(5000), 1) == [n * n for n in range(5000)]
            go = mpkit.Signal()
            tasks = [pool.submit(poolwork.wait_for, go) for _ in range(500)]
            supervisor = supervisor_of(pool)
            until(lambda: all(task.running() for task in tasks), PATIENCE * 4)
            go.set()
            assert all(task.result(PATIENCE) for task in tasks)
            assert len(supervisor._crew) == 500
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def make_unhashable(_: object = None) -> object:
    return poolwork.OfUnhashable()


def no_memory(_: object) -> bytes:
    raise MemoryError


def test_a_result_that_cannot_be_pickled_costs_no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_parcel, "dump_atoms", no_memory)
    with mpkit.TaskPool(1, context="fork") as pool:
        monkeypatch.undo()
        with pytest.raises(TypeError, match="unhashable"):
            pool.apply(make_unhashable)
        with pytest.raises(mpkit.NotPicklable, match="unhashable"):
            next(pool.imap(make_unhashable, [0]))
        with pytest.raises(MemoryError):
            pool.apply(os.getpid)
        with pytest.raises(MemoryError):
            next(pool.imap(abs, [-3]))
        assert pool.stats().restarts == 0
