"""Signal between processes, under every start method."""

from __future__ import annotations

import asyncio
import os
import secrets
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING, cast

from mpkit._signal import Signal
from tests.support import PATIENCE, Spawn, finish, python, until

if TYPE_CHECKING:
    import multiprocessing
    from multiprocessing.context import BaseContext


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
