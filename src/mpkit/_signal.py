"""Signal: an event that survives its waiters.

A signal *is* a FIFO, opened for reading and writing at once: it is set while a byte
is in it, and to wait for it is to poll it. Nothing counts the waiters and nothing is
locked, so it does not matter who dies when.

Why not `multiprocessing.Event`? Its ``set`` counts who sleeps, wakes so many, and then
waits for each of them to report back, all while it holds the event's lock. A waiter
that was SIGKILLed never reports: ``set`` blocks for ever, and behind it every later
``set``, ``is_set`` and ``wait`` in every process (tests/fault/test_signal_kills.py).

Only the path travels between processes. Since every user has the writing end open as
well, the FIFO never comes to its end, which would be "readable" too.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import select
import threading
import weakref
from typing import TYPE_CHECKING, Any, Final, Protocol

from mpkit import _fork, _runtime, _wait
from mpkit._platform import files

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Generator, Sequence
    from typing import Self

    from typing_extensions import override
else:

    def override(method: Callable[..., Any]) -> Callable[..., Any]:
        """Be `typing.override`, which came with Python 3.12, for what is only to be read."""
        return method


#: How long, in seconds, a thread outlives the task that awaited a foreign event.
_ABANDONED_AFTER = 0.1

_NAME = re.compile(r"[A-Za-z0-9_.:@+-]{1,200}")


def check_name(name: object) -> None:
    """Raise if ``name`` cannot be the name of something shared (it becomes a file's)."""
    if not isinstance(name, str):
        raise TypeError(f"a name is a str, not {name!r}")
    if name in {".", ".."} or not _NAME.fullmatch(name):
        raise ValueError(
            f"a name is 1 to 200 of the characters A-Z a-z 0-9 _ . : @ + -, unlike {name!r}"
        )


class EventLike(Protocol):
    """What `Signal.over` takes: an event of threading, multiprocessing or a manager."""

    def set(self) -> object:
        """Let all who wait go on."""

    def clear(self) -> object:
        """Have the next ones wait again."""

    def is_set(self) -> bool:
        """Tell whether it is set."""
        ...

    def wait(self, timeout: float | None = None, /) -> object:
        """Block until it is set."""


class Signal:
    """A flag that any process can set, clear and wait for; an event that survives its waiters.

    The same meaning as `multiprocessing.Event`, and a drop-in for it. It can be pickled
    anywhere: as a process's argument under every start method, into a pool's task,
    through a queue or a `Channel`. It works in `selectors`, in asyncio (``await signal``)
    and in `mpkit.wait`; it is readable while it is set.

    No method but `wait` ever blocks, whoever was killed whenever, and `set` may be called
    in a signal handler, whatever that interrupts. A process that dies takes nothing with it.

    `set`, `clear` and `is_set` each happen at one moment, so that all processes agree on
    when it was set. What `wait` promises: it returns True only if the signal was set at a
    moment during the call, and False only if it was clear at a moment after ``timeout``
    seconds. So a signal that *stays* set ends every wait. One that is set and cleared
    again at once may be missed by those who wait. Setting it twice is setting it once.
    The same is true of ``await signal``, and thousands of tasks may do that.

    The state lives as long as some process has the signal open: keep a reference to it
    until it has arrived where you sent it, as with `multiprocessing.Event`. Should its
    file be deleted meanwhile (by a program that tidies up ``/tmp``), those who have it
    open go on, and on Linux those who come later join them. On macOS these would begin
    another signal of that name.

    Args:
        name: shared by all programs of this user that give the same name (letters,
            digits and ``_.:@+-``); None makes a signal of its own.

    Raises:
        RuntimeDirectoryError: the directory in which processes meet cannot be used.

    Example:
        >>> import mpkit
        >>> done = mpkit.Signal()
        >>> done.wait(timeout=0)
        False
        >>> done.set()
        >>> done.wait()
        True

    """

    _fd: int
    _path: str
    _name: str | None
    # Whether somebody else may come to open the path, so that the file has to stay.
    _shared: bool
    _crowds: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _wait.Crowd]

    def __init__(self, *, name: str | None = None) -> None:
        if name is None:
            path = os.path.join(_runtime.family_home().path, f"sig-{os.urandom(8).hex()}")
        else:
            check_name(name)
            path = os.path.join(_runtime.named_home().path, f"sig-{name}")
        self._open(path, name, shared=name is not None)

    @staticmethod
    def over(event: EventLike) -> Signal:
        """Return ``event`` under the typed face of a Signal.

        For a `multiprocessing.Event`, a manager's, or a `threading.Event` that exists
        already. It keeps what is good and bad about the event: it has no descriptor (so
        no `fileno` and no `mpkit.wait`), awaiting it occupies a thread, and it can be
        pickled where the event can.

        Example:
            >>> import mpkit, threading
            >>> event = threading.Event()
            >>> mpkit.Signal.over(event).set()
            >>> event.is_set()
            True

        """
        return _EventSignal(event)

    @classmethod
    def _at(cls, path: str, name: str | None) -> Self:
        """Unpickle: the same FIFO by the same path."""
        _runtime.hold(os.path.dirname(path))
        signal = cls.__new__(cls)
        signal._open(path, name, shared=True)
        return signal

    def _open(self, path: str, name: str | None, *, shared: bool) -> None:
        self._path, self._name, self._shared = path, name, shared
        self._crowds = weakref.WeakKeyDictionary()
        self._fd = _open_fifo(path) if shared else _make_fifo(path)
        # Not at exit: the kernel closes the descriptor, the family's folder takes the file.
        weakref.finalize(self, os.close, self._fd).atexit = False
        if not shared:
            self._unlink = weakref.finalize(self, _unlink, path, os.getpid())
            self._unlink.atexit = False
            with _fork.guard:
                _fork.know(self)

    def set(self) -> None:
        """Set it: all who wait go on. Never blocks, and is safe in a signal handler."""
        # The look keeps bytes from piling up. Two processes that look at once both
        # write: two bytes mean the same as one.
        if not self.is_set():
            with contextlib.suppress(BlockingIOError):  # full of bytes: it is set
                os.write(self._fd, b"!")

    def clear(self) -> None:
        """Unset it: who waits from now on, waits for the next `set`. Never blocks."""
        with contextlib.suppress(BlockingIOError):  # it was not set
            # As much as a pipe can hold on Linux or macOS: one call takes all there is.
            os.read(self._fd, 1 << 20)

    def is_set(self) -> bool:
        """Tell whether it is set. Never blocks."""
        poller = select.poll()
        poller.register(self._fd, select.POLLIN)
        return bool(poller.poll(0))

    def wait(self, timeout: float | None = None) -> bool:
        """Block until it is set, for ``timeout`` seconds at most; tell whether it was set.

        Args:
            timeout: seconds to wait; None waits for ever, 0 only looks.

        """
        deadline = _wait.Deadline(timeout)
        while True:
            # The last look begins after the time is up. Of a poll that came back empty one
            # knows less: it may have been interrupted by a signal handler, which set us and
            # took so long that poll did not look again; or have been at its longest (24 days).
            last = deadline.passed()
            if _wait.poll((self._fd,), deadline.left()):
                return True
            if last:
                return False

    def fileno(self) -> int:
        """Return a descriptor that is readable while the signal is set, to be polled only."""
        return self._fd

    def __await__(self) -> Generator[Any, None, bool]:
        return self._wait_async().__await__()

    async def _wait_async(self) -> bool:
        import asyncio  # noqa: PLC0415  who awaits has it; nobody else should pay for it

        while not self.is_set():  # it may be cleared between the wake-up and our turn
            # A crowd for each event loop, of which every thread may have one.
            loop = asyncio.get_running_loop()
            crowd = self._crowds.get(loop) or self._crowds.setdefault(loop, _wait.Crowd())
            await crowd.wait(self._fd)
        return True

    def _ready(self) -> bool:
        return self.is_set()

    def _watched(self) -> Sequence[int]:
        return (self._fd,)

    def __reduce__(self) -> tuple[Callable[..., Signal], tuple[object, ...]]:
        self._keep_file()
        return Signal._at, (self._path, self._name)

    def __repr__(self) -> str:
        state = "set" if self.is_set() else "clear"
        label = os.path.basename(self._path) if self._name is None else repr(self._name)
        return f"<Signal {label} {state}>"

    def _keep_file(self) -> None:
        if not self._shared:
            self._shared = True
            self._unlink.detach()

    def _before_fork(self) -> None:
        # The child has the signal too, and may send it on after we let go of ours.
        self._keep_file()

    def _after_fork_in_parent(self) -> None:
        """Nothing to let go of."""

    def _after_fork_in_child(self) -> None:
        """The inherited descriptor is good: the FIFO is the state."""


_FLAGS: Final = os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC


def _open_fifo(path: str) -> int:
    """Open the FIFO at ``path``, or make it.

    If one was deleted from there underneath its users, then it is theirs: who comes now
    meets them on it. (Only where the system tells of them, which macOS does not.)
    """
    try:
        with contextlib.suppress(FileNotFoundError):
            return os.open(path, _FLAGS)
        # Those who find nothing look one after the other: the next one sees what this one
        # has decided. Not so those who find a FIFO: nobody makes one that is not to stay.
        with _runtime.alone(os.path.dirname(path)):
            with contextlib.suppress(FileNotFoundError):
                return os.open(path, _FLAGS)
            fd = _open_deleted_fifo(path)
            if fd < 0:
                os.mkfifo(path, 0o600)
                fd = os.open(path, _FLAGS)
            return fd
    except OSError as error:
        raise _runtime.unusable(path, error) from error


def _make_fifo(path: str) -> int:
    """Make a FIFO that nobody else knows of yet."""
    while True:
        try:
            os.mkfifo(path, 0o600)
            return os.open(path, _FLAGS)
        except FileNotFoundError:  # the folder was deleted underneath
            _runtime.restore(os.path.dirname(path))
        except OSError as error:
            raise _runtime.unusable(path, error) from error


def _open_deleted_fifo(path: str) -> int:
    """Open the FIFO that was deleted from ``path`` and is in use; -1 if there is none."""
    # Whoever has a signal holds a folder of the runtime directory with a shared flock.
    opened = (files.open_deleted(path, pid, os.O_RDWR | os.O_NONBLOCK) for pid in files.flockers())
    return next((fd for fd in opened if fd >= 0), -1)


def _unlink(path: str, creator: int) -> None:
    if os.getpid() == creator:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


class _EventSignal(Signal):
    """A Signal that rests on somebody else's event."""

    def __init__(self, event: EventLike) -> None:
        self._event = event

    @override
    def set(self) -> None:
        self._event.set()

    @override
    def clear(self) -> None:
        self._event.clear()

    @override
    def is_set(self) -> bool:
        return self._event.is_set()

    @override
    def wait(self, timeout: float | None = None) -> bool:
        _wait.check_timeout(timeout)
        return bool(self._event.wait(timeout))

    @override
    def fileno(self) -> int:
        raise io.UnsupportedOperation(f"{self!r} has no descriptor: it rests on an event object")

    @override
    async def _wait_async(self) -> bool:
        import asyncio  # noqa: PLC0415  who awaits has it; nobody else should pay for it

        abandoned = threading.Event()

        def watch() -> None:
            # In pieces: no one can wake a thread out of another's event, and asyncio
            # waits for its threads before it ends.
            while not (self.wait(_ABANDONED_AFTER) or abandoned.is_set()):
                pass

        try:
            await asyncio.to_thread(watch)
        finally:
            abandoned.set()
        return True

    @override
    def _watched(self) -> Sequence[int]:
        return (self.fileno(),)

    @override
    def __reduce__(self) -> tuple[Callable[..., Signal], tuple[object, ...]]:
        return Signal.over, (self._event,)

    @override
    def __repr__(self) -> str:
        return f"<Signal over {self._event!r}>"
