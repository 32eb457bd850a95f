"""`OnExecutor`: gives calls to an executor of somebody else's.

What it can do is what a `concurrent.futures.Executor` can: to begin with a call, and to cancel
one that it has not begun. What else is asked for is refused. In how its ends are told it is
like a pool of processes, as far as the executor tells.
"""

from __future__ import annotations

import functools
import sys
import threading
import time
from concurrent.futures import BrokenExecutor, ThreadPoolExecutor
from concurrent.futures.thread import BrokenThreadPool
from typing import TYPE_CHECKING, Any, Final, NoReturn

from mpkit import _outcome
from mpkit._engine.backend import NoControl, tries_again
from mpkit._engine.feeds import Feeds
from mpkit._errors import PoolClosed, WorkerDied, WorkerInitError
from mpkit._platform.cores import usable_cores
from mpkit._platform.stdlib import Condition
from mpkit._task.options import Options
from mpkit._task.task import add_note
from mpkit._watch.recorder import Recorder

if TYPE_CHECKING:
    from concurrent.futures import Executor, Future

    from mpkit._call import Call
    from mpkit._reader import Reader
    from mpkit._task.task import Task

#: What an executor can be asked for, since it is done here. All else is refused, also what
#: there will be one day.
_HONOURED: Final = frozenset({"label", "name", "propagate", "retries", "retry_on", "seed"})

#: In the place of a pid, for all that the executor runs on.
EXECUTOR: Final = 0

_CLOSED = "it was closed"


class _Here(threading.local):
    """What a thread is about."""

    #: How many callbacks it is in.
    telling = 0


class OnExecutor(NoControl):
    """Runs calls on an executor, which is not shut down with the pool. Any thread may call it."""

    submit_part = None
    submit_chunk = submit_small = None
    #: What can travel is the executor's affair.
    reader: Reader | None = None

    def __init__(self, executor: Executor) -> None:
        self.recorder = Recorder()
        self.recorder.worker_started(EXECUTOR)
        self.workers = _size(executor)
        self._executor = executor
        self._kind = type(executor).__name__
        #: Dask runs what it takes for the same call once, for all that ask for it.
        self._extra: dict[str, Any] = {"pure": False} if _takes_calls_for_pure(executor) else {}
        self._closed_because: str | None = None
        #: What the executor said when it broke. It is not asked again: it may hold its own lock
        #: while it says so, and who submits in a callback would wait for that for ever.
        self._broken: BrokenExecutor | None = None
        self.feeds = Feeds()
        self._here = _Here()
        self._all_settled = Condition()
        #: The tasks that the executor has, and its own name for each of them.
        self._given: dict[Task[Any], Future[Any] | None] = {}

    def check(self, options: Options) -> None:
        if options.seed is not None and isinstance(self._executor, ThreadPoolExecutor):
            raise ValueError(
                f"a pool on a {self._kind} cannot honour seed=: its threads share their random "
                "numbers"
            )
        for name, usual in Options()._asdict().items():
            if name not in _HONOURED and getattr(options, name) != usual:
                raise ValueError(
                    f"a pool on a {self._kind} cannot honour {name}=, for which an executor has no "
                    "means: leave it out, or have the pool start its own workers (without on=)"
                )

    def check_open(self, fed: bool = False) -> None:
        if self._broken is not None:
            self._refuse(self._broken)
        why = self._closed_because
        if why is not None and not (fed and why == _CLOSED):
            raise PoolClosed("the pool", why)

    def submit(self, task: Task[Any], call: Call, fed: bool = False) -> None:
        self.check_open(fed)
        try:
            with self._all_settled:
                self._given[task] = None
                self.recorder.submitted += 1
            task.set_running_or_notify_cancel()
            self._try(task, call)
        except BaseException:  # the executor's; or a Ctrl-C, and then nobody has the task
            self._settled(task)
            raise

    def _try(self, task: Task[Any], call: Call) -> None:
        task.attempts += 1
        began = time.monotonic()
        try:
            # Its submit may have keywords of its own, which these are not.
            fn = functools.partial(call.fn, **call.kwargs) if call.kwargs else call.fn
            inner = self._executor.submit(fn, *call.args, **self._extra)
        except RuntimeError as error:
            if isinstance(error, BrokenExecutor) or "shutdown" in str(error):
                self._refuse(error)
            raise
        self._given[task] = inner
        inner.add_done_callback(lambda inner: self._ended(task, call, inner, began))

    def _refuse(self, error: RuntimeError) -> NoReturn:
        raise PoolClosed("the pool", f"its {self._kind} does not: {error}") from error

    def _ended(self, task: Task[Any], call: Call, inner: Future[Any], began: float) -> None:
        """The executor has done with a task. It calls this in any of its threads."""
        error: BaseException | None = None
        if not inner.cancelled() and (raised := inner.exception()) is not None:
            if isinstance(raised, BrokenExecutor):
                self._broken = raised
            error, died = self._told(task, raised)
            self._record(task, began, failed=True, lost=died)
            if self._runs_again(task, call, error, died=died):
                return
        self._here.telling += 1
        try:
            if inner.cancelled():
                self.recorder.task_cancelled()
                _withdraw(task)
            elif error is not None:
                self.recorder.task_failed()
                task.set_exception(error)
            else:
                self._record(task, began, failed=False, lost=False)
                task.set_result(inner.result())
        finally:
            self._here.telling -= 1
            self._settled(task)

    def _runs_again(self, task: Task[Any], call: Call, error: BaseException, *, died: bool) -> bool:
        attempts, failures = task.attempts, task._failures
        if not tries_again(task, error, crashed=died):
            return False
        try:
            if self._broken is not None:
                self._refuse(self._broken)
            self._try(task, call)
        except Exception as refusal:  # noqa: BLE001  whatever it was: this is how the task ended
            task.attempts, task._failures = attempts, failures
            task.note_attempts(error)
            add_note(
                error,
                f"(retries={task.options.retries} could not be used: {str(refusal).rstrip('.')}. "
                "Workers of the pool's own are replaced when they die: leave out on=)",
            )
            return False
        self.recorder.task_retried(EXECUTOR, task.name)
        return True

    def _told(self, task: Task[Any], error: BaseException) -> tuple[BaseException, bool]:
        """Return what a pool tells of this, and whether a worker has died."""
        told: BaseException
        if isinstance(error, BrokenThreadPool):
            # Threads, and interpreters, do not die; but their initializer may fail.
            told, died = WorkerInitError(1, str(error)), False
        elif isinstance(error, BrokenExecutor):
            why = f"the {self._kind} that had it is broken, with all that it had: {error}"
            told, died = WorkerDied(task.name, None, None, why), True
        elif _is_killed_worker(error):
            told, died = WorkerDied(task.name, None, None, f"its workers died: {error}"), True
        elif isinstance(error, Exception):
            return error, False
        else:
            # An exit that a task asks for is not one for the program that has the result.
            told, died = _outcome.raised(task.name, error).error(), False
        if told.__cause__ is None:
            told.__cause__ = error
        return told, died

    def _record(self, task: Task[Any], began: float, *, failed: bool, lost: bool) -> None:
        with self._all_settled:
            if lost:
                self.recorder.task_lost(EXECUTOR, task)
            else:
                self.recorder.tasks_ended(EXECUTOR, [(task, began, time.monotonic(), failed)])

    def _settled(self, task: Task[Any]) -> None:
        with self._all_settled:
            self._given.pop(task, None)
            self._all_settled.notify_all()

    # as the control of tasks

    def recall(self, task: Task[Any]) -> bool:
        """Have a task back that the executor has not begun; tell whether it has given it back."""
        inner = self._given.get(task)
        return inner is not None and inner.cancel()  # which has it cancelled by `_ended`

    # how it ends

    def is_own_thread(self) -> bool:
        return self._here.telling > 0

    def cancel_waiting(self) -> None:
        for task in list(self._given):
            task.cancel()

    def close(self) -> None:
        if self._closed_because is None:
            self._closed_because = _CLOSED
        self.feeds.close(self._fed)

    def _fed(self) -> None:
        with self._all_settled:
            self._all_settled.notify_all()

    def terminate(self) -> None:
        self._closed_because = "it was terminated"
        self.feeds.stop()
        self.feeds.close(self._fed)
        self.cancel_waiting()

    def join(self, timeout: float | None) -> bool:
        if self.is_own_thread():
            raise RuntimeError("a callback of a pool cannot wait for the end of the pool")
        with self._all_settled:
            return self._all_settled.wait_for(lambda: not self._given and not self.feeds, timeout)


def _size(executor: Executor) -> int:
    """Return how many calls an executor runs at a time: what maps are cut by."""
    for name in ("_max_workers", "num_workers"):  # the standard library's and loky's, MPI's
        size: object = getattr(executor, name, None)
        if isinstance(size, int) and size > 0:
            return size
    client: Any = getattr(executor, "_client", None)  # Dask's
    threads = sum(client.nthreads().values()) if hasattr(client, "nthreads") else usable_cores()
    return threads or 1


def _takes_calls_for_pure(executor: Any) -> bool:
    """Tell whether this is Dask's, and nobody has said that his functions have no side effects."""
    of_dask = type(executor).__module__.partition(".")[0] == "distributed"
    return of_dask and "pure" not in getattr(executor, "_kwargs", ())


def _withdraw(task: Task[Any]) -> None:
    """A task was cancelled before it began."""
    task.wait_again()
    task.cancel()
    task.set_running_or_notify_cancel()  # which tells those who wait for several


def _is_killed_worker(error: BaseException) -> bool:
    """Tell whether this is what Dask raises for a task whose workers have died, several times."""
    distributed: Any = sys.modules.get("distributed.scheduler")
    return distributed is not None and isinstance(error, distributed.KilledWorker)
