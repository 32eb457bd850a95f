"""A child does not outlive the parent that started it.

A process keeps the writing end of one pipe, its lifeline, and gives each child that it
starts the reading end. The kernel closes the writing end when the process dies,
however it dies, and then kills the children (or, where it cannot, a thread of theirs
does). Forked children close their copy of the writing end.
"""

from __future__ import annotations

import os
import select
import signal
import threading
from multiprocessing.reduction import DupFd
from typing import Any

from mpkit import _fork
from mpkit._platform import descriptors


class Lifeline:
    """The pipe of one process; in a child, the reading end of its parent's."""

    def __init__(self, reader: int, writer: int | None) -> None:
        self._reader = reader
        self._writer = writer

    def hold(self) -> None:
        """Have this process die with the one that made the lifeline. For a new child."""
        if not self._ask_the_kernel():
            watching = threading.Thread(target=self._watch, name="mpkit lifeline", daemon=True)
            # It takes no signals: one that all other threads have blocked, in order to
            # wait for it, would end the process by it.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            try:
                watching.start()
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _ask_the_kernel(self) -> bool:
        # Each child needs an open file of its own, for it has one owner to be killed.
        try:
            fd = os.open(f"/proc/self/fd/{self._reader}", os.O_RDONLY | os.O_NONBLOCK)
        except OSError:
            return False
        if not descriptors.die_when_hung_up(fd):
            os.close(fd)
            return False
        os.close(self._reader)
        self._reader = fd
        # The parent may have died before we asked.
        poller = select.poll()
        poller.register(fd, 0)
        if poller.poll(0):
            _die()
        return True

    def _watch(self) -> None:
        poller = select.poll()
        poller.register(self._reader, 0)
        poller.poll()
        _die()

    def __reduce__(self) -> tuple[Any, ...]:
        return _arrive, (DupFd(self._reader),)

    def _before_fork(self) -> None:
        """Nothing to decide."""

    def _after_fork_in_parent(self) -> None:
        """Nothing to let go of: the next child gets the same."""

    def _after_fork_in_child(self) -> None:
        global _own
        if _own is self:
            _own = None
        if self._writer is not None:
            os.close(self._writer)
            self._writer = None
            if not _fork.travels(self):
                os.close(self._reader)


_own: Lifeline | None = None


def own() -> Lifeline:
    """Return this process' lifeline, to give to the children that it starts."""
    global _own
    if _own is None:
        with _fork.guard:
            if _own is None:
                _own = Lifeline(*os.pipe())
                _fork.know(_own)
    return _own


def _arrive(copy: Any) -> Lifeline:
    reader = copy.detach()
    os.set_inheritable(reader, False)  # it is while a spawned process begins
    return Lifeline(reader, None)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
