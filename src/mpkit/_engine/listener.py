"""Has what workers log and warn of handled in the parent, in a thread of its own.

Not in the supervisor: a handler may be slow, and may wait for a task of the pool. For that
reason nothing waits for this thread but `TaskPool.join`, not even who waits for a result: he may
be a handler, and hold the lock that the next record needs. What is to be handled waits here, and
not in the connection, or the task that the handler waits for might have no room to log.
"""

from __future__ import annotations

import logging
import queue
import threading
import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

from mpkit._task.task import report
from mpkit._worker import logs
from mpkit._worker.aside import WARNING

if TYPE_CHECKING:
    from mpkit._worker.aside import Said


class _Heard(NamedTuple):
    kind: bytes
    data: bytes
    task: str
    label: str


class Listener:
    """Handles log records and warnings in the order in which it was told of them."""

    def __init__(self) -> None:
        self._heard: queue.SimpleQueue[_Heard | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        # Which warnings were shown: for all workers together.
        self._shown: dict[Any, Any] = {}

    def start(self) -> None:
        """Begin. Raises RuntimeError if there is no room for a thread."""
        thread = threading.Thread(target=self._listen, name="mpkit log", daemon=True)
        thread.start()
        self._thread = thread

    def tell(self, said: Said, task: str, label: str) -> None:
        """Have this handled, soon. Never blocks."""
        self._heard.put(_Heard(said.kind, said.data, task, label))

    def end(self) -> None:
        """There is no more to come: leave when all was handled."""
        self._heard.put(None)

    def join(self, timeout: float | None) -> bool:
        """Wait until all was handled, after `end`."""
        if self._thread is None:
            return True
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def is_own_thread(self) -> bool:
        """Tell whether this is asked by a handler that it has called."""
        return threading.current_thread() is self._thread

    def _listen(self) -> None:
        while (heard := self._heard.get()) is not None:
            try:
                self._handle(heard)
            except BaseException as error:  # noqa: BLE001  a filter's, or a handler's own
                report(error, "raised while a log record of a worker was handled")

    def _handle(self, heard: _Heard) -> None:
        if heard.kind == WARNING:
            self._warn(logs.unpack_warning(heard.data))
            return
        record = logs.unpack_record(heard.data)
        # What the user has put there by these names stays.
        vars(record).setdefault("task", heard.task)
        vars(record).setdefault("label", heard.label)
        logger = logging.getLogger(record.name)
        if logger.isEnabledFor(record.levelno):
            logger.handle(record)

    def _warn(self, warned: logs.Warned) -> None:
        text, category, filename, line = warned
        try:
            warnings.warn_explicit(text, category, filename, line, registry=self._shown)
        except category:
            # It would be an error where it was given, if the filters had been these there.
            warnings.showwarning(category(text), category, filename, line)
