"""Signal between processes, under every start method."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import threading
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, cast

import pytest

import mpkit
from mpkit._platform import files
from mpkit._signal import Signal
from tests.support import PATIENCE, Spawn, asleep, copied, finish, python, until

if TYPE_CHECKING:
    import multiprocessing
    from collections.abc import Callable
    from multiprocessing.connection import Connection
    from multiprocessing.context import BaseContext
    from pathlib import Path


def answer(question: Signal, reply: Signal) -> bool:
    done = question.wait(PATIENCE)
    reply.set()
    return done


def ask_a_child(question: Signal, reply: Signal, method: str) -> None:
    """Pass both signals on to a grandchild."""
    import multiprocessing

    process = multiprocessing.get_context(method).Process(  # type: ignore[attr-defined]
        target=answer, args=(question, reply)
    )
    process.start()
    process.join()


async def answer_async(question: Signal, reply: Signal) -> None:
    await question
    reply.set()


def answer_in_a_loop(question: Signal, reply: Signal) -> None:
    asyncio.run(answer_async(question, reply))


def test_a_signal_passes_between_processes(spawn: Spawn) -> None:
    question, reply = Signal(), Signal()
    child = spawn(answer, question, reply)
    assert not reply.is_set()
    question.set()
    assert reply.wait(PATIENCE)
    finish(child)


def test_a_signal_passes_to_grandchildren(spawn: Spawn, start_method: str) -> None:
    question, reply = Signal(), Signal()
    child = spawn(ask_a_child, question, reply, start_method)
    question.set()
    assert reply.wait(PATIENCE)
    finish(child)


def test_a_signal_can_be_awaited_in_another_process(spawn: Spawn) -> None:
    question, reply = Signal(), Signal()
    child = spawn(answer_in_a_loop, question, reply)
    question.set()
    assert reply.wait(PATIENCE)
    finish(child)


def test_a_signal_goes_into_pool_tasks_and_queues(context: BaseContext) -> None:
    """Rows s21 to s23 of the table of faults."""
    question, reply = Signal(), Signal()
    question.set()
    with context.Pool(1) as pool:
        assert pool.apply(answer, (question, reply))
        pool.close()
        pool.join()
    assert reply.is_set()

    reply.clear()
    spawning = cast("multiprocessing.context.SpawnContext", context)
    with ProcessPoolExecutor(1, mp_context=spawning) as executor:
        assert executor.submit(answer, question, reply).result(PATIENCE)
    assert reply.is_set()

    queue = context.SimpleQueue()
    queue.put(question)
    assert queue.get().is_set()
    queue.close()


def inherit(question: Signal, reply: Signal) -> None:
    del question  # the child's copy; the parent's goes on
    reply.set()


def test_a_child_that_drops_a_signal_takes_nothing_from_its_parent(spawn: Spawn) -> None:
    question, reply = Signal(), Signal()
    finish(spawn(inherit, question, reply))
    assert reply.is_set()
    assert os.path.exists(question._path)
    question.set()
    assert question.is_set()


def test_a_name_is_shared_with_other_programs() -> None:
    name = f"test-{secrets.token_hex(6)}"
    there, back = Signal(name=f"{name}.1"), Signal(name=f"{name}.2")
    code = "import sys\nfrom mpkit._signal import Signal\nmine, theirs = map(lambda n: Signal(name=n), sys.argv[1:])\ntheirs.set()\nassert mine.wait(30)"
    with python(code, f"{name}.1", f"{name}.2") as program:
        assert back.wait(PATIENCE)
        there.set()
        until(lambda: program.poll() is not None)
        assert program.returncode == 0


async def wait_in_tasks(signal: Signal, count: int, begun: Callable[[], object]) -> int:
    tasks = [asyncio.ensure_future(signal) for _ in range(count)]
    await asyncio.sleep(0)  # each runs until it waits
    begun()
    return sum(await asyncio.gather(*tasks))


def wait_in_a_crowd(signal: Signal, count: int, link: Connection[object, object]) -> None:
    woken = list[bool]()
    threads = [
        threading.Thread(target=lambda: woken.append(signal.wait(PATIENCE))) for _ in range(count)
    ]
    for thread in threads:
        thread.start()
    in_tasks = asyncio.run(wait_in_tasks(signal, count, lambda: link.send("begun")))
    for thread in threads:
        thread.join(PATIENCE)
    link.send((sum(woken), in_tasks))


def test_one_set_wakes_thousands(spawn: Spawn, context: BaseContext) -> None:
    """Some threads may not wait yet: it stays set for them."""
    signal, count = Signal(), 250
    links = [context.Pipe() for _ in range(4)]
    crowds = [spawn(wait_in_a_crowd, signal, count, theirs) for _, theirs in links]
    for ours, _ in links:
        assert ours.recv() == "begun"
    until(lambda: all(asleep(crowd.pid or 0) for crowd in crowds))
    signal.set()
    assert [ours.recv() for ours, _ in links] == [(count, count)] * 4
    for crowd in crowds:
        finish(crowd)
    for link in links:
        for connection in link:
            connection.close()


def test_wait_takes_it_beside_channels_jobs_and_tasks(start_method: str) -> None:
    signal, go, (here, there) = Signal(), Signal(), mpkit.channel()
    job = mpkit.start(go.wait, PATIENCE)
    with mpkit.TaskPool(1) as pool:
        task = pool.submit(go.wait, PATIENCE)
        things = (signal, here, job, task)
        assert mpkit.wait(*things, timeout=0) == []
        signal.set()
        assert mpkit.wait(*things, timeout=PATIENCE) == [signal]
        there.send(start_method)
        assert mpkit.wait(*things, timeout=PATIENCE) == [signal, here]
        signal.clear()
        assert here.recv() == start_method
        go.set()
        while ready := mpkit.wait(*things, timeout=PATIENCE):
            things = tuple(thing for thing in things if thing not in ready)
            if things == (signal, here):
                break
        assert things == (signal, here)
        assert job.result()
        assert task.result()
    here.close()
    there.close()


def answer_over(question: Signal, reply: Signal) -> None:
    assert not question.wait(0)
    reply.set()
    assert question.wait(PATIENCE)
    assert asyncio.run(wait_in_tasks(question, 2, int)) == 2
    question.clear()


@pytest.mark.parametrize("managed", [False, True], ids=["Event", "manager"])
def test_over_an_event_of_multiprocessing_or_of_a_manager(
    spawn: Spawn, context: BaseContext, managed: bool
) -> None:
    with ExitStack() as stack:
        source = stack.enter_context(context.Manager()) if managed else context
        event = source.Event()
        question, reply = Signal.over(event), Signal.over(source.Event())
        child = spawn(answer_over, question, reply)
        assert reply.wait(PATIENCE)
        question.set()
        assert event.is_set()
        finish(child)
        assert not question.is_set()
        assert not question.wait(0.001)
        assert "over" in repr(question)


def set_and_clear(signal: Signal, times: int, done: Signal) -> None:
    for _ in range(times):
        signal.set()
        signal.clear()
    signal.set()
    done.set()


def test_processes_that_set_and_clear_at_once_leave_it_as_the_last_one_did(spawn: Spawn) -> None:
    signal, done = Signal(), [Signal(), Signal()]
    flippers = [spawn(set_and_clear, signal, 2000, each) for each in done]
    for flipper in flippers:
        finish(flipper)
    # Who ended last set it last, and nobody cleared it after that.
    assert signal.wait(0)
    signal.clear()
    assert not signal.is_set()


TALKER = """
import sys
from mpkit import Signal
signal = Signal(name="some")
print("ready", flush=True)
for line in sys.stdin:
    print(getattr(signal, line.strip())(), flush=True)
"""


class Talker:
    """Another program, with a signal of the name "some"."""

    def __init__(self, home: str) -> None:
        self.program = python(TALKER, MPKIT_RUNTIME_DIR=home)
        self.began = False

    def __enter__(self) -> Talker:
        return self

    def __exit__(self, *_: object) -> None:
        self.program.kill()
        self.program.communicate()

    def begin(self) -> None:
        if not self.began:
            assert self.hear() == "ready"
            self.began = True

    def say(self, method: str) -> None:
        self.begin()
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
def test_programs_meet_although_the_file_was_deleted_underneath(
    tmp_path: Path, deleted: str
) -> None:
    home = str(tmp_path / "home")
    with ExitStack() as programs:
        first = programs.enter_context(Talker(home))
        first.begin()
        if deleted == "file":
            os.unlink(f"{home}/named/sig-some")
        else:
            shutil.rmtree(f"{home}/named" if deleted == "folder" else home)
        # Those who come now do so at once, and one of them while the first one leaves.
        others = [programs.enter_context(Talker(home)) for _ in range(2)]
        for other in others:
            other.say("wait")
        assert first.ask("is_set") == "False"
        assert first.ask("set") == "None"
        assert [other.hear() for other in others] == ["True", "True"]
        first.program.kill()
        first.program.wait()
        last = programs.enter_context(Talker(home))
        assert last.ask("is_set") == "True"
        assert others[0].ask("clear") == "None"
        assert last.ask("is_set") == "False"
    with Talker(home) as alone:  # all were killed: a new one
        assert alone.ask("is_set") == "False"
        assert os.path.exists(f"{home}/named/sig-some")


@pytest.mark.skipif(not files.FINDS_DELETED, reason="nobody tells who uses a deleted file")
def test_a_signal_whose_file_was_deleted_can_be_sent_on(spawn: Spawn) -> None:
    question, reply = Signal(), Signal()
    for signal in (question, reply):
        copied(signal)  # and now its file would stay
        os.unlink(signal._path)
    child = spawn(answer, question, reply)
    question.set()
    assert reply.wait(PATIENCE)
    finish(child)


def test_those_who_have_a_signal_go_on_when_its_folder_is_deleted(
    spawn: Spawn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MPKIT_RUNTIME_DIR", str(tmp_path / "home"))
    question, reply, ready = Signal(), Signal(), Signal()
    child = spawn(answer_when_ready, question, reply, ready)
    assert ready.wait(PATIENCE)
    shutil.rmtree(tmp_path / "home")
    question.set()
    assert reply.wait(PATIENCE)
    finish(child)
    another = Signal()  # in a new folder
    another.set()
    assert copied(another).is_set()


def answer_when_ready(question: Signal, reply: Signal, ready: Signal) -> None:
    ready.set()
    answer(question, reply)
