"""What leaves for a process that is being spawned, and when it is gone.

A thing that is pickled as an argument of ``multiprocessing.Process`` may let go of its
descriptor only once the new process has its copy, and multiprocessing tells nobody.
So departures are noted here, and settled by whoever next uses a channel.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from mpkit import _platform

if TYPE_CHECKING:
    from mpkit._parcel import Movable

#: What was pickled, with the ``Popen`` for which it was.
_departing: list[tuple[Any, Movable]] = []


def depart(popen: Any, thing: Movable) -> None:
    """Note that ``thing`` goes to the process that ``popen`` starts.

    If that fails to start, the thing stays, and may depart again.
    """
    _departing[:] = [noted for noted in _departing if noted[1] is not thing]
    _departing.append((popen, thing))


def settle() -> None:
    """Have the things whose new process has them let go of what they had here."""
    if not _departing:
        return
    for noted in list(_departing):
        popen, thing = noted
        if _platform.launched(popen):
            with contextlib.suppress(ValueError):  # another thread was here first
                _departing.remove(noted)
                thing._moved(f"moved to process {popen.pid}")
