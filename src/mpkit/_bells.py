"""Bells: how one process wakes a certain thread or task of another.

A bell is a FIFO that its owner opened for reading and writing: it rings by a byte in
it. Making one costs more than all else in waiting, so who has waited keeps his bell for
the next time, and who has rung one keeps it open. So a bell may ring for somebody who
has it no more: it means "look again", and never more than that.
"""

from __future__ import annotations

import contextlib
import os
from typing import Final

from mpkit import _fork, _runtime
from mpkit._platform import files, processes

#: How many bells a process keeps of those that nobody waits with: for as many threads.
IDLE: Final = 8
#: How many descriptors are kept for bells of others, and of processes by one who waits.
KEPT: Final = 64


class Bell:
    """A bell of this process, and what its present owner watches besides it."""

    def __init__(self, token: int, fd: int) -> None:
        self.token = token
        self.fd = fd
        #: By pid. Kept with the bell, since who waits again mostly waits for the same.
        self.watched: dict[int, list[int]] = {}

    def drain(self) -> None:
        """Silence it."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.fd, 1 << 16)

    def fds(self) -> list[int]:
        """Return all descriptors."""
        return [self.fd, *(fd for fds in self.watched.values() for fd in fds)]

    def watch_no_more(self, pid: int) -> None:
        """Close what tells of the end of a process."""
        for fd in self.watched.pop(pid):
            os.close(fd)

    def close(self) -> None:
        """Close all descriptors; again is fine."""
        fds, self.fd, self.watched = self.fds(), -1, {}
        for fd in fds:
            if fd >= 0:
                os.close(fd)


class Bells:
    """The bells that this process has, or rings, in ``folder``, which need not exist.

    Not safe for threads: `Slots` has a mutex.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._mine: dict[int, Bell] = {}
        self._idle: list[Bell] = []
        self._rung: dict[int, int] = {}

    def borrow(self) -> Bell:
        """Return a bell for one who waits; it may still ring from another time."""
        return self._idle.pop() if self._idle else self._make()

    def give_back(self, bell: Bell) -> None:
        """Keep a bell for the next one who waits."""
        if bell.fd < 0 or bell in self._idle:
            return
        if len(bell.watched) > KEPT or len(self._idle) >= IDLE:
            self._unmake(bell)
        else:
            self._idle.append(bell)

    def ring(self, pid: int, token: int) -> None:
        """Ring a bell, if it exists. Never blocks."""
        fd = self._rung.get(token)  # in a hurry: somebody waits
        if fd is None:
            fd = self._find(pid, token)
        if fd >= 0:
            try:
                os.write(fd, b"!")
            except BlockingIOError:  # full: it was rung often enough
                pass

    def _find(self, pid: int, token: int) -> int:
        """Return a descriptor to ring a bell by; -1 if nobody would hear it."""
        mine = self._mine.get(token)
        if mine is not None:
            return -1 if mine in self._idle else mine.fd
        return self._open(pid, token) if token else -1

    def ring_own(self) -> None:
        """Ring all bells of this process."""
        for token in self._mine:
            self.ring(os.getpid(), token)

    def _open(self, pid: int, token: int) -> int:
        path = self._path(pid, token)
        # Guarded: a child that is forked just now would keep it open for good.
        with _fork.guard:
            if len(self._rung) >= KEPT:
                self._stop_ringing()
            # For reading too: if its owner closes it, writing would raise SIGPIPE, which
            # kills a program that has set that to its default.
            try:
                fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
            except (FileNotFoundError, NotADirectoryError):
                # Its owner closed it, or it was deleted underneath.
                fd = files.open_deleted(path, pid, os.O_RDWR | os.O_NONBLOCK)
            if fd >= 0:
                self._rung[token] = fd
            return fd

    def _make(self) -> Bell:
        token = int.from_bytes(os.urandom(8), "big") >> 1
        path = self._path(os.getpid(), token)
        with _fork.guard:
            self._sweep()
            while True:
                try:
                    os.mkfifo(path, 0o600)
                    fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
                    break
                except FileNotFoundError:  # nobody has waited yet, or it was just removed
                    self._make_folder()
                except OSError as error:
                    raise _runtime.unusable(self.folder, error) from error
            bell = self._mine[token] = Bell(token, fd)
            return bell

    def _make_folder(self) -> None:
        try:
            with contextlib.suppress(FileExistsError):
                os.mkdir(self.folder, 0o700)
        except FileNotFoundError:  # all was deleted underneath
            _runtime.restore(os.path.dirname(self.folder))
        except OSError as error:
            raise _runtime.unusable(self.folder, error) from error

    def _unmake(self, bell: Bell) -> None:
        self._mine.pop(bell.token, None)
        with contextlib.suppress(OSError):  # it was deleted underneath
            os.unlink(self._path(os.getpid(), bell.token))
        bell.close()

    def _sweep(self) -> None:
        """Remove the bells of processes that were killed."""
        for name in self._names():
            pid = int(name.partition("-")[0])
            if not (processes.exists(pid) or _heard(f"{self.folder}/{name}")):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(f"{self.folder}/{name}")

    def _names(self) -> list[str]:
        try:
            return os.listdir(self.folder)
        except OSError:  # nobody has waited yet, or it was deleted underneath
            return []

    def _stop_ringing(self) -> None:
        rung, self._rung = self._rung, {}
        for fd in rung.values():
            os.close(fd)

    def close(self) -> None:
        """Remove the bells of this process: it does not use the semaphore any more."""
        for bell in list(self._mine.values()):
            self._unmake(bell)
        self.forget()

    def forget(self) -> None:
        """Let go of all bells, in a forked child: they are its parent's."""
        mine, self._mine, self._idle = self._mine, {}, []
        for bell in mine.values():
            bell.close()
        self._stop_ringing()

    def remove(self) -> None:
        """Remove the folder: nobody has the semaphore open any more."""
        for name in self._names():
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{self.folder}/{name}")
        with contextlib.suppress(OSError):
            os.rmdir(self.folder)

    def _path(self, pid: int, token: int) -> str:
        return f"{self.folder}/{pid}-{token:016x}"


def _heard(path: str) -> bool:
    """Tell whether anybody has a bell open."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError:  # ENOENT: it was removed. ENXIO: nobody reads it
        return False
    return True
