"""What differs by operating system or by version of Python, and nothing else.

Every other module asks here for a kernel feature and lives with ``None`` where the
system has none. ``MPKIT_PORTABLE=1`` in the environment switches the Linux-only ones
off, so that what macOS would run can be tested on Linux.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import multiprocessing.popen_fork
import multiprocessing.process
import os
import re
import select
import signal
import socket
import struct
import sys
import weakref
from multiprocessing import util
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

PORTABLE: Final = os.environ.get("MPKIT_PORTABLE") == "1"
LINUX: Final = sys.platform == "linux" and not PORTABLE


# descriptors that tell of a process, of memory, of packets


HAS_PIDFDS: Final = LINUX and hasattr(os, "pidfd_open")


def open_pidfd(pid: int) -> int | None:
    """Return a descriptor that becomes readable when process ``pid`` ends.

    None where the system has no such thing (before Linux 5.3, macOS); then the
    caller has to look again from time to time. Raises ProcessLookupError if the
    process is gone and was reaped.
    """
    if not HAS_PIDFDS:
        return None
    try:
        return os.pidfd_open(pid)
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EPERM):
            return None
        raise


HAS_MEMFD: Final = LINUX and hasattr(os, "memfd_create") and hasattr(fcntl, "F_ADD_SEALS")


def anonymous_file(size: int) -> int:
    """Return a descriptor of ``size`` bytes of memory that the kernel frees with it."""
    if HAS_MEMFD:
        fd = os.memfd_create("mpkit", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    else:
        fd = _nameless_file()
    try:
        os.ftruncate(fd, size)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _nameless_file() -> int:
    import tempfile  # noqa: PLC0415  slow to import, and rarely needed

    if hasattr(os, "O_TMPFILE"):
        # One that never had a name. Not every file system can do that.
        with contextlib.suppress(OSError):
            return os.open(tempfile.gettempdir(), os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    # A process that is killed between these two lines leaves an empty file.
    fd, path = tempfile.mkstemp(prefix="mpkit-")
    os.unlink(path)
    return fd


def seal(fd: int) -> None:
    """Have an anonymous file never become shorter: who maps it would be killed by SIGBUS."""
    if HAS_MEMFD:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)


def is_sound(fd: int) -> bool:
    """Tell whether a file has the memory that it says, and keeps it.

    Where that cannot be known it is believed.
    """
    if not HAS_MEMFD:
        return True
    facts = os.fstat(fd)
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:  # it is a file of another kind
        return False
    return bool(seals & fcntl.F_SEAL_SHRINK) and facts.st_blocks * 512 >= facts.st_size


#: How many mappings may keep a descriptor open; a quarter of what a process may usually have.
MOST_MAPS: Final = 256

_maps: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()


def private_map(fd: int, size: int) -> mmap.mmap | None:
    """Map a file so that writes stay in this process; None if there is no room for a map.

    Private, because the sender may have to send the same file again. Before Python 3.13
    a map keeps a copy of the descriptor: who holds a thousand arrays would have none left.
    """
    if sys.version_info < (3, 13) and len(_maps) >= MOST_MAPS:
        return None
    mapped = _map(fd, size, mmap.MAP_PRIVATE)
    if mapped is not None:
        _maps.add(mapped)
    return mapped


def shared_map(fd: int, size: int) -> mmap.mmap | None:
    """Map a file so that writes go to it; None if there is no room for a map.

    With all its pages at once, if the system can: a fault for each costs three times that.
    """
    return _map(fd, size, mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0))


def _map(fd: int, size: int, flags: int) -> mmap.mmap | None:
    try:
        if sys.version_info >= (3, 13):
            return mmap.mmap(fd, size, flags=flags, trackfd=False)
        return mmap.mmap(fd, size, flags=flags)
    except OSError:  # too many maps, no descriptor for its copy, no memory for its pages
        return None


#: Whether a local socket can keep packets apart (macOS has no SOCK_SEQPACKET for AF_UNIX).
HAS_PACKETS: Final = LINUX and hasattr(socket, "SOCK_SEQPACKET")


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Return two connected local sockets, of packets if the system has those."""
    kind = socket.SOCK_SEQPACKET if HAS_PACKETS else socket.SOCK_STREAM
    return socket.socketpair(socket.AF_UNIX, kind)


def die_when_hung_up(fd: int) -> bool:
    """Have the kernel SIGKILL this process when the last writer of pipe ``fd`` is gone.

    Returns False where the kernel cannot. Unlike ``PR_SET_PDEATHSIG`` it does not
    depend on which *thread* of the parent forked, and unlike a watching thread it
    works while C code holds the GIL.
    """
    if not (LINUX and hasattr(fcntl, "F_SETSIG")):
        return False
    fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(fd, fcntl.F_SETOWN, os.getpid())
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_ASYNC)
    return True


# POSIX record locks: a byte of a file belongs to a process, until it ends

# struct flock, whose members stand in another order on macOS.
_DARWIN: Final = sys.platform == "darwin"
_FLOCK: Final = struct.Struct("@qqihh" if _DARWIN else "@hhqqi4x")


_lockf = fcntl.lockf
_EX: Final = fcntl.LOCK_EX
_SH: Final = fcntl.LOCK_SH
_NB: Final = fcntl.LOCK_NB
_UN: Final = fcntl.LOCK_UN


def lock_byte(fd: int, offset: int, shared: bool = False, block: bool = False) -> bool:
    """Lock one byte of ``fd`` for this process; False if another process has it.

    It is freed by `unlock_byte`, at the death of the process, and when the process
    closes *any* descriptor of the same file. A forked child does not inherit it.
    """
    how = _SH if shared else _EX
    try:
        _lockf(fd, how if block else how | _NB, 1, offset)
    except (BlockingIOError, PermissionError):
        return False
    return True


def unlock_byte(fd: int, offset: int) -> None:
    """Give a byte back."""
    _lockf(fd, _UN, 1, offset)


def foreign_lock(fd: int, start: int, length: int) -> tuple[int, int, int] | None:
    """Return (pid, first byte, bytes) of the first lock another process has in the range."""
    if _DARWIN:
        query = _FLOCK.pack(start, length, 0, fcntl.F_WRLCK, os.SEEK_SET)
        first, count, pid, kind, _ = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_GETLK, query))
    else:
        query = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, start, length, 0)
        kind, _, first, count, pid = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_GETLK, query))
    return None if kind == fcntl.F_UNLCK else (pid, first, count)


# where a path lies


def file_system(path: str) -> str:
    """Return the type of the file system that ``path`` is on, as "ext4"; "" if not known."""
    if not LINUX:
        return ""
    try:
        device = os.stat(path).st_dev
        with open("/proc/self/mountinfo", "rb") as file:
            mounts = os.fsdecode(file.read())
    except OSError:
        return ""
    return find_mount(mounts, f"{os.major(device)}:{os.minor(device)}", path)


def find_mount(mounts: str, number: str, path: str) -> str:
    """Return the type of what is mounted as device ``number``, or else nearest above ``path``.

    Of btrfs and overlays a file's device number is not always that of the mount.
    """
    points: list[tuple[str, str]] = []
    for line in mounts.split("\n"):
        # 36 35 98:0 /root /mnt/point rw,noatime master:1 - ext3 /dev/root rw,errors=continue
        words = line.split(" ")
        try:
            kind = words[words.index("-", 6) + 1]
        except (ValueError, IndexError):  # not as documented
            continue
        if words[2] == number:
            return kind
        points.append((words[4], kind))
    nearest, found, path = 0, "", os.path.join(os.path.realpath(path), "")
    for escaped, kind in points:
        point = os.path.join(_OCTAL.sub(lambda code: chr(int(code[1], 8)), escaped), "")
        # What was mounted later hides what is mounted at the same point.
        if len(point) >= nearest and path.startswith(point):
            nearest, found = len(point), kind
    return found


#: How mountinfo writes a space, a tab, a newline and a backslash.
_OCTAL: Final = re.compile(r"\\([0-7]{3})")


# what the system knows of a process


def process_name(pid: int) -> str:
    """Return the command line of ``pid``, shortened; "?" if it cannot be had."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read(400).replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return "?"
    return words or "?"


def _status(pid: int) -> list[str]:
    """Return the fields of /proc/<pid>/stat from the state on; [] if they cannot be had."""
    try:
        with open(f"/proc/{pid}/stat", errors="replace") as file:
            return file.read().rpartition(") ")[2].split()
    except OSError:
        return []


def is_stopped(pid: int) -> bool:
    """Tell whether a process is stopped (SIGSTOP, a debugger); False if that is not known."""
    return _status(pid)[:1] in (["T"], ["t"])


def exists(pid: int) -> bool:
    """Tell whether there is a process ``pid``, one that was not reaped included."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        pass
    return True


def lives(pid: int) -> bool:
    """Tell whether a process is known to live, and has not begun to die."""
    status = _status(pid)
    # PF_EXITING: the kernel sets it before it closes what the process has open.
    return bool(status) and status[0] not in "ZX" and not int(status[6]) & 0x4


#: Whether who opens a file can find those who use one that was deleted from its path.
FINDS_DELETED: Final = LINUX and os.path.exists("/proc/locks")


def lockers(offset: int) -> dict[int, set[int]]:
    """Return which processes have a record lock that begins at ``offset``: pids by inode.

    In any file of any device; {} where `FINDS_DELETED` is false.
    """
    found: dict[int, set[int]] = {}
    if FINDS_DELETED:
        with open("/proc/locks", encoding="utf-8") as file:
            for line in file:
                # 1: POSIX  ADVISORY  READ 1234 08:01:5678 0 EOF; with "->" where it waits
                words = line.split()
                if words[1] == "POSIX" and words[6] == str(offset):
                    found.setdefault(int(words[5].rpartition(":")[2]), set()).add(int(words[4]))
    return found


def flockers() -> set[int]:
    """Return which processes have a shared `flock`, on anything; {} as with `lockers`."""
    found: set[int] = set()
    if FINDS_DELETED:
        with open("/proc/locks", encoding="utf-8") as file:
            for line in file:
                words = line.split()
                if words[1:4] == ["FLOCK", "ADVISORY", "READ"] and int(words[4]) > 0:
                    found.add(int(words[4]))
    return found


def open_deleted(path: str, pid: int, flags: int) -> int:
    """Open a file that was deleted from ``path``, but that process ``pid`` has open; or -1.

    The same file: not what may be at the path by now. Only where there is a /proc.
    """
    if not FINDS_DELETED:
        return -1
    folder, name = os.path.split(path)
    sought = f"{os.path.realpath(folder)}/{name} (deleted)"
    try:
        links = [f"/proc/{pid}/fd/{number}" for number in os.listdir(f"/proc/{pid}/fd")]
    except OSError:  # it is gone, or another user's
        return -1
    for link in links:
        try:
            if os.readlink(link) != sought:
                continue
            fd = os.open(link, flags | os.O_CLOEXEC)
        except OSError:  # it was closed meanwhile
            continue
        if os.readlink(f"/proc/self/fd/{fd}") == sought:  # and not what has the number now
            return fd
        os.close(fd)
    return -1


def resident_bytes() -> int:
    """Return how much memory this process occupies."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")
    except OSError:
        import resource  # noqa: PLC0415  only where there is no /proc

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if _DARWIN else peak * 1024


def exit_reason(exitcode: int | None) -> str:
    """Say an exit code in words: ``"was killed by SIGKILL"``, ``"exited with code 3"``."""
    if exitcode is None:
        return "vanished"
    if exitcode >= 0:
        return f"exited with code {exitcode}"
    try:
        name = signal.Signals(-exitcode).name
    except ValueError:
        name = f"signal {-exitcode}"
    return f"was killed by {name}"


def memory() -> int:
    """Return how many bytes of memory the machine has; 0 if that is not known."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return 0


def usable_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def exitcode_of_child(pid: int, patience: float) -> int | None:
    """Return how a child of this process ended, leaving it to be waited for; or None.

    None if it lives on after ``patience`` seconds, was waited for, or is no child of ours.
    """
    if not hasattr(os, "waitid"):  # macOS before Python 3.13
        return None
    opened: list[int | None] = []
    try:
        opened += map(open_pidfd, (pid,))  # a signal handler may raise: see `_port`
        for pidfd in opened:
            if pidfd is not None:
                poller = select.poll()
                poller.register(pidfd, select.POLLIN)
                poller.poll(patience * 1000)
        status = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except (ProcessLookupError, ChildProcessError):
        return None
    finally:
        for pidfd in opened:
            if pidfd is not None:
                os.close(pidfd)
    if status is None:
        return None
    return status.si_status if status.si_code == os.CLD_EXITED else -status.si_status


# private corners of multiprocessing, each with a test on every supported version


def call_at_exit(function: Callable[[], object], priority: int) -> util.Finalize:
    """Call ``function`` when this process ends, in the root and in multiprocessing's children.

    Not in what forks from it. Callables with a priority of 0 or more are called before
    child processes are joined, others after. (`atexit` is not enough: a child of
    multiprocessing leaves through `os._exit`.)
    """
    return util.Finalize(None, function, exitpriority=priority)


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


def pid_of(process: Any) -> int | None:
    """Return the pid of a Process or its Popen, if it was started and not closed."""
    pid: int | None = getattr(getattr(process, "_popen", process), "pid", None)
    return pid


def known_exitcode(process: Any) -> int | None:
    """Return how a Process, or its Popen, ended, if multiprocessing has waited for it."""
    code: int | None = getattr(getattr(process, "_popen", process), "returncode", None)
    return code


def owns(lock: Any) -> bool:
    """Tell whether the calling thread holds an RLock."""
    owned: bool = lock._is_owned()
    return owned


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

    popen.__class__ = type(kind.__name__, (kind,), {"__setattr__": set_attribute})


def pass_once(popen: Any) -> None:
    """Have a spawning ``popen`` pass each descriptor once, however often it was pickled.

    What the first attempt at pickling an argument had begun, the second one (by
    cloudpickle) repeats, and spawn refuses to pass the same descriptor twice.
    """
    if popen.method == "spawn":
        popen._fds[:] = dict.fromkeys(popen._fds)


def start_directory() -> str:
    """Return the working directory in which the program began."""
    return multiprocessing.process.ORIGINAL_DIR or os.getcwd()  # type: ignore[attr-defined]


def main_is_being_imported() -> bool:
    """Tell whether this process is being prepared by multiprocessing.

    It may be the fork server then, importing the program's main module for children
    that are not born yet: it does not belong to the program's family, they will.
    """
    return getattr(multiprocessing.process.current_process(), "_inheriting", False)
