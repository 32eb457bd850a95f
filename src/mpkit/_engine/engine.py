"""A pool's processes as callers see them. Behind it is the `Supervisor`, which runs them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mpkit import _reader
from mpkit._engine.feeds import Feeds
from mpkit._engine.supervisor import Supervisor
from mpkit._errors import PoolClosed
from mpkit._watch.recorder import Recorder
from mpkit._worker import packing

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mpkit._call import Call
    from mpkit._engine.settings import Settings
    from mpkit._engine.shortcut import Volley
    from mpkit._parcel import Parcel
    from mpkit._reader import Reader
    from mpkit._task.options import Options
    from mpkit._task.task import Task
    from mpkit._worker.packing import Each, Part

_CLOSED = "it was closed"


class Engine:
    """Runs tasks on processes of its own. Any thread may call all of it."""

    round_trip = 0.0

    def __init__(self, settings: Settings) -> None:
        self.workers = settings.workers
        # Before the first of them are started: that is how much all of them have.
        self.reader: Reader | None = _reader.child(settings.context.get_start_method())
        self.recorder = Recorder()
        self.feeds = Feeds()
        self._closed_because: str | None = None
        self._supervisor = Supervisor(settings, self.recorder, self.reader)

    def check(self, options: Options) -> None:
        """There is no option that this backend cannot honour."""

    def submit(self, task: Task[Any], call: Call, fed: bool = False) -> None:
        """Pack the call here, in the caller's thread, and hand it over.

        Raises NotPicklable, naming what cannot travel, and `PoolClosed`.
        """
        self.check_open(fed)
        head, parcel = packing.pack(call, self.reader)
        if parcel is not None:
            _take_along(parcel, task)
        self._supervisor.submit(task, head, parcel)

    def submit_chunk(self, task: Task[Any], each: Each, chunk: list[Any]) -> None:
        """As `submit`, for one of many chunks that a function is called with, which are fed."""
        self.check_open(True)
        head, parcel, common = each.pack(chunk)
        if parcel is not None:
            _take_along(parcel, task)
        self._supervisor.submit(task, head, parcel, common)

    def submit_small(
        self, tasks: Sequence[Task[Any]], chunks: Sequence[bytes], common: bytes
    ) -> None:
        """As `submit_chunk`, for what `Each.pack_small` has packed: all or none of it."""
        self.check_open(True)
        self._supervisor.submit_small(tasks, chunks, common)

    def submit_part(self, task: Task[Any], part: Part, volley: Volley | None) -> None:
        """As `submit`, for a part of a chunk that was packed."""
        self.check_open(volley is None)
        head, parcel = part.seal()
        self._supervisor.submit(task, head, parcel, volley=volley)

    def close(self) -> None:
        """Take no more tasks; the workers leave when all are done."""
        if self._closed_because is None:
            self._closed_because = _CLOSED
        # The second time, too: a Ctrl-C may have ended the first one just here.
        self.feeds.close(self._supervisor.close)

    def terminate(self) -> None:
        """Take no more tasks, cancel those that wait, kill the workers. Does not wait."""
        self._closed_because = "it was terminated"
        self.feeds.stop()
        self._supervisor.terminate()

    def join(self, timeout: float | None) -> bool:
        """Wait until the workers have left and every task is settled."""
        if self.is_own_thread():
            raise RuntimeError(
                "a callback of a pool, or a handler of its log, cannot wait for the end of the pool"
            )
        return self._supervisor.join(timeout)

    def cancel_waiting(self) -> None:
        """Cancel the tasks with which no worker has begun."""
        self._check_process()
        self._supervisor.cancel_waiting()

    def recall(self, task: Task[Any]) -> bool:
        """Take back a task from the inbox of its worker; tell whether it was in there."""
        return self._supervisor.ours and self._supervisor.recall(task)

    def cancelled(self, task: Task[Any]) -> None:
        """End the pause of a task that was to be tried again."""
        if self._supervisor.ours:  # or a forked child has cancelled its copy
            self._supervisor.cancelled(task)

    def kill(self, task: Task[Any]) -> bool:
        """End a task that runs, by killing its worker."""
        if not self._supervisor.ours or task.done():
            return False
        self._supervisor.kill(task)
        return True

    def later(self, call: Callable[[], None]) -> None:
        """Have this called, once, when what workers have reported is taken in."""
        self._supervisor.later(call)

    def is_own_thread(self) -> bool:
        """Tell whether the calling thread is one that `join` would wait for."""
        return self._supervisor.is_own_thread() or self._supervisor.handles_records()

    def check_waiter(self, task: Task[Any]) -> None:
        self._check_process()
        if self._supervisor.is_own_thread():
            raise RuntimeError(f"a callback of a pool cannot wait for {task.name}")

    def _check_process(self) -> None:
        if not self._supervisor.ours:
            why = f"it belongs to process {self._supervisor.pid}; make one in this process"
            raise PoolClosed("the pool", why)

    def check_open(self, fed: bool = False) -> None:
        why_not = self._closed_because
        if why_not is None and self._supervisor.ours and not self._supervisor.ends:
            return
        self._check_process()
        if why_not is None and self._supervisor.ends:
            why_not = "its supervisor failed"
        if why_not is not None and not (fed and why_not == _CLOSED):
            raise PoolClosed("the pool", why_not)


def _take_along(parcel: Parcel, task: Task[Any]) -> None:
    """Take over what a call carries; its buffers are copied, and their owner may change them."""
    parcel.own()
    parcel.depart(f"moved to the worker that runs {task.name}")
