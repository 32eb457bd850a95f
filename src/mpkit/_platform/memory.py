"""Memory that has a descriptor, and how much memory there is and who has it."""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import stat
import sys
import weakref
from typing import Final

from mpkit._platform import DARWIN, LINUX

#: Whether the processor lets others see what is stored, and loads, in the order of the program; but
#: a load may come before a store that is before it.
KEEPS_ORDER: Final = os.uname().machine in ("x86_64", "i686", "i386")

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

    # Asked for the first time, tempfile tries where it can write a file, and takes for lack
    # of a directory what may be lack of a descriptor. That is to be said by the system.
    os.close(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    folder = tempfile.gettempdir()
    if hasattr(os, "O_TMPFILE"):
        # One that never had a name. Not every file system can do that.
        with contextlib.suppress(OSError):
            return os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    # A process that is killed between these two lines leaves an empty file.
    fd, path = tempfile.mkstemp(prefix="mpkit-")
    os.unlink(path)
    return fd


def seal(fd: int) -> None:
    """Have an anonymous file never become shorter: who maps it would be killed by SIGBUS."""
    if HAS_MEMFD:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)


def is_sound(fd: int) -> bool:
    """Tell whether a file can be read, has the memory that it says, and keeps it.

    Of the memory that cannot be known everywhere; then it is believed.
    """
    facts = os.fstat(fd)
    how = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
    if not stat.S_ISREG(facts.st_mode) or how == os.O_WRONLY:
        return False
    if not HAS_MEMFD:
        return True
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


def shared_map(fd: int, size: int, *, whole: bool = True) -> mmap.mmap | None:
    """Map a file so that writes go to it; None if there is no room for a map.

    If it is used as a ``whole`` then with all its pages at once, if the system can: a fault
    for each costs three times that.
    """
    at_once = getattr(mmap, "MAP_POPULATE", 0) if whole else 0
    return _map(fd, size, mmap.MAP_SHARED | at_once)


def _map(fd: int, size: int, flags: int) -> mmap.mmap | None:
    try:
        if sys.version_info >= (3, 13):
            return mmap.mmap(fd, size, flags=flags, trackfd=False)
        return mmap.mmap(fd, size, flags=flags)
    except OSError:  # too many maps, no descriptor for its copy, no memory for its pages
        return None


#: Whether what the system knows of a process can be read in /proc.
HAS_PROC: Final = LINUX and os.path.exists("/proc/self/statm")


def resident_bytes_of(pid: int) -> int:
    """Return how much memory a process occupies; 0 if it is gone, or that cannot be known."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")
    except (OSError, IndexError):  # empty: it is dead, and was not waited for
        return 0


def peak_bytes_of(pid: int) -> int:
    """Return the most that a process has occupied; 0 if it is gone, or that cannot be known."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            status = file.read()
    except OSError:
        return 0
    _, _, after = status.partition(b"\nVmHWM:")
    return int(after.split(None, 1)[0]) * 1024 if after else 0  # a zombie has none


def resident_bytes() -> int:
    """Return how much memory this process occupies."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")
    except OSError:
        import resource  # noqa: PLC0415  only where there is no /proc

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if DARWIN else peak * 1024


def memory() -> int:
    """Return how many bytes of memory the machine has; 0 if that is not known."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return 0


def oom_kills() -> int:
    """Return how many processes the kernel has killed for lack of memory; 0 if not known."""
    try:
        with open("/proc/vmstat", "rb") as file:  # a codec might have to be imported
            return next((int(line[9:]) for line in file if line.startswith(b"oom_kill ")), 0)
    except OSError:
        return 0
