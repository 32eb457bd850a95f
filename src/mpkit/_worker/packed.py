"""An object that all workers of a pool read: pickled once, and sent once to each.

It lies in memory that has no name, of which each worker is given the descriptor; so the kernel
frees it with the last process that has it, whichever way that ends. A worker unpickles it when
a task first asks for it. Large buffers are not copied then: all have the same pages.
"""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

from mpkit import _fork, _pickling, _reader, _segment
from mpkit._worker.lent import Lent

if TYPE_CHECKING:
    from mpkit._reader import Reader

_NOTHING: Any = object()


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


def pack(thing: object, reader: Reader) -> Packed:
    """Pickle an object for all workers to come, who are ``reader``. Raises NotPicklable, and OSError for no memory."""
    stream, buffers = _pickling.dumps(thing, "what the pool shares (shared=)", reader=reader)
    parts = [memoryview(stream), *(buffer.raw() for buffer in buffers)]
    loan, used = _segment.write(parts, reuse=False)
    with _fork.guard:
        fd, loan.fd = loan.fd, -1
        return Packed(fd, used)
