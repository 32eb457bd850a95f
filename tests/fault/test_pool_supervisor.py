"""What once hung or ended the supervisor of a pool."""

from __future__ import annotations

import functools
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

import mpkit
from mpkit._platform import descriptors
from mpkit._worker.journal import _MOST_TASKS, Journal, Journals
from tests import poolwork
from tests.support import PATIENCE, expect_short_tasks, supervisor_held, supervisor_of, until

if TYPE_CHECKING:
    from pathlib import Path


def nap(seconds: float, ballast: bytes = b"") -> int:
    time.sleep(seconds)
    return len(ballast)


@pytest.mark.parametrize("ballast", [b"", bytes(60_000)], ids=["small", "inbox is full"])
def test_a_worker_that_is_replaced_leaves_whatever_is_in_its_inbox(
    start_method: str, ballast: bytes
) -> None:
    """What told it to leave was taken back with its tasks, or did not fit into its inbox."""
    seconds = [0.05 if n > 3 and n % 6 == 3 else 0.0 for n in range(30)]
    with mpkit.TaskPool(2, tasks_per_worker=5) as pool:
        results = pool.starmap(nap, [(s, ballast) for s in seconds], 1)
        pool.close()
        assert pool.join(PATIENCE)
    assert results == [len(ballast)] * 30


class SlowToPack:
    def __init__(self, packing: threading.Event, go: threading.Event) -> None:
        self.events = packing, go

    def __reduce__(self) -> Any:
        packing, go = self.events
        packing.set()
        go.wait(PATIENCE)
        return str, ("packed",)


def test_a_task_that_is_being_packed_when_the_pool_is_terminated_is_settled() -> None:
    packing, go = threading.Event(), threading.Event()
    tasks: list[mpkit.Task[str]] = []
    with mpkit.TaskPool(1) as pool:
        # Not to be asked to end twice: the supervisor stays busy with that.
        pool.apply(poolwork.ignore_sigterm)
        thread = threading.Thread(
            target=lambda: tasks.append(pool.submit(str, SlowToPack(packing, go))), daemon=True
        )
        thread.start()
        assert packing.wait(PATIENCE)
        pool.terminate()
        go.set()
        thread.join(PATIENCE)
        assert pool.join(PATIENCE)
    assert tasks[0].cancelled() or isinstance(tasks[0].exception(0), mpkit.WorkerDied)


def start_slowly_from_the_second_on(path: str) -> None:
    if os.path.exists(path):
        time.sleep(2.0)
    else:
        with open(path, "w"):
            pass


def test_the_time_of_a_task_that_came_back_unread_begins_anew(
    tmp_path: Path, start_method: str
) -> None:
    flag = str(tmp_path / "flag")
    with mpkit.TaskPool(1, initializer=start_slowly_from_the_second_on, initargs=(flag,)) as pool:
        pid = pool.submit(os.getpid).result(PATIENCE)
        os.kill(pid, signal.SIGSTOP)  # it takes nothing from its inbox
        until(lambda: stopped(pid))
        task = pool.options(timeout=1.0).submit(abs, -3)
        until(task.running)
        os.kill(pid, signal.SIGKILL)
        # It comes back, and is run by one that takes longer to start than this.
        assert task.result(PATIENCE) == 3


def stopped(pid: int) -> bool:
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] == "T"


def test_a_crash_is_not_taken_for_the_time_out_of_an_earlier_try() -> None:
    with mpkit.TaskPool(1) as pool:
        pid = pool.submit(os.getpid).result(PATIENCE)
        os.kill(pid, signal.SIGSTOP)
        until(lambda: stopped(pid))
        task = pool.options(timeout=0.5).submit(os._exit, 3)
        with pytest.raises(mpkit.WorkerDied, match="exited with code 3"):
            task.result(PATIENCE)


@pytest.mark.parametrize("timeout", [math.inf, 1e300, 3e6])
def test_time_may_be_longer_than_a_selector_can_wait(timeout: float) -> None:
    with mpkit.TaskPool(1) as pool:
        assert pool.options(timeout=timeout).submit(nap, 0.05).result(PATIENCE) == 0


def test_what_is_cancelled_with_its_executor_does_not_run() -> None:
    busy, go = threading.Event(), threading.Event()

    def keep_the_supervisor(_: object) -> None:
        busy.set()
        go.wait(PATIENCE)

    with mpkit.TaskPool(1) as pool:
        pool.submit(abs, 1).add_done_callback(keep_the_supervisor)
        assert busy.wait(PATIENCE)
        tasks = [pool.submit(abs, -n) for n in range(100)]
        pool.executor.shutdown(wait=False, cancel_futures=True)
        go.set()
        assert pool.join(PATIENCE)
    assert all(task.cancelled() for task in tasks)


def few_descriptors(code: str) -> str:
    """Run a program that may open 64 files, and has one to open none."""
    head = """
import os, resource, sys
import mpkit
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 1024))

def starve():
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, 1024))

def feed():
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 1024))

def make(size):
    starve()
    try:
        return bytes(size)
    finally:
        mpkit.worker_state()["starved"] = True

def check(function, *args):
    try:
        print(function(*args))
    except Exception as error:
        print(type(error).__name__, getattr(error, "errno", None))
"""
    ran = subprocess.run(
        [sys.executable, "-c", head + code],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    return ran.stdout


def test_large_arguments_take_few_descriptors() -> None:
    printed = few_descriptors("""
with mpkit.TaskPool(2) as pool:
    check(lambda: set(pool.map(len, [bytes(150_000)] * 500, 1)))
""")
    assert printed == "{150000}\n"


def test_without_descriptors_a_task_fails_alone() -> None:
    printed = few_descriptors("""
with mpkit.TaskPool(2) as pool:
    pool.map(abs, range(4))
    starve()
    check(pool.submit(len, bytes(150_000)).result)
    check(pool.submit(abs, -1).result)
    feed()
    check(pool.submit(len, bytes(150_000)).result)
""")
    assert printed == "OSError 24\n1\n150000\n"


def test_a_worker_that_has_no_descriptors_for_a_result_says_so() -> None:
    printed = few_descriptors("""
with mpkit.TaskPool(1) as pool:
    check(lambda: len(pool.apply(make, (1_000_000,))))
    check(pool.apply, abs, (-1,))
""")
    assert printed == "OSError 24\n1\n"


def test_a_process_that_is_forked_while_a_pool_ends_is_unharmed() -> None:
    """It closed what had the numbers of the pool's descriptors by then: its own sentinel."""
    fork = multiprocessing.get_context("fork")
    for _ in range(40):
        with mpkit.TaskPool(1, context=fork) as pool:
            assert pool.apply(abs, (-1,)) == 1
        for number in range(3):
            assert mpkit.start(abs, -number).result(PATIENCE) == number


def with_a_worker(program: str, **env: str) -> str:
    """Run a program that has a worker, and no supervisor; return what it prints.

    It may ``send`` it tasks, each of which sleeps for a minute. The worker is killed at the end.
    """
    ran = subprocess.run(
        [sys.executable, "-c", A_WORKER + program + THE_END],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **env},
        check=False,
    )
    assert ran.stderr == ""
    return ran.stdout


A_WORKER = """
import multiprocessing, signal, threading, time
from mpkit._engine import crew, inbox
from mpkit._worker import journal, packing, setup, wire
from mpkit._process import Call
from tests.support import until

data, _ = packing.pack(Call(time.sleep, (60,), {}), None)
journals = journal.Journals(1, forks=True)
worker = crew.Worker(multiprocessing.get_context("fork"), journals, setup.Setup())

def send(*tasks):
    assert worker.inbox.send([(task, data) for task in tasks], [])

def kill():
    worker.child.signal(signal.SIGKILL)
    worker.child.join(None)
"""

THE_END = """
kill()
worker.close()
journals.close()
"""


TAKEN_BACK_TWICE = """
send(1, 2)
until(lambda: not inbox._bytes_in(worker.inbox._unread))
send(3)
send(4)
kill()
print(worker.take_back(), worker.take_back())
send(5)
print(worker.take_back(), worker.take_back())
"""


def test_what_a_dead_worker_has_is_taken_back_once_where_inboxes_are_streams() -> None:
    """What lay in the inbox was counted each time, and so what it ran was run again."""
    printed = with_a_worker(TAKEN_BACK_TWICE, MPKIT_PORTABLE="1")
    assert printed == "[3, 4] []\n[5] []\n"


def test_what_is_submitted_while_others_wait_wakes_nobody(start_method: str) -> None:
    """There is no worker that could be sent it. When one reports, all is taken in."""
    with mpkit.TaskPool(1) as pool:
        began, go = mpkit.Signal(), mpkit.Signal()
        first = pool.submit(poolwork.tell_and_wait, began, go)
        assert began.wait(PATIENCE)
        mailbox = supervisor_of(pool)._mailbox
        waits = pool.submit(abs, -1)
        until(lambda: mailbox.patient)
        others = [pool.submit(abs, -number) for number in range(100)]
        assert len(mailbox) == 100
        assert others[0].cancel()
        go.set()
        assert first.result(PATIENCE)
        assert waits.result(PATIENCE) == 1
        assert [task.result(PATIENCE) for task in others[1:]] == list(range(1, 100))
        until(lambda: not mailbox.patient)
        assert pool.submit(abs, -5).result(PATIENCE) == 5
        assert pool.stats().submitted == 103


def test_what_comes_just_as_the_last_of_those_that_waited_is_sent_is_not_forgotten() -> None:
    with mpkit.TaskPool(2) as pool:
        for number in range(300):
            tasks = [pool.submit(abs, -number) for _ in range(number % 7)]
            assert [task.result(PATIENCE) for task in tasks] == [number] * len(tasks)


@pytest.mark.skipif(not descriptors.HAS_PACKETS, reason="what is in a stream cannot be had back")
def test_what_lies_behind_a_long_task_in_its_packet_runs_elsewhere(start_method: str) -> None:
    """Its worker has taken it. A thousand short tasks, and then one that lasts for ever."""
    with mpkit.TaskPool(2) as pool:
        began, go = mpkit.Signal(), mpkit.Signal()
        pool.map(abs, range(4), 1)
        with supervisor_held(pool):
            before = [pool.submit(abs, -number) for number in range(40)]
            long = pool.submit(poolwork.tell_and_wait, began, go)
            behind = [pool.submit(abs, -number) for number in range(200)]
            expect_short_tasks(pool)
        assert began.wait(PATIENCE)
        assert [task.result(PATIENCE) for task in before] == list(range(40))
        assert [task.result(PATIENCE) for task in behind] == list(range(200))
        assert not long.done()
        go.set()
        assert long.result(PATIENCE)
    assert pool.stats().done == 4 + 241


@pytest.mark.skipif(not descriptors.HAS_PACKETS, reason="what is in a stream cannot be had back")
def test_nor_does_it_wait_for_that_where_the_others_always_have_something_to_do() -> None:
    def submit_one_more(_: object) -> None:
        if not stopped.is_set():
            pool.submit(abs, 1).add_done_callback(submit_one_more)

    stopped = threading.Event()
    with mpkit.TaskPool(2) as pool:
        began, go = mpkit.Signal(), mpkit.Signal()
        pool.map(abs, range(4), 1)
        with supervisor_held(pool):
            long = pool.submit(poolwork.tell_and_wait, began, go)
            behind = [pool.submit(abs, -number) for number in range(200)]
            expect_short_tasks(pool)
            for _ in range(3000):  # more than both workers are sent ahead of need
                submit_one_more(None)
        try:
            assert began.wait(PATIENCE)
            assert [task.result(PATIENCE) for task in behind] == list(range(200))
            assert not long.done()
        finally:
            stopped.set()
            go.set()


def test_tasks_that_are_taken_back_all_the_time_run_once(start_method: str, tmp_path: Path) -> None:
    """Each worker that has nothing takes from the others' packets, while these go on."""
    path = str(tmp_path / "notes")
    with mpkit.TaskPool(3) as pool:
        supervisor = supervisor_of(pool)
        tasks: list[mpkit.Task[object]] = []
        for _ in range(30):
            expect_short_tasks(pool)
            tasks += [pool.submit(poolwork.note, path, len(tasks) + n) for n in range(20)]
            for number in list(supervisor._crew):
                supervisor.tell(functools.partial(supervisor._take_back, number))
        for task in tasks:
            task.result(PATIENCE)
    assert sorted(map(int, poolwork.notes(path))) == list(range(600))


EMPTIED_MEANWHILE = """
class Slow:
    def send(self, *args):
        sent = link.send(*args)
        caller.start()
        caller.join(0.1)
        return sent

caller = threading.Thread(target=worker.inbox.recall, args=(3, lambda: None, lambda task: None))
send(1, 2)
until(lambda: journals._begun(0, 1))
link, worker.inbox._link = worker.inbox._link, Slow()
send(3, 4)
worker.inbox._link = link
caller.join()
print(worker.take_back(), worker.take_back())
"""


@pytest.mark.skipif(not descriptors.HAS_PACKETS, reason="what is in a stream cannot be had back")
def test_what_a_caller_takes_out_just_as_it_is_sent_comes_back_once() -> None:
    """He did not know of the packet yet. It came back from there, and as if it was taken."""
    assert with_a_worker(EMPTIED_MEANWHILE) == "[2, 3, 4] []\n"


@pytest.mark.skipif(not descriptors.HAS_PACKETS, reason="what is in a stream cannot be had back")
def test_what_is_killed_ends_though_it_lies_behind_a_task_that_is_declined(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """That the worker ran it by then was not looked at: it ran for ever."""
    noted, looks = mpkit.Signal(), mpkit.Signal()
    begin_task, begun, misses = Journal.begin_task, Journals._begun, [True]

    def begin_slowly(journal: Journal, packet: int, index: int) -> bool:
        if index == 3 and not noted.is_set():
            journal._counts[journal._begun] = packet * _MOST_TASKS + index + 1
            noted.set()
            looks.wait(PATIENCE)
        return begin_task(journal, packet, index)

    def begun_before(journals: Journals, slot: int, packet: int) -> int:
        count = begun(journals, slot, packet)
        return count - 1 if count == 4 and noted.is_set() and misses and misses.pop() else count

    monkeypatch.setattr(Journal, "begin_task", begin_slowly)
    monkeypatch.setattr(Journals, "_begun", begun_before)
    with mpkit.TaskPool(2, context="fork") as pool:
        supervisor = supervisor_of(pool)
        workers = supervisor._schedule._workers
        until(lambda: all(worker.started for worker in workers.values()))
        with supervisor_held(pool):
            expect_short_tasks(pool)
            short = [pool.submit(abs, -number) for number in range(40)]
        assert noted.wait(PATIENCE)
        until(lambda: supervisor._schedule._sent == 1)
        (slow,) = (number for number, worker in workers.items() if worker.tasks)
        signals = [mpkit.Signal() for _ in range(3)]
        with supervisor_held(pool):
            expect_short_tasks(pool)
            long = [pool.submit(poolwork.tell_and_wait, began, mpkit.Signal()) for began in signals]
        until(lambda: all(task.running() for task in long[:2]))
        place = [supervisor._ledger.get(task.number).worker for task in long].index(slow)
        with supervisor_held(pool):
            looks.set()
            assert signals[place].wait(PATIENCE)
            assert long[place].kill()
        with pytest.raises(mpkit.WorkerDied, match="killed by Task.kill"):
            long[place].result(PATIENCE)
        for task in long:
            task.kill()
        assert [task.result(PATIENCE) for task in short] == list(range(40))
