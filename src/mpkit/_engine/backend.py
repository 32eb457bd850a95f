"""What a pool can run on: a small protocol.

`engine.Engine` is the one with processes. `inline.Inline` runs each call where it is
submitted, and `on_executor.OnExecutor` gives it to any `concurrent.futures.Executor`.
In what they differ is in ``docs/backends.md``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from mpkit._task.task import Control

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mpkit._call import Call
    from mpkit._engine.feeds import Feeds
    from mpkit._engine.shortcut import Volley
    from mpkit._reader import Reader
    from mpkit._task.options import Options
    from mpkit._task.task import Task
    from mpkit._watch.recorder import Recorder
    from mpkit._worker.packing import Each, Part


class Backend(Control, Protocol):
    """Runs calls and settles their tasks. Its methods may be called by any thread."""

    recorder: Recorder
    #: Who unpickles the calls; None if nobody does, or if it is not known.
    reader: Reader | None
    #: What it takes calls from, even after `close`.
    feeds: Feeds
    #: Seconds that a call and its result travel, if that is more than messages on one machine do.
    round_trip: float

    @property
    def workers(self) -> int:
        """How many calls run at a time at most: what chunks are sized by."""
        ...

    def check_open(self) -> None:
        """Raise `PoolClosed` if no calls are taken any more."""

    def check(self, options: Options) -> None:
        """Raise ValueError for options that this backend cannot honour."""

    def submit(self, task: Task[Any], call: Call, fed: bool = False) -> None:
        """Have ``call`` run and ``task`` settled.

        Raises `PoolClosed` after `close`, if it is not one of `feeds` that asks, and after
        `terminate`.
        """

    @property
    def submit_part(self) -> Callable[[Task[Any], Part, Volley | None], None] | None:
        """As `submit`, for a part of a chunk that was packed; None if chunks stay whole.

        What is submitted in a row has the same volley. What has none is fed.
        """

    @property
    def submit_chunk(self) -> Callable[[Task[Any], Each, list[Any]], None] | None:
        """As `submit`, for one of many chunks of a function; None if that is no matter."""

    @property
    def submit_small(self) -> Callable[[Sequence[Task[Any]], Sequence[bytes], bytes], None] | None:
        """As `submit_chunk`, for what `Each.pack_small` has packed: all or none of it."""

    def cancel_waiting(self) -> None:
        """Cancel the tasks that have not begun."""

    def later(self, call: Callable[[], None]) -> None:
        """Have this called when all results that are there are known, or at once.

        Who waits for many results is woken once, then. It must not raise.
        """

    def is_own_thread(self) -> bool:
        """Tell whether the calling thread is one that `join` would wait for."""
        ...

    def close(self) -> None:
        """Take no more calls but from `feeds`; finish those there are."""

    def terminate(self) -> None:
        """Take no more calls; cancel those that wait, end those that run."""

    def join(self, timeout: float | None) -> bool:
        """After one of these two, wait until all is over; tell whether it is."""
        ...


class NoControl(Control):
    """What a backend without a supervisor can do about tasks, which is next to nothing."""

    round_trip = 0.0

    def is_own_thread(self) -> bool:
        """As a `Backend` does."""
        raise NotImplementedError

    def recall(self, task: Task[Any]) -> bool:
        """What has begun cannot be had back."""
        return False

    def cancelled(self, task: Task[Any]) -> None:
        """It is passed over when its turn comes."""

    def kill(self, task: Task[Any]) -> bool:
        return False

    def check_waiter(self, task: Task[Any]) -> None:
        if self.is_own_thread():
            raise RuntimeError(f"a callback of a pool cannot wait for {task.name}")

    def later(self, call: Callable[[], None]) -> None:
        call()


def tries_again(task: Task[Any], error: BaseException, *, crashed: bool) -> bool:
    """Tell whether a task that failed is to be tried again; its last error tells of all.

    ``crashed``: by the death of its worker, or for lack of time.
    """
    wanted = crashed or isinstance(error, task.options.retry_on)
    if wanted and task.attempts <= task.options.retries:
        task.failed_once(error)
        return True
    task.note_attempts(error)
    return False
