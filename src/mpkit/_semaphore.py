"""Semaphore: at most so many at once, over processes, threads and tasks.

How slots are kept is in `_slots`, how one waits for them in `_waiter`. Here is what they
mean to a caller, and where a semaphore lies: in the folder of the family or of all named
things, as ``sem-<key>``. Only that path travels between processes.
"""

from __future__ import annotations

import math
import os
import sys
import threading
import weakref
from typing import TYPE_CHECKING, Any, Final, NamedTuple, ParamSpec, TypeVar

from mpkit import _fork, _runtime, _wait
from mpkit._decorated import decorated
from mpkit._errors import LimitTimeout, WouldDeadlock
from mpkit._platform import mains, processes
from mpkit._sharing import leave, use
from mpkit._signal import check_name
from mpkit._slots import MOST_SLOTS, Slots
from mpkit._waiter import Waiter

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable
    from types import CodeType, FrameType, TracebackType
    from typing import Self

    from mpkit._slots import Owner

#: How multiprocessing calls a root process; its command line says more.
_MAIN: Final = "MainProcess"

_ident = threading.get_ident

P = ParamSpec("P")
R = TypeVar("R")


class Holder(NamedTuple):
    """Who holds a slot: ``pid``, the name of the ``process``, ``since`` when.

    ``process`` is the name that multiprocessing gave it, or its command line. ``since``
    is in seconds as by `time.time`; NaN if that is not known.
    """

    pid: int
    process: str
    since: float


class Semaphore:
    """So many slots, shared by processes, threads and asyncio tasks; a killed holder frees its own.

    A drop-in for `multiprocessing.Semaphore` that can be pickled anywhere: as a process's
    argument under every start method, into a pool's task, through a queue or a `Channel`.
    Without a ``name`` it is one of its own, shared by those who got it from somebody;
    with a name it is shared by all programs of this user that give the same name. To
    share one without passing it around see `limit`.

    It is a ``with`` block (also ``async with``) and a decorator for functions (``def``
    and ``async def``), which holds a slot during each call. It is not re-entrant: who
    acquires twice holds two slots.

    *If a process dies*, by whatever signal, its slots are free at once, and those who
    wait go on. A forked child does not hold what its parent holds. Who waits is served in
    the order of arrival, but somebody who comes just when a slot becomes free may take
    it, for some milliseconds at most.

    Waiting costs nothing: it is one system call until something happens. Do not use it
    for slots whose holders get stopped (SIGSTOP), as they keep them.

    Args:
        slots: how many may be held at once, 1 to 1,000,000.
        name: letters, digits and ``_.:@+-``; None for one of its own.

    Raises:
        LimitMismatch: it is in use with another number of slots.
        RuntimeDirectoryError: the directory in which processes meet cannot be used.

    Example:
        >>> import mpkit
        >>> semaphore = mpkit.Semaphore(2)
        >>> with semaphore:
        ...     semaphore.available
        1

    """

    _key: str
    _place: str
    _timeout: float | None
    # Where it lies. For a call site that depends on the family, which a forked child of
    # the fork server changes: then it is None until the next use.
    _path: str | None
    _slots: Slots | None

    def __init__(self, slots: int, *, name: str | None = None) -> None:
        check_slots(slots)
        if name is None:
            key = os.urandom(8).hex()
            frame = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]
            place = f"Semaphore made at {line(frame)}"
            home = _runtime.family_home()
        else:
            check_name(name)
            key, place, home = name, f"limit {name!r}", _runtime.named_home()
        self._set_up(slots, key, place, None)
        self._open(home.path)

    @classmethod
    def _at(
        cls, folder: str | None, slots: int, key: str, place: str, timeout: float | None
    ) -> Self:
        """Return the one in ``folder``; also unpickles."""
        semaphore = cls.__new__(cls)
        semaphore._set_up(slots, key, place, timeout)
        if folder is not None:
            _runtime.hold(folder)
            semaphore._open(folder)
        return semaphore

    def _set_up(self, slots: int, key: str, place: str, timeout: float | None) -> None:
        self._count = slots
        self._key = key
        self._place = place
        self._timeout = timeout
        self._path = None
        self._slots = None
        self._done: weakref.finalize[Any, Any] | None = None

    def _open(self, folder: str) -> Slots:
        path = os.path.join(folder, f"sem-{self._key}")
        with _fork.guard:
            if self._slots is None or self._path != path:
                opened = use(path, self._count, self._place)
                if self._done is not None:
                    self._done()
                self._done = weakref.finalize(self, leave, path)
                self._done.atexit = False
                self._slots, self._path = opened, path
            return self._slots

    def _opened(self) -> Slots:
        return self._slots or self._open(_runtime.family_home().path)

    @property
    def slots(self) -> int:
        """How many slots there are, free or not."""
        return self._count

    @property
    def available(self) -> int:
        """How many slots are free at this moment, as the kernel knows."""
        slots = self._opened()
        return self._count - len(slots.foreign().keys() | slots.own())

    @property
    def key(self) -> str:
        """The name that it is shared by, or a hash of the call site."""
        return self._key

    def acquire(self, block: bool = True, timeout: float | None = None) -> bool:
        """Take a slot; tell whether that worked.

        Blocks while none is free, for ``timeout`` seconds at most. In a coroutine use
        `acquire_async`: this would stop the event loop.

        Args:
            block: False only looks, and takes a slot if one is free.
            timeout: seconds to wait; None waits for ever, 0 only looks.

        Raises:
            WouldDeadlock: this thread holds all slots, and would wait for ever.

        """
        slots = self._slots or self._opened()
        owner = _ident()
        if timeout is not None:
            _wait.check_timeout(timeout)
        if not block or timeout == 0:
            return slots.take_now(owner)
        if slots.take(owner, False):
            return True
        deadline = self._deadline(slots, owner, timeout)
        waiter = Waiter(slots, owner, may_block=timeout is None)
        try:
            while not waiter.served():
                if deadline.passed():
                    return False
                _wait.poll(waiter.watched, _sooner(deadline.left(), waiter.patience))
            return True
        except BaseException:
            waiter.refuse()
            raise
        finally:
            # In this frame, and once more: Ctrl-C may come before `leave` has begun, and
            # whoever does not leave keeps all behind him waiting.
            try:
                waiter.leave()
            except BaseException:
                waiter.leave()
                waiter.refuse()
                raise

    async def acquire_async(self, timeout: float | None = None) -> bool:
        """Take a slot; tell whether that worked. As `acquire`, without blocking the event loop.

        The slot belongs to the task. No thread is started. A task that is cancelled
        while it waits takes nothing.

        Args:
            timeout: seconds to wait; None waits for ever, 0 only looks.

        Raises:
            WouldDeadlock: this task holds all slots, and would wait for ever.

        """
        slots = self._slots or self._opened()
        owner = current_task()
        _wait.check_timeout(timeout)
        if timeout == 0:
            return slots.take_now(owner)
        if slots.take(owner, overtake=False):
            return True
        deadline = self._deadline(slots, owner, timeout)
        waiter = Waiter(slots, owner, may_block=False)
        try:
            while not waiter.served():
                if deadline.passed():
                    return False
                left = _sooner(deadline.left(), waiter.patience)
                await _wait.readable(waiter.watched, left)
            return True
        except BaseException:
            waiter.refuse()
            raise
        finally:
            # As in `acquire`.
            try:
                waiter.leave()
            except BaseException:
                waiter.leave()
                waiter.refuse()
                raise

    def _deadline(self, slots: Slots, owner: Owner, timeout: float | None) -> _wait.Deadline:
        if timeout is None and slots.holds(owner) == self._count:
            raise WouldDeadlock(self._place, self._count)
        return _wait.Deadline(timeout)

    def release(self) -> None:
        """Give a slot back, from any thread or task of the process that holds it. Never blocks.

        Raises:
            ValueError: this process holds none: it released too often, or another
                process (its parent, say) is the holder.

        """
        slots = self._slots or self._opened()
        if not slots.give(_ident()):
            self._give(slots, current_task())

    def _give(self, slots: Slots, owner: Owner) -> None:
        if not (slots.give(owner) or slots.give_any()):
            raise ValueError(
                f"process {os.getpid()} released {self._place} without holding a slot of it"
            )

    def __enter__(self) -> Self:
        if not self.acquire(True, self._timeout):
            raise self._too_late()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._give(self._slots or self._opened(), _ident())

    async def __aenter__(self) -> Self:
        if not await self.acquire_async(self._timeout):
            raise self._too_late()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._give(self._slots or self._opened(), current_task())

    def _too_late(self) -> LimitTimeout:
        return LimitTimeout(self._place, self._count, self._timeout or 0.0)

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """Decorate ``function``: each call of it holds a slot.

        Raises:
            TypeError: it is a generator function, whose body runs after the call.

        """
        return decorated(function, self)

    def holders(self) -> list[Holder]:
        """Return who holds slots at this moment, an entry for each slot, as the kernel knows."""
        slots = self._opened()
        holds = slots.foreign() | dict.fromkeys(slots.own(), os.getpid())
        return [_holder(pid, *slots.note(slot)) for slot, pid in sorted(holds.items())]

    def __reduce__(self) -> tuple[Callable[..., Semaphore], tuple[object, ...]]:
        folder = os.path.dirname(self._opened().path)
        return Semaphore._at, (folder, self._count, self._key, self._place, self._timeout)

    def __repr__(self) -> str:
        return f"<{self._place}: {self.available} of {self._count} slots free>"

    def _before_fork(self) -> None:
        """Nothing to decide."""

    def _after_fork_in_parent(self) -> None:
        """Nothing to let go of."""

    def _after_fork_in_child(self) -> None:
        # Only call sites are told of a fork. The child may belong to another family, and
        # learns of it after this; what it uses until now is left when it finds another.
        self._slots = None


def check_slots(slots: object) -> None:
    if isinstance(slots, bool) or not isinstance(slots, int):
        raise TypeError(f"the number of slots is an int, not {slots!r}")
    if not 1 <= slots <= MOST_SLOTS:
        raise ValueError(f"the number of slots is 1 to {MOST_SLOTS:,}, not {slots!r}")


def source(code: CodeType) -> str:
    """Return the path of the code's file.

    A script that was started by a relative path is known by that in the first process,
    and by an absolute one in those that it spawns; and it may have changed directory.
    """
    if code.co_filename.startswith("<"):
        return code.co_filename
    return os.path.normpath(os.path.join(mains.start_directory(), code.co_filename))


def line(frame: FrameType) -> str:
    """Name a line of the program for humans."""
    start = os.path.join(mains.start_directory(), "")
    return f"{source(frame.f_code).removeprefix(start)}:{frame.f_lineno}"


def _holder(pid: int, noted_pid: int, since: float, name: str) -> Holder:
    if pid != noted_pid:  # taken or given up right now, or beyond those that are noted
        return Holder(pid, processes.process_name(pid), math.nan)
    if name == _MAIN:
        name = processes.process_name(pid)
    return Holder(pid, name, since)


def current_task() -> asyncio.Task[Any] | None:
    """Return the asyncio task that runs in this thread, if one does."""
    if "asyncio" not in sys.modules:  # slow to import, and nobody has a task without it
        return None
    import asyncio  # noqa: PLC0415

    try:
        return asyncio.current_task()
    except RuntimeError:  # no event loop runs in this thread
        return None


def _sooner(left: float | None, patience: float | None) -> float | None:
    if left is None or patience is None:
        return patience if left is None else left
    return min(left, patience)
