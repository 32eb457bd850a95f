"""What the tests have the workers of a Dask cluster do. They tell and wait by named pipes."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mpkit.dask as mpkit
from tests.support import PATIENCE, until

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Gate:
    """A call that tells that it has begun, and goes on when it may. Also in other processes."""

    def __init__(self, folder: Path, name: str = "gate") -> None:
        self._began = folder / f"{name}-began"
        self._go = folder / f"{name}-go"

    def make(self) -> Gate:
        """Make it, before it is sent anywhere."""
        os.mkfifo(self._go)
        return self

    @property
    def begun(self) -> list[int]:
        """The processes in which it has begun, each time."""
        return [int(pid) for pid in self._began.read_text().split()] if self._began.exists() else []

    def wait_until_begun(self, times: int = 1) -> list[int]:
        until(lambda: len(self.begun) >= times)
        return self.begun

    def open(self) -> None:
        """Let those go on that wait, of which there is one at least."""
        self._go.write_bytes(b"go")

    def __call__(self, _: object = None) -> int:
        note(self._began)
        assert self._go.read_bytes() == b"go"
        return os.getpid()


def with_a_pool(gate: Gate) -> int:
    """Pass a gate, while others may have the thread."""
    with mpkit.TaskPool():
        return gate()


def note(path: Path) -> None:
    """Add this process to a file, whatever others do at the same time."""
    with path.open("a") as file:
        file.write(f"{os.getpid()}\n")


def note_item(folder: Path, number: int) -> int:
    note(folder / str(number))
    return number


def kill_first(path: Path) -> int:
    """Die, if nobody has come here before; else return how many have."""
    before = len(path.read_text().split()) if path.exists() else 0
    note(path)
    if not before:
        os.kill(os.getpid(), signal.SIGKILL)
    return before


def total(array: NDArray[np.float64], factor: int) -> float:
    assert array.flags.writeable
    return float(array.sum()) * factor


def read_shared(key: str) -> tuple[int, Any]:
    return os.getpid(), mpkit.shared()[key]


def shared_is_read_only() -> bool:
    return not mpkit.shared()["array"].flags.writeable


def pool_in_a_task(count: int) -> list[int]:
    with mpkit.TaskPool() as pool:
        return pool.map(abs, range(-count, 0), 1)


__all__ = ["PATIENCE", "Gate"]
