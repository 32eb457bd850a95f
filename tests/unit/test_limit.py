"""Semaphore and limit within one process."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import multiprocessing
import os
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from mpkit import _slots
from mpkit._errors import LimitMismatch, LimitTimeout, WouldDeadlock
from mpkit._limit import Semaphore, limit
from mpkit._semaphore import Holder
from tests.support import PATIENCE, copied, in_line, until


def a_name() -> str:
    return f"test-{secrets.token_hex(6)}"


def in_threads(count: int, target: Callable[[], object]) -> None:
    threads = [threading.Thread(target=target) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()


@contextlib.contextmanager
def thread(target: Callable[[], object]) -> Iterator[threading.Thread]:
    """Run ``target`` in a thread, which has ended by itself afterwards."""
    started = threading.Thread(target=target)
    started.start()
    yield started
    started.join(PATIENCE)
    assert not started.is_alive()


class Room:
    """Counts the threads or tasks that are inside at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.inside = self.most = self.turns = 0

    def enter(self) -> None:
        with self._lock:
            self.inside += 1
            self.turns += 1
            self.most = max(self.most, self.inside)

    def leave(self) -> None:
        with self._lock:
            self.inside -= 1


def test_as_many_get_in_as_there_are_slots() -> None:
    semaphore = Semaphore(2)
    assert semaphore.slots == semaphore.available == 2
    assert semaphore.acquire()
    assert semaphore.acquire()
    assert semaphore.available == 0
    assert not semaphore.acquire(block=False)
    assert not semaphore.acquire(False)
    assert not semaphore.acquire(timeout=0)
    semaphore.release()
    assert semaphore.acquire(block=False)
    semaphore.release()
    semaphore.release()
    assert semaphore.available == 2


def test_with_holds_a_slot_also_when_the_block_raises() -> None:
    semaphore = Semaphore(1)
    with pytest.raises(KeyError), semaphore as entered:
        assert entered is semaphore
        assert semaphore.available == 0
        raise KeyError
    assert semaphore.available == 1


def test_acquire_gives_up_after_its_timeout() -> None:
    semaphore = Semaphore(1)
    with semaphore:
        started = time.monotonic()
        assert not semaphore.acquire(timeout=0.05)
        assert 0.05 <= time.monotonic() - started < PATIENCE
    assert in_line(semaphore) == 0


def test_with_a_timeout_raises_when_no_slot_becomes_free() -> None:
    name = a_name()
    with limit(1, name=name):
        with pytest.raises(LimitTimeout, match=f"the only slot of limit '{name}'.*0.01 s"):
            with limit(1, name=name, timeout=0.01):
                pytest.fail("there was no slot")
    with limit(1, name=name, timeout=0.01):
        pass


@pytest.mark.parametrize("timeout", [-1, math.nan])
def test_impossible_timeouts_are_refused(timeout: float) -> None:
    semaphore = Semaphore(1)
    with pytest.raises(ValueError, match="timeout"):
        semaphore.acquire(timeout=timeout)
    with pytest.raises(ValueError, match="timeout"):
        limit(1, timeout=timeout)
    assert semaphore.available == 1


@pytest.mark.parametrize("slots", [0, -1, 1_000_001])
def test_impossible_counts_are_refused(slots: int) -> None:
    with pytest.raises(ValueError, match="number of slots"):
        Semaphore(slots)
    with pytest.raises(ValueError, match="number of slots"):
        limit(slots)


@pytest.mark.parametrize("slots", [True, 1.0, "4", None])
def test_counts_that_are_no_int_are_refused(slots: Any) -> None:
    def site(slots: Any) -> Semaphore:
        return limit(slots)

    site(1)
    with pytest.raises(TypeError, match="number of slots"):
        Semaphore(slots)
    with pytest.raises(TypeError, match="number of slots"):
        site(slots)


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", "a\n"])
def test_names_that_could_be_paths_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="a name is"):
        Semaphore(1, name=name)
    with pytest.raises(ValueError, match="a name is"):
        limit(1, name=name)


def test_waiting_for_what_this_thread_holds_itself_is_refused() -> None:
    semaphore = Semaphore(2)
    with semaphore, semaphore:
        with pytest.raises(WouldDeadlock, match="all 2 slots of Semaphore made at"):
            semaphore.acquire()
        assert not semaphore.acquire(timeout=0.001)

        async def main() -> None:
            assert not await semaphore.acquire_async(timeout=0.001)

        asyncio.run(main())
    assert semaphore.available == 2


def test_waiting_for_what_this_task_holds_itself_is_refused() -> None:
    semaphore = Semaphore(1)

    async def main() -> None:
        async with semaphore:
            with pytest.raises(WouldDeadlock):
                await semaphore.acquire_async()
        assert semaphore.available == 1

    asyncio.run(main())


def test_releasing_what_nobody_holds_is_refused() -> None:
    """Row s19 of the table of faults."""
    semaphore = Semaphore(2)
    with pytest.raises(ValueError, match="without holding a slot"):
        semaphore.release()
    with semaphore:
        pass
    with pytest.raises(ValueError, match="without holding a slot"):
        semaphore.release()
    assert semaphore.available == 2


def test_another_thread_may_release() -> None:
    semaphore = Semaphore(1)
    semaphore.acquire()
    with thread(semaphore.release):
        assert semaphore.acquire(timeout=PATIENCE)
    semaphore.release()


def test_a_task_may_release_what_it_acquired() -> None:
    semaphore = Semaphore(1)

    async def main() -> None:
        assert await semaphore.acquire_async()
        semaphore.release()
        assert await semaphore.acquire_async(timeout=0)
        semaphore.release()

    asyncio.run(main())
    assert semaphore.available == 1


def test_two_counts_for_one_name_do_not_match() -> None:
    name = a_name()
    kept = Semaphore(2, name=name)
    with pytest.raises(LimitMismatch, match=f"limit '{name}' is in use with 2 slots.* with 3"):
        Semaphore(3, name=name)
    with pytest.raises(LimitMismatch):
        limit(3, name=name)
    assert kept.available == 2
    del kept
    gc.collect()
    assert Semaphore(3, name=name).slots == 3  # nobody uses it with 2 any more


def test_two_counts_for_one_place_do_not_match() -> None:
    def site(slots: int) -> Semaphore:
        return limit(slots)

    site(2)
    with pytest.raises(LimitMismatch, match=r"limit at tests/unit/test_limit.py:\d+ is in use"):
        site(3)


def test_one_place_is_one_limit_and_two_are_two() -> None:
    def site() -> Semaphore:
        return limit(1)

    assert site() is site()
    first, second = limit(1), limit(1)
    assert len({site().key, first.key, second.key}) == 3
    with site(), first, second:
        assert not site().acquire(block=False)


def test_a_name_is_one_limit_everywhere() -> None:
    name = a_name()
    first, second = limit(1, name=name), Semaphore(1, name=name)
    assert first.key == second.key == name
    with first:
        assert second.available == 0
        assert not second.acquire(block=False)


def test_a_copy_is_the_same_semaphore() -> None:
    semaphore = Semaphore(2)
    copy = copied(semaphore)
    with copy:
        assert semaphore.available == 1
        assert copied(limit(3, name=a_name(), timeout=4)).slots == 3
    assert (copy.key, copy.slots, repr(copy)) == (semaphore.key, 2, repr(semaphore))


def test_closing_a_second_handle_does_not_drop_the_slots() -> None:
    """Closing any descriptor of the file would: there must be one only."""
    semaphore = Semaphore(1)
    with semaphore:
        copy = copied(semaphore)
        del copy
        gc.collect()
        assert os.waitstatus_to_exitcode(_in_a_fork(lambda: semaphore.acquire(block=False))) == 0


def _in_a_fork(attempt: Callable[[], bool]) -> int:
    pid = os.fork()
    if pid == 0:
        os._exit(attempt())
    return os.waitpid(pid, 0)[1]


def test_the_file_goes_with_the_last_handle_and_comes_back_with_a_pickle() -> None:
    semaphore = Semaphore(2)
    path = semaphore._opened().path
    rebuild, args = semaphore.__reduce__()
    assert os.path.exists(path)
    del semaphore
    assert not os.path.exists(path)
    again = rebuild(*args)
    with again:
        assert again.available == 1


def test_a_slot_outlives_the_handle_that_took_it() -> None:
    name = a_name()
    Semaphore(1, name=name).acquire()
    gc.collect()
    again = Semaphore(1, name=name)
    assert again.available == 0
    again.release()
    assert again.available == 1


def test_holders_are_named() -> None:
    semaphore = Semaphore(3)
    assert semaphore.holders() == []
    before = time.time()
    with semaphore, semaphore:
        first, second = semaphore.holders()
    assert (first.pid, second.pid) == (os.getpid(), os.getpid())
    assert before <= first.since <= time.time()
    assert "python" in first.process or "pytest" in first.process
    with pytest.raises(AttributeError):
        first.pid = 1  # type: ignore[misc]
    assert first != Holder(0, "", 0.0)


def test_decorated_functions_hold_a_slot_during_each_call() -> None:
    @limit(1)
    def double(n: int, *, times: int = 2) -> int:
        """Multiply."""
        assert not semaphore.acquire(block=False)
        return n * times

    semaphore = Semaphore(1)

    @semaphore
    def one(n: int) -> int:
        assert semaphore.available == 0
        return n

    assert one(1) == 1
    assert double.__name__ == "double"
    assert double.__doc__ == "Multiply."
    with semaphore:
        assert double(4, times=3) == 12
    with pytest.raises(TypeError):
        double()  # type: ignore[call-arg]
    assert semaphore.available == 1


def test_decorated_coroutine_functions_hold_a_slot_while_they_run() -> None:
    semaphore = Semaphore(2)
    room = Room()

    @semaphore
    async def visit(n: int) -> int:
        room.enter()
        await asyncio.sleep(0)
        room.leave()
        return n

    async def main() -> list[int]:
        return await asyncio.gather(*map(visit, range(20)))

    assert asyncio.run(main()) == list(range(20))
    assert (room.most, room.turns) == (2, 20)


def test_generators_cannot_be_decorated() -> None:
    def count() -> Iterator[int]:
        yield 1

    with pytest.raises(TypeError, match="generator"):
        Semaphore(1)(count)


def test_threads_never_are_more_than_slots_and_all_get_through() -> None:
    semaphore, room = Semaphore(3), Room()

    def visit() -> None:
        for _ in range(50):
            with semaphore:
                room.enter()
                time.sleep(0)
                room.leave()

    in_threads(8, visit)
    assert room.turns == 400
    assert room.most <= 3
    assert semaphore.available == 3
    assert in_line(semaphore) == 0


def test_tasks_and_threads_wait_for_each_other() -> None:
    semaphore, room = Semaphore(2), Room()

    async def visit() -> None:
        for _ in range(20):
            async with semaphore:
                room.enter()
                await asyncio.sleep(0)
                room.leave()

    async def main() -> None:
        await asyncio.gather(*(visit() for _ in range(5)))

    def visit_in_thread() -> None:
        for _ in range(20):
            with semaphore:
                room.enter()
                time.sleep(0)
                room.leave()

    with thread(lambda: in_threads(3, visit_in_thread)):
        asyncio.run(main())
    assert room.turns == 160
    assert room.most <= 2
    assert semaphore.available == 2


def test_a_cancelled_task_takes_nothing_and_passes_its_turn_on() -> None:
    semaphore = Semaphore(1)

    async def main() -> None:
        await semaphore.acquire_async()
        first = asyncio.create_task(semaphore.acquire_async())
        second = asyncio.create_task(semaphore.acquire_async())
        while in_line(semaphore) < 2:
            await asyncio.sleep(0)
        semaphore.release()  # rings the first one, who is cancelled before he hears it
        first.cancel()
        assert await asyncio.wait_for(second, PATIENCE)
        with pytest.raises(asyncio.CancelledError):
            await first
        semaphore.release()

    asyncio.run(main())
    assert semaphore.available == 1
    assert in_line(semaphore) == 0


def test_an_interrupted_waiter_takes_nothing_and_passes_its_turn_on() -> None:
    semaphore = Semaphore(1)
    semaphore.acquire()
    main, served = threading.get_ident(), threading.Event()

    def interrupt() -> None:
        until(lambda: in_line(semaphore) == 1)
        with thread(wait_behind):
            until(lambda: in_line(semaphore) == 2)
            signal.pthread_kill(main, signal.SIGINT)
            until(lambda: in_line(semaphore) == 1)
            semaphore.release()

    def wait_behind() -> None:
        with semaphore:
            served.set()

    with thread(interrupt), pytest.raises(KeyboardInterrupt):
        semaphore.acquire(timeout=PATIENCE)
    assert served.is_set()
    assert semaphore.available == 1
    assert in_line(semaphore) == 0


@pytest.mark.parametrize("mapped", [0, 2, 64], ids=["unmapped", "partly mapped", "mapped"])
def test_waiters_are_served_in_the_order_of_arrival(
    mapped: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the queue fits into the part of the file that is mapped, or not."""
    monkeypatch.setattr("mpkit._queue.MAPPED", mapped)
    semaphore, order = Semaphore(1), list[int]()

    def visit(number: int) -> None:
        with semaphore:
            order.append(number)

    with contextlib.ExitStack() as stack, semaphore:
        for number in range(5):
            stack.enter_context(thread(lambda number=number: visit(number)))
            until(lambda number=number: in_line(semaphore) == number + 1)
        semaphore.release()
        until(lambda: len(order) == 5)
        semaphore.acquire()
    assert order == list(range(5))


def test_who_waits_too_long_is_no_longer_overtaken(monkeypatch: pytest.MonkeyPatch) -> None:
    semaphore = Semaphore(2)
    slots = semaphore._opened()
    assert semaphore.acquire()
    assert semaphore.acquire()

    def visit() -> None:
        with semaphore:
            pass

    with thread(visit):
        until(lambda: in_line(semaphore) == 1)
        until(slots.queue.is_hungry)
        # A free slot of which the one who waits has not heard.
        with monkeypatch.context() as patch:
            patch.setattr(slots, "ring", lambda: None)
            semaphore.release()
        assert not slots.take("somebody", overtake=False)
        assert slots.take("somebody")
        slots.give("somebody")
    assert not slots.queue.is_hungry()
    assert slots.take("somebody", overtake=False)
    slots.give("somebody")
    semaphore.release()


class AnySemaphore(RuleBasedStateMachine):
    """A semaphore, its copies and its namesakes, against a counter."""

    handles: Bundle[Semaphore] = Bundle("handles")

    def __init__(self) -> None:
        super().__init__()
        self.held = 0
        self.name = a_name()

    @rule(target=handles)
    def open(self) -> Semaphore:
        return Semaphore(3, name=self.name)

    @rule(target=handles, handle=handles)
    def copy(self, handle: Semaphore) -> Semaphore:
        copy: Semaphore = copied(handle)
        return copy

    @rule(handle=consumes(handles))
    def drop(self, handle: Semaphore) -> None:
        del handle

    @rule(handle=handles, timeout=st.sampled_from([0, 0.0001]))
    def acquire(self, handle: Semaphore, timeout: float) -> None:
        assert handle.acquire(timeout=timeout) == (self.held < 3)
        self.held = min(3, self.held + 1)

    @rule(handle=handles)
    def acquire_in_a_thread(self, handle: Semaphore) -> None:
        with thread(lambda: self.acquire(handle, 0)):
            pass

    @rule(handle=handles)
    def release(self, handle: Semaphore) -> None:
        if self.held:
            handle.release()
            self.held -= 1
        else:
            with pytest.raises(ValueError):
                handle.release()

    @invariant()
    def agrees_with_the_counter(self) -> None:
        semaphore = Semaphore(3, name=self.name)
        assert semaphore.available == 3 - self.held
        assert [holder.pid for holder in semaphore.holders()] == [os.getpid()] * self.held

    def teardown(self) -> None:
        semaphore = Semaphore(3, name=self.name)
        for _ in range(self.held):
            semaphore.release()


AnySemaphore.TestCase.settings = settings(max_examples=40, deadline=None)
test_any_semaphore = AnySemaphore.TestCase


def test_slots_that_change_hands_while_one_is_looked_for_are_looked_at_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slots = Semaphore(2, name=a_name())
    assert slots.acquire()
    slots.release()
    lock, looked_at = _slots._lockf, list[int]()

    def taken_at_first(fd: int, command: int, length: int, slot: int) -> None:
        if slot not in looked_at:
            looked_at.append(slot)
            raise BlockingIOError
        lock(fd, command, length, slot)

    monkeypatch.setattr(_slots, "_lockf", taken_at_first)
    assert slots.acquire(block=False)
    assert sorted(looked_at) == [0, 1]
    slots.release()


def test_a_process_without_a_name_can_hold_a_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multiprocessing.current_process(), "_name", "")
    with Semaphore(1) as semaphore:
        assert [holder.pid for holder in semaphore.holders()] == [os.getpid()]
