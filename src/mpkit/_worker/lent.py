"""A descriptor that a new process gets a copy of."""

from __future__ import annotations

import os
from multiprocessing.reduction import DupFd
from typing import TYPE_CHECKING, Any

from mpkit import _fork

if TYPE_CHECKING:
    from collections.abc import Callable


class Lent:
    """A descriptor that is open here, and in each process among whose arguments this is.

    In no other one: a forked child to which it was not given closes its copy.
    """

    def __init__(self, fd: int) -> None:
        """Own ``fd``, which was made since the caller took `_fork.guard`."""
        self.fd: int = fd
        _fork.know(self)

    def close(self) -> None:
        """Give the descriptor back. More than once is fine."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        if hasattr(self, "fd"):
            self.close()

    def __reduce__(self) -> tuple[Callable[..., Lent], tuple[Any, ...]]:
        # Only while a process is being spawned, with this among its arguments.
        return _arrive, (type(self), DupFd(self.fd))

    def _before_fork(self) -> None:
        """Nothing to decide: the arguments of the new process say what travels."""

    def _after_fork_in_parent(self) -> None:
        """It stays here as well."""

    def _after_fork_in_child(self) -> None:
        if not _fork.travels(self):
            self.close()


def _arrive(kind: type[Lent], copy: Any) -> Lent:
    with _fork.guard:
        fd: int = copy.detach()
        os.set_inheritable(fd, False)  # it is while a spawned process begins
        return kind(fd)
