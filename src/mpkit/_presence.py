"""That a process is there: what others watch to learn of its end.

Where the system has pidfds, they tell of a death. But a process that replaces itself
(`os.execv`) drops its locks as well, and lives on; and not every system has them. So
whoever takes locks in a folder has a FIFO there that nobody else opens for writing,
``here-<pid>``: for those who have it open for reading it ends when he does either.

Neither tells everything. A child that was forked by C code, so that nobody told it,
keeps the FIFO open; that is what the pidfd is for.
"""

from __future__ import annotations

import contextlib
import errno
import os
from typing import Final

from mpkit import _fork, _runtime
from mpkit._platform import descriptors, processes, stdlib


class Presence:
    """The FIFO of this process in one folder."""

    def __init__(self, folder: str) -> None:
        self._path = _path(folder, os.getpid())
        _sweep(folder)
        with _fork.guard:
            with contextlib.suppress(FileNotFoundError):  # of a dead namesake
                os.unlink(self._path)
            os.mkfifo(self._path, 0o600)
            self._fd = os.open(self._path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            _fork.know(self)
        self._exit = stdlib.call_at_exit(self._leave, -90)

    def _leave(self) -> None:
        with contextlib.suppress(OSError):  # the folder was deleted underneath
            os.unlink(self._path)

    def _before_fork(self) -> None:
        """Nothing to decide."""

    def _after_fork_in_parent(self) -> None:
        """Nothing to let go of."""

    def _after_fork_in_child(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)
        _shown.clear()


#: It was deleted underneath; this process or the system has no descriptors left.
_MISSING: Final = (errno.ENOENT, errno.EMFILE, errno.ENFILE)

#: By folder. In a forked child it is empty: what it takes is its own.
_shown: dict[str, Presence] = {}


def show(folder: str) -> None:
    """Have a FIFO in ``folder`` from now on."""
    if folder in _shown:
        return
    with _fork.guard:
        try:
            if folder not in _shown:
                _shown[folder] = Presence(folder)
        except (FileNotFoundError, NotADirectoryError):
            # Deleted underneath: others look from time to time.
            return
        except OSError as error:
            raise _runtime.unusable(_path(folder, os.getpid()), error) from error


def watch(folder: str, pid: int) -> list[int]:
    """Return descriptors that become readable when ``pid`` ends, or execs a program.

    Two of them, or fewer where something is missing: then it is to be looked at from time
    to time. Raises ProcessLookupError if it is gone. The caller holds the guard of forks.
    """
    fds: list[int] = []
    try:
        pidfd = descriptors.open_pidfd(pid)
        if pidfd is not None:
            fds.append(pidfd)
        fds.append(os.open(_path(folder, pid), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
        if os.read(fds[-1], 1) == b"":  # nobody has it open for writing
            raise ProcessLookupError(pid)
    except BlockingIOError:  # he is there
        return fds
    except ProcessLookupError:
        for fd in fds:
            os.close(fd)
        raise
    except OSError as error:
        if error.errno not in _MISSING:
            raise
    return fds


def _path(folder: str, pid: int) -> str:
    return f"{folder}/here-{pid}"


def _sweep(folder: str) -> None:
    """Remove what killed processes left."""
    for name in os.listdir(folder):
        if name.startswith("here-") and not processes.exists(int(name[5:])):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{folder}/{name}")
