"""What is closed when its process ends, so that others learn of it in good order.

Before the children of the process are waited for: they may be reading.
"""

from __future__ import annotations

import os
import weakref
from multiprocessing import util
from typing import Protocol

from mpkit import _platform


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
    _platform.call_at_exit(_close_all, 10)


def _close_all() -> None:
    for thing in list(_open):
        thing.close()
