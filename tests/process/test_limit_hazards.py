"""The hazards of record locks: second descriptors, forks, and programs started meanwhile.

A record lock belongs to a process, is dropped when the process closes *any* descriptor
of the file, and is not inherited by a forked child. A descriptor however is inherited.
"""

from __future__ import annotations

import contextlib
import gc
import os
import pathlib
import secrets
import select
import signal
import subprocess
import sys
import tempfile
import threading
from typing import TYPE_CHECKING

import pytest

from mpkit._limit import Semaphore, limit
from mpkit._signal import Signal
from tests.support import PATIENCE, Spawn, copied, exists, finish, in_line, python, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def a_name() -> str:
    return f"test-{secrets.token_hex(6)}"


LOOK = """
import sys
from mpkit._limit import Semaphore
semaphore = Semaphore(int(sys.argv[1]), name=sys.argv[2])
got = semaphore.acquire(block=False)
if got:
    semaphore.release()
print(got)
"""


def is_free(name: str, slots: int = 1) -> bool:
    """Tell whether another program gets a slot."""
    with python(LOOK, str(slots), name) as program:
        out, _ = program.communicate(timeout=PATIENCE)
    return {"True\n": True, "False\n": False}[out]


def in_child(pid: int, check: Callable[[], bool]) -> None:
    """In a child that was forked by hand: end, and say whether ``check`` was true."""
    if pid == 0:
        code = 2
        try:
            code = 0 if check() else 1
        finally:
            os._exit(code)


def assert_ends_well(pid: int) -> None:
    status = os.waitpid(pid, 0)[1]
    while terminals:
        os.close(terminals.pop())
    assert os.waitstatus_to_exitcode(status) == 0


# a second handle


def open_again(name: str) -> Semaphore:
    return Semaphore(1, name=name)


def make_a_limit(name: str) -> Semaphore:
    return limit(1, name=name)


def unpickle(name: str) -> Semaphore:
    return copied(Semaphore(1, name=name))  # type: ignore[no-any-return]


@pytest.mark.parametrize("again", [open_again, make_a_limit, unpickle])
def test_a_second_handle_may_come_and_go_while_a_slot_is_held(
    again: Callable[[str], Semaphore],
) -> None:
    name = a_name()
    semaphore = Semaphore(1, name=name)
    with semaphore:
        for _ in range(3):
            second = again(name)
            assert second.available == 0
            assert len(second.holders()) == 1
            del second
            gc.collect()
            assert not is_free(name)
    assert is_free(name)


def test_a_second_handle_may_come_and_go_when_the_first_is_gone() -> None:
    """The slot is held all the same; a handle that is made later can release it."""
    name = a_name()
    Semaphore(1, name=name).acquire()
    for _ in range(2):
        assert Semaphore(1, name=name).available == 0
        gc.collect()
    assert not is_free(name)
    Semaphore(1, name=name).release()
    gc.collect()
    assert is_free(name)


def test_handles_of_many_threads_come_and_go_while_a_slot_is_held() -> None:
    name = a_name()
    semaphore = Semaphore(2, name=name)

    def come_and_go() -> None:
        for _ in range(50):
            Semaphore(2, name=name).acquire()
            Semaphore(2, name=name).release()

    with semaphore:
        threads = [threading.Thread(target=come_and_go) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert semaphore.available == 1
        assert is_free(name, 2)
        with semaphore:
            assert not is_free(name, 2)


def test_a_mismatch_does_not_drop_what_is_held() -> None:
    """It opens the file, or looks at one that is open: neither may close it."""
    name = a_name()
    with Semaphore(1, name=name):
        with pytest.raises(ValueError, match="is in use with 1 slot"):
            Semaphore(2, name=name)
        assert not is_free(name)


# forks


def forked_by_hand() -> int:
    return os.fork()


#: Of children that were forked with a terminal, which would get SIGHUP if it were closed.
terminals: list[int] = []


def forked_with_a_terminal() -> int:
    pid, fd = os.forkpty()
    if pid:
        terminals.append(fd)
    return pid


FORKS = [forked_by_hand, forked_with_a_terminal]


def holds_nothing(semaphore: Semaphore) -> bool:
    """In a child of a holder of the only slot: tell whether all is as it should be."""
    if semaphore.acquire(block=False) or semaphore.available or semaphore.acquire(timeout=0.01):
        return False
    try:
        semaphore.release()
    except ValueError as error:
        refused = "without holding a slot" in str(error)
    else:
        refused = False
    return refused and [holder.pid for holder in semaphore.holders()] == [os.getppid()]


@pytest.mark.parametrize("fork", FORKS)
def test_a_child_that_is_forked_while_holding_holds_nothing(fork: Callable[[], int]) -> None:
    name = a_name()
    semaphore = Semaphore(1, name=name)
    with semaphore:
        pid = fork()
        in_child(pid, lambda: holds_nothing(semaphore))
        assert_ends_well(pid)
        # The child's closing of its descriptor dropped nothing of ours.
        assert semaphore.available == 0
        assert not is_free(name)
    assert semaphore.available == 1
    assert is_free(name)


def drop_all(semaphores: list[Semaphore]) -> bool:
    semaphores.clear()
    gc.collect()
    return True


@pytest.mark.parametrize("fork", FORKS)
def test_a_child_that_drops_its_handles_drops_nothing_of_its_parent(
    fork: Callable[[], int],
) -> None:
    name = a_name()
    semaphores = [Semaphore(1, name=name)]
    semaphores[0].acquire()
    pid = fork()
    in_child(pid, lambda: drop_all(semaphores))
    assert_ends_well(pid)
    assert os.path.exists(semaphores[0]._opened().path)
    assert not is_free(name)
    semaphores[0].release()
    assert is_free(name)


def test_a_child_of_a_child_can_take_what_its_grandparent_gives_back() -> None:
    semaphore, go = Semaphore(1), Signal()

    def take() -> bool:
        return go.wait(PATIENCE) and semaphore.acquire(block=False)

    def nest() -> bool:
        pid = os.fork()
        in_child(pid, take)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

    with semaphore:
        pid = os.fork()
        in_child(pid, nest)
    go.set()
    assert_ends_well(pid)
    assert semaphore.available == 1


def test_a_child_that_leaves_a_with_block_that_its_parent_entered_is_told() -> None:
    semaphore = Semaphore(1)

    def leave() -> bool:
        try:
            semaphore.__exit__(None, None, None)
        except ValueError:
            return semaphore.available == 0
        return False

    with semaphore:
        pid = os.fork()
        in_child(pid, leave)
        assert_ends_well(pid)
        assert semaphore.available == 0


def take_and_end(semaphore: Semaphore) -> None:
    with semaphore:
        pass


@pytest.mark.parametrize("fork", FORKS)
def test_a_fork_while_a_thread_waits_leaves_his_place_to_him(fork: Callable[[], int]) -> None:
    """And the child waits, if it does, in a place of its own."""
    semaphore, served = Semaphore(1), threading.Event()

    def wait() -> None:
        with semaphore:
            served.set()

    semaphore.acquire()
    thread = threading.Thread(target=wait)
    thread.start()
    until(lambda: in_line(semaphore) == 1)

    def wait_too() -> bool:
        if semaphore.acquire(block=False):
            return False
        with semaphore:
            return len(semaphore.holders()) == 1

    pid = fork()
    in_child(pid, wait_too)
    until(lambda: len(semaphore._opened().queue.waiting()) == 2)
    assert semaphore._opened().queue.waiting()[0] == os.getpid()
    assert not served.is_set()
    semaphore.release()
    thread.join(PATIENCE)
    assert served.is_set()
    assert_ends_well(pid)
    assert semaphore.available == 1


def test_a_fork_inside_each_of_nested_limits_holds_none_of_them(spawn: Spawn) -> None:
    outer, inner = Semaphore(1), Semaphore(2)
    with outer, inner, inner:
        pid = os.fork()
        in_child(pid, lambda: holds_nothing(outer) and not inner.acquire(block=False))
        assert_ends_well(pid)
        assert (outer.available, inner.available) == (0, 0)
    finish(spawn(take_and_end, outer))
    finish(spawn(take_and_end, inner))


# programs that are started by a holder, and outlive him

SLEEP = ["sleep", "1000"]


def by_popen() -> int:
    return subprocess.Popen(SLEEP).pid


def by_popen_that_closes_nothing() -> int:
    return subprocess.Popen(SLEEP, close_fds=False).pid


def by_popen_with_a_hook() -> int:
    """This has subprocess fork, and run handlers, where it else uses vfork."""
    return subprocess.Popen(SLEEP, close_fds=False, preexec_fn=lambda: None).pid


def by_shell() -> int:
    with tempfile.NamedTemporaryFile("r") as file:
        assert os.system(f"sleep 1000 & echo $! > {file.name}") == 0
        return int(file.readline())


def by_spawn() -> int:
    return os.posix_spawnp("sleep", SLEEP, os.environ)


def by_fork_and_exec() -> int:
    pid = os.fork()
    if pid == 0:
        os.execvp("sleep", SLEEP)
    until(lambda: pathlib.Path(f"/proc/{pid}/comm").read_text() == "sleep\n")
    return pid


STARTS = [
    by_popen,
    by_popen_that_closes_nothing,
    by_popen_with_a_hook,
    by_shell,
    by_spawn,
    by_fork_and_exec,
]


def hold_and_start(name: str, start: Callable[[], int], told: int) -> None:
    """Hold all slots, of a name and of another semaphore; start a program; tell its pid."""
    own = Semaphore(1)
    with Semaphore(1, name=name), own:
        thread = threading.Thread(target=own.acquire, daemon=True)  # with a bell, and pidfds
        thread.start()
        until(lambda: in_line(own) == 1)
        os.write(told, b"%d\n" % start())
        signal.pause()


@contextlib.contextmanager
def killing(pid: int) -> Iterator[None]:
    """Have a child killed, and reaped."""
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@contextlib.contextmanager
def outliving(pid: int) -> Iterator[int]:
    """Have a program that outlives its parent killed, and gone."""
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        until(lambda: not exists(pid))


def opened_by(pid: int) -> list[str]:
    """Return what a process has open that is mpkit's."""
    found: list[str] = []
    for number in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(f"/proc/{pid}/fd/{number}"))
    return [path for path in found if "/sem-" in path or "/queue-" in path or "mpkit" in path]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks /proc")
@pytest.mark.parametrize("start", STARTS)
def test_a_program_that_outlives_a_killed_holder_keeps_nothing(start: Callable[[], int]) -> None:
    name = a_name()
    reader, writer = os.pipe()
    holder = os.fork()
    if holder == 0:
        os.close(reader)
        in_child(0, lambda: bool(hold_and_start(name, start, writer)))
    os.close(writer)
    with os.fdopen(reader) as file, killing(holder):
        assert select.select([file], [], [], PATIENCE)[0]
        pid = int(file.readline())
        with outliving(pid):
            until(lambda: pathlib.Path(f"/proc/{pid}/comm").read_text() == "sleep\n")
            assert opened_by(pid) == []
            assert not is_free(name)
            os.kill(holder, signal.SIGKILL)
            os.waitid(os.P_PID, holder, os.WEXITED | os.WNOWAIT)
            assert exists(pid)
            semaphore = Semaphore(1, name=name)
            assert semaphore.available == 1
            assert semaphore.acquire(block=False)
            semaphore.release()


@pytest.mark.parametrize("close_fds", [True, False])
def test_a_program_that_ends_drops_nothing_of_who_started_it(close_fds: bool) -> None:
    name = a_name()
    with Semaphore(1, name=name):
        subprocess.run(["true"], check=True, close_fds=close_fds)
        assert os.system("true") == 0
        assert os.waitpid(os.posix_spawnp("true", ["true"], os.environ), 0)[1] == 0
        assert not is_free(name)


# execv


REPLACED = """
import os, sys
from mpkit._limit import Semaphore
semaphore = Semaphore(1, name=sys.argv[1])
assert semaphore.acquire(block=False)
print("held", flush=True)
sys.stdin.readline()
os.execv("/bin/sh", ["sh", "-c", "echo replaced; read line"])
"""


def test_who_replaces_himself_gives_his_slot_back() -> None:
    """The same process lives on, as another program, and has nothing of ours open."""
    name = a_name()
    with python(REPLACED, name) as program:
        assert program.stdin and program.stdout
        assert program.stdout.readline() == "held\n"
        semaphore = Semaphore(1, name=name)
        assert not semaphore.acquire(block=False)
        assert [holder.pid for holder in semaphore.holders()] == [program.pid]
        program.stdin.write("go\n")
        program.stdin.flush()
        assert program.stdout.readline() == "replaced\n"
        assert semaphore.acquire(block=False)
        semaphore.release()
        if sys.platform.startswith("linux"):
            assert opened_by(program.pid) == []
        assert program.poll() is None
        program.communicate("", timeout=PATIENCE)


AGAIN = """
import os, sys
from mpkit._limit import Semaphore, limit
from mpkit import Signal
inline = limit(1)
semaphore = Semaphore(1, name=sys.argv[1])
kept = Signal()
print(semaphore.acquire(block=False), inline.acquire(block=False), inline.key, flush=True)
if sys.argv[2] != "0":
    os.execv(sys.executable, [sys.executable, sys.argv[0], sys.argv[1], str(int(sys.argv[2]) - 1)])
"""


def test_a_program_that_starts_itself_over_can_take_its_slots_again(
    tmp_path: pathlib.Path,
) -> None:
    """It is a new family each time, with the same pid; and nothing is left at the end."""
    script, home = tmp_path / "again.py", tmp_path / "home"
    script.write_text(AGAIN)
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "MPKIT_RUNTIME_DIR": str(home),
    }
    ran = subprocess.run(
        [sys.executable, str(script), "some", "2"],
        env=env,
        stdout=subprocess.PIPE,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    lines = ran.stdout.splitlines()
    assert len(lines) == 3
    assert len(set(lines)) == 1
    assert lines[0].startswith("True True ")
    assert list(home.iterdir()) == []


def test_a_killed_holder_that_was_forked_by_hand_gives_his_slot_back(spawn: Spawn) -> None:
    semaphore, held = Semaphore(1), Signal()
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            semaphore.acquire()
            held.set()
            signal.pause()
        os._exit(1)
    with killing(pid):
        assert held.wait(PATIENCE)
        assert semaphore.available == 0
        waiter = spawn(take_and_end, semaphore)
        until(lambda: in_line(semaphore) == 1)
    finish(waiter)
    assert semaphore.available == 1


OTHER_VERSION = """
import sys
import mpkit
from mpkit import _slotfile
_slotfile.MAGIC = _slotfile.MAGIC[:-1] + b"?"
try:
    mpkit.limit(1, name=sys.argv[1]).acquire()
except mpkit.RuntimeDirectoryError as error:
    print(error)
"""


def test_another_version_that_shares_a_name_is_told_so_and_does_not_hang() -> None:
    """It once opened the file again and again, as if who laid it out had been killed."""
    name = a_name()
    with limit(1, name=name):
        with python(OTHER_VERSION, name) as program:
            out, _ = program.communicate(timeout=PATIENCE)
        assert (
            f"has limit {name!r} in use by another version of mpkit; set MPKIT_RUNTIME_DIR" in out
        )
