"""A process that this one started: how to wait for it and how to signal it."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from typing import TYPE_CHECKING, Any

from mpkit import _lifeline, _platform, _wait

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.context import BaseContext
    from multiprocessing.process import BaseProcess


class Child:
    """A process that this one started, which dies with it; and how to wait for it.

    Never daemonic: it may have children of its own. Any thread may use it.
    """

    def __init__(
        self,
        main: Callable[..., None],
        args: tuple[Any, ...],
        context: BaseContext,
        name: str | None = None,
    ) -> None:
        make: Any = getattr(context, "Process")  # noqa: B009  BaseContext does not declare it
        self.process: BaseProcess = make(
            target=_main, args=(_lifeline.own(), main, args), name=name, daemon=False
        )
        self.process.start()
        pid = self.process.pid
        assert pid is not None
        self.pid: int = pid
        self.name: str = self.process.name
        self._exitcode: int | None = None
        # Guards waiting for the process: of two threads in waitpid(), one is told that
        # there is no such child.
        self._reaping = threading.Lock()
        try:
            self._pidfd = _platform.open_pidfd(pid)
        except OSError:  # it is dead so soon, or no descriptor is left: the sentinel will do
            self._pidfd = None

    @property
    def sentinel(self) -> int:
        """A descriptor that becomes readable when the process ends.

        Not multiprocessing's, where there is a pidfd: under fork that one is a pipe,
        which also the child's own children keep open.
        """
        return self.process.sentinel if self._pidfd is None else self._pidfd

    @property
    def exitcode(self) -> int | None:
        """How the process ended; None while it lives."""
        if self._exitcode is None and _wait.poll([self.sentinel], 0):
            self.join(None)
        return self._exitcode

    def join(self, timeout: float | None) -> bool:
        """Wait for the end of the process, at most ``timeout`` seconds; tell if it came."""
        if self._exitcode is None:
            if not _wait.poll([self.sentinel], timeout):
                return False
            with self._reaping:
                if self._exitcode is None:
                    self.process.join()
                    self._exitcode = self.process.exitcode
        return True

    def signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        with self._reaping, contextlib.suppress(ProcessLookupError):
            if self._exitcode is not None:
                return
            if self._pidfd is not None:
                signal.pidfd_send_signal(self._pidfd, number)
            else:
                # While we have not reaped it, its pid is nobody else's. (Under forkserver
                # that is up to the server, which does it at once.)
                os.kill(self.pid, number)

    def __del__(self) -> None:
        # Not at the end of the process: a thread may still be polling it.
        pidfd = getattr(self, "_pidfd", None)
        if pidfd is not None:
            os.close(pidfd)


def _main(lifeline: _lifeline.Lifeline, main: Callable[..., None], args: tuple[Any, ...]) -> None:
    lifeline.hold()
    main(*args)
