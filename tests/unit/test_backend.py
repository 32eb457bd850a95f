"""What a pool runs on that is not an engine: what only they can get wrong."""

from __future__ import annotations

import contextlib
from concurrent.futures import Executor, Future
from typing import TYPE_CHECKING, Any

import pytest

from mpkit._call import Call
from mpkit._pool.on_executor import OnExecutor
from mpkit._task.options import Options
from mpkit._task.task import Task
from tests.support import interrupted_in_threading, left_taken

if TYPE_CHECKING:
    from collections.abc import Callable


class Idle(Executor):
    """Never begins with anything."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        return Future()


def submit(backend: OnExecutor) -> Task[Any]:
    task: Task[Any] = Task("task", Options(), control=backend)
    backend.submit(task, Call(abs, (-1,), {}))
    return task


CALLS: dict[str, Callable[[OnExecutor, Task[Any]], object]] = {
    "submit": lambda backend, task: submit(backend),
    "a task ends": lambda backend, task: backend._settled(task),
    "close": lambda backend, task: backend.close(),
    "join": lambda backend, task: backend.join(0),
}


@pytest.mark.parametrize("call", CALLS)
def test_no_ctrl_c_leaves_a_pool_on_an_executor_locked(call: str) -> None:
    """The threads of the executor would wait for ever to say that a task has ended."""
    for after in range(60):
        backend = OnExecutor(Idle())
        task = submit(backend)
        # `threading`'s own: interrupted as it begins to wait, it releases the lock once more.
        with contextlib.suppress(RuntimeError), interrupted_in_threading(after):
            CALLS[call](backend, task)
        assert not left_taken(backend._all_settled), after


class Deaf(Future[Any]):
    """Ctrl-C comes as one begins to listen to it."""

    def add_done_callback(self, fn: Callable[[Future[Any]], object]) -> None:
        raise KeyboardInterrupt


def test_a_pool_on_an_executor_does_not_wait_for_what_was_interrupted_as_it_began() -> None:
    """Nobody has the task, and nobody would ever settle it."""
    executor = Idle()
    executor.submit = lambda *_, **__: Deaf()  # type: ignore[method-assign]
    backend = OnExecutor(executor)
    with pytest.raises(KeyboardInterrupt):
        submit(backend)
    backend.close()
    assert backend.join(0)
