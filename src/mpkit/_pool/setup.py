"""What a new worker is told before its first task. It travels there, so this imports little."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from mpkit._call import Call
    from mpkit._platform.threads import Threads


class Setup(NamedTuple):
    """What each worker is given besides its connections."""

    init: Call | None = None
    finalizer: Call | None = None
    report_memory: bool = False
    #: How many threads libraries start in it; None leaves that to them.
    threads: Threads | None = None
