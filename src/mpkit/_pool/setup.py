"""What a new worker is told before its first task. It travels there, so this imports little."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from mpkit._call import Call


class Setup(NamedTuple):
    """What each worker is given besides its connections."""

    init: Call | None = None
    finalizer: Call | None = None
    report_memory: bool = False
