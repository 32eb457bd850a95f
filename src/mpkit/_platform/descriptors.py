"""Descriptors that tell of a process, or that carry packets."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING, Final

from mpkit._platform import LINUX

if TYPE_CHECKING:
    from collections.abc import Callable

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


def most_open() -> int:
    """Return how many descriptors this process may have, as ``resource`` would, which is a file to load."""
    return os.sysconf("SC_OPEN_MAX")


#: Whether a local socket can keep packets apart (macOS has no SOCK_SEQPACKET for AF_UNIX).
HAS_PACKETS: Final = LINUX and hasattr(socket, "SOCK_SEQPACKET")


#: `socket.socketpair` without what Python adds, which is to count the files that are made of them.
_socketpair: Callable[[int, int], tuple[socket.SocketType, socket.SocketType]]
_socketpair = sys.modules["_socket"].socketpair


def socket_pair(whole: int) -> tuple[socket.SocketType, socket.SocketType]:
    """Return two connected local sockets, of packets if the system has those.

    Over a stream, each has room for ``whole`` bytes, and takes them at once or not at all, as
    far as the system can.
    """
    if HAS_PACKETS:
        return _socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pair = _socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    for end in pair:
        # macOS begins with room for 8 KiB. BSD, and it, send no part of what may not block
        # while there is less room than this "low water mark"; Linux has none for sending.
        for option, size in ((socket.SO_SNDBUF, 2 * whole), (socket.SO_SNDLOWAT, whole)):
            with contextlib.suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, option, size)
    return pair


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


def identity(fd: int) -> tuple[int, int] | None:
    """Return what tells an open file from all others; None if there is none."""
    try:
        facts = os.fstat(fd)
    except OSError:
        return None
    return facts.st_dev, facts.st_ino


def watched(fd: int) -> Callable[[], bool]:
    """Return what tells whether a socket of ours has not been closed, nor another one in its place.

    Who asks that after each task of a worker should not ask for all that is known of a file. So we
    note in it that its signals are this process's; there are none, as nobody asked for any.
    """
    if LINUX:
        us = os.getpid()
        try:
            fcntl.fcntl(fd, fcntl.F_SETOWN, us)
            marked = fcntl.fcntl(fd, fcntl.F_GETOWN) == us
        except OSError:  # something stands between us and Linux
            marked = False
        if marked:
            return functools.partial(_has_owner, us, fd)
    same = identity(fd)
    return lambda: identity(fd) == same


def _has_owner(
    owner: int, fd: int, fcntl: Callable[[int, int], int] = fcntl.fcntl, get: int = fcntl.F_GETOWN
) -> bool:
    try:
        return fcntl(fd, get) == owner
    except OSError:
        return False
