"""What is recorded of a pool from some moment on, and written to a file: the trunk of all kinds."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple, Self

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType


class Run(NamedTuple):
    """A task that a worker ran: one attempt. Times are those of `time.monotonic`."""

    #: The place of the worker, and its process.
    lane: int
    pid: int
    #: What the task is called, and its function.
    name: str
    what: str
    attempt: int
    #: When it was there, and when it was begun with and ended. Of one that was ``lost`` it is
    #: not known when it began: then that is when it can have, at the earliest.
    since: float
    began: float
    ended: float
    #: "done", "failed" or "lost".
    outcome: str
    #: Bytes of the call and of its result.
    sent: int
    received: int


class Picture:
    """Something that is being recorded. Its pool holds a lock while it tells of anything.

    A picture must never raise when it is told something, for that ends the pool: what goes
    wrong with its file is kept, and raised by `close`.
    """

    def __init__(self, path: str, forget: Callable[[Picture], bool]) -> None:
        """Not for users: pools make them. ``forget`` tells if it was still being told of things."""
        self.path = path
        # Now, so that a path that cannot be written fails now, and not after the run; and there
        # may be no descriptor left by then. Without a buffer, which a forked child would write, too.
        self._file = open(path, "wb", buffering=0)  # noqa: SIM115  closed by close()
        self._forget = forget
        self._pid = os.getpid()
        self._error: OSError | None = None

    def worker_started(self, lane: int, pid: int, when: float) -> None:
        """Note that there is a worker."""
        raise NotImplementedError

    def worker_ended(self, lane: int, pid: int, when: float, reason: str, crashed: bool) -> None:
        """Note that it is gone."""
        raise NotImplementedError

    def ran(self, run: Run) -> None:
        """Note what a worker did."""
        raise NotImplementedError

    def retried(self, lane: int, what: str, when: float) -> None:
        """Note that a task which failed in a worker is to be tried again."""
        raise NotImplementedError

    def _finish(self) -> None:
        """Write what is not written."""
        raise NotImplementedError

    def close(self) -> None:
        """Write the file. Closing twice does nothing.

        Raises:
            OSError: the file could not be written, now or before.

        """
        if not self._forget(self):
            return
        try:
            if os.getpid() == self._pid:  # in a forked child it is the parent's
                self._finish()
        finally:
            self._file.close()
        if self._error is not None:
            raise self._error

    def _write(self, data: bytes, at: int) -> None:
        """Write all of it, to that place of the file."""
        left = memoryview(data)
        while left:
            written = os.pwrite(self._file.fileno(), left, at)
            left, at = left[written:], at + written

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
