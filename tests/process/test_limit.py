"""Semaphore and limit between processes, under every start method."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import secrets
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING, cast

import pytest

from mpkit._limit import Semaphore, limit
from mpkit._platform import descriptors, files
from mpkit._signal import Signal
from tests.support import (
    PATIENCE,
    Inside,
    Spawn,
    asleep,
    finish,
    in_line,
    kill,
    python,
    until,
    wake_ups,
)

if TYPE_CHECKING:
    from multiprocessing.context import BaseContext
    from pathlib import Path


def inline() -> Semaphore:
    return limit(2)


def visit(inside: Inside, cell: int, turns: int, broken: Signal) -> None:
    for _ in range(turns):
        with inline():
            if inside.enter(cell) > 2:
                broken.set()
            inside.leave(cell)


def visit_in_many_ways(inside: Inside, cell: int, broken: Signal, method: str) -> None:
    """Visit in this process, in threads, in tasks and in a child of ours."""
    child = multiprocessing.get_context(method).Process(  # type: ignore[attr-defined]
        target=visit, args=(inside, cell + 1, 20, broken)
    )
    child.start()
    thread = threading.Thread(target=visit, args=(inside, cell + 2, 20, broken))
    thread.start()
    asyncio.run(visit_async(inside, cell, 20, broken))
    thread.join()
    child.join()
    assert child.exitcode == 0


async def visit_async(inside: Inside, cell: int, turns: int, broken: Signal) -> None:
    for _ in range(turns):
        async with inline():
            if inside.enter(cell) > 2:
                broken.set()
            await asyncio.sleep(0)
            inside.leave(cell)


def test_one_line_is_one_limit_in_processes_their_children_threads_and_tasks(
    spawn: Spawn, start_method: str, tmp_path: Path
) -> None:
    inside, broken = Inside(str(tmp_path / "inside"), 9), Signal()
    children = [spawn(visit_in_many_ways, inside, cell, broken, start_method) for cell in (0, 3, 6)]
    for child in children:
        finish(child)
    assert inside.turns() == [20] * 9
    assert not broken.is_set()
    assert inline().available == 2


def look_inline(_: int) -> tuple[str, int]:
    return inline().key, inline().available


def test_one_line_is_one_limit_in_the_workers_of_a_pool(context: BaseContext) -> None:
    with context.Pool(2) as pool:
        with inline():
            assert set(pool.map(look_inline, range(4))) == {(inline().key, 1)}
            with inline():
                assert set(pool.map(look_inline, range(4))) == {(inline().key, 0)}
        pool.close()
        pool.join()


SCRIPT = """
import multiprocessing, os, sys
from mpkit._limit import limit

@limit(1)
def decorated():
    return True

def inline():
    return limit(1)

# The fork server runs this too, before it learns which family its children belong to.
inline().available

def child(queue):
    queue.put((inline().key, inline().acquire(block=False)))

def guarded(queue):
    decorated()
    queue.put("went through")

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    os.chdir("/")
    queue = context.SimpleQueue()
    with inline():
        process = context.Process(target=child, args=(queue,))
        process.start()
        assert queue.get() == (inline().key, False), "the child is at another limit"
        process.join()
    semaphore = decorated.__closure__[1].cell_contents
    with semaphore:
        process = context.Process(target=guarded, args=(queue,))
        process.start()
        line = semaphore._opened().queue
        while not line.entries():
            assert process.is_alive() and queue.empty(), "the child is at another limit"
    assert queue.get() == "went through"
    process.join()
    print(inline().key)
"""


def run_script(tmp_path: Path, method: str) -> str:
    (tmp_path / "sub").mkdir(exist_ok=True)
    (tmp_path / "sub" / "script.py").write_text(SCRIPT)
    return subprocess.run(
        [sys.executable, "sub/script.py", method],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ).stdout


def test_the_main_script_and_its_children_agree_on_the_line(
    tmp_path: Path, start_method: str
) -> None:
    """Also on one that the fork server ran before."""
    key = run_script(tmp_path, start_method)
    assert run_script(tmp_path, start_method) == key


PROGRAM = """
import sys
from mpkit._limit import limit
semaphore = limit(1, name=sys.argv[1]) if sys.argv[1:] else limit(1)
print(semaphore.key, semaphore.acquire(block=False), flush=True)
sys.stdin.read()
"""


def test_two_programs_share_a_limit_by_name_and_not_by_line() -> None:
    name = f"test-{secrets.token_hex(6)}"
    with python(PROGRAM, name) as first:
        assert first.stdout
        assert first.stdout.readline() == f"{name} True\n"
        with python(PROGRAM, name) as second:
            assert second.stdout
            assert second.stdout.readline() == f"{name} False\n"
            semaphore = Semaphore(1, name=name)
            assert [holder.pid for holder in semaphore.holders()] == [first.pid]
            second.communicate(timeout=PATIENCE)
        first.kill()
        assert semaphore.acquire(timeout=PATIENCE)
        semaphore.release()
        first.communicate(timeout=PATIENCE)

    with python(PROGRAM) as first, python(PROGRAM) as second:
        answers = [
            program.stdout.readline().split() for program in (first, second) if program.stdout
        ]
        assert answers[0][0] == answers[1][0]
        assert [answer[1] for answer in answers] == ["True", "True"]
        for program in (first, second):
            program.communicate(timeout=PATIENCE)


TALKER = """
import sys
from mpkit._limit import Semaphore
semaphore = Semaphore(1, name=sys.argv[1])
print("ready", flush=True)
for line in sys.stdin:
    print(getattr(semaphore, line.strip())(), flush=True)
"""


class Talker:
    """Another program, at a semaphore of one slot."""

    def __init__(self, name: str, **env: str) -> None:
        self.program = python(TALKER, name, **env)
        assert self.hear() == "ready"

    def __enter__(self) -> Talker:
        return self

    def __exit__(self, *_: object) -> None:
        self.program.kill()
        self.program.communicate()

    def say(self, method: str) -> None:
        assert self.program.stdin
        self.program.stdin.write(method + "\n")
        self.program.stdin.flush()

    def hear(self) -> str:
        assert self.program.stdout
        return self.program.stdout.readline().strip()

    def ask(self, method: str) -> str:
        self.say(method)
        return self.hear()


@pytest.mark.skipif(not files.FINDS_DELETED, reason="nobody tells who uses a deleted file")
@pytest.mark.parametrize("deleted", ["file", "folder", "all"])
@pytest.mark.parametrize("held", [True, False], ids=["held", "idle"])
def test_programs_meet_although_the_file_was_deleted_underneath(
    tmp_path: Path, deleted: str, held: bool
) -> None:
    home, name = str(tmp_path / "home"), "some"
    with Talker(name, MPKIT_RUNTIME_DIR=home) as first:
        if held:
            assert first.ask("acquire") == "True"
        if deleted == "file":
            os.unlink(f"{home}/named/sem-some")
        else:
            shutil.rmtree(f"{home}/named" if deleted == "folder" else home)
        with Talker(name, MPKIT_RUNTIME_DIR=home) as second:
            if not held:
                assert first.ask("acquire") == "True"
            second.say("acquire")
            with Talker(name, MPKIT_RUNTIME_DIR=home) as third:
                third.say("__repr__")
                assert "0 of 1 slots free" in third.hear()
            assert first.ask("release") == "None"
            assert second.hear() == "True"
            first.say("acquire")
            assert second.ask("release") == "None"
            assert first.hear() == "True"
    with Talker(name, MPKIT_RUNTIME_DIR=home) as last:  # all were killed: a new file
        assert last.ask("acquire") == "True"
        assert os.path.exists(f"{home}/named/sem-some")


@pytest.mark.skipif(not files.FINDS_DELETED, reason="nobody tells who uses a deleted file")
def test_bells_deleted_underneath_those_who_wait_still_ring(tmp_path: Path) -> None:
    home = str(tmp_path / "home")
    with Talker("some", MPKIT_RUNTIME_DIR=home) as first:
        assert first.ask("acquire") == "True"
        with Talker("some", MPKIT_RUNTIME_DIR=home) as second:
            second.say("acquire")
            until(lambda: os.path.exists(f"{home}/named/queue-sem-some"))
            until(lambda: asleep(second.program.pid))
            shutil.rmtree(f"{home}/named/queue-sem-some")
            assert first.ask("release") == "None"
            assert second.hear() == "True"


def threads_and_tasks(
    semaphore: Semaphore, inside: Inside, first: int, turns: int, broken: Signal
) -> None:
    """Go in and out from three threads and two asyncio tasks, which switch all the time."""
    sys.setswitchinterval(1e-6)

    def visit(cell: int) -> None:
        if inside.enter(cell) > semaphore.slots:
            broken.set()
        inside.leave(cell)

    def work(cell: int) -> None:
        for turn in range(turns):
            # Some of them have a time to wait, others not.
            assert semaphore.acquire(timeout=PATIENCE if turn % 2 else None)
            visit(cell)
            semaphore.release()

    async def work_async(cell: int) -> None:
        for _ in range(turns):
            async with semaphore:
                visit(cell)

    async def main() -> None:
        await asyncio.gather(work_async(first), work_async(first + 1))

    threads = [threading.Thread(target=work, args=(first + 2 + n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    asyncio.run(main())
    for thread in threads:
        thread.join()


@pytest.mark.parametrize("slots", [1, 3])
def test_threads_and_tasks_of_several_processes_contend(
    spawn: Spawn, tmp_path: Path, slots: int
) -> None:
    semaphore, broken = Semaphore(slots), Signal()
    inside = Inside(str(tmp_path / "inside"), 15)
    args = [(semaphore, inside, 5 * n, 150, broken) for n in range(3)]
    for process in [spawn(threads_and_tasks, *these) for these in args]:
        finish(process)
    assert not broken.is_set(), "more were inside than there are slots"
    assert inside.turns() == [150] * 15
    assert semaphore.available == slots


def fork_again(semaphore: Semaphore, depth: int) -> None:
    """Open something, use the semaphore, and fork: a child has what we opened."""
    reader, writer = os.pipe()
    with semaphore:
        pass
    if depth:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                os.write(writer, b"!")
                assert os.read(reader, 1) == b"!"
                fork_again(semaphore, depth - 1)
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(pid, 0)[1] == 0


def test_a_child_of_a_child_keeps_what_is_its_own(spawn: Spawn) -> None:
    """Of what a fork lets go of, no number is closed a second time."""
    semaphore = Semaphore(2)
    with semaphore:
        finish(spawn(fork_again, semaphore, 3))


def take(semaphore: Semaphore) -> bool:
    return semaphore.acquire(block=False)


def test_a_semaphore_goes_into_pool_tasks_and_queues(context: BaseContext) -> None:
    """Rows s21 to s23 of the table of faults."""
    semaphore = Semaphore(2)
    with context.Pool(1) as pool:
        assert [pool.apply(take, (semaphore,)) for _ in range(3)] == [True, True, False]
        assert semaphore.available == 0
        pool.close()
        pool.join()
    until(lambda: semaphore.available == 2)

    spawning = cast("multiprocessing.context.SpawnContext", context)
    with ProcessPoolExecutor(1, mp_context=spawning) as executor:
        assert executor.submit(take, semaphore).result(PATIENCE)

    queue = context.SimpleQueue()
    queue.put(semaphore)
    with queue.get():
        until(lambda: semaphore.available == 1)
    queue.close()


def release_badly(semaphore: Semaphore) -> None:
    with pytest.raises(ValueError, match="without holding a slot"):
        semaphore.release()
    assert not semaphore.acquire(block=False)


def test_no_process_releases_what_another_one_holds(spawn: Spawn) -> None:
    """Row s20 of the table of faults; and a forked child holds nothing of its parent's."""
    semaphore = Semaphore(1)
    with semaphore:
        finish(spawn(release_badly, semaphore))
        assert semaphore.available == 0
    assert semaphore.available == 1


def hold(semaphore: Semaphore, held: Signal, go: Signal) -> None:
    with semaphore:
        held.set()
        go.wait()


def test_holders_are_those_of_all_processes(spawn: Spawn) -> None:
    semaphore, go = Semaphore(3), Signal()
    held = [Signal(), Signal()]
    children = [spawn(hold, semaphore, each, go) for each in held]
    assert all(each.wait(PATIENCE) for each in held)

    with semaphore:
        found = {holder.pid: holder for holder in semaphore.holders()}

    assert found.keys() == {os.getpid(), *(child.pid for child in children)}
    for child in children:
        assert found[child.pid or 0].process == child.name
    go.set()
    for child in children:
        finish(child)
    assert semaphore.holders() == []


@pytest.mark.skipif(not descriptors.HAS_PIDFDS, reason="looks again from time to time")
def test_who_waits_does_not_wake_while_nothing_changes(spawn: Spawn) -> None:
    semaphore = Semaphore(1)
    with semaphore:
        first, second = spawn(crowd, semaphore, 1), spawn(crowd, semaphore, 1)
        until(lambda: in_line(semaphore) == 2)
        pids = [first.pid or 0, second.pid or 0]
        until(lambda: all(asleep(pid) for pid in pids))
        before = [wake_ups(pid) for pid in pids]
        time.sleep(0.3)  # for as long as nothing is to happen
        assert [wake_ups(pid) for pid in pids] == before
    finish(first)
    finish(second)


def wait_and_time_out(semaphore: Semaphore) -> None:
    assert not semaphore.acquire(timeout=0.05)


def test_a_waiter_that_times_out_leaves_the_queue_to_the_others(spawn: Spawn) -> None:
    semaphore, held, go = Semaphore(1), Signal(), Signal()
    semaphore.acquire()
    impatient = spawn(wait_and_time_out, semaphore)
    until(lambda: in_line(semaphore) == 1 or impatient.exitcode is not None)
    patient = spawn(hold, semaphore, held, go)
    until(lambda: in_line(semaphore) >= 1)
    finish(impatient)
    semaphore.release()
    assert held.wait(PATIENCE)
    go.set()
    finish(patient)


def opened_files() -> list[str]:
    files: list[str] = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the one that listed the folder
            files.append(os.readlink(f"/proc/self/fd/{fd}"))
    return files


def fork_while_waiting(semaphore: Semaphore, waiting: Signal, gone: Signal) -> None:
    """Wait in a thread, and fork meanwhile; the child outlives us."""
    thread = threading.Thread(target=semaphore.acquire, daemon=True)
    thread.start()
    until(lambda: in_line(semaphore) == 1)
    pid = os.fork()
    if pid == 0:
        opened = opened_files()
        if not any("/queue-" in path or "pidfd" in path for path in opened):
            waiting.set()
        gone.wait()
        os._exit(0)
    thread.join()


def test_a_child_forked_by_a_waiter_does_not_keep_his_place(spawn: Spawn) -> None:
    semaphore, waiting, held, go = Semaphore(1), Signal(), Signal(), Signal()
    semaphore.acquire()
    waiter = spawn(fork_while_waiting, semaphore, waiting, go)
    if not waiting.wait(PATIENCE):
        go.set()
        pytest.fail("the child has its parent's bell open")
    other = spawn(hold, semaphore, held, go)
    until(lambda: in_line(semaphore) == 2)
    waiter.kill()
    semaphore.release()
    assert held.wait(PATIENCE)
    go.set()
    finish(other)


def end_badly(semaphore: Semaphore) -> None:
    semaphore.acquire()
    os._exit(0)


def test_a_process_that_ends_without_releasing_gives_its_slot_back(spawn: Spawn) -> None:
    semaphore = Semaphore(1)
    finish(spawn(end_badly, semaphore))
    assert semaphore.available == 1


FAMILY = """
import multiprocessing, os, signal, sys
from mpkit._limit import Semaphore, limit
from mpkit._signal import Signal

def child(semaphore, held):
    with semaphore, limit(2), limit(3, name="some"):
        held.set()
        signal.pause()

if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1])
    semaphore, held = Semaphore(2), Signal()
    waiting = Semaphore(1)
    process = multiprocessing.Process(target=child, args=(semaphore, held))
    process.start()
    held.wait()
    with waiting:
        assert not waiting.acquire(timeout=0.01)
    if "killed" in sys.argv:
        process.kill()
        process.join()
        os.kill(os.getpid(), signal.SIGKILL)
    process.kill()
    process.join()
"""


@pytest.mark.parametrize("end", ["ended", "killed"])
def test_nothing_is_left_on_disk_when_the_family_is_gone(
    tmp_path: Path, start_method: str, end: str
) -> None:
    script, home = tmp_path / "family.py", tmp_path / "home"
    script.write_text(FAMILY)
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "MPKIT_RUNTIME_DIR": str(home),
    }

    def run(how: str) -> int:
        return subprocess.run(
            [sys.executable, str(script), start_method, how], env=env, timeout=PATIENCE, check=False
        ).returncode

    if end == "killed":
        assert run("killed") == -9
        assert list(home.iterdir())
    assert run("ended") == 0  # which sweeps what the other one left
    # The child was the only one there to use a name, and was killed: the next program
    # of all removes that.
    assert {path.name for path in home.iterdir()} <= {"named"}
    with python("from mpkit._signal import Signal; Signal()", MPKIT_RUNTIME_DIR=str(home)) as last:
        last.communicate(timeout=PATIENCE)
    assert list(home.iterdir()) == []


def crowd(semaphore: Semaphore, turns: int) -> None:
    for _ in range(turns):
        with semaphore:
            pass


def test_many_processes_get_through_when_some_are_killed_at_the_end(spawn: Spawn) -> None:
    semaphore = Semaphore(1)
    children = [spawn(crowd, semaphore, 100) for _ in range(4)]
    for child in children:
        finish(child)
    children = [spawn(crowd, semaphore, 10**9) for _ in range(2)]
    for child in children:
        kill(child)
    assert semaphore.available == 1
