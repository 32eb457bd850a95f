"""Record locks, who has them, and where a file lies.

A byte of a file that is locked belongs to a process, until it ends (POSIX).
"""

from __future__ import annotations

import fcntl
import os
import re
import struct
from typing import Final

from mpkit._platform import DARWIN, LINUX

_FLOCK: Final = struct.Struct("@qqihh" if DARWIN else "@hhqqi4x")
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
    if DARWIN:
        query = _FLOCK.pack(start, length, 0, fcntl.F_WRLCK, os.SEEK_SET)
        first, count, pid, kind, _ = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_GETLK, query))
    else:
        query = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, start, length, 0)
        kind, _, first, count, pid = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_GETLK, query))
    return None if kind == fcntl.F_UNLCK else (pid, first, count)


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
        point = os.path.join(unescaped(escaped), "")
        # What was mounted later hides what is mounted at the same point.
        if len(point) >= nearest and path.startswith(point):
            nearest, found = len(point), kind
    return found


def unescaped(path: str) -> str:
    """Return a path as it is, which mountinfo writes without spaces."""
    return _OCTAL.sub(lambda code: chr(int(code[1], 8)), path)


#: How mountinfo writes a space, a tab, a newline and a backslash.
_OCTAL: Final = re.compile(r"\\([0-7]{3})")
