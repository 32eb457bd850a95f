"""Any number of threads submit to a pool, cancel and end it at once."""

from __future__ import annotations

import os
import random
import threading
from collections import Counter
from concurrent.futures import CancelledError
from secrets import randbelow
from typing import TYPE_CHECKING, Any

import pytest

import mpkit
from tests.fault import chaos_work
from tests.fault.chaos_work import Place, Witness
from tests.support import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SUBMITTERS, CANCELLERS = 6, 2
CALLS_OF_EACH = 60
#: How many times over, under each way to end.
POOLS = 4


def end_by_close(pool: mpkit.TaskPool) -> None:
    pool.close()


def end_by_terminate(pool: mpkit.TaskPool) -> None:
    pool.terminate()


def end_by_both(pool: mpkit.TaskPool) -> None:
    pool.close()
    pool.terminate()


def leave(pool: mpkit.TaskPool) -> None:
    with pool:
        pass


class Threads:
    """The threads that use one pool, and what they were told."""

    def __init__(self, pool: mpkit.TaskPool, place: Place, seed: int) -> None:
        self.pool, self._place, self._seed = pool, place, seed
        # Appended to and indexed only: several threads may do that at once.
        self.tasks: list[tuple[int, mpkit.Task[Any]]] = []
        self.tried: list[int] = []  # of these somebody called cancel(), and it returned ...
        self.cancelled: list[int] = []  # ... True for these
        self.settled: list[int] = []
        self.errors: list[BaseException] = []
        self._submitting = threading.Semaphore(0)

    def run(self, *ends: Callable[[mpkit.TaskPool], None]) -> None:
        jobs: list[Callable[[random.Random], None]] = []
        jobs += [self._submitter(n) for n in range(SUBMITTERS)]
        jobs += [self._cancel] * CANCELLERS
        jobs += [self._ender(end) for end in ends]
        threads = [
            threading.Thread(target=self._guarded, args=(job, self._seed + number))
            for number, job in enumerate(jobs)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
            assert not thread.is_alive(), "it hangs"

    def _guarded(self, job: Callable[[random.Random], None], seed: int) -> None:
        try:
            job(random.Random(seed))
        except BaseException as error:
            self.errors.append(error)

    def _submitter(self, first: int) -> Callable[[random.Random], None]:
        def submit(chance: random.Random) -> None:
            for turn in range(CALLS_OF_EACH):
                number = first + turn * SUBMITTERS
                options = {"timeout": chance.choice([None, PATIENCE])}
                calls = self.pool.options(priority=chance.randrange(2), **options)
                arguments = number, "quick", self._place
                try:
                    if chance.random() < 0.2:
                        task = calls.starmap_async(chaos_work.work, [arguments], 1)
                    else:
                        task = calls.submit(chaos_work.work, *arguments)
                except mpkit.PoolClosed:
                    return
                finally:
                    self._submitting.release()
                self.tasks.append((number, task))
                task.add_done_callback(lambda _, number=number: self.settled.append(number))

        return submit

    def _cancel(self, chance: random.Random) -> None:
        for _ in range(CALLS_OF_EACH):
            self._submitting.acquire(timeout=PATIENCE)
            self._submitting.release()
            if self.tasks:
                number, task = chance.choice(self.tasks)
                self.tried.append(number)
                if task.cancel():
                    self.cancelled.append(number)

    def _ender(self, end: Callable[[mpkit.TaskPool], None]) -> Callable[[random.Random], None]:
        def wait_and_end(chance: random.Random) -> None:
            for _ in range(chance.randrange(SUBMITTERS * CALLS_OF_EACH // 2)):
                if not self._submitting.acquire(timeout=PATIENCE / 30):
                    break  # those who submit have been told that it is closed
            self._submitting.release()
            end(self.pool)
            assert self.pool.join(PATIENCE)
            with pytest.raises(mpkit.PoolClosed):
                self.pool.submit(os.getpid)

        return wait_and_end


@pytest.mark.parametrize(
    "ends",
    [
        pytest.param([end_by_close], id="close"),
        pytest.param([leave] * 2, id="leave"),
        pytest.param([end_by_close] * 3, id="close by three"),
        pytest.param([end_by_terminate] * 2, id="terminate by two"),
        pytest.param([end_by_close, end_by_terminate, end_by_both], id="all at once"),
    ],
)
def test_every_call_has_its_due_whichever_threads_submit_cancel_and_end(
    ends: list[Callable[[mpkit.TaskPool], None]], tmp_path: Path
) -> None:
    seed = randbelow(10**6)
    print(f"seed {seed}")
    kind = not any(end in (end_by_terminate, end_by_both) for end in ends)
    for turn in range(POOLS):
        place = Place(str(tmp_path / str(turn)), None)
        open(place.log, "w").close()
        threads = Threads(mpkit.TaskPool(3, context="fork"), place, seed + turn)
        threads.run(*ends)
        assert threads.errors == []
        check(threads, Witness(place), kind=kind)


def check(threads: Threads, witness: Witness, *, kind: bool) -> None:
    """Compare what the tasks say with what was run. A ``kind`` end lets all work be done."""
    settled = Counter(threads.settled)
    for number, task in threads.tasks:
        facts = f"{number}: {task}, began {witness.began[number]}"
        assert task.done(), facts
        assert settled[number] == 1, facts
        assert witness.began[number] <= 1, facts
        if task.cancelled():
            assert witness.began[number] == 0, facts
            assert number in threads.cancelled or not kind, facts
            continue
        assert number not in threads.cancelled, facts
        error = failure(task)
        if error is None:
            value = task.result(0)
            assert value in (number * number, [number * number]), facts
            assert witness.ended[number] == 1, facts
        elif isinstance(error, CancelledError):  # a map whose part was cancelled
            assert witness.began[number] == 0, facts
            assert number in threads.tried or not kind, facts
        else:
            assert not kind, facts
            assert isinstance(error, mpkit.WorkerDied), facts
    submitted = {number for number, _ in threads.tasks}
    assert set(witness.began) <= submitted, "a call that was refused has run"


def failure(task: mpkit.Task[Any]) -> BaseException | None:
    try:
        return task.exception(0)
    except CancelledError as error:
        return error


def test_a_callback_may_end_its_pool_while_others_do() -> None:
    for _ in range(5):
        pool = mpkit.TaskPool(2, context="fork")

        def end(_: int, pool: mpkit.TaskPool = pool) -> None:
            end_by_both(pool)

        tasks = [pool.submit(abs, -1)]
        for n in range(20):
            try:
                tasks.append(pool.apply_async(abs, (-n,), callback=end))
            except mpkit.PoolClosed:
                break
        threads = [threading.Thread(target=leave, args=(pool,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()
        assert all(task.done() for task in tasks)
