"""The queue of those who wait for a slot: a folder of bells.

A bell is a FIFO that its owner opened for reading and writing: it rings by a byte in
it. Its name begins with a ticket, so that the folder sorts in the order of arrival, and
ends with the pid of its owner. Here is only what can be done to bells; who rings whom,
and why no ring is ever lost, is written in `_waiter`.
"""

from __future__ import annotations

import contextlib
import os

from mpkit import _fork


class Bells:
    """The bells that hang in ``folder``, which need not exist."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        #: Those that this process hung up; tells them from those of a dead namesake.
        self.own: set[str] = set()

    def hang(self, name: str) -> int:
        """Hang up a bell of this process, named by `name_for`; return it opened."""
        path = self._path(name)
        self.own.add(name)
        while True:
            try:
                os.mkfifo(path, 0o600)
                return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            except FileNotFoundError:  # there is no queue yet, or it was just removed
                with contextlib.suppress(FileExistsError):
                    os.mkdir(self.folder, 0o700)

    def take_down(self, name: str) -> None:
        """Remove a bell: its owner's turn has come, or will never come."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path(name))
        self.own.discard(name)

    def names(self) -> list[str]:
        """Return the bells in the order of arrival, those of the dead among them."""
        try:
            return sorted(os.listdir(self.folder))
        except FileNotFoundError:
            return []

    def ring(self, *, after: str = "") -> bool:
        """Ring the first one after ``after`` whose process exists; False if there is none."""
        return any(self.ring_one(name) for name in self.names() if name > after)

    def ring_one(self, name: str) -> bool:
        """Ring a bell; False if it was taken down, or its process does not exist."""
        if not self._has_process(name):
            self.take_down(name)
            return False
        # Guarded: a child that is forked just now would keep the bell open for good.
        with _fork.guard:
            return self._strike(name)

    def _strike(self, name: str) -> bool:
        # For reading too: if its owner closes it right now, then writing would raise
        # SIGPIPE, which kills a program that has set that to its default.
        try:
            fd = os.open(self._path(name), os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:  # it stopped waiting, and rings the next one itself
            return False
        try:
            with contextlib.suppress(BlockingIOError):  # full: it was rung often enough
                os.write(fd, b"!")
        finally:
            os.close(fd)
        return True

    def _has_process(self, name: str) -> bool:
        pid = ticket_and_owner(name)[1]
        if pid == os.getpid():
            return name in self.own
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:  # the pid went to another user's process; see `hangs`
            return True
        return True

    def hangs(self, name: str) -> bool:
        """Tell whether somebody has the bell open, that is, hears it."""
        with _fork.guard:
            try:
                fd = os.open(self._path(name), os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            except OSError:  # ENOENT: it was taken down. ENXIO: nobody reads it
                return False
            os.close(fd)
            return True

    def remove(self) -> None:
        """Remove the folder if it is empty; nobody has the semaphore open any more."""
        for name in self.names():
            self.take_down(name)
        with contextlib.suppress(OSError):
            os.rmdir(self.folder)

    def _path(self, name: str) -> str:
        return f"{self.folder}/{name}"


def name_for(ticket: int, pid: int) -> str:
    """Return the name of a bell."""
    return f"{ticket:020d}-{pid}"


def ticket_and_owner(name: str) -> tuple[int, int]:
    """Return a bell's ticket, and the pid of the process that hung it up."""
    ticket, _, pid = name.partition("-")
    return int(ticket), int(pid)


def drain(fd: int) -> None:
    """Silence an opened bell."""
    with contextlib.suppress(BlockingIOError):
        os.read(fd, 1 << 16)
