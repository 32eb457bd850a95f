"""Slots and waiters when processes are killed."""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest

from mpkit import _bells, _slotfile, _slots, _wait, _waiter
from mpkit._limit import Semaphore, limit
from mpkit._platform import descriptors, files, processes
from mpkit._signal import Signal
from tests.support import PATIENCE, Inside, Spawn, asleep, finish, in_line, kill, until

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess
    from pathlib import Path

#: How many are killed at random moments; CI kills 2,000.
KILLS = int(os.environ.get("MPKIT_KILLS", "400"))
#: How many of them under each start method: the slow ones kill less.
SHARE = {"fork": 0.8, "forkserver": 0.12, "spawn": 0.08}


def work(semaphore: Semaphore, inside: Inside, cell: int, stop: Signal, broken: Signal) -> None:
    """Go in and out until told to stop."""
    chance = random.Random(cell)
    while not stop.is_set():
        semaphore._timeout = chance.choice([None, PATIENCE])
        with semaphore:
            if inside.enter(cell) > semaphore.slots:
                broken.set()
            time.sleep(chance.choice([0, 0, 0.0005, 0.002]))
            inside.leave(cell)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("slots", [1, 2])
def test_no_slot_is_lost_and_nobody_hangs_when_processes_are_killed_at_random(
    spawn: Spawn, start_method: str, tmp_path: Path, slots: int
) -> None:
    semaphore, stop, broken = Semaphore(slots), Signal(), Signal()
    inside = Inside(str(tmp_path / "inside"), 7)
    chance = random.Random(4)

    crew = [spawn(work, semaphore, inside, cell, stop, broken) for cell in range(7)]
    for _ in range(int(KILLS / 2 * SHARE[start_method])):
        seen = inside.turns()
        target = chance.randrange(7)
        # Some turns later, at a moment of nobody's choosing.
        more = chance.randrange(20)
        until(lambda seen=seen, more=more: sum(inside.turns()) > sum(seen) + more)
        kill(crew[target])
        crew[target] = spawn(work, semaphore, inside, target, stop, broken)
    seen = inside.turns()
    until(lambda: all(now > before for now, before in zip(inside.turns(), seen, strict=True)))
    stop.set()
    for process in crew:
        finish(process)

    assert not broken.is_set(), "more were inside than there are slots"
    assert semaphore.available == slots


def inline() -> Semaphore:
    return limit(1)


def hold(semaphore: Semaphore | None, held: Signal) -> None:
    """Hold a slot until killed."""
    with semaphore or inline():
        held.set()
        Signal().wait()


def start_holder(spawn: Spawn, semaphore: Semaphore | None) -> BaseProcess:
    held = Signal()
    holder = spawn(hold, semaphore, held)
    assert held.wait(PATIENCE)
    return holder


def pass_through(semaphore: Semaphore | None) -> None:
    with semaphore or inline():
        pass


def start_waiter(spawn: Spawn, semaphore: Semaphore, *how: object) -> BaseProcess:
    """Start a process that waits for a slot, and return when it is in the queue."""
    before = in_line(semaphore)
    waiter = spawn(*(how or (pass_through, semaphore)))  # type: ignore[arg-type]
    until(lambda: in_line(semaphore) > before)
    if os.path.isdir("/proc/self"):  # else nobody tells how far he has come
        until(lambda: asleep(waiter.pid or 0))
    return waiter


@pytest.mark.parametrize("kind", ["object", "named", "inline"])
def test_a_waiter_gets_the_slot_of_a_killed_holder(spawn: Spawn, kind: str) -> None:
    """Rows s01 to s04 of the table of faults."""
    given = Semaphore(1, name=f"test-{os.getpid()}") if kind == "named" else Semaphore(1)
    semaphore = inline() if kind == "inline" else given
    holder = start_holder(spawn, None if kind == "inline" else semaphore)
    waiter = start_waiter(spawn, semaphore, pass_through, None if kind == "inline" else semaphore)

    kill(holder)

    finish(waiter)
    assert semaphore.available == 1


def test_all_slots_are_free_after_their_holders_were_killed(spawn: Spawn) -> None:
    """Row s05 of the table of faults."""
    semaphore = Semaphore(3)
    holders = [start_holder(spawn, semaphore) for _ in range(2)]
    assert semaphore.available == 1

    for holder in holders:
        kill(holder)

    assert semaphore.available == 3
    assert [semaphore.acquire(block=False) for _ in range(4)] == [True, True, True, False]
    for _ in range(3):
        semaphore.release()


@pytest.fixture(params=[None, PATIENCE], ids=["kernel", "bell"])
def patience(request: pytest.FixtureRequest) -> float | None:
    """How long to wait: the kernel hands the slot over, or a bell tells of it (`_waiter`)."""
    patience: float | None = request.param
    return patience


BY_KERNEL = pytest.mark.skipif(not files.FINDS_DELETED, reason="rung by bells here")


def one_slot(patience: float | None) -> Semaphore:
    semaphore = Semaphore(1)
    semaphore._timeout = patience
    return semaphore


def test_who_waits_behind_killed_waiters_is_served(spawn: Spawn, patience: float | None) -> None:
    semaphore = one_slot(patience)
    semaphore.acquire()
    waiters = [start_waiter(spawn, semaphore) for _ in range(4)]
    kill(waiters[0])
    kill(waiters[2])

    semaphore.release()

    finish(waiters[1])
    finish(waiters[3])
    assert in_line(semaphore) == 0


def test_who_waits_is_served_when_the_holder_and_all_before_him_are_killed(
    spawn: Spawn, patience: float | None
) -> None:
    semaphore = one_slot(patience)
    holder = start_holder(spawn, semaphore)
    waiters = [start_waiter(spawn, semaphore) for _ in range(3)]

    for process in (holder, *waiters[:2]):
        process.kill()

    finish(waiters[2])


def test_a_killed_waiter_is_forgotten_when_he_was_rung_in_vain(spawn: Spawn) -> None:
    semaphore = one_slot(PATIENCE)
    with semaphore:
        kill(start_waiter(spawn, semaphore))
        assert in_line(semaphore) == 1
    with semaphore:
        pass
    assert in_line(semaphore) == 0
    assert semaphore._opened()._words[_slotfile.WAITED_FOR] == _slotfile.NOBODY


@BY_KERNEL
def test_a_waiter_that_was_killed_in_the_kernel_costs_nothing_and_is_forgotten(
    spawn: Spawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    semaphore = Semaphore(1)
    with semaphore:
        kill(start_waiter(spawn, semaphore))
    rung: list[object] = []
    with monkeypatch.context() as patch:
        patch.setattr(_bells.Bells, "ring", lambda *args: rung.append(args))
        for _ in range(3):
            assert semaphore.acquire(block=False)
            semaphore.release()
    assert rung == []
    until(lambda: semaphore._opened().queue.is_hungry())
    assert semaphore.acquire()  # through the queue, where he is found to be gone
    semaphore.release()
    assert semaphore._opened()._words[_slotfile.WAITED_FOR] == _slotfile.NOBODY
    assert in_line(semaphore) == 0


def test_who_comes_gets_in_though_the_first_one_who_waits_is_stopped(
    spawn: Spawn, patience: float | None
) -> None:
    semaphore = one_slot(patience)
    semaphore.acquire()
    waiter = start_waiter(spawn, semaphore)
    assert waiter.pid is not None
    until(lambda: semaphore._opened().queue.is_hungry())
    os.kill(waiter.pid, signal.SIGSTOP)
    until(lambda: not semaphore._opened().queue.is_hungry())  # the signal has arrived
    semaphore.release()

    with semaphore:
        pass

    os.kill(waiter.pid, signal.SIGCONT)
    finish(waiter)


def join_and_be_stopped(semaphore: Semaphore) -> None:
    """Be stopped in the queue, before having noted who is first."""
    _slots.Slots.lead = lambda *_: os.kill(os.getpid(), signal.SIGSTOP)  # type: ignore[method-assign, assignment]
    semaphore.acquire()


def test_who_comes_gets_in_though_one_was_stopped_while_he_joined(spawn: Spawn) -> None:
    semaphore = Semaphore(1)
    semaphore.acquire()
    waiter = spawn(join_and_be_stopped, semaphore)
    until(lambda: in_line(semaphore) == 1 and processes.is_stopped(waiter.pid or 0))
    semaphore.release()
    with semaphore:
        pass


def test_a_holder_may_die_just_before_he_is_watched(
    spawn: Spawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    semaphore = Semaphore(1)
    holder = start_holder(spawn, semaphore)

    def open_pidfd(pid: int) -> int | None:
        if holder.exitcode is None:
            kill(holder)
        return original(pid)

    original = descriptors.open_pidfd
    monkeypatch.setattr(descriptors, "open_pidfd", open_pidfd)
    started = time.monotonic()
    assert semaphore.acquire(timeout=PATIENCE / 2)
    assert time.monotonic() - started < PATIENCE / 4  # not by a last look at the end
    semaphore.release()


# What each of these replaces is where a wake-up is due: the process dies instead.


def die(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def release_and_die_before_ringing(semaphore: Semaphore, held: Signal, go: Signal) -> None:
    semaphore.acquire()
    held.set()
    go.wait()
    _slots.Slots.ring = die  # type: ignore[method-assign]
    semaphore.release()


def wait_and_die_when_rung(semaphore: Semaphore) -> None:
    original = _slots.Slots.take

    def take(self: _slots.Slots, *args: object, **kwargs: object) -> bool:
        fds = [bell.fd for bell in self.bells._mine.values()]
        if _wait.poll(fds, 0):
            die()
        return original(self, *args, **kwargs)  # type: ignore[arg-type]

    _slots.Slots.take = take  # type: ignore[method-assign, assignment]
    semaphore.acquire(timeout=PATIENCE)


def wait_and_die_when_given(semaphore: Semaphore) -> None:
    original = _slots._lockf

    def lockf(fd: int, how: int, *where: int) -> None:
        original(fd, how, *where)
        if how == _slots._WHEN_FREE:
            die()

    _slots._lockf = lockf  # type: ignore[assignment]
    semaphore.acquire()


def wait_and_die_before_ringing_the_next(semaphore: Semaphore) -> None:
    _bells.Bells.ring = die  # type: ignore[method-assign]
    with semaphore:
        die()  # nobody was to be rung


def give_up_and_die_before_ringing_the_next(semaphore: Semaphore, go: Signal) -> None:
    _bells.Bells.ring = die  # type: ignore[method-assign]
    _waiter.Waiter.served = lambda self: bool(joined(self) and go.wait() and die())  # type: ignore[method-assign]
    semaphore.acquire()


def joined(waiter: _waiter.Waiter) -> bool:
    waiter._joined()
    return True


def test_a_slot_is_not_lost_when_who_releases_it_dies_before_he_rings(spawn: Spawn) -> None:
    semaphore, held, go = one_slot(PATIENCE), Signal(), Signal()
    holder = spawn(release_and_die_before_ringing, semaphore, held, go)
    assert held.wait(PATIENCE)
    waiter = start_waiter(spawn, semaphore)
    go.set()

    finish(waiter)
    holder.join(PATIENCE)
    assert holder.exitcode == -signal.SIGKILL


@pytest.mark.parametrize(
    "how",
    [
        wait_and_die_when_rung,
        pytest.param(wait_and_die_when_given, marks=BY_KERNEL),
        wait_and_die_before_ringing_the_next,
    ],
    ids=lambda how: how.__name__,
)
def test_a_ring_is_not_lost_when_who_is_rung_dies(
    spawn: Spawn, patience: float | None, how: object
) -> None:
    semaphore = one_slot(patience)
    semaphore.acquire()
    victim = start_waiter(spawn, semaphore, how, semaphore)
    second, third = start_waiter(spawn, semaphore), start_waiter(spawn, semaphore)

    semaphore.release()

    finish(second)
    finish(third)
    victim.join(PATIENCE)
    assert victim.exitcode == -signal.SIGKILL


def test_a_free_slot_is_not_left_to_one_who_dies_while_he_is_first(
    spawn: Spawn, patience: float | None
) -> None:
    """He is first, hears nothing, and dies; the slot became free meanwhile."""
    semaphore = one_slot(patience)
    go = Signal()
    semaphore.acquire()
    victim = start_waiter(spawn, semaphore, give_up_and_die_before_ringing_the_next, semaphore, go)
    second = start_waiter(spawn, semaphore)
    semaphore.release()
    assert second.exitcode is None
    go.set()

    finish(second)
    victim.join(PATIENCE)
    assert victim.exitcode == -signal.SIGKILL


# A process that replaces itself drops its locks, but does not end.


def replace_oneself(*_: object) -> None:
    os.execv(sys.executable, [sys.executable, "-c", "import signal; signal.pause()"])


def hold_and_exec(semaphore: Semaphore, held: Signal, go: Signal) -> None:
    semaphore.acquire()
    held.set()
    go.wait()
    replace_oneself()


def wait_and_exec(semaphore: Semaphore, go: Signal) -> None:
    threading.Thread(target=semaphore.__enter__, daemon=True).start()
    go.wait()
    replace_oneself()


def test_a_waiter_gets_the_slot_of_a_holder_that_execs_a_program(
    spawn: Spawn, patience: float | None
) -> None:
    semaphore = one_slot(patience)
    held, go = Signal(), Signal()
    holder = spawn(hold_and_exec, semaphore, held, go)
    assert held.wait(PATIENCE)
    waiter = start_waiter(spawn, semaphore)
    go.set()

    finish(waiter)
    assert holder.exitcode is None


def test_who_waits_behind_one_that_execs_a_program_is_served(
    spawn: Spawn, patience: float | None
) -> None:
    semaphore = one_slot(patience)
    go = Signal()
    semaphore.acquire()
    first = start_waiter(spawn, semaphore, wait_and_exec, semaphore, go)
    second = start_waiter(spawn, semaphore)
    go.set()
    until(lambda: "signal.pause" in processes.process_name(first.pid or 0))
    semaphore.release()

    finish(second)
    assert first.exitcode is None


def fork_and_hold(semaphore: Semaphore, born: Signal, gone: Signal) -> None:
    """Hold a slot, with a forked child that lives on."""
    with semaphore:
        pid = os.fork()
        if pid == 0:
            born.set()
            gone.wait()
            os._exit(0)
        Signal().wait()


def test_a_child_that_outlives_a_killed_holder_does_not_keep_his_slot(
    spawn: Spawn, patience: float | None
) -> None:
    semaphore = one_slot(patience)
    born, gone = Signal(), Signal()
    holder = spawn(fork_and_hold, semaphore, born, gone)
    assert born.wait(PATIENCE)

    holder.kill()  # not joined: its sentinel is open in the child as well

    try:
        with semaphore:
            pass
    finally:
        gone.set()
