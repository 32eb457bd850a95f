"""What a forked child lets go of, and what travels with it."""

from __future__ import annotations

import gc
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

from mpkit import ChannelMoved, Signal, _fork, _links, _wait, channel, start
from mpkit._port import Port
from tests.support import PATIENCE, python

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks here")
pytestmark = [pytestmark, pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")]


def in_a_forked_child(function: Callable[[], object]) -> None:
    """Fork by hand, run ``function`` there, and fail if it raises."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            function()
            code = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0


def test_a_child_forked_by_hand_has_no_link_of_its_parent() -> None:
    here, there = _links.pair()

    def child() -> None:
        assert here.closed
        assert there.closed

    in_a_forked_child(child)
    assert not here.closed
    here.close()
    there.close()


def test_a_child_forked_by_hand_has_no_descriptor_of_ours() -> None:
    before = set(os.listdir("/dev/fd"))
    here, there = channel()
    job = start(here_we_stay, there)
    ours = {fd for fd in os.listdir("/dev/fd") if fd not in before}
    assert ours

    def child() -> None:
        # The pidfd of a job says only that it ended; it keeps nothing alive.
        kept = {fd for fd in ours & set(os.listdir("/dev/fd")) if "pidfd" not in link(fd)}
        assert not {fd for fd in kept if "socket" in link(fd)}, [link(fd) for fd in kept]

    in_a_forked_child(child)
    here.close()
    job.result(PATIENCE)
    job.join()


def link(fd: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return ""


def here_we_stay(end: Any) -> None:
    for _ in end:
        pass


def test_a_child_forked_by_hand_is_told_where_a_channel_stayed() -> None:
    here, there = channel()
    parent = os.getpid()

    def child() -> None:
        for end in (here, there):
            with pytest.raises(ChannelMoved, match=f"stayed with process {parent}"):
                end.send(1)
            end.close()

    in_a_forked_child(child)
    here.send("still ours")
    assert there.recv() == "still ours"
    here.close()
    there.close()


def test_the_end_is_not_kept_open_by_a_child_forked_by_hand() -> None:
    here, there = channel()
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(writer)
        os.read(reader, 1)  # until the parent says so
        os._exit(0)
    there.close()
    assert list(here) == []
    here.close()
    os.close(writer)
    os.close(reader)
    os.waitpid(pid, 0)


def test_a_child_can_be_forked_while_threads_use_channels() -> None:
    """Locks that they hold are made anew in the child, where nobody could let go."""
    here, there = channel()
    reading = threading.Thread(target=lambda: here.recv())
    reading.start()

    def child() -> None:
        here.close()
        left, right = channel()
        left.send("new")
        assert right.recv(PATIENCE) == "new"

    in_a_forked_child(child)
    there.send("end")
    reading.join(PATIENCE)
    here.close()
    there.close()


def test_forks_of_many_threads_at_once_do_not_deadlock() -> None:
    context = multiprocessing.get_context("fork")
    processes: list[multiprocessing.process.BaseProcess] = []

    def fork_and_open() -> None:
        for _ in range(5):
            here, there = channel()
            process = context.Process(target=int)
            process.start()
            processes.append(process)
            # Not by `join`: `start` of another thread may have just waited for it, and not noted
            # that yet, on which multiprocessing takes it for one that runs.
            assert multiprocessing.connection.wait([process.sentinel], PATIENCE)
            here.close()
            there.close()

    threads = [threading.Thread(target=fork_and_open) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert len(processes) == 20
    for process in processes:
        process.join()
        process.close()


def fork_by_hand(end: Any) -> None:
    """In a process that multiprocessing forked with ``end``: it stays there."""
    in_a_forked_child(lambda: None)
    end.send("still mine")


def test_a_forked_child_that_forks_keeps_what_it_was_given() -> None:
    here, there = channel()
    process = multiprocessing.get_context("fork").Process(target=fork_by_hand, args=(there,))
    process.start()
    assert list(here) == ["still mine"]
    process.join()
    process.close()
    here.close()


def test_what_was_known_and_is_garbage_is_not_told() -> None:
    here, there = _links.pair()
    here.close()
    there.close()
    known = len(_fork._known)
    del here, there
    gc.collect()
    assert len(_fork._known) <= known - 2
    in_a_forked_child(lambda: None)


def test_what_is_forgotten_is_told_of_no_fork() -> None:
    here, there = _links.pair()
    _fork.forget(here)
    _fork.forget(here)  # again is fine

    def child() -> None:
        assert there.closed
        assert not here.closed

    in_a_forked_child(child)
    here.close()
    there.close()


def test_what_is_given_away_moves_and_all_else_stays() -> None:
    """It is not looked for among the arguments: what else they hold does not travel."""
    (here, there), (other, another) = _links.pair(), _links.pair()
    process = multiprocessing.get_context("fork").Process(target=say_which, args=(there, another))
    _fork.give_away(process, (there,))
    process.start()
    assert there.closed
    assert not another.closed
    packet = here.receive(_wait.Deadline(PATIENCE))
    assert packet == (b"another: True", [])
    process.join()
    process.close()
    for link_ in (here, other, another):
        link_.close()


def say_which(there: Any, another: Any) -> None:
    there.send(f"another: {another.closed}".encode(), ())


def test_what_a_handler_makes_while_it_forks_is_told_of_that_fork(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[Any] = []
    here, there = _links.pair()
    look = type(here)._before_fork

    def make_more(link_: Any) -> None:
        look(link_)
        if not made:
            made.extend(_links.pair())

    monkeypatch.setattr(type(here), "_before_fork", make_more)

    def child() -> None:
        assert [link_.closed for link_ in made] == [True, True]

    in_a_forked_child(child)
    assert [link_.closed for link_ in made] == [False, False]
    for link_ in (here, there, *made):
        link_.close()


def test_signals_work_in_a_child_forked_by_hand() -> None:
    signal = Signal()
    in_a_forked_child(signal.set)
    assert signal.is_set()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Yield a reading end, to be closed here, and a writing end, to be closed by the test."""
    reader, writer = os.pipe()
    yield reader, writer
    os.close(reader)


def ended(reader: int) -> bool:
    """Tell whether nobody has the writing end of a pipe any more."""
    return bool(_wait.poll([reader], 0))


def test_descriptors_held_for_a_moment_stay_with_the_parent(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    kept = _fork.owned([writer])
    copy = kept.keep_copy(writer)
    pid = os.fork()
    if pid == 0:
        signal.pause()
    assert kept == [writer, copy]
    assert not ended(reader)
    kept.close()
    assert _wait.poll([reader], PATIENCE)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    kept.close()
    assert _fork.owned(kept) is kept


def test_a_descriptor_given_away_is_not_closed(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    kept = _fork.owned([writer])
    assert kept.give(0, str) == str(writer)
    assert kept == [-1]
    kept.close()
    assert not ended(reader)
    os.close(writer)


def test_one_that_could_not_be_given_away_is(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    kept = _fork.owned([writer])
    with pytest.raises(ZeroDivisionError):
        kept.give(0, lambda fd: fd // 0)
    kept.close()
    assert ended(reader)


def test_descriptors_that_nobody_took_are_closed_with_their_list(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    kept = _fork.owned([writer])
    assert not ended(reader)
    del kept
    gc.collect()
    assert ended(reader)


def say_hello(end: Any) -> None:
    end.send("hello")


INTERRUPTED = """
import multiprocessing, os, signal, sys, mpkit
from mpkit import _fork

class Interrupting:
    def _before_fork(self): os.kill(os.getpid(), signal.SIGINT)
    def _after_fork_in_parent(self): ...
    def _after_fork_in_child(self): ...

def say_hello(end): end.send("hello")

sys.unraisablehook = lambda report: None
pipe, made = os.pipe, []
os.pipe = lambda: made.extend(pipe()) or tuple(made[-2:])
here, there = mpkit.channel()
process = multiprocessing.get_context("fork").Process(target=say_hello, args=(there,))
interrupting = Interrupting()
_fork.know(interrupting)
try:
    process.start()
except KeyboardInterrupt:  # before multiprocessing knew what it had
    for fd in made:
        os.close(fd)
assert there.closed
print(here.recv(5))
here.close()
process.join() if process.pid else os.wait()
"""


def test_ctrl_c_in_the_middle_of_a_fork_leaves_nothing_half_done() -> None:
    """It comes when ours is done; another one's part of the fork may get it, and drop it.

    So may that of `logging`, which then keeps its lock: not in this process.
    """
    program = python(INTERRUPTED)
    assert program.communicate(timeout=PATIENCE)[0] == "hello\n"
    assert program.returncode == 0


def test_what_one_of_them_raises_keeps_the_others_from_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    raised: list[BaseException | None] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda report: raised.append(report.exc_value))
    here, there = channel()
    times = [KeyboardInterrupt]

    def interrupted(port: Any) -> None:
        if times:
            raise times.pop()
        before(port)

    before = Port._before_fork
    monkeypatch.setattr(Port, "_before_fork", interrupted)
    process = multiprocessing.get_context("fork").Process(target=say_hello, args=(there,))
    process.start()
    assert here.recv(PATIENCE) == "hello"
    process.join()
    assert [type(error) for error in raised] == [KeyboardInterrupt]
    here.close()


FAILING = """
import os, resource, multiprocessing, mpkit
def child(end): end.send("from the child")
multiprocessing.set_start_method("fork")
here, there = mpkit.channel()
if os.getuid() == 0:  # whom the limit does not hold
    os.setgid(65534)
    os.setuid(65534)
_, most = resource.getrlimit(resource.RLIMIT_NPROC)
resource.setrlimit(resource.RLIMIT_NPROC, (0, most))
try:
    multiprocessing.Process(target=child, args=(there,)).start()
except BlockingIOError:
    there.send("still here")
print(here.recv(5))
"""


def test_an_end_stays_if_the_fork_fails(tmp_path: Path) -> None:
    program = python(FAILING, MPKIT_RUNTIME_DIR=str(tmp_path))
    assert program.communicate(timeout=PATIENCE)[0] == "still here\n"
