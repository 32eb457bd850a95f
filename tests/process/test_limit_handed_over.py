"""A single slot for which a thread waits without a timeout: the kernel hands it over."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from mpkit import _platform
from mpkit._limit import Semaphore
from mpkit._signal import Signal
from mpkit._slots import Slots
from tests.support import PATIENCE, Spawn, asleep, finish, in_line, until

pytestmark = pytest.mark.skipif(not _platform.FINDS_DELETED, reason="not done where it is missing")


def hold(semaphore: Semaphore, held: Signal, go: Signal) -> None:
    with semaphore:
        held.set()
        go.wait()


def wait_without_bell(semaphore: Semaphore, served: Signal) -> None:
    def refuse(*_: object) -> list[int]:
        raise AssertionError("nobody is to be watched: the kernel tells")

    Slots.watch = refuse  # type: ignore[method-assign]
    with semaphore:
        served.set()


def test_who_waits_for_a_single_slot_needs_neither_bell_nor_pidfd(spawn: Spawn) -> None:
    semaphore, served = Semaphore(1), Signal()
    with semaphore:
        waiter = spawn(wait_without_bell, semaphore, served)
        until(lambda: in_line(semaphore) == 1 and asleep(waiter.pid or 0))
        assert not served.is_set()
    assert served.wait(PATIENCE)
    finish(waiter)


def test_an_interrupted_waiter_takes_nothing_and_passes_its_turn_on(spawn: Spawn) -> None:
    semaphore, held, go = Semaphore(1), Signal(), Signal()
    holder = spawn(hold, semaphore, held, go)
    assert held.wait(PATIENCE)
    main, second = threading.get_ident(), Signal()

    def interrupt() -> None:
        until(lambda: in_line(semaphore) == 1)
        signal.pthread_kill(main, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        semaphore.acquire()
    thread.join()

    assert in_line(semaphore) == 0
    waiter = spawn(hold, semaphore, second, go)
    until(lambda: in_line(semaphore) == 1)
    go.set()
    assert second.wait(PATIENCE)
    finish(holder)
    finish(waiter)
    assert semaphore.available == 1


def test_a_waiter_that_is_interrupted_at_any_moment_takes_nothing(spawn: Spawn) -> None:
    """Also when the slot is his just then."""
    semaphore, stop = Semaphore(1), Signal()
    other = spawn(come_and_go, semaphore, stop)

    def interrupt(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    interrupted = 0
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        end = time.monotonic() + PATIENCE
        while interrupted < 200 and time.monotonic() < end:
            # Not `with`: between its acquire and its block Python itself can be interrupted.
            taken = False
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.0002 + interrupted * 1e-6)
                taken = semaphore.acquire()
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                interrupted += 1
            signal.setitimer(signal.ITIMER_REAL, 0)
            held = os.getpid() in [holder.pid for holder in semaphore.holders()]
            if held:  # acquired, and interrupted on the way back to us
                semaphore.release()
            assert held or not taken
            assert in_line(semaphore) <= 1
    finally:
        signal.signal(signal.SIGALRM, before)
    assert interrupted == 200
    stop.set()
    finish(other)
    assert semaphore.available == 1


def come_and_go(semaphore: Semaphore, stop: Signal) -> None:
    while not stop.is_set():
        with semaphore:
            stop.wait(0.0003)


def hold_one_and_wait_for_the_other(one: Semaphore, other: Semaphore) -> None:
    with one, other:
        pass


def test_what_the_kernel_takes_for_a_deadlock_is_waited_for(spawn: Spawn) -> None:
    """It sees processes: each has what the other waits for. But our other thread gives it."""
    ours, theirs = Semaphore(1), Semaphore(1)
    ours.acquire()
    other = spawn(hold_one_and_wait_for_the_other, theirs, ours)
    until(lambda: in_line(ours) == 1 and asleep(other.pid or 0))
    served = threading.Event()

    def wait() -> None:
        with theirs:
            served.set()

    thread = threading.Thread(target=wait)
    thread.start()
    until(lambda: in_line(theirs) == 1)
    assert not served.is_set()

    ours.release()

    assert served.wait(PATIENCE)
    thread.join()
    finish(other)


def test_threads_of_a_process_wait_for_another_one_in_turn(spawn: Spawn) -> None:
    semaphore, held, go = Semaphore(1), Signal(), Signal()
    holder = spawn(hold, semaphore, held, go)
    assert held.wait(PATIENCE)
    inside, order = [0], list[int]()

    def visit(number: int) -> None:
        with semaphore:
            inside[0] += 1
            assert inside[0] == 1
            order.append(number)
            inside[0] -= 1

    threads: list[threading.Thread] = []
    for number in range(4):
        threads.append(threading.Thread(target=visit, args=(number,)))
        threads[-1].start()
        until(lambda number=number: in_line(semaphore) == number + 1)
    go.set()
    for thread in threads:
        thread.join()
    finish(holder)
    assert order == list(range(4))
