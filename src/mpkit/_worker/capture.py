"""What a task writes to standard output and error, kept in memory instead.

While a task runs, descriptors 1 and 2 of its worker are one file without a name, which the
parent has too: so what C code, `os.write` and the processes that it starts write is kept as what
`print` does, in the order in which it was written, and it is there when the worker is killed.
Between tasks both are as they were.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import sys
from typing import TYPE_CHECKING, Any, Final

from mpkit import _fork
from mpkit._platform import cstdio, memory
from mpkit._platform.descriptors import identity
from mpkit._worker.lent import Lent

if TYPE_CHECKING:
    from collections.abc import Iterable

#: Bytes that are kept of what one task wrote: the last ones. (Arbitrary. They travel to the
#: parent, which keeps them as long as the task.)
MOST: Final = 2**22

_STREAMS: Final = (1, 2)


class OutputFile(Lent):
    """The file that the output of one worker's tasks goes to. Parent and worker have it open."""

    @classmethod
    def made(cls) -> OutputFile:
        """Return a new one."""
        with _fork.guard:
            return cls(memory.anonymous_file(0))

    def since(self, place: int = 0) -> bytes:
        """Return what was written behind ``place``, or the last of it if that is too much."""
        size = os.fstat(self.fd).st_size
        first = max(place, size - MOST)
        data = bytearray()
        while chunk := os.pread(self.fd, max(0, size - first - len(data)), first + len(data)):
            data += chunk
        left_out = first - place
        if left_out <= 0:
            return bytes(data)
        return f"[{left_out:,} bytes are left out here]\n".encode() + data


class Capture:
    """Has the output of each task kept, in a worker."""

    def __init__(self, file: OutputFile) -> None:
        self._file = file
        self._identity = identity(file.fd)
        flags = fcntl.fcntl(file.fd, fcntl.F_GETFL)
        # Whoever writes does so at the end, also when that has come nearer.
        fcntl.fcntl(file.fd, fcntl.F_SETFL, flags | os.O_APPEND)
        #: What they are between tasks, and by what that is told from all else.
        self._before = {fd: (copy := _copy(fd), identity(copy)) for fd in _STREAMS}
        # Those that a fork handed down may write to something else (pytest's, a notebook's), and
        # keep in a buffer what a worker that is killed never writes.
        self._replaced = sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__
        # The task may write there: a default of some function may be one of them. (Only Python's
        # own, of which a fork has renewed the locks: see `stdlib.renew_standard_streams`.)
        self._buffered = [
            stream
            for stream in set(self._replaced)
            if type(stream) is io.TextIOWrapper and type(stream.buffer) is io.BufferedWriter
        ]
        cstdio.keep_nothing_back()
        sys.stdout = sys.__stdout__ = _stream(1, "surrogateescape")  # type: ignore[misc]
        sys.stderr = sys.__stderr__ = _stream(2, "backslashreplace")  # type: ignore[misc]

    def begin(self) -> None:
        """A task begins."""
        if identity(self._file.fd) != self._identity:
            return  # some task has closed what it did not open, and soon we leave for that
        _flush(self._buffered)  # what was printed before, as this process began, say
        os.ftruncate(self._file.fd, 0)
        for fd in _STREAMS:
            os.dup2(self._file.fd, fd)

    def end(self) -> bytes:
        """Return what the task wrote that ends now."""
        _flush([sys.stdout, sys.stderr, *self._buffered])
        for fd, (copy, same) in self._before.items():
            if copy < 0:
                with contextlib.suppress(OSError):  # the task has closed it
                    os.close(fd)
            elif identity(copy) == same:  # or the task has closed all, and soon we leave for that
                os.dup2(copy, fd)
        return self._file.since() if identity(self._file.fd) == self._identity else b""

    def forget(self) -> None:
        """What the task wrote is told: who finds it in the file would tell it again."""
        if identity(self._file.fd) == self._identity:
            os.ftruncate(self._file.fd, 0)


def _flush(streams: Iterable[Any]) -> None:
    for stream in streams:
        with contextlib.suppress(Exception):  # the task's own, perhaps, or closed
            stream.flush()


def _copy(fd: int) -> int:
    """Return a copy that no program has which a task starts; -1 if there is nothing to copy."""
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    except OSError:  # the program runs without it
        return -1


def _stream(fd: int, errors: str) -> io.TextIOWrapper:
    """Return a stream that keeps nothing back; like Python's own with ``-u``."""
    name = "<stdout>" if fd == 1 else "<stderr>"
    raw = io.FileIO(_open(fd), "wb", closefd=False)
    raw.name = name
    return io.TextIOWrapper(raw, encoding="utf-8", errors=errors, write_through=True)


def _open(fd: int) -> int:
    """Have there be such a descriptor, or there could be no stream."""
    try:
        os.fstat(fd)
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        if null != fd:
            os.dup2(null, fd)
            os.close(null)
    return fd
