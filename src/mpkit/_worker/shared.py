"""An object that all workers of a pool read: pickled once, and sent once to each.

It lies in memory that has no name, of which each worker is given the descriptor; so the kernel
frees it with the last process that has it, whichever way that ends. A worker unpickles it when
a task first asks for it. Large buffers are not copied then: all have the same pages.
"""

from __future__ import annotations

import pickle
import threading
from typing import TYPE_CHECKING, Any, Protocol

from mpkit import _fork, _pickling, _reader, _segment
from mpkit._worker.lent import Lent

if TYPE_CHECKING:
    from mpkit._reader import Reader

_NOTHING: Any = object()


class Shared(Protocol):
    """What `shared` returns, before somebody has asked for it."""

    def thing(self) -> Any:
        """Return the object itself, which is made the first time."""

    def close(self) -> None:
        """No other worker will be given it."""


class Packed(Lent):
    """The object in its memory, in the pool's process and in its workers."""

    def __init__(self, fd: int, used: int) -> None:
        """Own ``fd``. The caller holds `_fork.guard` since it was made."""
        super().__init__(fd)
        self._used = used
        self._thing = _NOTHING

    def _facts(self) -> tuple[Any, ...]:
        return (self._used,)

    def thing(self) -> Any:
        if self._thing is _NOTHING:
            if self.fd < 0:
                raise RuntimeError("what the pool shares was not asked for before this fork")
            # Each thread that comes here meanwhile makes one: no lock could be had in a fork.
            stream, *buffers = [part.toreadonly() for part in _segment.read(self.fd, self._used)]
            try:
                self._thing = pickle.loads(stream, buffers=buffers)
            except BaseException as error:
                error.add_note("(raised while a worker unpickled what its pool shares)")
                _reader.note_missing(error)
                raise
        return self._thing


class Here:
    """An object of this process, whose tasks run here."""

    def __init__(self, thing: object) -> None:
        self._thing = thing

    def thing(self) -> Any:
        return self._thing

    def close(self) -> None:
        """It is the user's."""


def pack(thing: object, reader: Reader) -> Packed:
    """Pickle an object for all workers to come, who are ``reader``. Raises NotPicklable, and OSError for no memory."""
    stream, buffers = _pickling.dumps(thing, "what the pool shares (shared=)", reader=reader)
    parts = [memoryview(stream), *(buffer.raw() for buffer in buffers)]
    loan, used = _segment.write(parts, reuse=False)
    with _fork.guard:
        fd, loan.fd = loan.fd, -1
        return Packed(fd, used)


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
