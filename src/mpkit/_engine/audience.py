"""Hears what workers say beside their reports, in the parent: see `aside`."""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import TYPE_CHECKING

from mpkit import _fork
from mpkit._frames import Malformed
from mpkit._worker.aside import OUTPUT, Assembly, Beside
from mpkit._worker.lent import Lent

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from typing import Any

    from mpkit._engine.listener import Listener
    from mpkit._task.task import Task
    from mpkit._worker.aside import Said
    from mpkit._worker.capture import OutputFile

#: Bytes to ask for room for. While it is full, workers wait; with less they wait more often.
#: (Arbitrary, and four times what a pipe has anyway. A user's pipes may have 64 MiB together.)
_ROOM = 2**18

#: How often to read of one worker before its reports are looked at, at most. (Each time may be all
#: that there is room for, and it may go on to write.)
MOST = 64


class Ear:
    """The parent's end of what one worker says."""

    def __init__(self, reader: int, file: OutputFile | None) -> None:
        """Own the reading end of a pipe, which was made since the caller took `_fork.guard`."""
        self._reader = _fork.owned([reader])
        os.set_blocking(reader, False)
        #: What to watch; -1 if it was closed.
        self.fd = reader
        self.file = file
        self._assembly = Assembly()
        #: Whether there will be no more.
        self.down = False
        #: Of which task it has told the output, and how much of that.
        self.told: tuple[int, int] = 0, 0

    def said(self, most: int) -> Iterator[list[Said]]:
        """Read so often at most; yield what was said each time. Never blocks."""
        for _ in range(most):
            if self.down:
                return
            try:
                read = os.read(self.fd, _ROOM)
            except BlockingIOError:
                return
            said: list[Said] = []
            try:
                self._assembly.add(read, said)
            except Malformed:  # some task has written there: nothing is believed any more
                self.down = True
            self.down |= not read
            yield said

    def close_pipe(self) -> None:
        """Hear no more. Nor does anybody wait for us to read, then."""
        self.fd = -1  # it may soon be another one's
        self._reader.close()

    def close(self) -> None:
        """Give the descriptors back."""
        self.down = True
        self.close_pipe()
        if self.file is not None:
            self.file.close()


class Audience:
    """Passes on what workers say. Used by the supervisor thread only, but for `join`."""

    def __init__(self, threshold: int | None, *, capture: bool, forks: bool) -> None:
        self._threshold = threshold
        self._capture = capture
        self._forks = forks
        self._listener: Listener | None = None
        if threshold is not None:
            from mpkit._engine.listener import Listener  # noqa: PLC0415  slow to import: logging

            self._listener = Listener()

    def start(self) -> None:
        """Begin to handle records. Raises RuntimeError if there is no room for a thread."""
        if self._listener is not None:
            self._listener.start()

    def seat(self) -> tuple[Ear, Beside]:
        """Return both ends for a new worker. It is as quiet as this process is now."""
        file: OutputFile | None = None
        loudness = None
        if self._capture:
            from mpkit._worker.capture import OutputFile  # noqa: PLC0415  only who wants it needs it

            file = OutputFile.made()
        if self._threshold is not None:
            from mpkit._worker import logs  # noqa: PLC0415  slow to import

            loudness = logs.loudness(self._threshold, forks=self._forks)
        with _fork.guard:
            reader, writer = os.pipe()
            ear, lent = Ear(reader, file), Lent(writer)
        if hasattr(fcntl, "F_SETPIPE_SZ"):
            with contextlib.suppress(OSError):  # then it has less
                fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, _ROOM)
        return ear, Beside(lent, loudness, file)

    def attend(
        self, task_of: Callable[[int], Task[Any] | None], unwatch: Callable[[int], None]
    ) -> None:
        """Know how to find a task that is not settled, and how to watch a descriptor no more."""
        self._task_of, self._unwatch = task_of, unwatch

    def hear(self, ear: Ear) -> None:
        """Pass on what a worker has said, or some of it, if that is much."""
        for all_said in ear.said(1):
            self._pass_on(ear, all_said)
        self._leave_if_down(ear)

    def hear_of(self, ear: Ear, tasks: Collection[int]) -> None:
        """Pass on all that a worker has said before it reported these tasks."""
        for all_said in ear.said(MOST):
            self._pass_on(ear, all_said)
            if any(said.task and said.task not in tasks for said in all_said):
                break  # that was later, and so is all that follows
        self._leave_if_down(ear)

    def last_words(self, ear: Ear, running: int | None) -> None:
        """A worker is dead: pass on what it has said, and what the task has written that it ran."""
        for all_said in ear.said(MOST):
            self._pass_on(ear, all_said)
        if ear.file is None or running is None:
            return
        task, (told_of, told) = self._task_of(running), ear.told
        if task is not None:
            task.wrote(ear.file.since(told if told_of == running else 0))

    def _leave_if_down(self, ear: Ear) -> None:
        if ear.down and ear.fd >= 0:
            self._unwatch(ear.fd)  # before it is another one's number
            ear.close_pipe()

    def _pass_on(self, ear: Ear, all_said: list[Said]) -> None:
        for said in all_said:
            task = self._task_of(said.task) if said.task else None
            if said.kind == OUTPUT:
                ear.told = said.task, len(said.data)
                if task is not None:
                    task.wrote(said.data)
            elif self._listener is not None:
                label = "" if task is None else task.options.label or ""
                self._listener.tell(said, "" if task is None else task.name, label)

    def end(self) -> None:
        """All workers are gone."""
        if self._listener is not None:
            self._listener.end()

    def join(self, timeout: float | None) -> bool:
        """Wait until all records are handled; tell whether they are."""
        return self._listener is None or self._listener.join(timeout)

    def is_own_thread(self) -> bool:
        """Tell whether the calling thread is the one that handles records."""
        return self._listener is not None and self._listener.is_own_thread()
