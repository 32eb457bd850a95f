"""`start` and `Job`: a typed process that returns its result.

A job's child sends one packet, its outcome, and leaves. Whoever waits for the job
watches the link on which that arrives and the death of the process, so that one of
them always comes. No thread is started for it.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from traceback import TracebackException as TracebackException  # what is forked finds it here
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, Self, TypeVar

from mpkit import _links, _outcome, _wait
from mpkit._call import Call
from mpkit._child import Child
from mpkit._errors import NotPicklable, ResultTimeout, WorkerDied
from mpkit._link import Link, LinkDown
from mpkit._platform import processes, stdlib
from mpkit._wait import Deadline

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence
    from types import TracebackType

    from mpkit._link import Packet

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

#: Seconds between SIGTERM and SIGKILL for a job that is asked to end: enough to flush and
#: to remove what is temporary, and short enough to be waited for at a Ctrl-C.
GRACE = 2.0


class Job(Generic[R_co]):
    """A process that runs one call, and its result.

    `start` makes jobs. The process dies with the one that started it, whichever way that
    ends, except that a normal exit of the interpreter waits for it first (as it does for
    every `multiprocessing.Process`). Any thread may use a job; in a process that was forked
    from the one that started it, its methods raise RuntimeError.

    As a context manager, a job is waited for when the block ends well, and stopped
    (see `stop`) when the block raises.

    Example:
        >>> with start(pow, 2, 10) as job:
        ...     job.result(timeout=30)
        1024

    """

    def __init__(self, call: Call | None = None) -> None:
        """Not for users: `start` makes jobs."""
        if not isinstance(call, Call):
            raise TypeError("mpkit.start(function, ...) makes jobs; Job() makes none")
        self._what = f"job {call.what}"
        self._link, there = _links.pair()
        try:
            self._child = Child(_run_job, (there, call), multiprocessing.get_context())
        except BaseException:
            self._link.close()
            raise
        finally:
            there.close()
        # What the process has sent, or that it has ended without a word. Kept until it was
        # opened: what interrupts that can be followed by another try.
        self._packet: Packet | None = None
        self._fell_silent = False
        self._outcome: tuple[R_co | None, BaseException | None] | None = None
        # Held by a thread that takes the packet, for a moment; and by the one that opens it,
        # which runs user code. Re-entrant: a signal handler may stop a job whose result is
        # being waited for.
        self._receiving = threading.RLock()
        self._opening = threading.RLock()

    def __repr__(self) -> str:
        if self._child.owner != os.getpid():
            state = f"of process {self._child.owner}"
        elif self.is_alive():
            state = "running"
        else:
            state = processes.exit_reason(self.exitcode)
        return f"<{self._what}: process {self.pid} {state}>"

    @property
    def pid(self) -> int:
        """The number of the job's process."""
        return self._child.pid

    @property
    def name(self) -> str:
        """The name of the job's process, as multiprocessing gave it."""
        return self._child.name

    @property
    def exitcode(self) -> int | None:
        """0, 1 after an exception, an exit code, or minus the number of a signal.

        None while the process lives; and after it has ended, if somebody else waited for it
        (or SIGCHLD is ignored), so that nobody was told how.
        """
        self._check_owner()
        return self._child.exitcode

    def is_alive(self) -> bool:
        """Tell whether the process still runs."""
        self._check_owner()
        return not self._child.ended

    def result(self, timeout: float | None = None) -> R_co:
        """Return what the call returned, blocking until it has.

        Args:
            timeout: seconds to wait; None waits for ever.

        Raises:
            ResultTimeout: it was not there in time. The job goes on.
            WorkerDied: the process ended before the call did: killed, or by `os._exit`.
            RuntimeError: this thread is unpickling that very result: it is a signal handler,
                or a ``__setstate__``, that asks.
            TaskExit: the call raised `SystemExit`.
            RemoteError: the call raised what cannot be raised here.
            NotPicklable: what the call returned cannot travel.
            Exception: whatever else the call raised, with its notes, causes and context,
                and the members of a group with theirs; each that cannot be rebuilt here
                has a RemoteError in its place. The last cause is a `RemoteTraceback`.

        """
        value, error = self._opened(timeout)
        if error is not None:
            raise error
        return value  # type: ignore[return-value]  # it is R_co when there is no error

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return what `result` would raise, or None if it would return.

        Args and errors are those of `result`, as far as waiting goes.
        """
        return self._opened(timeout)[1]

    def join(self, timeout: float | None = None) -> bool:
        """Wait until the process has ended, at most ``timeout`` seconds; tell if it has.

        A result that was not asked for is kept, and not unpickled before it is.
        """
        deadline = Deadline(timeout)
        return self._comes(deadline) and self._child.join(deadline.left())

    def terminate(self) -> None:
        """Ask the process to end (SIGTERM), which it may handle. Does not wait."""
        self._check_owner()
        self._child.signal(signal.SIGTERM)

    def kill(self) -> None:
        """End the process at once (SIGKILL). Does not wait."""
        self._check_owner()
        self._child.signal(signal.SIGKILL)

    def stop(self, grace: float = GRACE) -> bool:
        """Ask the process to end (SIGTERM), kill it if it has not in time; wait for its end.

        A process that does not handle SIGTERM ends at once by it. One that is stopped
        (SIGSTOP), or whose handler cannot run, is killed. What interrupts the waiting (a
        Ctrl-C) kills it, too. A result that came before the end is kept.

        Args:
            grace: seconds from SIGTERM to SIGKILL.

        Returns:
            False if the process was killed by SIGKILL, and True if it ended otherwise.

        Raises:
            TypeError, ValueError: ``grace`` is not a number of seconds.

        """
        _check_grace(grace)
        self.terminate()
        try:
            self.join(grace)
        finally:
            self.kill()  # which is nothing to a process that has ended
        self.join()
        return self.exitcode != -signal.SIGKILL

    async def stop_async(self, grace: float = GRACE) -> bool:
        """As `stop`, for asyncio: it suspends the calling task only. No thread is used."""
        _check_grace(grace)
        self.terminate()
        try:
            await self._ended_async(grace)
        finally:
            self.kill()
        await self._ended_async(None)
        self.join()
        return self.exitcode != -signal.SIGKILL

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is not None:
            self.stop()
        self.join()

    def __await__(self) -> Generator[Any, None, R_co]:
        return self._result_async().__await__()

    async def _result_async(self) -> R_co:
        while not self._ready():
            await _wait.readable(self._sources())
        return self.result()

    async def _ended_async(self, timeout: float | None) -> None:
        deadline = Deadline(timeout)
        while self.is_alive() and not deadline.passed():
            await _wait.readable([self._child.sentinel], deadline.left())

    def _opened(self, timeout: float | None) -> tuple[R_co | None, BaseException | None]:
        """Return the outcome, which one thread opens when it has come."""
        if not self._comes(Deadline(timeout)):
            raise ResultTimeout(self._what, timeout or 0.0)
        if self._outcome is None:
            if stdlib.owns(self._opening):
                raise RuntimeError(
                    f"the result of {self._what} is being unpickled by this thread, which "
                    "cannot wait for that here"
                )
            with self._opening:
                if self._outcome is None:
                    self._outcome = self._open()
        return self._outcome

    def _open(self) -> tuple[R_co | None, BaseException | None]:
        if self._packet is None:
            code = self._child.exitcode
            reason = processes.exit_reason(code)
            return None, WorkerDied(self._what, self.pid, code, reason)
        data, fds = self._packet
        came = len(fds)
        try:
            if data[:1] == _outcome.FAILED:
                return None, _outcome.unpack_error(data[1:], fds)
            return _outcome.unpack_result(self._what, data[1:], fds), None
        except BaseException as error:
            if isinstance(error, Exception):
                return None, error  # which is what result() has to raise
            if len(fds) < came:  # some of it is gone: there will be no other try
                why = f"it was interrupted ({type(error).__name__}) while it was unpickled"
                self._outcome = None, NotPicklable(f"the result of {self._what}", why)
                self._outcome[1].__cause__ = error
            raise

    def _comes(self, deadline: Deadline) -> bool:
        """Wait for the packet, or for the end without one; False if the deadline passed first."""
        self._check_owner()
        while not self._receive():
            if deadline.passed():
                return False
            _wait.poll(self._sources(), deadline.left())
        return True

    def _receive(self) -> bool:
        """Take the packet if it is there; tell whether nothing more will come."""
        with self._receiving:
            if not self._over:
                dead = self._child.ended  # before looking: what it sent is there then
                if self._has_come():
                    self._packet = self._link.inbox[0]
                elif dead:
                    self._fell_silent = True
            if self._over:
                # In each call: a signal handler may raise in between.
                self._link.inbox.clear()
                self._link.close()
            return self._over

    def _has_come(self) -> bool:
        """Have the packet in the link's inbox, if it is there."""
        try:
            return self._link.fill(Deadline(0))
        except LinkDown:
            self._hung_up = True
            return False

    @property
    def _over(self) -> bool:
        return self._fell_silent or self._packet is not None

    def _ready(self) -> bool:
        self._check_owner()
        return self._receive()

    def _check_owner(self) -> None:
        owner = self._child.owner
        if owner != os.getpid():
            raise RuntimeError(
                f"{self._what} (process {self.pid}) belongs to process {owner}, and only there "
                "can it be waited for or stopped"
            )

    #: Whether the link has nothing more to say: then only the process' end is watched.
    _hung_up = False

    def _watched(self) -> Sequence[int]:
        self._check_owner()
        return [] if self._over else self._sources()

    def _sources(self) -> Sequence[int]:
        if self._over or self._hung_up:
            return [self._child.sentinel]
        return [self._link.fd, self._child.sentinel]


def start(fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Job[R]:
    """Call ``fn(*args, **kwargs)`` in a new process, and return its `Job`.

    For one long-running companion, or a few; `TaskPool` is for many short calls. Channel
    ends among the arguments move to the new process. The start method is that of
    `multiprocessing.get_context`; unless it is fork, the function and its arguments must
    be picklable (with ``mpkit[cloudpickle]``, lambdas and closures are).

    Raises:
        TypeError: ``fn`` cannot be called.
        NotPicklable: the function or an argument cannot travel. No process was started.
        ChannelClosed: an argument is the end of a channel that was closed or, as
            `ChannelMoved`, given away. No process was started (under fork it is, and finds out
            when it uses the end).
        OSError: the system has no process or descriptors left for it.

    Example:
        >>> job = start(sorted, "bca", reverse=True)
        >>> job.result(timeout=30)
        ['c', 'b', 'a']
        >>> job.join(timeout=30)
        True

    """
    if not callable(fn):
        raise TypeError(f"start() takes a function and its arguments, not {fn!r}")
    return Job(Call(fn, args, kwargs))


def _check_grace(grace: float) -> None:
    if isinstance(grace, bool) or not isinstance(grace, (int, float)):
        raise TypeError(f"grace is a number of seconds, not {grace!r}")
    if not grace >= 0:
        raise ValueError(f"grace is not negative, unlike {grace!r}")


def _run_job(link: Link, call: Call) -> None:
    """Run the call in the job's process and send what came of it."""
    _forget_handlers()
    code: Any = 0
    try:
        arrived = call.arrived()
        value = arrived.fn(*arrived.args, **arrived.kwargs)
    except BaseException as error:  # noqa: BLE001  to be raised where the job is waited for
        kind, parcel = _outcome.FAILED, _outcome.pack_error(call.what, error, skip_frames=1)
        code = error.code if isinstance(error, SystemExit) else 1
    else:
        kind, parcel = _outcome.pack_result("a job", arrived.fn, value)
        code = int(kind == _outcome.FAILED)
    what, to = f"job {call.what}", "the process that started this job"
    with contextlib.suppress(LinkDown):  # nobody waits for it any more
        if _outcome.send(link, b"", kind, parcel, what, to) != kind:
            code = 1
    link.close()
    raise SystemExit(code)


def _forget_handlers() -> None:
    """Let go of how the parent handles what ends a job, which a fork hands down.

    With the handlers of an event loop, for instance, a job would not see Ctrl-C, and a
    SIGTERM meant for it would wake the loop of the parent.
    """
    signal.set_wakeup_fd(-1)
    if callable(signal.getsignal(signal.SIGTERM)):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if callable(signal.getsignal(signal.SIGINT)):
        signal.signal(signal.SIGINT, signal.default_int_handler)
