"""`Inline`: runs each call in the thread that submits it, for debugging.

A program that runs on workers is to do the same here, so that what is debugged is what will
run: arguments and results are copied as on their way to a worker and back, and what cannot
travel says so; an exception is what a worker would have reported. But its traceback leads into
the task, for a debugger to look around there.
"""

from __future__ import annotations

import contextlib
import contextvars
import os
import threading
import time
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from mpkit import _fork, _outcome
from mpkit._describe import describe
from mpkit._engine.backend import NoControl, tries_again
from mpkit._engine.feeds import Feed, Feeds
from mpkit._engine.starts import MOST_START_FAILURES
from mpkit._errors import PoolClosed, TaskTimeout, WorkerInitError
from mpkit._platform import debuggers, stdlib
from mpkit._task.options import pause_before
from mpkit._task.task import is_ctrl_c, report
from mpkit._watch.recorder import Recorder
from mpkit._worker import packing, shared

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from mpkit._call import Call
    from mpkit._engine.settings import Settings
    from mpkit._engine.shortcut import Volley
    from mpkit._parcel import Parcel
    from mpkit._reader import Reader
    from mpkit._task.options import Options
    from mpkit._task.task import Task
    from mpkit._worker.packing import Part

_CLOSED = "it was closed"


class Entry(NamedTuple):
    """A task, and the call that was packed for it."""

    task: Task[Any]
    head: bytes
    parcel: Parcel | None


class Source(Feed, Protocol):
    """The input of an `imap`, which is run by who asks for its results."""

    def drain(self) -> None:
        """Run all of it that was not."""


class _Here(threading.local):
    """What a thread is about."""

    #: What its callbacks have submitted, to be run behind them; None while it runs nothing.
    waiting: list[Entry] | None = None
    #: Whether a task runs, and not one of the callbacks of one.
    in_task = False


class Inline(NoControl):
    """Runs each call where it is submitted. Any thread may call all of it."""

    workers = 1
    submit_chunk = submit_small = None
    #: All of this process's modules are here.
    reader: Reader | None = None

    def __init__(self, settings: Settings) -> None:
        self.recorder = Recorder()
        self.recorder.worker_started(os.getpid())
        self.feeds = Feeds()
        self._shared = settings.setup.shared
        self._pid = os.getpid()
        self._closed_because: str | None = None
        self._here = _Here()
        # Re-entrant: a callback may close the pool.
        self._all_settled = stdlib.Condition()
        #: The tasks that run, and those that wait behind a callback.
        self._unsettled: set[Task[Any]] = set()
        self._sources: set[Source] = set()
        #: Nothing more will come; all is settled; and the finalizer has had its turn.
        self._ending = self._ended = self._gone = False
        # What a worker has from its start is inherited by a fork, and travels otherwise.
        init, finalizer = settings.setup.init, settings.setup.finalizer
        travels = settings.context.get_start_method() != "fork"
        self._init = None if init is None else (init.what, _arrived(init, travels=travels))
        self._finalizer = None if finalizer is None else _arrived(finalizer, travels=travels)
        self._init_error: Exception | None = None
        self._initializing = threading.RLock()

    def check(self, options: Options) -> None:
        """There is no option that must not be given: see `docs/backends.md`."""

    def check_open(self, fed: bool = False) -> None:
        if self._here.in_task or self._pid != os.getpid():
            # A worker is another process, and would get this.
            why: str | None = (
                f"it belongs to process {self._pid}, and tasks are run by others "
                "(if there are workers); make one in the task"
            )
        else:
            why = self._closed_because
        if why is not None and not (fed and why == _CLOSED):
            raise PoolClosed("the pool", why)

    def submit(self, task: Task[Any], call: Call, fed: bool = False) -> None:
        self.check_open(fed)
        self._take(task, *packing.pack(call, self.reader))

    def submit_part(self, task: Task[Any], part: Part, volley: Volley | None) -> None:
        self.check_open(volley is None)
        self._take(task, *part.seal())

    def _take(self, task: Task[Any], head: bytes, parcel: Parcel | None) -> None:
        if parcel is not None:
            parcel.own()
            parcel.depart(f"moved to {task.name}")
        here = self._here
        with self._all_settled:
            self._unsettled.add(task)
            self.recorder.submitted += 1
        if here.waiting is not None:
            # It comes from a callback, which is not to wait for it, nor to call itself through it.
            here.waiting.append(Entry(task, head, parcel))
            return
        here.waiting = [Entry(task, head, parcel)]
        try:
            while here.waiting:
                # The first of those with the highest priority.
                first = max(here.waiting, key=lambda entry: entry.task.options.priority)
                here.waiting.remove(first)
                self._run(first)
        finally:
            left, here.waiting = here.waiting, None
            for entry in left:  # it was a Ctrl-C: nobody will run them
                entry.task.cancel()
                self.recorder.task_cancelled()
                self._settled(entry)

    def _run(self, entry: Entry) -> None:
        task, value = entry.task, None
        error: BaseException | None
        try:
            if not task.set_running_or_notify_cancel():
                self.recorder.task_cancelled()
                return
            try:
                error = self._initialize()
                if error is None:
                    value, error = self._try(entry)
            except BaseException as interruption:
                self.recorder.task_failed()
                task.set_exception(interruption)
                raise
            if error is None:
                task.set_result(value)
            else:
                self.recorder.task_failed()
                task.set_exception(error)
        finally:
            self._settled(entry)

    def _settled(self, entry: Entry) -> None:
        if entry.parcel is not None:
            entry.parcel.close()
        with self._all_settled:
            self._unsettled.discard(entry.task)
        self._end_if_over()

    def _try(self, entry: Entry) -> tuple[Any, BaseException | None]:
        """Run a task as often as it is to be."""
        task, limit = entry.task, entry.task.options.timeout
        while True:
            task.attempts += 1
            watch = debuggers.Watch() if limit is not None else None
            began = time.monotonic()
            with watch or contextlib.nullcontext():
                value, error = self._attempt(entry)
            ended = time.monotonic()
            late = False
            if limit is not None and watch is not None:
                late = ended - began > limit and not watch.debugged
                error = _too_late(task, limit, ended - began, error) if late else error
            self.recorder.tasks_ended(os.getpid(), [(task, began, ended, error is not None)])
            if error is None or not tries_again(task, error, crashed=late):
                return value, error
            self.recorder.task_retried(os.getpid(), task.name)
            time.sleep(pause_before(task.options, task.attempts))

    def _attempt(self, entry: Entry) -> tuple[Any, Exception | None]:
        """Do what a worker does, and then what the supervisor does with what that reports."""
        what = f"task {entry.task.number}"
        try:
            fn, args, kwargs = packing.unpack(*_delivered(entry.head, entry.parcel))
        except BaseException as error:  # noqa: BLE001  user code
            check_interruption(error)
            error.add_note(f"(raised while the arguments of {what} were unpickled)")
            return None, as_reported(what, error)
        try:
            # In a worker there are no context variables of the caller's, either.
            with self._as_worker():
                value = contextvars.Context().run(fn, *args, **kwargs)
        except BaseException as error:  # noqa: BLE001  user code
            check_interruption(error)
            return None, as_reported(f"{what} ({describe(fn)})", error, skip_frames=1)
        return _returned(entry.task, fn, value)

    def _initialize(self) -> WorkerInitError | None:
        """Call the initializer, if that is still to be done; return what is wrong for ever."""
        if self._init is None and self._init_error is None:
            return None
        with self._initializing:
            if self._init is not None:
                what, call = self._init
                self._init = None
                for _ in range(MOST_START_FAILURES):
                    self._init_error = self._initialized(what, call)
                    if self._init_error is None:
                        break
            if self._init_error is None:
                return None
            failure = WorkerInitError(MOST_START_FAILURES, str(self._init_error))
            failure.__cause__ = self._init_error
            return failure

    def _initialized(self, what: str, call: Callable[[], Any]) -> Exception | None:
        try:
            with self._as_worker():
                call()
        except BaseException as error:  # noqa: BLE001  user code
            check_interruption(error)
            return as_reported(f"the initializer {what}", error, skip_frames=2)
        return None

    @contextlib.contextmanager
    def _as_worker(self) -> Generator[None]:
        """Run user code that a worker would run."""
        self._here.in_task = True
        before = shared.use_here(self._shared)
        try:
            yield
        finally:
            shared.use_here(before)
            self._here.in_task = False

    def enter(self, source: Source) -> None:
        """There is the input of another `imap`."""
        self._sources.add(source)
        self.feeds.enter(source)

    def leave(self, source: Source) -> None:
        """It has ended."""
        self._sources.discard(source)
        self.feeds.leave(source)

    # how it ends

    def cancel_waiting(self) -> None:
        """Cancel what waits behind callbacks."""
        for task in list(self._unsettled):
            task.cancel()

    def close(self) -> None:
        if self._closed_because is None:
            self._closed_because = _CLOSED
        self.feeds.close(self._over)

    def terminate(self) -> None:
        self._closed_because = "it was terminated"
        self.feeds.stop()
        self.cancel_waiting()
        self.feeds.close(self._over)

    def _over(self) -> None:
        """Nothing more will come."""
        self._ending = True
        self._end_if_over()

    def _end_if_over(self) -> None:
        """As a worker that leaves: have the finalizer called, if all is settled."""
        with self._all_settled:
            over = self._ending and not self._unsettled and not self._ended
            if not over:
                self._all_settled.notify_all()
                return
            self._ended = True
            begun = self._init is None and self._init_error is None
            finalizer = self._finalizer if begun and self._closed_because == _CLOSED else None
        try:
            if finalizer is not None:
                with self._as_worker():
                    finalizer()
        except BaseException as error:  # noqa: BLE001  user code
            check_interruption(error)
            report(error, "raised by the finalizer")
        finally:
            self.recorder.worker_ended(os.getpid(), "was this process", expected=True)
            self.recorder.close()
            with self._all_settled:
                self._gone = True
                self._all_settled.notify_all()

    def join(self, timeout: float | None) -> bool:
        """Run what is left of each `imap`, and wait for the tasks of other threads."""
        if self.is_own_thread():
            raise RuntimeError("a callback of a pool cannot wait for the end of the pool")
        for source in list(self._sources):
            source.drain()
        with self._all_settled:
            return self._all_settled.wait_for(lambda: self._gone, timeout)

    def is_own_thread(self) -> bool:
        return self._here.waiting is not None


def check_interruption(error: BaseException) -> None:
    """Raise it, if it is for the program and not of the task: a Ctrl-C, or the end of debugging."""
    if is_ctrl_c(error) or debuggers.has_quit(error):
        raise error


def as_reported(what: str, error: BaseException, *, skip_frames: int = 0) -> Exception:
    """Return an exception as a worker would have reported it, but with its traceback."""
    there: Any = _outcome.raised(what, error, skip_frames=skip_frames).error()
    trace = error.__traceback__
    for _ in range(skip_frames):
        trace = trace.tb_next if trace else None
    _traceback.__set__(there, trace)
    reported: Exception = there
    return reported


# As BaseException has it: a class may refuse to have it set.
_traceback: Any = vars(BaseException)["__traceback__"]


def _returned(task: Task[Any], fn: Callable[..., Any], value: Any) -> tuple[Any, Exception | None]:
    """Have a result travel to the program."""
    kind, parcel = _outcome.pack_result(f"task {task.number}", fn, value)
    try:
        data, fds = _delivered(b"", parcel)
    except OSError as error:  # there is no memory, or no descriptor is left
        return None, as_reported(task.name, error)
    if kind == _outcome.FAILED:
        failure: Any = _outcome.unpack_error(data, fds)
        return None, failure
    try:
        return _outcome.unpack_result(lambda: task.name, data, fds), None
    except BaseException as error:  # noqa: BLE001  user code
        check_interruption(error)
        return None, as_reported(task.name, error)
    finally:
        parcel.close()


def _delivered(head: bytes, parcel: Parcel | None) -> tuple[bytes, list[int]]:
    """Return a packet and its descriptors, as they would arrive in another process."""
    if parcel is None:
        return head, []
    data, fds = parcel.seal(head)
    parcel.depart("moved to where its task has run")
    copies = _fork.Descriptors()
    for fd in fds:
        copies.keep_copy(fd)
    return data, copies


def _arrived(call: Call, *, travels: bool) -> Callable[[], Any]:
    """Return what calls it, as anew in each worker. Raises NotPicklable, naming what cannot travel."""
    if not travels:
        return lambda: call.fn(*call.args, **call.kwargs)
    packed = packing.pack(call, None)

    def unpack_and_call() -> Any:
        fn, args, kwargs = packing.unpack(*_delivered(*packed))
        return fn(*args, **kwargs)

    return unpack_and_call


def _too_late(
    task: Task[Any], limit: float, seconds: float, error: BaseException | None
) -> TaskTimeout:
    late = TaskTimeout(task.name, limit)
    late.add_note(f"(with workers=0 nothing could stop it: it ended by itself after {seconds:g} s)")
    late.__cause__ = error
    return late
