"""Private corners of the standard library, each with a test on every supported version."""

from __future__ import annotations

import contextlib
import functools
import importlib.machinery
import io
import multiprocessing.popen_fork
import multiprocessing.process
import os
import signal
import sys
import threading
from multiprocessing import util
from typing import TYPE_CHECKING, Any, Final

from mpkit._platform import mains

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable


#: `signal.pthread_sigmask`, which returns numbers. To make signals of all of them takes as long
#: as all else that we do at a fork, in the parent and once more in the child.
signal_mask: Callable[[int, Iterable[int]], set[int]] = sys.modules["_signal"].pthread_sigmask

#: `signal.valid_signals`, likewise.
valid_signals: Callable[[], set[int]] = sys.modules["_signal"].valid_signals

#: `signal.signal`, likewise: a handler is a function, or what `signal.SIG_DFL` and `SIG_IGN` are as
#: numbers.
handle_signal: Callable[[int, Any], Any] = sys.modules["_signal"].signal


def call_at_exit(function: Callable[[], object], priority: int) -> util.Finalize:
    """Call ``function`` when this process ends, in the root and in multiprocessing's children.

    Not in what forks from it. Callables with a priority of 0 or more are called before
    child processes are joined, others after. (`atexit` is not enough: a child of
    multiprocessing leaves through `os._exit`.)
    """
    return util.Finalize(None, function, exitpriority=priority)


def wait_for_threads() -> None:
    """Wait for all threads but daemons, as each process does before it ends; for once only."""
    shutdown: Any = getattr(threading, "_shutdown")  # noqa: B009  as multiprocessing does
    shutdown()


def call_when_gone(
    thing: object, function: Callable[..., object], args: tuple[Any, ...], priority: int
) -> util.Finalize:
    """Call ``function(*args)`` when ``thing`` is garbage, or at the latest as `call_at_exit`."""
    return util.Finalize(thing, function, args, exitpriority=priority)


def process_being_forked() -> Any:
    """Return the `multiprocessing.Process` that this thread is forking right now, or None.

    To be called from an `os.register_at_fork` handler. That a fork moves the channel
    ends among the arguments of a plain ``Process(target, args)`` needs to know them
    *before* it happens, and multiprocessing offers no hook.
    """
    launch = multiprocessing.popen_fork.Popen._launch.__code__  # type: ignore[attr-defined]
    # A forked child is still inside its parent's _launch(), and has its own life in here.
    child = multiprocessing.process.BaseProcess._bootstrap.__code__  # type: ignore[attr-defined]
    frame: Any = sys._getframe(1)
    while frame is not None and frame.f_code is not child:
        if frame.f_code is launch:
            return frame.f_locals.get("process_obj")
        frame = frame.f_back
    return None


def close_what_a_failed_fork_left(error: OSError) -> None:
    """Close the pipes that multiprocessing makes for a process, and forgets if it cannot fork.

    (CPython 3.11 to 3.14: ``popen_fork.Popen._launch`` has no ``finally``.) Whoever tries
    again when there is more room would use up the descriptors meanwhile.
    """
    launch = multiprocessing.popen_fork.Popen._launch.__code__  # type: ignore[attr-defined]
    traceback = error.__traceback__
    while traceback is not None:
        frame = traceback.tb_frame
        if frame.f_code is launch:
            for name in ("parent_r", "child_w", "child_r", "parent_w"):
                if name in frame.f_locals:  # the second pipe may be what failed
                    os.close(frame.f_locals[name])
        traceback = traceback.tb_next


def pid_of(process: Any) -> int | None:
    """Return the pid of a Process or its Popen, if it was started and not closed."""
    pid: int | None = getattr(getattr(process, "_popen", process), "pid", None)
    return pid


def known_exitcode(process: Any, patience: float) -> int | None:
    """Return how a Process, or its Popen, ended, if multiprocessing has waited for it.

    Or if a fork server tells so within ``patience`` seconds; `call_when_launched` knows the
    Popen then.
    """
    popen: Any = getattr(process, "_popen", process)
    if getattr(popen, "method", None) == "forkserver":
        popen.wait(patience)
    code: int | None = getattr(popen, "returncode", None)
    return code


def forget_child(process: Any) -> None:
    """Have multiprocessing let go of a Process that ended, and for which others have waited.

    It would keep it, and its pipes, for as long as this program runs.
    """
    multiprocessing.process._children.discard(process)  # type: ignore[attr-defined]


def owns(lock: Any) -> bool:
    """Tell whether the calling thread holds an RLock."""
    owned: bool = lock._is_owned()
    return owned


class Condition(threading.Condition):
    """One whose lock is taken and released by C code.

    `threading.Condition` does both in methods of Python, in which a Ctrl-C may come when the lock
    is taken, and nobody would release it. The next one who asks for it may be a thread by which
    all tasks end: the supervisor, or an executor's.
    """

    @property
    def __enter__(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        lock: Any = getattr(self, "_lock")  # noqa: B009  typeshed knows nothing of it
        return lock.__enter__

    @property
    def __exit__(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        lock: Any = getattr(self, "_lock")  # noqa: B009
        return lock.__exit__


def call_when_launched(popen: Any, function: Callable[[], object]) -> None:
    """Call ``function`` as soon as a spawning ``Popen`` has copied what its process needs.

    That is when it learns the pid; it never does if the start fails. What is given away
    must be let go of then, and not when this process happens to look at it again: it may
    be about to wait for someone who waits for the end of just that.
    """
    kind: Any = popen.__class__

    def set_attribute(popen: Any, name: str, value: object) -> None:
        kind.__setattr__(popen, name, value)
        if name == "pid":
            function()

    own: dict[str, Any] = {"__setattr__": set_attribute}
    if popen.method == "forkserver":
        own |= {"poll": _poll_in_turns(kind), "polled_in_turns": True}
    popen.__class__ = type(kind.__name__, (kind,), own)


def have_it_polled_in_turns(process: Any) -> None:
    """Have a process that was started looked at by one thread at a time, under forkserver.

    Each start of a process looks at all others that this one has, whichever thread's they are.
    """
    popen = process._popen
    if popen.method == "forkserver" and not hasattr(popen, "polled_in_turns"):
        popen.__class__ = _polled_in_turns(popen.__class__, os.getpid())


@functools.cache
def _polled_in_turns(kind: Any, owner: int) -> Any:
    """Return the class for all of them, of which a forked child needs one of its own."""
    return type(kind.__name__, (kind,), {"poll": _poll_in_turns(kind), "polled_in_turns": True})


def _poll_in_turns(kind: Any) -> Callable[..., int | None]:
    """Return a ``poll`` in which one thread at a time reads the exit code from the fork server.

    It comes once, through a pipe: a second one would find the end, and take that for 255.
    """
    turn, owner = threading.RLock(), os.getpid()

    def poll(popen: Any, flag: int = os.WNOHANG) -> int | None:
        code: int | None = popen.returncode
        if code is not None or os.getpid() != owner:  # a forked child has that pipe, too
            return code
        if flag != os.WNOHANG:
            from multiprocessing import connection  # noqa: PLC0415  a fork server has it

            connection.wait([popen.sentinel])
        with turn:
            code = kind.poll(popen, os.WNOHANG)
        return code

    return poll


def pass_once(popen: Any) -> None:
    """Have a spawning ``popen`` pass each descriptor once, however often it was pickled.

    What the first attempt at pickling an argument had begun, the second one (by
    cloudpickle) repeats, and spawn refuses to pass the same descriptor twice.
    """
    if popen.method == "spawn":
        popen._fds[:] = dict.fromkeys(popen._fds)


class _Luggage(str):
    """The name of a process that is not started yet, with what it is to have before all else.

    A process that is not forked reads two things: how to prepare itself, in which its name is all
    that is its own, and itself. Between these it imports the main module of the program, and
    with that whatever else. To have its variables set by then, this process would have to set
    its own, which all its threads see and each program that one of them starts just then.
    """

    process: Any
    environment: dict[str, str]

    def __reduce__(self) -> tuple[Any, ...]:
        self.process.name = name = str(self)  # it travels once, ahead of the rest
        # No function of ours: a new process reads a little later where it finds this package.
        return eval, (f"__import__('os').environ.update({self.environment!r}) or {name!r}",)


def have_environment(process: Any, variables: dict[str, str]) -> None:
    """Have a process that is to be started begin with some variables of its environment set.

    Before it imports anything of the program's. It must not be forked, for then nothing travels.
    """
    luggage = _Luggage(process.name)
    luggage.process, luggage.environment = process, variables
    process.name = luggage


#: What a fork server imports: all that a worker needs and a job, and the pool besides, which a
#: main module may ask for that they import.
PRELOADED: Final = ("mpkit._pool.pool",)


def start_helpers(method: str) -> None:
    """Start the processes of multiprocessing's that it starts ours by, if they do not run yet."""
    if method != "fork":
        from multiprocessing import resource_tracker  # noqa: PLC0415  a fork needs none of it

        mains.refuse_if_being_imported()
        mains.spare_new_processes_what_is_no_file()
        resource_tracker.ensure_running()
    if method == "forkserver":
        _start_fork_server()


def _start_fork_server() -> None:
    """Have the fork server import what all our processes need, before it forks any of them.

    Besides what the program wants it to: that is left as it is. And so is a server that runs.
    """
    from multiprocessing import forkserver  # noqa: PLC0415  a fork needs none of it

    server: Any = forkserver._forkserver
    if server._forkserver_pid is None and _is_found_anew("mpkit"):
        # Without ours, which another thread may have put there just now.
        wanted = [name for name in server._preload_modules if name not in PRELOADED]
        server._preload_modules = with_ours = [*wanted, *PRELOADED]
        try:
            server.ensure_running()
        finally:
            if server._preload_modules is with_ours:  # or the last one sees to it
                server._preload_modules = wanted
    server.ensure_running()


def _is_found_anew(package: str) -> bool:
    """Tell whether a new interpreter finds our ``package``, and no other one of that name.

    A fork server has not what this program has added to its `sys.path` (but in the latest
    Pythons), and what it has imported is what all the processes have that it forks.
    """
    places = [] if sys.flags.safe_path else [""]
    if not sys.flags.ignore_environment:
        places += filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    if not sys.flags.no_site:
        import site  # noqa: PLC0415  there already, as a rule

        places += site.getsitepackages()
        places += [site.getusersitepackages()] if site.ENABLE_USER_SITE else []
    spec = importlib.machinery.PathFinder.find_spec(package, places)
    return spec is not None and spec.origin == sys.modules[package].__file__


@contextlib.contextmanager
def interrupts_held(method: str) -> Generator[None, None, None]:
    """Have no SIGINT reach this thread, nor a process that it starts until that allows it.

    (The fork server is nobody's child here: what it forks begins with SIGINT allowed.)
    """
    # The helpers of multiprocessing would inherit that, and to start one ends it in this thread.
    start_helpers(method)
    before = signal_mask(signal.SIG_BLOCK, (signal.SIGINT,))
    try:
        yield
    finally:
        signal_mask(signal.SIG_SETMASK, before)


def allow_interrupts() -> None:
    """Let SIGINT in again, in a process that was started by `interrupts_held`."""
    signal_mask(signal.SIG_UNBLOCK, (signal.SIGINT,))


def renew_standard_streams() -> None:
    """Give a forked child's standard output and error buffers and locks of their own.

    While some thread of the parent prints, it holds the buffer's lock. A child that is
    forked just then has a copy of the lock that nobody will ever release. (multiprocessing
    flushes them first, so a child has nothing in them that it has to write.)
    """
    if getattr(multiprocessing.process.current_process(), "_start_method", None) != "fork":
        return
    for stream in {sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__}:
        buffer: Any = getattr(stream, "buffer", None)
        if type(buffer) is io.BufferedWriter:
            io.BufferedWriter.__init__(buffer, buffer.raw)  # that makes the lock
