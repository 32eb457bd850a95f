"""What `shared` returns: an object that all workers of a pool read. See `packed` for how they have it."""

from __future__ import annotations

import threading
from typing import Any, Protocol


class Shared(Protocol):
    """What `shared` returns, before somebody has asked for it."""

    def thing(self) -> Any:
        """Return the object itself, which is made the first time."""

    def close(self) -> None:
        """No other worker will be given it."""


class Here:
    """An object of this process, whose tasks run here."""

    def __init__(self, thing: object) -> None:
        self._thing = thing

    def thing(self) -> Any:
        return self._thing

    def close(self) -> None:
        """It is the user's."""


class _Current(threading.local):
    """What the pool shares whose task this thread runs, if it runs it here."""

    here: Shared | None = None


_current = _Current()
#: What the pool shares whose worker this process is.
_worker: Shared | None = None


def use(given: Shared | None) -> None:
    """Have this process be a worker that was given this."""
    global _worker
    _worker = given
    _current.here = None  # under fork it may be the parent's


def use_here(given: Shared | None) -> Shared | None:
    """Have this thread run tasks that are given this; return what it was before."""
    before, _current.here = _current.here, given
    return before


def shared() -> Any:
    """Return what the pool that runs this task was given as ``TaskPool(shared=...)``.

    For large data that many tasks read. It was pickled once, when the pool was made, and a
    worker has unpickled it when a task first asked. Large arrays (of NumPy, say) are not
    copied: all workers have the same memory, and can only read it. All else is the worker's
    own copy, of which other workers see no change. With ``workers=0`` it is the object itself.

    Raises:
        RuntimeError: the pool shares nothing, or no pool runs this.

    Example:
        >>> import mpkit
        >>> def price(fruit):
        ...     return mpkit.shared()[fruit]
        >>> with mpkit.TaskPool(0, shared={"apple": 3, "pear": 4}) as pool:
        ...     pool.map(price, ["pear", "apple"])
        [4, 3]

    """
    given = _current.here or _worker
    if given is None:
        raise RuntimeError("nothing is shared here: TaskPool(shared=...) has its tasks share it")
    return given.thing()
