"""Slots and waiters when processes are killed."""

from __future__ import annotations

import os
import random
import signal
import time
from typing import TYPE_CHECKING

import pytest

from mpkit._limit import Semaphore
from mpkit._signal import Signal
from tests.support import PATIENCE, Inside, Spawn, asleep, finish, kill, until

if TYPE_CHECKING:
    from pathlib import Path

#: How many are killed under each start method.
KILLS = int(os.environ.get("MPKIT_KILLS", "40"))


def work(semaphore: Semaphore, inside: Inside, cell: int, stop: Signal, broken: Signal) -> None:
    """Go in and out until told to stop."""
    chance = random.Random(cell)
    while not stop.is_set():
        with semaphore:
            if inside.enter(cell) > semaphore.slots:
                broken.set()
            time.sleep(chance.choice([0, 0, 0.0005, 0.002]))
            inside.leave(cell)


def test_no_slot_is_lost_and_nobody_hangs_when_processes_are_killed_at_random(
    spawn: Spawn, tmp_path: Path
) -> None:
    semaphore, stop, broken = Semaphore(2), Signal(), Signal()
    inside = Inside(str(tmp_path / "inside"), 7)
    chance = random.Random(4)

    def start(cell: int) -> object:
        return spawn(work, semaphore, inside, cell, stop, broken)

    crew = [spawn(work, semaphore, inside, cell, stop, broken) for cell in range(7)]
    for _ in range(KILLS):
        seen = inside.turns()
        target = chance.randrange(7)
        # Some turns later, at a moment of nobody's choosing.
        until(lambda: sum(inside.turns()) > sum(seen) + chance.randrange(20))
        kill(crew[target])
        crew[target] = spawn(work, semaphore, inside, target, stop, broken)
    seen = inside.turns()
    until(lambda: all(now > before for now, before in zip(inside.turns(), seen, strict=True)))
    stop.set()
    for process in crew:
        finish(process)

    assert not broken.is_set(), "more were inside than there are slots"
    assert semaphore.available == 2
