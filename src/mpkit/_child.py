"""A process that this one started: how to wait for it and how to signal it."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

from mpkit import _fork, _lifeline, _reader, _wait
from mpkit._platform import descriptors, mains, stdlib
from mpkit._wait import Deadline

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.context import BaseContext
    from multiprocessing.process import BaseProcess

    from mpkit._reader import Forked


#: Seconds to wait for the exit code of a process that another thread has just reaped (arbitrary).
CODE_PATIENCE = 0.2

_NO_SERVER = (
    "the fork server has started no process: it has no room for one, or has ended "
    f"(does the program start processes while it is imported? {mains.GUARD})"
)


class Child:
    """A process that this one started, which dies with it; and how to wait for it.

    Never daemonic: it may have children of its own. Any thread may use it, of the process
    that started it. It begins with the variables of ``environment`` set, unless it is forked.
    Who knows what the arguments reach that is to move there, and lets go of it here himself, tells
    that by ``moves``; and ``common`` is what it will have of the main module, if that is known.
    """

    def __init__(
        self,
        main: Callable[..., None],
        args: tuple[Any, ...],
        context: BaseContext,
        name: str | None = None,
        environment: dict[str, str] | None = None,
        moves: tuple[object, ...] | None = None,
        common: Forked | None = None,
    ) -> None:
        make: Any = getattr(context, "Process")  # noqa: B009  BaseContext does not declare it
        lifeline = _lifeline.own()
        self.process: BaseProcess = make(
            target=_main, args=(lifeline, main, args, common), name=name, daemon=False
        )
        method = context.get_start_method()
        if environment and method != "fork":
            stdlib.have_environment(self.process, environment)
        if moves is not None and method == "fork":
            _fork.give_away(self.process, (lifeline, *moves))
        stdlib.start_helpers(method)
        try:
            self.process.start()
        except (EOFError, ConnectionError) as error:  # the fork server's, which may have a reason
            raise ConnectionError(_NO_SERVER) from error
        except OSError as error:
            stdlib.close_what_a_failed_fork_left(error)
            raise
        stdlib.have_it_polled_in_turns(self.process)
        pid = self.process.pid
        assert pid is not None
        self.pid: int = pid
        self.name: str = self.process.name
        self.owner: int = os.getpid()
        # Whether it was waited for. Not what its exit code is: that stays unknown if SIGCHLD
        # is ignored, or if somebody else has waited for it.
        self._ended = False
        self._exitcode: int | None = None
        # Guards waiting for the process: of two threads in waitpid(), one is told that
        # there is no such child. Re-entrant: a signal handler may wait or kill, too.
        self._reaping = threading.RLock()
        try:
            self._pidfd = descriptors.open_pidfd(pid)
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
    def ended(self) -> bool:
        """Whether the process has ended."""
        return self.join(0)

    @property
    def exitcode(self) -> int | None:
        """How the process ended; None while it lives, or if only somebody else was told."""
        return self._exitcode if self.ended else None

    def join(self, timeout: float | None) -> bool:
        """Wait for the end of the process, at most ``timeout`` seconds; tell if it came."""
        if not self._ended:
            if not _wait.poll([self.sentinel], timeout):
                return False
            with self._reaping:
                if not self._ended:
                    self._exitcode = self._reaped()
                    self._ended = True
        return True

    def _reaped(self) -> int | None:
        """Return the exit code of a process that has ended; None if it cannot be known."""
        self.process.join()
        # Somebody else was told if it is None. That may be another thread in
        # multiprocessing.active_children(), which is about to note it: no descriptor tells.
        deadline = Deadline(CODE_PATIENCE)
        while (code := self.process.exitcode) is None and not deadline.passed():
            time.sleep(0.001)
        if code is None:
            stdlib.forget_child(self.process)
        return code

    def signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        with self._reaping, contextlib.suppress(ProcessLookupError):
            if self._ended:
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


def _main(
    lifeline: _lifeline.Lifeline,
    main: Callable[..., None],
    args: tuple[Any, ...],
    common: Forked | None,
) -> None:
    lifeline.hold()
    stdlib.renew_standard_streams()
    _reader.begin(common)
    main(*args)
