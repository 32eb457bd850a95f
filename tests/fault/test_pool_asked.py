"""A caller of `apply` hears from its worker itself, whatever becomes of that meanwhile."""

from __future__ import annotations

import inspect
import os
import signal
import socket
import threading
from collections import deque
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mpkit
from mpkit._engine.shortcut import ENOUGH_UNHEARD
from mpkit._frames import PACKET
from mpkit._platform import descriptors
from mpkit._wait import Deadline
from mpkit._worker import wire
from tests import poolwork
from tests.support import (
    PATIENCE,
    asleep,
    exists,
    idle_pool,
    python,
    stopped,
    supervisor_held,
    supervisor_of,
    until,
    wait_for_an_offer,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from mpkit._link import Link

pytestmark = pytest.mark.skipif(
    not descriptors.HAS_PACKETS, reason="of what is in a stream the supervisor keeps count"
)


@pytest.fixture
def pool(start_method: str) -> Iterator[mpkit.TaskPool]:
    with idle_pool() as pool:
        yield pool


@pytest.fixture
def counting_pool(start_method: str) -> Iterator[mpkit.TaskPool]:
    """One whose supervisor has to hear of each task, some time: to know what it wrote."""
    with idle_pool(capture=True) as pool:
        yield pool


def in_a_thread(pool: mpkit.TaskPool, *call: Any) -> Any:
    """Have another thread `apply`; return the future of that."""
    executor = ThreadPoolExecutor(1)
    future = executor.submit(pool.apply, call[0], call[1:])
    executor.shutdown(wait=False)
    return future


class Unpickled:
    """Counts how often it is, in a process."""

    times = 0

    def __init__(self, here: int) -> None:
        self.here = here

    def __setstate__(self, state: dict[str, int]) -> None:
        Unpickled.times += 1
        self.__dict__.update(state)


def test_the_supervisor_never_hears_of_a_task(pool: mpkit.TaskPool) -> None:
    with supervisor_held(pool):
        for number in range(3000):  # which fill the journal more than once
            assert pool.apply(poolwork.square, (number,)) == number**2
        assert not len(supervisor_of(pool)._intake.shortcut)
        stats = pool.stats()
    assert stats.submitted == stats.done == stats.workers[0].tasks == 3001
    assert pool.submit(abs, -3).result(PATIENCE) == 3
    assert pool.stats().submitted == 3002


def test_the_supervisor_sleeps_on(counting_pool: mpkit.TaskPool) -> None:
    pool = counting_pool
    with supervisor_held(pool):
        for number in range(ENOUGH_UNHEARD - 1):
            assert pool.apply(poolwork.square, (number,)) == number**2
    stats = pool.stats()
    assert stats.submitted == stats.done == stats.workers[0].tasks == ENOUGH_UNHEARD


def test_it_catches_up_with_many(counting_pool: mpkit.TaskPool) -> None:
    pool = counting_pool
    for number in range(10 * ENOUGH_UNHEARD):
        assert pool.apply(poolwork.square, (number,)) == number**2
    until(lambda: len(supervisor_of(pool)._intake.shortcut) < ENOUGH_UNHEARD)
    assert pool.stats().done == 1 + 10 * ENOUGH_UNHEARD


def test_one_that_is_busy_is_waited_for_before_there_is_no_room(
    counting_pool: mpkit.TaskPool,
) -> None:
    """Though it hears of tasks, as it does between two messages: it is to read the reports."""
    pool = counting_pool
    supervisor, asked = supervisor_of(pool), 0
    (worker,) = supervisor._crew.values()
    with supervisor_held(pool):
        while worker.inbox.has_room():
            assert pool.apply(bytes, (300,)) == bytes(300)
            asked += 1
            if asked % ENOUGH_UNHEARD == 0:
                supervisor._intake.take_in()
        assert asked > ENOUGH_UNHEARD
        late = in_a_thread(pool, abs, -7)
        until(lambda: len(supervisor._mailbox))
    assert late.result(PATIENCE) == 7
    assert pool.stats().done == 1 + asked + 1


@pytest.mark.parametrize("counts", [False, True])
def test_a_result_is_unpickled_once(
    counts: bool, pool: mpkit.TaskPool, counting_pool: mpkit.TaskPool
) -> None:
    pool = counting_pool if counts else pool
    before = Unpickled.times
    for number in range(5 * ENOUGH_UNHEARD):
        assert pool.apply(Unpickled, (number,)).here == number
    assert pool.submit(abs, -1).result(PATIENCE) == 1  # behind which all were heard of
    assert Unpickled.times - before == 5 * ENOUGH_UNHEARD


@pytest.mark.parametrize("size", [0, 100, 1000, 10**6])
def test_results_of_all_sizes_come(pool: mpkit.TaskPool, size: int) -> None:
    for _ in range(5):
        assert pool.apply(bytes, (size,)) == bytes(size)


def test_what_fails_is_told_by_the_supervisor(pool: mpkit.TaskPool) -> None:
    for _ in range(3):
        with pytest.raises(ValueError, match="invalid literal") as raised:
            pool.apply(int, ("x",))
        assert isinstance(raised.value.__cause__, mpkit.RemoteTraceback)
        with pytest.raises(mpkit.NotPicklable, match="the result of task"):
            pool.apply(threading.Lock)
    assert pool.stats().failed == 6


def test_a_result_that_cannot_be_unpickled_says_so(pool: mpkit.TaskPool) -> None:
    with pytest.raises(Exception, match="arrival") as raised:
        pool.apply(poolwork.return_a_bad_arrival, ("raise",))
    assert "unpickled" in "".join(raised.value.__notes__)
    assert pool.apply(abs, (-1,)) == 1


@pytest.mark.parametrize("how", ["exception", "sys.exit", "BaseException", "KeyboardInterrupt"])
def test_what_a_result_raises_here_is_the_same_by_both_ways(how: str, pool: mpkit.TaskPool) -> None:
    asked = in_a_thread(pool, poolwork.return_a_bad_arrival, how).exception(PATIENCE)
    wait_for_an_offer(pool)
    submitted = pool.submit(poolwork.return_a_bad_arrival, how).exception(PATIENCE)
    assert isinstance(asked, Exception)
    assert type(asked) is type(submitted)
    assert type(asked.__cause__) is type(submitted.__cause__)
    assert asked.__context__ is submitted.__context__ is None


def test_a_pool_that_was_asked_and_forgotten_ends(start_method: str) -> None:
    pool = mpkit.TaskPool(1)
    pool.submit(abs, -1).result(PATIENCE)
    wait_for_an_offer(pool)
    pid = pool.apply(poolwork.pid_of_worker)
    with pytest.warns(ResourceWarning, match="TaskPool"):
        del pool
    until(lambda: not exists(pid))


def test_a_worker_that_dies_is_told_of(pool: mpkit.TaskPool) -> None:
    for _ in range(3):
        with pytest.raises(mpkit.WorkerDied, match="SIGKILL"):
            pool.apply(poolwork.die, ("SIGKILL",))
        assert pool.apply(abs, (-1,)) == 1


def test_what_is_taken_back_from_its_worker_is_sent_again(pool: mpkit.TaskPool) -> None:
    pid = pool.stats().workers[0].pid
    os.kill(pid, signal.SIGSTOP)
    until(lambda: stopped(pid))
    supervisor = supervisor_of(pool)
    asked = in_a_thread(pool, abs, -7)
    until(lambda: len(supervisor._intake.shortcut))
    (number,) = supervisor._crew
    supervisor.tell(lambda: supervisor._take_back(number))
    until(lambda: not len(supervisor._intake.shortcut))
    os.kill(pid, signal.SIGCONT)
    assert asked.result(PATIENCE) == 7


def test_who_waits_is_told_what_is_taken_back_though_a_ctrl_c_comes_just_then(
    pool: mpkit.TaskPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = pool.stats().workers[0].pid
    os.kill(pid, signal.SIGSTOP)
    until(lambda: stopped(pid))
    supervisor = supervisor_of(pool)
    ((number, worker),) = supervisor._crew.items()
    asked = in_a_thread(pool, abs, -7)
    until(lambda: worker.inbox._answers)

    def interrupted(fds: list[int]) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr("mpkit._engine.inbox.discard", interrupted)
    with pytest.raises(KeyboardInterrupt):
        worker.inbox.recall(0, lambda: None, supervisor._intake._waits_again)
    supervisor.tell(lambda: supervisor._take_back(number))
    until(lambda: not len(supervisor._intake.shortcut))
    os.kill(pid, signal.SIGCONT)
    assert asked.result(PATIENCE) == 7


def test_who_waits_is_woken_when_what_waits_is_cancelled(pool: mpkit.TaskPool) -> None:
    pid = pool.stats().workers[0].pid
    os.kill(pid, signal.SIGSTOP)
    until(lambda: stopped(pid))
    asked = in_a_thread(pool, abs, -7)
    until(lambda: len(supervisor_of(pool)._intake.shortcut))
    supervisor_of(pool).cancel_waiting()
    with pytest.raises(CancelledError):
        asked.result(PATIENCE)
    os.kill(pid, signal.SIGCONT)
    assert pool.apply(abs, (-1,)) == 1


def test_who_waits_is_woken_when_the_pool_is_terminated(start_method: str) -> None:
    with idle_pool() as pool:
        began = mpkit.Signal()
        asked = in_a_thread(pool, poolwork.sleep_for_ever, began)
        assert began.wait(PATIENCE)
        pool.terminate()
        with pytest.raises(mpkit.WorkerDied, match="stopped with its pool"):
            asked.result(PATIENCE)


def test_a_pool_that_is_closed_waits_for_it(start_method: str) -> None:
    with idle_pool() as pool:
        began, go = mpkit.Signal(), mpkit.Signal()
        asked = in_a_thread(pool, poolwork.tell_and_wait, began, go)
        assert began.wait(PATIENCE)
        pool.close()
        until(lambda: not len(supervisor_of(pool)._intake.shortcut))
        go.set()
        pool.join()
        assert asked.result(PATIENCE)


def test_others_get_the_worker_of_what_the_supervisor_has_heard_of(pool: mpkit.TaskPool) -> None:
    """It is woken for that, then: it has something to send."""
    began, go = mpkit.Signal(), mpkit.Signal()
    asked = in_a_thread(pool, poolwork.tell_and_wait, began, go)
    assert began.wait(PATIENCE)
    waiting = pool.submit(abs, -3)
    until(lambda: not len(supervisor_of(pool)._intake.shortcut))
    go.set()
    assert waiting.result(PATIENCE) == 3
    assert asked.result(PATIENCE)


def test_who_is_taken_when_it_is_to_be_sent_something_reports(
    pool: mpkit.TaskPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The supervisor had not heard of what it was asked for, and slept when that was done."""
    began, go = mpkit.Signal(), mpkit.Signal()
    shortcut = supervisor_of(pool)._intake.shortcut
    withdraw, asked = shortcut.withdraw, []

    def late(number: int) -> Any:
        if not asked:
            shortcut.idle[number] = supervisor_of(pool)._crew[number]
            asked.append(in_a_thread(pool, poolwork.tell_and_wait, began, go))
            until(lambda: len(shortcut))
        return withdraw(number)

    monkeypatch.setattr(shortcut, "withdraw", late)
    idle = shortcut.idle.copy()
    shortcut.idle.clear()
    waiting = pool.submit(abs, -3)
    assert began.wait(PATIENCE)
    until(lambda: not len(shortcut))
    go.set()
    assert waiting.result(PATIENCE) == 3
    assert asked[0].result(PATIENCE)
    assert idle


def test_a_worker_that_grows_is_replaced_at_once(start_method: str) -> None:
    """With a limit the supervisor has to see each report."""
    with mpkit.TaskPool(1, memory_limit=1) as pool:
        assert len({pool.apply(poolwork.pid_of_worker) for _ in range(4)}) == 4


def test_a_late_answer_is_not_the_next_ones(pool: mpkit.TaskPool) -> None:
    """Who has asked was interrupted, and the worker rings all the same."""
    said, _ = python(INTERRUPTED).communicate(timeout=PATIENCE)
    assert said == "interrupted\n" + "9\n" * 3


def test_many_late_answers_do_not_keep_out_ones_own(
    pool: mpkit.TaskPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a callback that asks, which is refused when the worker has begun already."""
    (worker,) = supervisor_of(pool)._crew.values()
    while worker.inbox._unread.send(wire.encode_ring(2**60), (), Deadline(0)):
        pass
    answer = worker.inbox.answer

    def late(task: int, since: int) -> Any:
        until(lambda: worker.inbox.written() > since and asleep(worker.pid))
        return answer(task, since)

    monkeypatch.setattr(worker.inbox, "answer", late)
    for number in range(20):
        assert in_a_thread(pool, abs, -number).result(PATIENCE) == number
        wait_for_an_offer(pool)
    assert not worker.inbox._link.poll(Deadline(0))


@pytest.mark.parametrize("said", [b"", b"garbage", bytes(100_000), bytes(PACKET + 1)], ids=len)
def test_what_a_task_writes_into_the_inbox_harms_nobody(said: bytes, pool: mpkit.TaskPool) -> None:
    for number in range(3):
        assert pool.apply(write_into_the_inbox, (said,)) == len(said)
        assert pool.apply(abs, (-number,)) == number


def write_into_the_inbox(said: bytes) -> int:
    """As C code may that has a wrong descriptor."""
    frame = inspect.currentframe()
    while frame is not None and "inbox" not in frame.f_locals:
        frame = frame.f_back
    assert frame is not None
    inbox: Link = frame.f_locals["inbox"]
    with socket.socket(fileno=os.dup(inbox.fd)) as sock:
        return sock.send(said)


INTERRUPTED = """
import os, signal, threading
import mpkit
from tests import poolwork
from tests.support import idle_pool

if __name__ == "__main__":
    with idle_pool() as pool:
        began, go = mpkit.Signal(), mpkit.Signal()
        threading.Thread(
            target=lambda: (began.wait(), os.kill(os.getpid(), signal.SIGINT), go.set())
        ).start()
        try:
            pool.apply(poolwork.tell_and_wait, (began, go))
            go.wait()  # it may come a little later
        except KeyboardInterrupt:
            print("interrupted")
        for _ in range(3):
            print(pool.apply(poolwork.square, (3,)))
"""


def test_who_is_late_to_listen_does_not_wait_for_a_ring_that_another_has_taken(
    pool: mpkit.TaskPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The supervisor had heard of his task, and had offered the worker again."""
    supervisor = supervisor_of(pool)
    engine: Any = pool._backend
    check_waiter = engine.check_waiter

    def late(task: Any) -> None:
        monkeypatch.undo()
        check_waiter(task)
        supervisor._mailbox.wake()
        until(task.done)
        wait_for_an_offer(pool)
        assert pool.apply(abs, (-2,)) == 2

    monkeypatch.setattr(engine, "check_waiter", late)
    assert in_a_thread(pool, abs, -7).result(PATIENCE) == 7


class InterruptedLock:
    """As one for which a thread waits when a Ctrl-C comes."""

    def __init__(self, lock: Any, comes: Callable[[], bool]) -> None:
        self._lock = lock
        self._comes = comes

    def __enter__(self) -> None:
        if self._comes():
            raise KeyboardInterrupt
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


@pytest.mark.parametrize("when", [0, 1, 2])
def test_a_worker_is_offered_again_whose_caller_was_interrupted(
    when: int, pool: mpkit.TaskPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While he waited for a lock: to send, to listen, to let the next one have the worker."""
    shortcut = supervisor_of(pool)._intake.shortcut
    left = when

    def comes() -> bool:
        nonlocal left
        ours = threading.current_thread() is threading.main_thread()
        left -= ours
        return ours and left == -1

    with monkeypatch.context() as patched:
        patched.setattr(shortcut, "_sending", InterruptedLock(shortcut._sending, comes))
        with pytest.raises(KeyboardInterrupt):
            pool.apply(abs, (-1,))
    assert pool.submit(abs, -1).result(PATIENCE) == 1
    wait_for_an_offer(pool)
    assert pool.apply(abs, (-1,)) == 1


class InterruptedRemoval(deque[Any]):
    """As what was handed to workers is when a Ctrl-C comes before something is taken out."""

    def remove(self, _: object) -> None:
        raise KeyboardInterrupt


def settle_and_be_interrupted(
    pool: mpkit.TaskPool, monkeypatch: pytest.MonkeyPatch, *call: Any
) -> None:
    """Have a Ctrl-C come when the report of a call is read, and that is not forgotten yet."""
    shortcut = supervisor_of(pool)._intake.shortcut
    with supervisor_held(pool):
        with monkeypatch.context() as patched:
            patched.setattr(shortcut, "_handed", InterruptedRemoval())
            with pytest.raises(KeyboardInterrupt):
                pool.apply(call[0], call[1:])
            left = shortcut._handed
        shortcut._handed.extend(left)
        assert len(shortcut) == 1


def test_what_was_settled_is_not_run_again_though_a_ctrl_c_comes_just_then(
    pool: mpkit.TaskPool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The supervisor, which will see no report of it, does not wait for one."""
    marks = tmp_path / "marks"
    settle_and_be_interrupted(pool, monkeypatch, poolwork.count_and_maybe_die, 1, str(marks))
    assert pool.apply(abs, (-1,)) == 1
    wait_for_an_offer(pool)
    assert pool.apply(abs, (-1,)) == 1
    assert marks.read_text() == "1\n"
    assert pool.stats().pending == 0


def test_a_worker_that_dies_as_it_was_settled_is_not_blamed_on_that(
    pool: mpkit.TaskPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle_and_be_interrupted(pool, monkeypatch, abs, -1)
    os.kill(pool.stats().workers[0].pid, signal.SIGKILL)
    until(lambda: pool.stats().restarts)
    assert pool.apply(abs, (-1,)) == 1
    assert pool.stats().lost == 0


def test_who_reads_behind_the_supervisor_leaves_it_to_that(
    pool: mpkit.TaskPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has taken a report from the journal whose caller was about to."""
    ((number, worker),) = supervisor_of(pool)._crew.items()
    settle = worker.inbox.settle

    def late(*args: int) -> bool:
        worker._records += worker.inbox.reported_since()
        return settle(*args)

    monkeypatch.setattr(worker.inbox, "settle", late)
    assert pool.apply(abs, (-7,)) == 7
    monkeypatch.undo()
    supervisor_of(pool).tell(lambda: supervisor_of(pool)._read_reports(number))
    until(lambda: not len(supervisor_of(pool)._intake.shortcut))
    assert pool.submit(abs, -7).result(PATIENCE) == 7
    wait_for_an_offer(pool)
    assert pool.apply(abs, (-7,)) == 7
    assert pool.stats().submitted == pool.stats().done == 4


def test_a_callback_of_the_pool_cannot_wait_for_it(pool: mpkit.TaskPool) -> None:
    found: list[BaseException] = []

    def call(_: object) -> None:
        try:
            pool.apply(abs, (-1,))
        except RuntimeError as error:
            found.append(error)

    pool.apply_async(abs, (-1,), callback=call).get(PATIENCE)
    assert "callback" in str(found[0])


@settings(max_examples=10, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from(["ask", "submit", "fail", "die"]), max_size=40), max_size=4)
)
def test_whoever_asks_gets_his_own_answer(programs: list[list[str]]) -> None:
    """Threads that ask, submit, fail and kill on the same few workers."""
    with mpkit.TaskPool(2) as pool:

        def run(program: list[str], first: int) -> None:
            for number, step in enumerate(program, first):
                if step == "ask":
                    assert pool.apply(poolwork.square, (number,)) == number**2
                elif step == "submit":
                    assert pool.submit(poolwork.square, number).result(PATIENCE) == number**2
                elif step == "fail":
                    with pytest.raises(ValueError, match=str(number)):
                        pool.apply(int, (f"x{number}",))
                else:
                    with pytest.raises(mpkit.WorkerDied):
                        pool.apply(poolwork.die, ("SIGKILL",))

        with ThreadPoolExecutor(5) as executor:
            ran = [executor.submit(run, program, 1000 * n) for n, program in enumerate(programs)]
            for future in ran:
                future.result(PATIENCE)
    wanted = [step for program in programs for step in program]
    stats = pool.stats()
    assert (stats.submitted, stats.lost) == (len(wanted), wanted.count("die"))
    assert stats.failed == wanted.count("fail") + wanted.count("die")
    assert (stats.done, stats.pending) == (len(wanted) - stats.failed, 0)
