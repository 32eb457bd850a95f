"""The kernel limits how many descriptors a user's processes may have in sockets, unread.

Root is exempt, so who is to hit that limit here gives up what root has.
"""

from __future__ import annotations

import array
import ctypes
import errno
import os
import resource
import socket
import sys
import time
from typing import Any

import pytest

from mpkit import RemoteTraceback, TaskPool, _outcome, channel, start
from tests.support import PATIENCE

pytestmark = [
    pytest.mark.usefixtures("start_method"),
    pytest.mark.skipif(sys.platform != "linux", reason="that is a limit of Linux"),
]

#: A message that takes a descriptor.
LARGE = 1_000_000
_LIMIT = 200

#: The sockets, while they are full.
_clogged: list[socket.socket] = []


def clog() -> None:
    """Have too many descriptors on their way, and no privilege to send more all the same."""
    header, nothing = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert ctypes.CDLL(None).capset(header, nothing) == 0
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (_LIMIT, most))
    _clogged[:] = socket.socketpair()
    rights = array.array("i", [_clogged[0].fileno()] * 100)
    with pytest.raises(OSError, match="Too many references"):
        while True:  # others of this user may have some on their way, too
            _clogged[0].sendmsg([b"."], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])


def unclog(_: float = 0.0) -> None:
    while _clogged:
        _clogged.pop().close()


def clog_for_a_while() -> bytes:
    """Return what takes a descriptor, which there will be when the sender has paused once."""
    clog()
    time.sleep = unclog  # that is all that this process still does
    return bytes(LARGE)


def clog_for_ever() -> bytes:
    clog()
    _outcome._PATIENCE = 0  # type: ignore[misc]
    return bytes(LARGE)


def send_clogged() -> tuple[int | None, str]:
    here, there = channel()
    with here, there:
        clog()
        try:
            here.send(bytes(LARGE))
        except OSError as error:
            return error.errno, str(error)
        finally:
            unclog()
    raise AssertionError


def test_the_result_of_a_job_waits_for_others_to_arrive() -> None:
    with start(clog_for_a_while) as job:
        assert job.result(PATIENCE) == bytes(LARGE)
    assert job.exitcode == 0


def test_the_result_of_a_task_waits_for_others_to_arrive() -> None:
    with TaskPool(1) as pool:
        assert pool.submit(clog_for_a_while).result(PATIENCE) == bytes(LARGE)


def check(error: Any) -> None:
    assert isinstance(error, OSError)
    assert error.errno == errno.ETOOMANYREFS
    assert "descriptors on their way" in str(error)
    assert "was sent" in error.__notes__[0]
    assert isinstance(error.__cause__, RemoteTraceback)


def test_a_job_whose_result_waits_in_vain_says_so() -> None:
    with start(clog_for_ever) as job:
        check(job.exception(PATIENCE))
    assert job.exitcode == 1


def test_a_task_whose_result_waits_in_vain_says_so() -> None:
    with TaskPool(1) as pool:
        before = pool.submit(os.getpid).result(PATIENCE)
        check(pool.submit(clog_for_ever).exception(PATIENCE))
        pool.submit(unclog).result(PATIENCE)
        assert pool.submit(os.getpid).result(PATIENCE) == before


def test_a_message_that_cannot_be_sent_says_why() -> None:
    with start(send_clogged) as job:
        number, text = job.result(PATIENCE)
    assert number == errno.ETOOMANYREFS
    assert f"at most {_LIMIT}: ulimit -n" in text
