"""Nobody outlives the parent that started him, whatever he is doing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from mpkit import Channel, _lifeline, channel, start
from mpkit._platform import processes
from tests.support import PATIENCE, Spawn, can_kill_in_c, exists, kill, until

if TYPE_CHECKING:
    from collections.abc import Callable

End = Channel[Any, Any]


def sleeping(end: End) -> None:
    end.send(os.getpid())
    signal.pause()


def busy(end: End) -> None:
    end.send(os.getpid())
    while True:
        pass


def ignoring_every_signal(end: End) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGIO):
        signal.signal(number, signal.SIG_IGN)
    end.send(os.getpid())
    signal.pause()


def in_c_with_the_gil(end: End) -> None:
    end.send(os.getpid())
    pow(7, 10**9)  # minutes, and no other thread of this process runs meanwhile


def with_a_job(end: End) -> None:
    """The grandchild says that it is there."""
    with start(sleeping, end) as job:
        job.result()


@pytest.mark.parametrize("doing", [sleeping, busy, ignoring_every_signal, in_c_with_the_gil])
def test_a_job_dies_with_its_parent(spawn: Spawn, doing: Callable[[End], None]) -> None:
    if doing is in_c_with_the_gil and not can_kill_in_c():
        pytest.skip("the kernel cannot kill orphans here, and no thread runs beside this C code")
    here, there = channel()
    parent = spawn(start_and_hang, there, doing)
    pid = here.recv(PATIENCE)
    assert exists(pid)
    kill(parent)
    until(lambda: not exists(pid))
    here.close()


def start_and_hang(end: End, doing: Callable[[End], None]) -> None:
    start(doing, end).join()


def test_grandchildren_die_too(spawn: Spawn) -> None:
    here, there = channel()
    parent = spawn(start_and_hang, there, with_a_job)
    pid = here.recv(PATIENCE)
    kill(parent)
    until(lambda: not exists(pid))
    here.close()


def test_a_parent_that_dies_first_is_noticed(spawn: Spawn) -> None:
    """The child is only being prepared when its parent dies."""
    here, there = channel()
    parent = spawn(start_and_die, there)
    parent.join(PATIENCE)
    pid = here.recv(PATIENCE)
    until(lambda: not exists(pid))
    here.close()


def start_and_die(end: End) -> None:
    job = start(signal.pause)
    end.send(job.pid)
    os.kill(os.getpid(), signal.SIGKILL)


def test_the_thread_that_forked_may_end(spawn: Spawn) -> None:
    """PR_SET_PDEATHSIG would kill the child then."""
    import threading

    here, there = channel()
    jobs: list[Any] = []
    thread = threading.Thread(target=lambda: jobs.append(start(answer, there)))
    thread.start()
    thread.join()
    assert here.request("alive?", PATIENCE) == "alive?"
    here.close()
    jobs[0].join()


def answer(end: End) -> None:
    for message in end:
        end.send(message)


def test_a_sibling_or_a_child_forked_by_hand_keeps_nobody_alive(spawn: Spawn) -> None:
    here, there = channel()
    parent = spawn(start_fork_and_hang, there)
    forked, pid = here.recv(PATIENCE), here.recv(PATIENCE)
    parent.kill()  # whose sentinel the forked one has inherited
    until(lambda: not exists(pid))
    assert exists(forked)  # it is not a job, and is nobody's to kill
    os.kill(forked, signal.SIGKILL)
    here.close()


def start_fork_and_hang(end: End) -> None:
    job = start(signal.pause)
    forked = os.fork()
    if forked == 0:
        signal.pause()
    end.send(forked)
    end.send(job.pid)
    signal.pause()


PROGRAM = """
import os, signal, sys
from mpkit import start, _platform
assert _platform.PORTABLE
def child(): signal.pause()
if __name__ == "__main__":
    import multiprocessing
    multiprocessing.set_start_method(sys.argv[1])
    job = start(child)
    print(job.pid, flush=True)
    job.join()
"""


def test_a_thread_does_it_where_the_kernel_cannot(start_method: str, tmp_path: Any) -> None:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    program = subprocess.Popen(
        [sys.executable, path, start_method],
        stdout=subprocess.PIPE,
        env={**os.environ, "MPKIT_PORTABLE": "1"},
    )
    assert program.stdout
    with program.stdout:
        pid = int(program.stdout.readline())
        assert exists(pid)
        program.kill()
        program.wait()
    until(lambda: not exists(pid))
    assert processes.exit_reason(program.returncode) == "was killed by SIGKILL"


def wait_for_a_signal() -> int:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    os.kill(os.getpid(), signal.SIGTERM)
    return signal.sigwait([signal.SIGTERM])


def test_a_signal_that_a_job_has_blocked_is_left_to_it(start_method: str) -> None:
    """The thread that watches has not blocked it."""
    with start(wait_for_a_signal) as job:
        assert job.result(PATIENCE) == signal.SIGTERM


def test_no_program_that_a_child_starts_inherits_a_lifeline() -> None:
    class Arrived:
        """As a descriptor is that came to a spawned process."""

        def detach(self) -> int:
            os.set_inheritable(reader, True)
            return reader

    reader, writer = os.pipe()
    lifeline = _lifeline._arrive(Arrived())
    assert not os.get_inheritable(lifeline._reader)
    os.close(reader)
    os.close(writer)
