"""A single slot for which a thread waits without a timeout: the kernel hands it over."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
from typing import TYPE_CHECKING, Any

import pytest

from mpkit import _slots
from mpkit._limit import Semaphore
from mpkit._platform import files
from mpkit._signal import Signal
from mpkit._slotfile import Notes
from mpkit._slots import Slots
from tests.support import PATIENCE, Spawn, asleep, finish, in_line, until

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.skipif(not files.FINDS_DELETED, reason="not done where it is missing")


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


def interrupted_once(call: Callable[..., Any], condition: Callable[..., bool]) -> Any:
    """Return ``call``, after which a signal handler raises, the first time it is asked for."""
    left = [True]

    def interrupted(*args: Any) -> Any:
        result = call(*args)
        if left and condition(*args):
            left.clear()
            raise KeyboardInterrupt
        return result

    return interrupted


@pytest.mark.parametrize("moment", ["the slot is ours", "it is noted", "the queue is left"])
def test_a_waiter_that_is_interrupted_when_he_is_served_takes_nothing(
    spawn: Spawn, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    semaphore, held, go, later = Semaphore(1), Signal(), Signal(), Signal()
    holder = spawn(hold, semaphore, held, go)
    assert held.wait(PATIENCE)
    if moment == "the slot is ours":
        asked = interrupted_once(_slots._lockf, lambda _, how, *__: how == _slots._WHEN_FREE)
        monkeypatch.setattr(_slots, "_lockf", asked)
    elif moment == "it is noted":
        noted = interrupted_once(Notes.write, lambda *_: True)
        monkeypatch.setattr(Notes, "write", lambda *args: noted(*args))
    else:
        left = interrupted_once(Slots.leave, lambda *_: True)
        monkeypatch.setattr(Slots, "leave", lambda *args: left(*args))
    thread = threading.Thread(target=lambda: (until(lambda: in_line(semaphore)), go.set()))
    thread.start()

    with pytest.raises(KeyboardInterrupt):
        semaphore.acquire()

    thread.join()
    finish(holder)
    assert in_line(semaphore) == 0
    slots = semaphore._opened()
    assert (slots._free, slots._held) == ([0], {})
    # Another process sees what the kernel has, and not what we believe.
    finish(spawn(hold, semaphore, later, go))
    assert later.is_set()


def test_a_child_forked_by_a_handler_during_the_wait_is_one_holder(spawn: Spawn) -> None:
    """It comes back into a wait that was its parent's."""
    semaphore, held, go = Semaphore(1), Signal(), Signal()
    holder = spawn(hold, semaphore, held, go)
    assert held.wait(PATIENCE)
    reader, writer = os.pipe()
    parent, children = os.getpid(), list[int]()
    before = signal.signal(signal.SIGALRM, lambda *_: children.append(os.fork()))
    main = threading.main_thread().ident or 0
    task = threading.get_native_id()

    def interrupt() -> None:
        until(lambda: in_line(semaphore) == 1 and asleep_in(task))
        signal.pthread_kill(main, signal.SIGALRM)
        until(lambda: children)
        go.set()

    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        semaphore.acquire()
        again = semaphore.acquire(block=False)
        if os.getpid() != parent:
            os.write(writer, b"more than one" if again else b"one")
            os._exit(0)
        assert not again
    finally:
        if os.getpid() != parent:
            os._exit(1)
        signal.signal(signal.SIGALRM, before)
    semaphore.release()
    thread.join()
    finish(holder)
    assert os.read(reader, 100) == b"one"
    os.waitpid(children[0], 0)
    os.close(reader)
    os.close(writer)
    assert semaphore.available == 1


def asleep_in(task: int) -> bool:
    with open(f"/proc/self/task/{task}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] == "S"


def hold_one_and_wait_for_the_other(one: Semaphore, other: Semaphore, go: Signal) -> None:
    with one, other:
        pass
    go.wait()  # or our death would tell, instead of the bell


def test_what_the_kernel_takes_for_a_deadlock_is_waited_for(spawn: Spawn) -> None:
    """It sees processes: each has what the other waits for. But our other thread gives it."""
    ours, theirs, go = Semaphore(1), Semaphore(1), Signal()
    ours.acquire()
    other = spawn(hold_one_and_wait_for_the_other, theirs, ours, go)
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
    go.set()
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


@pytest.mark.parametrize("count", [1, 2])
def test_a_handler_that_raises_at_any_moment_loses_no_slot(count: int) -> None:
    semaphore, chance = Semaphore(count), random.Random(count)
    slots = semaphore._opened()
    with semaphore:  # the first time takes longer
        pass

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for _ in range(3000):
            with contextlib.suppress(KeyboardInterrupt):
                signal.setitimer(signal.ITIMER_REAL, chance.uniform(2e-6, 40e-6))
                while True:
                    with semaphore:
                        pass
            while slots.give_any():  # it came between `acquire` and the block, or its end
                pass
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert sorted(slots._free) == list(range(count))
