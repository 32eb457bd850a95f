"""`Task`: a call that was given to a pool, and its result to come."""

from __future__ import annotations

import contextlib
import functools
import itertools
import sys
import threading
import time
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from mpkit._errors import MemoryLimitExceeded, ResultTimeout, TaskTimeout, WorkerDied
from mpkit._pickling import Stays
from mpkit._platform import future
from mpkit._platform.future import LightFuture

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable
    from concurrent.futures import Future

    from mpkit._task.options import Options

R = TypeVar("R")

_numbers = itertools.count(1)
_now = time.monotonic

#: Characters of a task's output that its error shows (arbitrary).
SHOWN = 4000

_NO_CALLBACKS: Final = None, None

#: Errors of ours that have the name of the task in their text, and so its label.
_NAMING = MemoryLimitExceeded, TaskTimeout, WorkerDied


class Control(Protocol):
    """Who runs a task, as the task sees it. Any thread may call."""

    def recall(self, task: Task[Any]) -> bool:
        """Take a task back that was sent and has not begun; tell whether it waits again."""
        ...

    def cancelled(self, task: Task[Any]) -> None:
        """A task that was tried before was cancelled: there is nothing to wait for."""

    def kill(self, task: Task[Any]) -> bool:
        """End a task that runs, with its worker; False if that cannot be done. Does not wait."""
        ...

    def check_waiter(self, task: Task[Any]) -> None:
        """Raise if the calling thread would wait for ever, as nobody will settle the task."""


class Task(Stays, LightFuture[R]):
    """The result to come of a call in a pool.

    It is a `concurrent.futures.Future` (``result``, ``exception``, ``cancel``, ``done``,
    ``add_done_callback``), it has what `multiprocessing.pool.AsyncResult` has (``get``,
    ``wait``, ``ready``, ``successful``), and it can be awaited.

    ``cancel`` works until a worker has begun with the task, and `kill` also then. When an
    asyncio task that awaits this one is cancelled, this one is cancelled (and not killed)
    likewise. The exception of a call that raised has the worker's traceback as its last
    cause; if the worker died it is `WorkerDied`, after too long a run it is `TaskTimeout`.
    One that was tried several times tells of each in its notes.

    Example:
        >>> import mpkit
        >>> with mpkit.TaskPool(1) as pool:
        ...     task = pool.submit(pow, 2, 10)
        ...     task.get(timeout=30)
        1024
        >>> task.successful()
        True

    """

    #: How many times a worker was given the task to run, which is 1 without retries.
    attempts: int = 0
    _failures: tuple[str, ...] = ()
    #: What `output` shows, as it came. Not for users.
    written: bytes = b""
    _callbacks: tuple[Callable[[R], object] | None, Callable[[Any], object] | None] = _NO_CALLBACKS

    def __init__(
        self, what: str, options: Options, pool: object = None, control: Control | None = None
    ) -> None:
        """Not for users: pools make tasks."""
        # While the task is pending its pool must not become garbage, as that ends it.
        self._pool = pool
        self._control = control
        self.number: int = next(_numbers)
        self.options = options
        #: What pictures call its function, by its name or the one that was given.
        self.what: str = options.name or what
        #: Since when it waits for a worker (`time.monotonic`).
        self.since: float = _now()

    def call_back(
        self,
        callback: Callable[[R], object] | None,
        error_callback: Callable[[Any], object] | None,
    ) -> None:
        """Have one of these called with the result, just before whoever waits is woken.

        To be used before the task is submitted. As in `multiprocessing.Pool`, so that
        what the callback did is seen by those that waited; but one that raises is
        reported, and does no harm.
        """
        self._callbacks = callback, error_callback

    def set_result(self, result: R) -> None:
        """Not for users: the pool sets results."""
        callback, _ = self._callbacks
        if callback is not None:
            self._run_callback(callback, result)
        self._pool = self._control = None
        super().set_result(result)

    @staticmethod
    def set_results(ended: Iterable[tuple[Task[Any], Any]]) -> list[tuple[Task[Any], Any]]:
        """Not for users: set results of those that run, and for which nobody waits.

        Returns the others, with which nothing has happened: nor with who is to be told of one
        that has ended behind one of them.
        """
        others: list[tuple[Task[Any], Any]] = []
        told: list[Task[Any]] = []
        with future.lock:
            for pair in ended:
                task, result = pair
                if (
                    task._made_condition is None
                    and task._callbacks is _NO_CALLBACKS
                    and task._state == future.RUNNING
                    and not (others and task._made_callbacks)
                ):
                    task._pool = task._control = None
                    if result is not None:
                        task._result = result
                    task._state = future.FINISHED
                    if task._made_callbacks:
                        told.append(task)
                else:
                    others.append(pair)
        for task in told:
            task._call_back()
        return others

    def set_exception(self, exception: BaseException | None) -> None:
        """Not for users: the pool sets exceptions."""
        _, callback = self._callbacks
        if exception is not None:
            self.note_label(exception)
        if callback is not None:
            self._run_callback(callback, exception)
        self._pool = self._control = None
        super().set_exception(exception)

    def add_done_callback(self, fn: Callable[[Future[R]], object]) -> None:
        """Have ``fn`` called with this task when it is done, or at once if it is.

        By a thread of the pool, or by the one that cancels the task. One that raises,
        `SystemExit` too, is reported like an uncaught exception; the others are called.
        """
        super().add_done_callback(functools.partial(_call_back, fn))

    def call_when_done(self, fn: Callable[[Future[R]], object]) -> None:
        """Not for users: as `add_done_callback`, for what does not raise."""
        super().add_done_callback(fn)

    def cancel(self) -> bool:
        """Cancel the task if no worker has begun with it; tell whether it is cancelled.

        Also what lies in the inbox of a worker is taken back, where the system can do that
        (Linux). Never blocks. For a map, what has not begun is cancelled, and what runs
        goes on: the map ends with CancelledError after that.
        """
        while not super().cancel():
            control = self._control
            if control is None or not control.recall(self):
                return False
        control, self._control = self._control, None
        if control is not None and self.attempts:
            control.cancelled(self)
        self._pool = None
        return True

    def kill(self) -> bool:
        """Cancel the task, or end it if it runs: its worker is killed (SIGKILL) and replaced.

        Then it fails with `WorkerDied`, and is not tried again; no other task is harmed.
        Does not wait.

        Returns:
            Whether it ends, or will. It does not if it was done, or runs where it cannot be
            ended, which is in this process (``workers=0``) or on another's executor (``on=``).

        """
        if self.cancel():
            return True
        control = self._control
        return control is not None and control.kill(self)

    def failed_once(self, error: BaseException) -> None:
        """Not for users: an attempt failed, and there will be another one."""
        self._failures += (f"attempt {self.attempts} failed with {_in_a_line(error)}",)
        self.since = time.monotonic()

    def note_attempts(self, error: BaseException) -> None:
        """Not for users: have the error of the last attempt tell of those before it."""
        if self._failures:
            add_note(error, "\n".join([*self._failures, f"this was attempt {self.attempts}"]))

    def note_label(self, error: BaseException) -> None:
        """Not for users: have an error tell the label, unless its text does."""
        label = self.options.label
        if label is not None and not isinstance(error, _NAMING):
            _add_note_once(error, f"(the label of the task: {label})")

    def note_output(self, error: BaseException) -> None:
        """Not for users: have an error show the end of what the task wrote."""
        if self.written:
            text = self.output
            begin = f"the last of it: ...{text[-SHOWN:]}" if len(text) > SHOWN else text
            add_note(error, f"{self.name} wrote:\n{begin.rstrip()}")

    def _run_callback(self, callback: Callable[[Any], object], argument: object) -> None:
        try:
            callback(argument)
        except BaseException as error:  # noqa: BLE001  the user's, and not the pool's affair
            report_callback(self.name, error)

    def __repr__(self) -> str:
        return f"<{self.name}: {self._state.lower().replace('_', ' ')}>"

    def wrote(self, data: bytes) -> None:
        """Not for users: the pool keeps what the task has written."""
        self.written += data

    @property
    def output(self) -> str:
        """What it wrote to standard output and error, if its pool was made with ``capture=True``.

        In the order in which it was written, by whatever code and whichever process of the
        task; of a task that was tried again, by all attempts. Of more than 4 MiB the end
        is kept. It is whole when the task is done. Of a map it is that of all its tasks, in the
        order in which they ended.
        """
        return self.written.decode("utf-8", "replace")

    @property
    def name(self) -> str:
        """What errors call the task, by its number, its function or given name, and its label."""
        label = self.options.label
        return f"task {self.number} ({self.what if label is None else f'{self.what}, {label}'})"

    def result(self, timeout: float | None = None) -> R:
        """Return what the call returned, blocking until it has.

        Args:
            timeout: seconds to wait; None waits for ever.

        Raises:
            ResultTimeout: it was not there in time. The task goes on.
            CancelledError: the task was cancelled.
            Exception: what the call raised, or what became of its worker.
            RuntimeError: a callback of the pool waits, whose end the task would wait for.
            PoolClosed: the pool belongs to another process, which forked this one.

        """
        control = self._control
        if control is not None and not self.done():
            control.check_waiter(self)
        try:
            return super().result(timeout)
        except TimeoutError:
            if self.done():  # then it is the call's own, or it came just now
                return super().result()
        raise ResultTimeout(self.name, timeout or 0.0)

    def get(self, timeout: float | None = None) -> R:
        """As `result`; the name that `multiprocessing.pool.AsyncResult` has for it."""
        return self.result(timeout)

    def wait(self, timeout: float | None = None) -> None:
        """Block until the task is done, or ``timeout`` seconds have passed."""
        with contextlib.suppress(CancelledError, TimeoutError):
            self.exception(timeout)

    def ready(self) -> bool:
        """Tell whether the task is done."""
        return self.done()

    def successful(self) -> bool:
        """Tell whether the call returned. Raises ValueError if the task is not done."""
        if not self.done():
            raise ValueError(f"{self.name} is not done")
        return not self.cancelled() and self.exception() is None

    def __await__(self) -> Generator[Any, None, R]:
        import asyncio  # noqa: PLC0415  who awaits has it; nobody else should pay for it

        return asyncio.wrap_future(self).__await__()


def add_note(error: BaseException, note: str) -> None:
    """Add a note to an exception, unless its class will have none."""
    with contextlib.suppress(Exception):  # it may refuse to have attributes set
        error.add_note(note)


def _add_note_once(error: BaseException, note: str) -> None:
    """As `add_note`, for an error that may have it already: that of a part, and of the whole."""
    with contextlib.suppress(Exception):  # its class may have attributes of its own
        if note not in getattr(error, "__notes__", ()):
            error.add_note(note)


def _in_a_line(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    except Exception:  # noqa: BLE001  user code
        return type(error).__name__


def _call_back(fn: Callable[[Future[Any]], object], task: Any) -> None:
    # A Future lets what is no Exception out. Those behind it would not be called then, and
    # whoever awaits the task is one of them; and it would end the supervisor of the pool.
    try:
        fn(task)
    except BaseException as error:
        if is_ctrl_c(error):
            raise
        report_callback(task.name, error)


def is_ctrl_c(error: BaseException) -> bool:
    """Tell whether it is a real one: not raised by some code, but for the program."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    return isinstance(error, KeyboardInterrupt) and in_main_thread


def report_callback(what: str, error: BaseException) -> None:
    """Tell the program that a callback raised; see `report`."""
    report(error, f"raised by a callback of {what}")


def report(error: BaseException, where: str) -> None:
    """Tell the program, as for an uncaught exception, of one that does no harm.

    Raises nothing, though the program's `sys.excepthook` may: by `sys.exit`, for one.
    """
    add_note(error, f"({where}; the pool goes on)")
    try:
        sys.excepthook(type(error), error, error.__traceback__)
    except BaseException as failure:  # noqa: BLE001  the interpreter's own tells of both
        failure.__context__ = error
        sys.__excepthook__(type(failure), failure, failure.__traceback__)
