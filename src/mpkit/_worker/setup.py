"""What a new worker is told before its first task. It travels there, so this imports little."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mpkit._reach import Bearer

if TYPE_CHECKING:
    from mpkit._call import Call
    from mpkit._platform.threads import Threads
    from mpkit._worker.shared import Shared


class Setup(Bearer):
    """What each worker is given besides its connections."""

    def __init__(
        self,
        init: Call | None = None,
        finalizer: Call | None = None,
        threads: Threads | None = None,
        *,
        report_memory: bool = False,
    ) -> None:
        self.init = init
        self.finalizer = finalizer
        self.report_memory = report_memory
        #: How many threads libraries start in it; None leaves that to them.
        self.threads = threads
        #: What `shared` returns.
        self.shared: Shared | None = None

    def _carried(self) -> list[object]:
        return [self.init, self.finalizer, self.shared]

    def __getstate__(self) -> dict[str, Any]:
        # A worker that is spawned has all of it in its environment, and need not import how it is told.
        tells = self.threads is not None and self.threads.method != "spawn"
        return vars(self) if tells else vars(self) | {"threads": None}

    @property
    def empty(self) -> bool:
        """Whether nothing of the program's travels with it."""
        return self.init is None and self.finalizer is None and self.shared is None

    def close(self) -> None:
        """There will be no more workers: give back what only they need."""
        if self.shared is not None:
            self.shared.close()
