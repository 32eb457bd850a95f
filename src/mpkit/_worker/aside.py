"""What a worker says beside its reports: log records, warnings, the output of tasks.

It has a pipe of its own for that, and writes to it in pieces that a pipe takes whole or not at
all. So what a worker that is killed has said is in there, nothing that it was about to say is in
part, and neither its threads nor the processes that it forks need a lock to write. The parent
reads many pieces at once: for each call to read the supervisor may have to wait for its turn,
behind the thread that handles the records.

Each piece says which task it is about. A supervisor that hears of the end of a task looks here
first, where all is that was said before.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import select
import struct
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from mpkit._fork import Bearer
from mpkit._frames import Malformed
from mpkit._platform.descriptors import identity

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from mpkit._worker.capture import Capture, OutputFile
    from mpkit._worker.lent import Lent
    from mpkit._worker.logs import Loudness

T = TypeVar("T")

#: The kinds of what is said: a log record, a warning, what a task has written.
RECORD: Final = b"r"
WARNING: Final = b"w"
OUTPUT: Final = b"o"
_KINDS: Final = frozenset({RECORD, WARNING, OUTPUT})

#: Bytes that follow, kind, whether it is the last piece of a message, the process and its
#: number of the message, and the task or 0.
_HEAD: Final = struct.Struct("=Hc?IIQ")
_ROOM: Final = select.PIPE_BUF - _HEAD.size


class Said(NamedTuple):
    """One message, and the number of the task that ran meanwhile, or 0."""

    kind: bytes
    task: int
    data: bytes


def pieces(said: Said, pid: int, number: int) -> Iterator[bytes]:
    """Yield the pieces of a message. Those of other messages may come in between."""
    kind, task, data = said
    for start in range(0, max(1, len(data)), _ROOM):
        part = data[start : start + _ROOM]
        last = start + _ROOM >= len(data)
        yield _HEAD.pack(len(part), kind, last, pid, number & 0xFFFF_FFFF, task) + part


class Assembly:
    """Makes messages of what was read."""

    def __init__(self) -> None:
        self._rest = b""
        self._begun: dict[tuple[int, int], list[bytes]] = {}

    def add(self, read: bytes, said: list[Said]) -> None:
        """Put into ``said`` what is whole now. Raises Malformed for what is no message."""
        read, place = self._rest + read, 0
        while len(read) - place >= _HEAD.size:
            length, kind, last, pid, number, task = _HEAD.unpack_from(read, place)
            if length > _ROOM or kind not in _KINDS:
                raise Malformed(f"{read[place : place + _HEAD.size]!r}")
            begin = place + _HEAD.size
            if begin + length > len(read):
                break
            place = begin + length
            part = read[begin:place]
            begun = self._begun.pop((pid, number), None) if self._begun else None
            if begun is not None:
                begun.append(part)
                part = b"".join(begun) if last else b""
            if last:
                said.append(Said(kind, task, part))
            else:
                self._begun[pid, number] = begun or [part]
        self._rest = read[place:]


class Beside(Bearer):
    """What a worker is given to say things by, and what it is to say."""

    def __init__(self, writer: Lent, loudness: Loudness | None, file: OutputFile | None) -> None:
        self.writer = writer
        self.loudness = loudness
        self.file = file

    def _carried(self) -> list[object]:
        return [self.writer, self.file]

    def begin(self) -> Speaker:
        """Begin with it, in the worker."""
        capture: Capture | None = None
        if self.file is not None:
            from mpkit._worker.capture import Capture  # noqa: PLC0415  only who wants it needs it

            capture = Capture(self.file)
        speaker = Speaker(self.writer, capture)
        if self.loudness is not None:
            from mpkit._worker import logs  # noqa: PLC0415  likewise, and it is slow to import

            logs.begin(self.loudness, speaker.record, speaker.warning)
        return speaker


class Speaker:
    """Says what there is to say. Any thread of the worker may use it, and signal handlers."""

    def __init__(self, writer: Lent, capture: Capture | None) -> None:
        # A copy that processes which the worker forks have, too: so they can log.
        self._fd = fcntl.fcntl(writer.fd, fcntl.F_DUPFD_CLOEXEC, 3)
        writer.close()
        self._pipe = identity(self._fd)
        self._capture = capture
        self._numbers = itertools.count()
        self._task = 0

    def record(self, data: bytes) -> bool:
        """Send a log record; as `say`."""
        return self.say(RECORD, data)

    def warning(self, data: bytes) -> bool:
        """Send a warning; as `say`."""
        return self.say(WARNING, data)

    def say(self, kind: bytes, data: bytes) -> bool:
        """Send something about the task that runs; False if nobody is there any more.

        Blocks while the parent has much to read. When it returns, the kernel has it.
        """
        # Some task may have closed our descriptor, and it may be somebody's by now.
        if identity(self._fd) != self._pipe:
            return False
        try:
            for piece in pieces(Said(kind, self._task, data), os.getpid(), next(self._numbers)):
                os.write(self._fd, piece)
        except BrokenPipeError:
            return False
        return True

    def around(self, task: int, run: Callable[[], T]) -> T:
        """Run a task, and return what that does; say what it wrote before it is reported."""
        self._task = task
        try:
            if self._capture is None:
                return run()
            with self._captured(self._capture):
                return run()
        finally:
            self._task = 0

    @contextlib.contextmanager
    def _captured(self, capture: Capture) -> Generator[None, None, None]:
        capture.begin()
        try:
            yield
        finally:
            written = capture.end()
            if written:
                self.say(OUTPUT, written)
                capture.forget()
