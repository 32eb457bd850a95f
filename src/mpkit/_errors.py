"""Every exception mpkit raises. Imports nothing from mpkit.

All of them derive from `MpkitError`. One that a caller would already be catching
as a builtin derives from that builtin too, so ``except TimeoutError`` keeps working.

Most of them are raised in one process and handled in another, so each one must
survive ``pickle``. `BaseException.__reduce__` replays ``cls(*args)``: a constructor
that formatted its own message would be handed the finished message on the far side.
Hence the rule: a constructor takes plain values, hands them unchanged to
`MpkitError`, and ``__str__`` does the formatting.
"""

from __future__ import annotations

import multiprocessing
import pickle
from typing import Any


class MpkitError(Exception):
    """Base of everything mpkit raises; ``args`` holds the facts, ``str()`` the sentence."""

    # In a traceback stands what one has to write behind `except`, and in a pickle what stays.
    __module__ = "mpkit"

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if cls.__module__ == __name__:
            cls.__module__ = MpkitError.__module__

    def __init__(self, *facts: object) -> None:
        # Nothing is passed up: OSError would read two facts as errno and its text.
        super().__init__()
        self.args = facts

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self.args, self.__dict__ or None

    def __str__(self) -> str:
        return " ".join(str(fact) for fact in self.args)


class RuntimeDirectoryError(MpkitError, OSError):
    """The directory in which processes meet cannot be used; ``path`` and ``why`` say more."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(path, why)
        self.path = path
        self.why = why

    def __str__(self) -> str:
        return (
            f"mpkit's runtime directory {self.path} {self.why}; "
            "set MPKIT_RUNTIME_DIR to a local directory that only you can enter"
        )


# limit and Semaphore


class LimitMismatch(MpkitError, ValueError):
    """The same limit was opened with two different slot counts."""

    def __init__(self, place: str, wanted: int, existing: int) -> None:
        super().__init__(place, wanted, existing)
        self.place = place
        self.wanted = wanted
        self.existing = existing

    def __str__(self) -> str:
        return (
            f"{self.place} is in use with {self.existing} slots, and cannot be opened with "
            f"{self.wanted}: give all who share it the same count, or different names"
        )


class LimitTimeout(MpkitError, TimeoutError):
    """No slot became free in time; nothing was acquired."""

    def __init__(self, place: str, slots: int, timeout: float) -> None:
        super().__init__(place, slots, timeout)
        self.place = place
        self.slots = slots
        self.timeout = timeout

    def __str__(self) -> str:
        count = "the only slot" if self.slots == 1 else f"one of the {self.slots} slots"
        return f"{count} of {self.place} did not become free within {self.timeout:g} s"


class WouldDeadlock(MpkitError, RuntimeError):
    """The calling thread waits for a slot while it holds all of them itself."""

    def __init__(self, place: str, slots: int) -> None:
        super().__init__(place, slots)
        self.place = place
        self.slots = slots

    def __str__(self) -> str:
        count = "the only slot" if self.slots == 1 else f"all {self.slots} slots"
        return (
            f"this thread already holds {count} of {self.place}: waiting for another one "
            "would never end; release one first, or acquire with a timeout"
        )


class LeaseLost(MpkitError, RuntimeError):
    """A slot of a limit of a cluster was not renewed in time: another may have had it as well.

    ``silence`` is for how many seconds the scheduler heard nothing of the slot, ``lease`` for
    how many it keeps one that is not renewed. The slot has been given back.
    """

    def __init__(self, place: str, silence: float, lease: float) -> None:
        super().__init__(place, silence, lease)
        self.place = place
        self.silence = silence
        self.lease = lease

    def __str__(self) -> str:
        return (
            f"a slot of {self.place} was not renewed for {self.silence:.1f} s, and its lease is "
            f"{self.lease:g} s: another may have held it at the same time. Was this process "
            "stopped, cut off, or in code that keeps the interpreter's lock? If that has to be, "
            "raise distributed.scheduler.locks.lease-timeout in all processes of the cluster"
        )


# a cluster


class SchedulerLost(MpkitError, ConnectionError):
    """The scheduler of a cluster could not be asked: it has ended, or cannot be reached.

    ``what`` was not done, or nobody knows whether it was; ``address`` is the scheduler's.
    """

    def __init__(self, what: str, address: str, why: str) -> None:
        super().__init__(what, address, why)
        self.what = what
        self.address = address
        self.why = why

    def __str__(self) -> str:
        return f"{self.what}: the scheduler at {self.address} could not be asked: {self.why}"


# Channel


class ChannelClosed(MpkitError, ValueError):
    """This end was closed here: by ``close``, by leaving ``with``, or by ``close_send``."""

    def __init__(self, channel: str, why: str = "was closed in this process") -> None:
        super().__init__(channel, why)
        self.channel = channel
        self.why = why

    def __str__(self) -> str:
        return f"{self.channel} {self.why}"


class ChannelMoved(ChannelClosed):
    """This end was given to another process, which owns it now."""


class ChannelTimeout(MpkitError, TimeoutError):
    """No message, or no room for one, within the time given; nothing was lost."""

    def __init__(self, channel: str, what: str, timeout: float) -> None:
        super().__init__(channel, what, timeout)
        self.channel = channel
        self.what = what
        self.timeout = timeout

    def __str__(self) -> str:
        return f"{self.channel} {self.what} within {self.timeout:g} s"


class EndOfChannel(MpkitError, EOFError):
    """The other end said goodbye, and everything it had sent was received."""

    def __init__(self, channel: str) -> None:
        super().__init__(channel)
        self.channel = channel

    def __str__(self) -> str:
        return f"the other end of {self.channel} was closed, and nothing is left to receive"


class PeerDied(EndOfChannel):
    """The other end's process died without closing it; its last messages may be missing.

    ``pid`` and ``reason`` (for instance ``"was killed by SIGKILL"``) are None where they
    cannot be known.
    """

    def __init__(self, channel: str, pid: int | None = None, reason: str | None = None) -> None:
        MpkitError.__init__(self, channel, pid, reason)
        self.channel = channel
        self.pid = pid
        self.reason = reason

    def __str__(self) -> str:
        who = "the process" if self.pid is None else f"process {self.pid}"
        how = f" ({self.reason})" if self.reason else ""
        return (
            f"{who} at the other end of {self.channel} died without closing it{how}: "
            "what it still had to say is lost"
        )


class BrokenChannel(MpkitError, BrokenPipeError):
    """The message cannot arrive, or what arrived is not a message."""

    def __init__(self, channel: str, why: str) -> None:
        super().__init__(channel, why)
        self.channel = channel
        self.why = why

    def __str__(self) -> str:
        return f"{self.channel} is broken: {self.why}"


class MessageTypeError(MpkitError, TypeError):
    """A message is not of the type that the channel declares; the channel goes on."""

    def __init__(self, channel: str, why: str) -> None:
        super().__init__(channel, why)
        self.channel = channel
        self.why = why

    def __str__(self) -> str:
        return f"{self.channel}: {self.why}"


# what can happen to a job or a task


class WorkerDied(MpkitError):
    """The process ended before the call did.

    ``what`` is the call, ``pid`` its process, ``exitcode`` as in
    `multiprocessing.Process.exitcode` (negative: the number of a signal), and
    ``reason`` says it in words (``"was killed by SIGKILL"``). Of a call on somebody else's
    executor neither is known: they are None, and ``__cause__`` is what the executor said. On a
    cluster ``pid`` is that on the worker's machine, and the ``exitcode`` is None.
    """

    def __init__(self, what: str, pid: int | None, exitcode: int | None, reason: str) -> None:
        super().__init__(what, pid, exitcode, reason)
        self.what = what
        self.pid = pid
        self.exitcode = exitcode
        self.reason = reason

    def __str__(self) -> str:
        if self.pid is None:  # whatever it was that ran it
            return f"{self.what} was lost: {self.reason}"
        return f"process {self.pid} {self.reason} while it ran {self.what}"


class WorkerInitError(MpkitError):
    """The pool's workers cannot start.

    Their initializer fails, or they die before it ends, or the system has no process, memory
    or descriptor for one (``__cause__`` is what it said).
    """

    def __init__(self, attempts: int, why: str) -> None:
        super().__init__(attempts, why)
        self.attempts = attempts
        self.why = why

    def __str__(self) -> str:
        return f"no worker could start in {self.attempts} attempts: {self.why}"


class TaskTimeout(MpkitError, TimeoutError):
    """The task ran for longer than its ``timeout``, and its worker was killed."""

    def __init__(self, what: str, timeout: float, pid: int | None = None) -> None:
        super().__init__(what, timeout, pid)
        self.what = what
        self.timeout = timeout
        self.pid = pid

    def __str__(self) -> str:
        where = f" in process {self.pid}" if self.pid else ""
        return (
            f"{self.what} was stopped{where}: it ran for longer than its timeout "
            f"of {self.timeout:g} s"
        )


class MemoryLimitExceeded(MpkitError, MemoryError):
    """The task's worker occupied more memory than ``memory_hard_limit``, and was killed.

    ``resident`` and ``limit`` are bytes.
    """

    def __init__(self, what: str, pid: int, resident: int, limit: int) -> None:
        super().__init__(what, pid, resident, limit)
        self.what = what
        self.pid = pid
        self.resident = resident
        self.limit = limit

    def __str__(self) -> str:
        return (
            f"{self.what} was stopped in process {self.pid}: it occupied {self.resident:,} bytes "
            f"of memory, and the hard limit is {self.limit:,}"
        )


class TaskExit(MpkitError):
    """The call ended in `SystemExit`; ``code`` is what it was given."""

    def __init__(self, what: str, code: object) -> None:
        super().__init__(what, code)
        self.what = what
        self.code = code

    def __str__(self) -> str:
        return f"{self.what} called sys.exit({self.code!r})"


class RemoteError(MpkitError):
    """Stands for an exception that could not travel, and has its parts as text.

    They are ``type_name``, ``message``, ``traceback`` and ``repr`` (shortened, if it is
    long); ``why`` tells what hindered it. Notes, cause and context are those of the
    exception for which it stands.
    """

    def __init__(
        self, type_name: str, message: str, traceback: str, why: str, repr: str = ""
    ) -> None:
        super().__init__(type_name, message, traceback, why, repr)
        self.type_name = type_name
        self.message = message
        self.traceback = traceback
        self.why = why
        self.repr = repr

    def __str__(self) -> str:
        return f"{self.type_name}: {self.message} ({self.why})"


class RemoteTraceback(MpkitError):
    """The traceback in the other process, as text: of what it raised, and of all causes.

    It is the last ``__cause__`` of what was raised: of the exception itself if that has no
    cause, else of its first cause. So a traceback that is printed here begins with it, and
    the causes of an exception are where they were in its own process.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text}"""'


class NotPicklable(MpkitError, pickle.PicklingError):
    """An argument, a function, a message or a result cannot travel to another process.

    ``repr`` shows it, shortened if that is long, where it was made in another process: a
    result. Elsewhere it is empty.
    """

    def __init__(self, what: str, why: str, repr: str = "") -> None:
        super().__init__(what, why, repr)
        self.what = what
        self.why = why
        self.repr = repr

    def __str__(self) -> str:
        it = f"; it is {self.repr}" if self.repr else ""
        return f"{self.what} cannot be pickled: {self.why}{it}"


class ResultTimeout(MpkitError, multiprocessing.TimeoutError, TimeoutError):
    """No result in time, from a job, a task or an iterator of results; the work goes on."""

    def __init__(self, what: str, timeout: float) -> None:
        super().__init__(what, timeout)
        self.what = what
        self.timeout = timeout

    def __str__(self) -> str:
        return f"{self.what} has no result after {self.timeout:g} s"


class PoolClosed(MpkitError, ValueError, RuntimeError):
    """The pool takes no more tasks.

    `multiprocessing.Pool` raises `ValueError` here and `concurrent.futures` raises
    `RuntimeError`; this is both.
    """

    def __init__(self, pool: str, why: str) -> None:
        super().__init__(pool, why)
        self.pool = pool
        self.why = why

    def __str__(self) -> str:
        return f"{self.pool} takes no more tasks: {self.why}"
