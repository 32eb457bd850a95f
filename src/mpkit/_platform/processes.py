"""What the system knows of a process."""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from typing import Final

from mpkit._platform.descriptors import open_pidfd


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
        with open(f"/proc/{pid}/stat", "rb", 0) as file:  # a text would take twice as long
            return file.read().rpartition(b") ")[2].decode().split()
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


def has_stopped(pid: int, patience: float) -> bool:
    """Wait until a process that was sent SIGSTOP is stopped, or gone; False if it is not.

    That is a matter of microseconds, and no descriptor tells of it. Only a system call that
    nothing interrupts (of a dead network file system, say) takes longer.
    """
    end = time.monotonic() + patience
    while lives(pid) and not is_stopped(pid):
        if time.monotonic() > end:
            return False
        os.sched_yield()
    return True


def children() -> set[int] | None:
    """Return the pids of the processes that this thread has forked; None if that is not known."""
    try:
        with open(f"/proc/self/task/{threading.get_native_id()}/children", "rb", 0) as file:
            return {int(pid) for pid in file.read().split()}
    except OSError:
        return None


# Not everywhere: macOS has it from Python 3.13 on.
_HOW: Final = os.WEXITED | os.WNOHANG | os.WNOWAIT if hasattr(os, "waitid") else 0


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
                patience = 0.0
        end = time.monotonic() + patience
        while (status := os.waitid(os.P_PID, pid, _HOW)) is None and time.monotonic() < end:
            time.sleep(0.001)  # no descriptor tells, and what it has open is closed first
    except (ProcessLookupError, ChildProcessError):
        return None
    finally:
        for pidfd in opened:
            if pidfd is not None:
                os.close(pidfd)
    if status is None:
        return None
    return status.si_status if status.si_code == os.CLD_EXITED else -status.si_status
