"""What a pool can run on: a small protocol, and its two simplest implementations.

`engine.Engine` is the one with processes. `Inline` runs each call where it is
submitted, and `OnExecutor` gives it to any `concurrent.futures.Executor`.
"""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Any, Protocol

from mpkit._errors import PoolClosed
from mpkit._platform.stdlib import Condition
from mpkit._pool import shared
from mpkit._pool.feeds import Feeds
from mpkit._pool.options import pause_before
from mpkit._pool.recorder import Recorder
from mpkit._pool.task import Control, is_ctrl_c, report

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor, Future

    from mpkit._call import Call
    from mpkit._pool.options import Options
    from mpkit._pool.packing import Each, Part
    from mpkit._pool.setup import Setup
    from mpkit._pool.task import Task
    from mpkit._reader import Reader


class Backend(Control, Protocol):
    """Runs calls and settles their tasks. Its methods may be called by any thread."""

    #: How many calls run at a time at most: what chunks are sized by.
    workers: int
    recorder: Recorder
    #: Who unpickles the calls; None if nobody does, or if it is not known.
    reader: Reader | None
    #: What it takes calls from, even after `close`.
    feeds: Feeds

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
    def submit_part(self) -> Callable[[Task[Any], Part, bool], None] | None:
        """As `submit`, for a part of a chunk that was packed; None if chunks stay whole."""

    @property
    def submit_chunk(self) -> Callable[[Task[Any], Each, list[Any]], None] | None:
        """As `submit`, for one of many chunks of a function; None if that is no matter."""

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
    """For tasks that nobody can have back or kill once they were handed over."""

    def recall(self, task: Task[Any]) -> bool:
        return False

    def cancelled(self, task: Task[Any]) -> None:
        """Nobody has to know."""

    def kill(self, task: Task[Any]) -> bool:
        return False

    def check_waiter(self, task: Task[Any]) -> None:
        """It may wait: somebody else's thread will settle it, or has."""

    def later(self, call: Callable[[], None]) -> None:
        call()

    def is_own_thread(self) -> bool:
        return False


class Inline(NoControl):
    """Runs each call in the thread that submits it, for debugging and for tests."""

    workers = 1
    submit_part = None
    submit_chunk = None
    reader: Reader | None = None

    def __init__(self, setup: Setup) -> None:
        self.recorder = Recorder()
        self.recorder.worker_started(os.getpid())
        self._closed = False
        self.feeds = Feeds()
        self._shared = setup.shared
        self._finalizer = setup.finalizer
        if setup.init is not None:
            self._call(setup.init)

    def check(self, options: Options) -> None:
        if options.timeout is not None:
            raise ValueError(
                "a pool of 0 workers runs tasks here, and cannot stop them: no timeout"
            )

    def check_open(self) -> None:
        if self._closed:
            raise PoolClosed("the pool", "it was closed")

    def submit(self, task: Task[Any], call: Call, fed: bool = False) -> None:
        if not fed:
            self.check_open()
        self.recorder.submitted += 1
        task.set_running_or_notify_cancel()
        while not task.done():
            task.attempts += 1
            began = time.monotonic()
            error: Exception | None = None
            value: Any = None
            try:
                value = self._call(call)
            except Exception as raised:  # noqa: BLE001  to be raised by the task
                error = raised
            span = task, began, time.monotonic(), error is not None
            self.recorder.tasks_ended(os.getpid(), [span])
            if error is None:
                task.set_result(value)
            elif not _tries_again(task, error):
                self.recorder.task_failed()
                task.set_exception(error)
            else:
                self.recorder.task_retried(os.getpid(), task.name)
                time.sleep(pause_before(task.options, task.attempts))

    def _call(self, call: Call) -> Any:
        before = shared.use_here(self._shared)
        try:
            return call.fn(*call.args, **call.kwargs)
        finally:
            shared.use_here(before)

    def cancel_waiting(self) -> None:
        """None ever waits."""

    def close(self) -> None:
        self._closed = True
        self.feeds.close(self._end)

    def _end(self) -> None:
        finalizer, self._finalizer = self._finalizer, None  # this may be called again
        try:
            if finalizer is not None:
                self._call(finalizer)
        except BaseException as error:
            if is_ctrl_c(error):
                raise
            report(error, "raised by the finalizer")
        finally:
            self.recorder.close()

    def terminate(self) -> None:
        self.feeds.stop()
        self.close()

    def join(self, timeout: float | None) -> bool:
        return True


class OnExecutor(NoControl):
    """Runs calls on an executor of somebody else's, which is not shut down with the pool."""

    submit_part = None
    submit_chunk = None
    reader: Reader | None = None

    def __init__(self, executor: Executor) -> None:
        self.recorder = Recorder()
        self.workers = int(getattr(executor, "_max_workers", 0)) or 1
        self._executor = executor
        self._closed = False
        self.feeds = Feeds()
        self._pending: set[Task[Any]] = set()
        self._none_pending = Condition()

    def check(self, options: Options) -> None:
        kind = type(self._executor).__name__
        for name, asked in (
            ("timeout", options.timeout is not None),
            ("priority", options.priority != 0),
            ("backoff", options.backoff != 0),
        ):
            if asked:
                raise ValueError(f"a pool on a {kind} cannot honour {name}=: the executor has none")
        if options.seed is not None and _has_threads(self._executor):
            raise ValueError(
                f"a pool on a {kind} cannot honour seed=: its threads share their random numbers"
            )

    def check_open(self) -> None:
        if self._closed:
            raise PoolClosed("the pool", "it was closed")

    def submit(self, task: Task[Any], call: Call, fed: bool = False) -> None:
        if not fed:
            self.check_open()
        try:
            with self._none_pending:
                self._pending.add(task)
            self._try(task, call)
        except BaseException:  # the executor's; or a Ctrl-C, and then nobody has the task
            self._settled(task)
            raise

    def _try(self, task: Task[Any], call: Call) -> None:
        task.attempts += 1
        inner = self._executor.submit(call.fn, *call.args, **call.kwargs)

        def settle(inner: Future[Any]) -> None:
            if inner.cancelled():
                task.cancel()
                task.set_running_or_notify_cancel()
            elif (error := inner.exception()) is None:
                if task.running() or task.set_running_or_notify_cancel():
                    task.set_result(inner.result())
            elif _tries_again(task, error):
                try:
                    self._try(task, call)
                except Exception:  # noqa: BLE001  it was shut down: then this is how it ended
                    task.set_exception(error)
                else:
                    return
            elif task.running() or task.set_running_or_notify_cancel():
                task.set_exception(error)
            self._settled(task)

        task.add_done_callback(lambda task: inner.cancel() if task.cancelled() else None)
        inner.add_done_callback(settle)

    def _settled(self, task: Task[Any]) -> None:
        with self._none_pending:
            self._pending.discard(task)
            self._none_pending.notify_all()

    def cancel_waiting(self) -> None:
        for task in list(self._pending):
            task.cancel()

    def close(self) -> None:
        self._closed = True
        self.feeds.close(self._fed)

    def _fed(self) -> None:
        with self._none_pending:
            self._none_pending.notify_all()

    def terminate(self) -> None:
        self._closed = True
        self.feeds.stop()
        self.feeds.close(self._fed)
        self.cancel_waiting()

    def join(self, timeout: float | None) -> bool:
        with self._none_pending:
            return self._none_pending.wait_for(
                lambda: not self._pending and not self.feeds, timeout
            )


def _has_threads(executor: Executor) -> bool:
    module: Any = sys.modules.get("concurrent.futures.thread")  # imported if there is one
    return module is not None and isinstance(executor, module.ThreadPoolExecutor)


def _tries_again(task: Task[Any], error: BaseException) -> bool:
    """Tell whether a task that raised this is to be tried again; its last error tells of all."""
    if task.attempts <= task.options.retries and isinstance(error, task.options.retry_on):
        task.failed_once(error)
        return True
    task.note_attempts(error)
    return False
