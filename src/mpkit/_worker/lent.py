"""A descriptor that a new process gets a copy of."""

from __future__ import annotations

import os
from multiprocessing.reduction import DupFd
from typing import TYPE_CHECKING, Any

from mpkit import _fork
from mpkit._segment import Loan

if TYPE_CHECKING:
    from collections.abc import Callable


class Lent(Loan):
    """A descriptor that is open here, and in each process among whose arguments this is.

    In no other one: a forked child to which it was not given closes its copy.
    """

    def _facts(self) -> tuple[Any, ...]:
        """Return what is known of it besides: what it is made of there, behind the descriptor."""
        return ()

    def __reduce__(self) -> tuple[Callable[..., Lent], tuple[Any, ...]]:
        # Only while a process is being spawned, with this among its arguments.
        return _arrive, (type(self), DupFd(self.fd), *self._facts())

    def _after_fork_in_child(self) -> None:
        if not _fork.travels(self):
            self.close()


def _arrive(kind: Callable[..., Lent], copy: Any, *facts: Any) -> Lent:
    with _fork.guard:
        fd: int = copy.detach()
        os.set_inheritable(fd, False)  # it is while a spawned process begins
        return kind(fd, *facts)
