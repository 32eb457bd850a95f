"""Iterations over results: whoever asks gets the next one, and nobody waits for what is there."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import pytest

import mpkit
from mpkit._engine.feeds import Feeds
from mpkit._pool import progress as progress_
from mpkit._pool.lookahead import Lookahead
from mpkit._pool.results import Results
from mpkit._task.options import Options
from mpkit._task.task import Task
from tests.support import PATIENCE, until

if TYPE_CHECKING:
    from collections.abc import Callable

Chunk = Task[list[tuple[bool, Any]]]


class Bench:
    """An imap whose items have the results that the test gives them, when it does."""

    def __init__(self, count: int, kind: type[Chunk] = Task, *, together: bool = False) -> None:
        self.tasks: list[Chunk] = []
        #: Of how many chunks `submit_all` was told at a time.
        self.lots: list[int] = []
        #: Whether it leaves them to `submit`.
        self.one_by_one = False
        self._kind = kind
        #: What the supervisor would call at the end of its round.
        self.later: list[Callable[[], None]] = []
        meter = progress_.meter(None, None)
        self.results: Results[int] = Results(
            self.submit,
            self.submit_all if together else None,
            Feeds(),
            range(count),
            1,
            self.later.append,
            Lookahead(32),
            meter,
            ordered=True,
        )

    def submit(self, chunk: list[Any]) -> Chunk:
        task = self._kind("chunk", Options())
        task.set_running_or_notify_cancel()
        self.tasks.append(task)
        return task

    def submit_all(self, chunks: list[list[Any]]) -> list[Chunk]:
        self.lots.append(len(chunks))
        return [] if self.one_by_one else [self.submit(chunk) for chunk in chunks]

    def pulled(self, count: int) -> None:
        """Wait until so many items, which are all, have been pulled."""
        until(lambda: self.results._window._pulled_all)
        assert len(self.tasks) == count

    def finish(self, *numbers: int) -> None:
        for number in numbers:
            self.tasks[number].set_result([(True, number)])

    def round_ends(self) -> None:
        while self.later:
            self.later.pop()()

    def waiting(self, count: int) -> bool:
        waiters: Any = self.results._window._changed
        return len(waiters._waiters) == count


def in_threads(count: int, call: Callable[[], object]) -> list[threading.Thread]:
    threads = [threading.Thread(target=call, daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    return threads


def all_end(threads: list[threading.Thread]) -> bool:
    for thread in threads:
        thread.join(PATIENCE)
    return not any(thread.is_alive() for thread in threads)


def test_a_thread_that_waits_gets_what_another_one_has_taken_out_for_both() -> None:
    bench, taken = Bench(3), list[int]()
    bench.pulled(3)
    threads = in_threads(2, lambda: taken.append(next(bench.results)))
    until(lambda: bench.waiting(2))
    bench.finish(0, 1)  # and not the last, so that this is not over
    bench.round_ends()
    assert all_end(threads)
    assert sorted(taken) == [0, 1]


def test_who_waits_for_what_another_thread_takes_just_now_waits_for_the_next() -> None:
    """Its task tells nobody then, as it is not the next one any more."""
    bench, taken = Bench(1), list[int]()
    bench.pulled(1)
    threads = in_threads(1, lambda: taken.extend(bench.results))
    until(lambda: bench.waiting(1))
    callbacks = bench.tasks[0]._done_callbacks
    callbacks.insert(0, lambda _: taken.append(next(bench.results)))
    bench.finish(0)
    bench.round_ends()
    assert all_end(threads)
    assert taken == [0]


def test_all_tasks_of_asyncio_that_wait_are_woken() -> None:
    bench = Bench(2)
    bench.pulled(2)

    async def take() -> list[int]:
        return [number async for number in bench.results]

    async def main() -> list[list[int]]:
        tasks = [asyncio.create_task(take()) for _ in range(3)]
        await asyncio.sleep(0)  # each has come to wait by then
        tasks.pop().cancel()
        await asyncio.sleep(0)
        for number in range(2):
            bench.finish(number)
            bench.round_ends()
        return await asyncio.wait_for(asyncio.gather(*tasks), PATIENCE)

    assert sorted(map(len, asyncio.run(main()))) in ([0, 2], [1, 1])


def test_who_waits_in_asyncio_no_more_is_forgotten() -> None:
    bench = Bench(1)

    async def main() -> None:
        for _ in range(3):
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(anext(bench.results), 0.001)

    asyncio.run(main())
    assert not bench.results._window._wakes


class Interrupted(Chunk):
    """One whose outcome is asked for when a Ctrl-C comes, once."""

    comes = True

    def outcome(self) -> tuple[list[tuple[bool, Any]], BaseException | None] | None:
        if self.comes:
            self.comes = False
            raise KeyboardInterrupt
        return super().outcome()


def test_an_interruption_is_not_taken_for_a_result() -> None:
    bench = Bench(1, Interrupted)
    bench.pulled(1)
    bench.finish(0)
    with pytest.raises(KeyboardInterrupt):
        next(bench.results)
    assert list(bench.results) == [0]


def test_an_interruption_does_not_keep_the_input_from_being_pulled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench(40)
    window = bench.results._window
    feeder: Any = window._emptied
    until(lambda: feeder._waiters)
    pulled = len(bench.tasks)
    bench.finish(*range(pulled))

    def interrupt() -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(window._emptied, "notify_all", interrupt)
    taken: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        while True:  # until there is room for more
            taken.append(next(bench.results))
    taken += [next(bench.results) for _ in range(pulled - len(taken))]
    assert taken == list(range(pulled))
    threads = in_threads(1, lambda: next(bench.results))
    bench.pulled(40)
    bench.finish(*range(pulled, 40))
    bench.round_ends()
    assert all_end(threads)


@pytest.mark.parametrize("method", ["imap", "imap_unordered"])
def test_what_is_told_of_progress_may_close_the_iteration(method: str) -> None:
    with mpkit.TaskPool(0) as pool:
        results: mpkit.Results[int]
        results = getattr(pool, method)(abs, range(99), progress=lambda *_: results.close())
        assert next(results) == 0


def test_a_ctrl_c_while_progress_is_shown_is_one() -> None:
    def interrupt(done: int, total: int | None) -> None:
        raise KeyboardInterrupt

    with mpkit.TaskPool(0) as pool:
        results = pool.imap(abs, range(3), progress=interrupt)
        with pytest.raises(KeyboardInterrupt):
            next(results)
        with pytest.raises(KeyboardInterrupt):
            pool.map(abs, range(3), progress=interrupt)


@pytest.mark.parametrize("take", [next, Results.next])
def test_what_is_raised_has_no_context_of_ours(take: Callable[[Results[int]], int]) -> None:
    """Its traceback would begin with an error of which nobody has heard."""
    bench = Bench(1)
    bench.pulled(1)
    bench.tasks[0].set_exception(LookupError("mine"))
    for kind in (LookupError, StopIteration):
        with pytest.raises(kind) as caught:
            take(bench.results)
        assert caught.value.__context__ is None


@pytest.mark.parametrize("one_by_one", [False, True])
def test_chunks_that_are_submitted_together_are_as_many_as_there_is_room_for(
    one_by_one: bool,
) -> None:
    bench = Bench(100, together=True)
    bench.one_by_one = one_by_one
    window = bench.results._window
    feeder: Any = window._emptied
    done, taken = 0, list[int]()
    while len(taken) < 100:
        until(lambda: feeder._waiters or window._pulled_all)
        # What is in hands, which `next` takes out, is not in the window any more.
        assert len(window._line) <= window._ahead.bound
        assert len(bench.tasks) == sum(bench.lots)
        bench.finish(*range(done, len(bench.tasks)))
        done = len(bench.tasks)
        bench.round_ends()
        while len(taken) < done:
            taken.append(next(bench.results))
    assert taken == list(range(100))
    assert max(bench.lots) > 1


class Noisy(tuple[Any, int]):
    """A chunk at whose sight another thread adds one, as it may at any time."""

    window: Any

    def __iter__(self) -> Any:
        self.window._line.append((Task("another", Options()), 1))
        return super().__iter__()


def test_an_iteration_may_be_closed_while_its_input_is_pulled() -> None:
    bench = Bench(1)
    bench.pulled(1)
    window = bench.results._window
    chunk = Noisy((Task("chunk", Options()), 1))
    chunk.window = window
    window._line += [chunk, (Task("chunk", Options()), 1)]
    bench.results.close()
    assert [task.cancelled() for task, _ in list(window._line)[1:3]] == [True, True]
