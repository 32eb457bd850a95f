"""What tests and the processes that they start share."""

from __future__ import annotations

import contextlib
import gc
import mmap
import multiprocessing
import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.process import BaseProcess
    from types import FrameType

    import mpkit
    from mpkit import Semaphore

#: How long, in seconds, a test waits for a fact. Much longer than any fact takes.
PATIENCE = 30.0


class Spawn(Protocol):
    """Starts ``target(*args)`` in a process; see the fixture ``spawn``."""

    def __call__(self, target: Callable[..., object], *args: object) -> BaseProcess: ...


def until(fact: Callable[[], object], patience: float = PATIENCE) -> None:
    """Return as soon as ``fact`` is true; fail if that takes too long.

    For facts that no descriptor tells of. Where one does, wait for that.
    """
    end = time.monotonic() + patience
    while not fact():
        assert time.monotonic() < end, f"{fact} did not become true in {patience} s"
        time.sleep(0.001)


@contextlib.contextmanager
def few_descriptors(count: int) -> Iterator[None]:
    """Leave this process so many free descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []
    # Below the highest that is in use there may be free ones, or none.
    top = max(map(int, os.listdir("/dev/fd"))) + 1 + count
    resource.setrlimit(resource.RLIMIT_NOFILE, (top, hard))
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY))
        for _ in range(count):
            os.close(taken.pop())
        yield
    finally:
        for fd in taken:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextlib.contextmanager
def interrupted_in_threading(after: int) -> Iterator[None]:
    """Have a Ctrl-C come at the so manyth step of the code of `threading` in this thread.

    It ends the block, if there are so many steps, and nothing else.
    """
    left = after

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal left
        if frame.f_code.co_filename == threading.__file__:
            left -= 1
            if left < 0:
                sys.settrace(None)
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        with contextlib.suppress(KeyboardInterrupt):
            yield
    finally:
        sys.settrace(before)


def left_taken(lock: threading.Condition) -> bool:
    """Tell whether other threads than this one find a lock taken, which may be re-entrant."""
    found: list[bool] = []
    thread = threading.Thread(target=lambda: found.append(lock.acquire(False)))
    thread.start()
    thread.join(PATIENCE)
    return found != [True]


def kill(process: BaseProcess) -> None:
    """SIGKILL a process, and reap it."""
    process.kill()
    process.join(PATIENCE)
    assert process.exitcode == -signal.SIGKILL


def finish(process: BaseProcess) -> None:
    """Wait for a process to end well."""
    process.join(PATIENCE)
    assert process.exitcode == 0, f"{process} did not end well"


def supervisor_of(pool: mpkit.TaskPool) -> Any:
    """Return what runs the processes of a pool."""
    engine: Any = pool._backend
    return engine._supervisor


def expect_short_tasks(pool: mpkit.TaskPool) -> None:
    """Have a pool send several tasks in a packet, and ahead of need, as after many short ones.

    Not by running some: how long that takes depends on who else is at work here.
    """
    supervisor = supervisor_of(pool)
    supervisor._schedule._seconds = 1e-6


@contextlib.contextmanager
def idle_pool(**options: Any) -> Iterator[mpkit.TaskPool]:
    """Make a pool whose only worker has nothing to do, and may be taken by a caller."""
    from mpkit import TaskPool  # here, lest all children that tests start import it

    with TaskPool(1, **options) as pool:
        pool.submit(abs, -1).result(PATIENCE)
        wait_for_an_offer(pool)
        yield pool


def wait_for_an_offer(pool: mpkit.TaskPool) -> None:
    """Wait until the supervisor of a pool lets callers have an idle worker."""
    supervisor = supervisor_of(pool)
    until(lambda: supervisor._intake.shortcut.idle)


@contextlib.contextmanager
def supervisor_held(pool: mpkit.TaskPool) -> Iterator[None]:
    """Have the supervisor of a pool do nothing: what is submitted meanwhile comes at once."""
    supervisor = supervisor_of(pool)
    held, free = threading.Event(), threading.Event()

    def hold() -> None:
        held.set()
        free.wait(PATIENCE)

    supervisor.tell(hold)
    assert held.wait(PATIENCE)
    try:
        yield
    finally:
        free.set()


def asleep(pid: int) -> bool:
    """Tell whether all threads of a process are blocked in the kernel (Linux).

    With the fact that it waits in the queue, this says that it is inside ``poll``.
    """
    states = [_stat(f"/proc/{pid}/task/{thread}/stat")[0] for thread in _threads(pid)]
    return all(state == "S" for state in states)


def settled(pid: int) -> bool:
    """Tell whether a process has come to wait, and stays there (Linux).

    Python itself drops a signal that arrives in the instant after its last look for
    one and before the system call that blocks: the call blocks all the same.
    """
    try:
        before = wake_ups(pid)
        if not asleep(pid):
            return False
        time.sleep(0.01)
        return asleep(pid) and wake_ups(pid) == before
    except (FileNotFoundError, ProcessLookupError):  # a thread has just ended
        return False


def stopped(pid: int) -> bool:
    """Tell whether all threads of a process are stopped (Linux)."""
    return all(_stat(f"/proc/{pid}/task/{thread}/stat")[0] == "T" for thread in _threads(pid))


def wake_ups(pid: int) -> int:
    """Return how often the threads of a process have gone to sleep."""
    count = 0
    for thread in _threads(pid):
        with open(f"/proc/{pid}/task/{thread}/status") as file:
            count += sum(int(line.split()[1]) for line in file if line.startswith("voluntary"))
    return count


def exists(pid: int) -> bool:
    """Tell whether a process lives, and has not begun to die (Linux)."""
    try:
        state, *_, flags = _stat(f"/proc/{pid}/stat")[:7]
    except OSError:
        return False
    # PF_EXITING: the kernel sets it before it takes the process's locks away.
    return state not in "ZX" and not int(flags) & 0x4


def can_kill_in_c() -> bool:
    """Tell whether the kernel kills orphans here; else a thread does, which needs the GIL."""
    reader, writer = os.pipe()
    program = "import sys; from mpkit._platform import descriptors; print(descriptors.die_when_hung_up(0))"
    try:
        done = subprocess.run(
            [sys.executable, "-c", program],
            stdin=reader,
            capture_output=True,
            text=True,
            check=True,
        )
    finally:
        os.close(reader)
        os.close(writer)
    return done.stdout.strip() == "True"


def reset_peak() -> None:
    """Have `peak` forget what was before (Linux)."""
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def peak() -> int:
    """Return the most bytes of memory that this process had, since `reset_peak`."""
    try:
        with open("/proc/self/status") as file:
            found = next(line for line in file if line.startswith("VmHWM:"))
        return int(found.split()[1]) * 1024
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


def available() -> int:
    """Return how many bytes of memory this machine has to give (Linux)."""
    with open("/proc/meminfo") as file:
        (line,) = [line for line in file if line.startswith("MemAvailable")]
    return int(line.split()[1]) * 1024


def possessions() -> dict[str, int]:
    """Return how much of everything this process has, once what is garbage is gone."""
    from mpkit import _segment  # here, lest all children that tests start import it
    from mpkit._platform.memory import resident_bytes

    multiprocessing.active_children()  # reaps
    gc.collect()
    _segment.clear()  # what is kept, within bounds, to be used again
    return {
        "descriptors": len(os.listdir("/dev/fd")),
        "threads": threading.active_count(),
        "children": len(multiprocessing.active_children()),
        "resident": resident_bytes(),
    }


def in_line(semaphore: Semaphore) -> int:
    """Return how many wait for a slot (or did when they were killed)."""
    return len(semaphore._opened().queue.entries())


def _threads(pid: int) -> list[str]:
    return os.listdir(f"/proc/{pid}/task")


def _stat(path: str) -> list[str]:
    with open(path) as file:
        return file.read().rpartition(")")[2].split()


class Inside:
    """Counts who is inside, by itself: a witness that knows nothing of locks.

    A file of cells; who comes in writes his pid into a cell of his own, and then counts
    the cells of living processes. Of any two who are inside together at least one counts
    the other. Beside it each cell counts how often its owner came in: so if two looks at
    all cells find the same, then all of that was true at one moment in between.
    """

    def __init__(self, path: str, cells: int) -> None:
        self.path = path
        self.cells = cells
        with open(path, "a+b") as file:
            file.truncate(cells * 16)
            self._map = memoryview(mmap.mmap(file.fileno(), cells * 16)).cast("q")

    def __reduce__(self) -> tuple[type[Inside], tuple[str, int]]:
        return Inside, (self.path, self.cells)

    def enter(self, cell: int) -> int:
        """Come in; return how many are inside now."""
        self._map[2 * cell] = os.getpid()
        self._map[2 * cell + 1] += 1
        seen: list[int] = []
        while seen != (seen := self._map.tolist()):
            pass
        return sum(1 for pid in seen[::2] if pid and exists(pid))

    def leave(self, cell: int) -> None:
        self._map[2 * cell] = 0

    def turns(self) -> list[int]:
        return [self._map[2 * cell + 1] for cell in range(self.cells)]


def python(code: str, *args: str, **env: str) -> subprocess.Popen[str]:
    """Start a program of its own that runs ``code``, with pipes to talk to it."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *args],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **env},
    )


def copied(thing: Any) -> Any:
    """Return ``thing`` after a journey through pickle."""
    return pickle.loads(pickle.dumps(thing))
