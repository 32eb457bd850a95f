"""What is closed when its process ends, so that others learn of it in good order.

Before the children of the process are waited for: they may be reading.
"""

from __future__ import annotations

import os
import weakref
from multiprocessing import util
from typing import Protocol

from mpkit._platform import stdlib


class Closable(Protocol):
    """Something with a close()."""

    def close(self) -> None:
        """Close it; closing twice does nothing."""


_open: weakref.WeakSet[Closable] = weakref.WeakSet()
_registered_in: int | None = None


def close_at_exit(thing: Closable) -> None:
    """Close ``thing`` at the latest when this process, or a child that it moves to, ends."""
    _open.add(thing)
    if _registered_in is None:
        # A child of multiprocessing forgets its parent's registrations, and then calls this.
        util.register_after_fork(_open, lambda _: _register())
    if _registered_in != os.getpid():
        _register()


def _register() -> None:
    global _registered_in
    _registered_in = os.getpid()
    stdlib.call_at_exit(_close_all, 10)


def _close_all() -> None:
    try:
        # They may have something to say. The root of a program waits for them before it comes
        # here; a child of multiprocessing would do so afterwards.
        stdlib.wait_for_threads()
    finally:
        for thing in list(_open):
            thing.close()
