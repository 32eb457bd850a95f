"""Which semaphores this process has open, and how many objects share each.

Of a path there is one `Slots` in a process, with the one descriptor: closing a second one
would drop the locks of the first.
"""

from __future__ import annotations

from mpkit import _fork
from mpkit._errors import LimitMismatch
from mpkit._slots import Slots

#: By path; under `_fork.guard`.
_all: dict[str, Slots] = {}
_users: dict[str, int] = {}


def use(path: str, slots: int, place: str) -> Slots:
    """Return this process's `Slots` of ``path``; each call is to be matched by a `leave`."""
    with _fork.guard:
        # Counted first: a finalizer may run anywhere in here and leave the same path.
        _users[path] = _users.get(path, 0) + 1
        try:
            found = _all.get(path)
            if found is None:
                found = Slots(path, slots, place)
                _all[path] = found
                _fork.know(found)
            elif found.slots != slots:
                raise LimitMismatch(place, slots, found.slots)
        except BaseException:
            leave(path)
            raise
    return found


def leave(path: str) -> None:
    """Undo a `use`. The last one closes the file, unless a slot is still held."""
    with _fork.guard:
        _users[path] -= 1
        if _users[path]:
            return
        del _users[path]
        found = _all.get(path)
        if found is not None and not found.busy():
            del _all[path]
            found.close()
