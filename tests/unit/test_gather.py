"""Maps in slices: whatever comes of the slices, and whenever, the list is right or says why not."""

from __future__ import annotations

import operator
import os
import sys
import time
from concurrent.futures import CancelledError
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpkit import _parcel, channel
from mpkit._call import Call
from mpkit._engine.feeds import Feeds
from mpkit._errors import PoolClosed
from mpkit._frames import PACKET
from mpkit._pool import progress as progress_
from mpkit._pool.gather import Gather, Slice
from mpkit._task.options import Options
from mpkit._task.task import Task
from mpkit._worker import packing
from mpkit._worker.slices import MANY, run_slice

Part = Task[tuple[list[int], float]]


class Bench:
    """A backend on which a slice ends when the test says so."""

    def __init__(self, workers: int, sizes: list[int]) -> None:
        self.workers = workers
        self.feeds = Feeds()
        self.sizes = sizes
        self.began: list[tuple[Slice, Part]] = []
        self.closed = False
        total: list[int] = []
        meter = progress_.meter(lambda done, _: total.append(done), sum(sizes))
        self.gather: Gather[int] = Gather(self, self.submit, sizes, meter)  # type: ignore[arg-type]
        self.whole: Task[list[int]] = Task("map", Options(), control=self.gather)
        self.gather.whole = self.whole
        self.done = total

    def check_waiter(self, task: Task[Any]) -> None:
        """Anybody may wait."""

    def submit(self, part: Slice) -> Part:
        if self.closed:
            raise PoolClosed("the pool", "it was terminated")
        task: Part = Task("slice", Options())
        self.began.append((part, task))
        return task

    @property
    def running(self) -> list[tuple[Slice, Part]]:
        return [(part, task) for part, task in self.began if not task.done()]

    def numbers(self, part: Slice) -> list[int]:
        first = sum(self.sizes[: part.chunk])
        return list(range(first + part.start, first + part.stop))

    def end(self, part: Slice, task: Part, count: int, seconds: float) -> None:
        task.set_running_or_notify_cancel()
        task.set_result((self.numbers(part)[:count], seconds))

    @property
    def over(self) -> bool:
        """Whether the pool could end by now."""
        calls: list[None] = []
        self.feeds.close(lambda: calls.append(None))
        return bool(calls)


@settings(max_examples=300, deadline=None)
@given(st.data(), st.lists(st.integers(1, 30), max_size=12), st.integers(1, 6))
def test_all_results_are_there_in_order(
    data: st.DataObject, sizes: list[int], workers: int
) -> None:
    bench = Bench(workers, sizes)
    bench.gather.begin()
    while bench.running:
        part, task = data.draw(st.sampled_from(bench.running))
        size = part.stop - part.start
        seconds = data.draw(st.sampled_from([0.0, 1e-6, 0.003, 0.02, 5.0]))
        bench.end(part, task, data.draw(st.integers(1, size)), seconds)
        assert len(bench.running) <= max(workers, len(sizes))
    assert bench.whole.result(0) == list(range(sum(sizes)))
    assert bench.done == sorted(bench.done)
    assert bench.done[-1:] == [sum(sizes)][: len(sizes)]
    assert bench.over


@settings(max_examples=300, deadline=None)
@given(st.data(), st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(1, 3))
def test_the_first_failure_is_the_one_of_the_whole_once_all_has_ended(
    data: st.DataObject, sizes: list[int], workers: int
) -> None:
    bench, failed = Bench(workers, sizes), dict[tuple[int, int], BaseException]()
    bench.gather.begin()
    while bench.running:
        assert not bench.whole.done()
        part, task = data.draw(st.sampled_from(bench.running))
        if data.draw(st.booleans()):
            bench.end(part, task, 1, 1.0)
        else:
            failed[part.place] = LookupError(part.place)
            task.set_running_or_notify_cancel()
            task.set_exception(failed[part.place])
    if failed:
        assert bench.whole.exception(0) is failed[min(failed)]
    else:
        assert bench.whole.result(0) == list(range(sum(sizes)))
    assert bench.over


def test_the_longest_items_go_first_and_no_more_at_a_time_than_there_are_workers() -> None:
    bench = Bench(2, [3, 3, 3, 3])
    bench.gather.begin()
    for number, (part, task) in enumerate(bench.running):
        bench.end(part, task, 1, 0.1 * (number + 1))
    order = []
    while bench.running:
        assert len(bench.running) <= 2
        part, task = bench.running[0]
        order.append(part.chunk)
        bench.end(part, task, part.stop - part.start, 0.1 * (part.chunk + 1))
    assert order[0] == 2  # when chunk 3 was not yet known to be the longest
    assert order[1:3] == [3, 3]
    assert order[-2:] == [0, 0]


def test_a_map_that_is_cancelled_begins_with_nothing_any_more() -> None:
    bench = Bench(1, [3, 3])
    bench.gather.begin()
    one, two = (task for _, task in bench.running)
    one.set_running_or_notify_cancel()
    two.set_running_or_notify_cancel()
    one.set_result(([0], 1.0))
    assert not bench.whole.cancel()
    two.set_result(([3], 1.0))
    assert len(bench.began) == 2
    with pytest.raises(CancelledError):
        bench.whole.result(0)
    assert bench.over


def test_a_slice_that_is_being_submitted_while_the_map_is_killed_is_killed() -> None:
    bench = Bench(1, [2])
    bench.gather.begin()
    ((first, task),) = bench.running
    submit, killed = bench.submit, list[object]()

    def overtaken(part: Slice) -> Part:
        assert not bench.whole.kill()  # it knows of none that runs
        made = submit(part)
        made.kill = lambda: killed.append(made)  # type: ignore[method-assign, assignment, func-returns-value]
        return made

    bench.gather._submit = overtaken
    bench.end(first, task, 1, 1.0)
    assert [task for _, task in bench.running] == killed


def test_what_is_left_when_the_pool_is_terminated_is_cancelled() -> None:
    bench = Bench(1, [3])
    bench.gather.begin()
    ((part, task),) = bench.running
    bench.closed = True
    bench.end(part, task, 1, 1.0)
    with pytest.raises(CancelledError):
        bench.whole.result(0)
    assert bench.over


def test_a_map_that_cannot_begin_cancels_what_has_and_lets_the_pool_end() -> None:
    bench = Bench(1, [1, 1, 1])
    submit, called = bench.submit, list[object]()

    def fail_at_last(part: Slice) -> Part:
        if part.chunk == 2:
            raise MemoryError
        return submit(part)

    bench.gather._submit = fail_at_last
    bench.whole.call_back(called.append, called.append)
    with pytest.raises(MemoryError):
        bench.gather.begin()
    assert [task.cancelled() for _, task in bench.began] == [True, True]
    assert not called  # the caller knows
    assert bench.over


@pytest.mark.parametrize("how", ["cancel", "kill"])
@pytest.mark.parametrize("place", ["before", "behind"])
def test_a_ctrl_c_while_a_map_is_cancelled_keeps_it_from_no_end(how: str, place: str) -> None:
    bench = Bench(1, [1])
    bench.gather.begin()
    ((_, task),) = bench.running

    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    task._done_callbacks.insert(0 if place == "before" else 1, interrupt)
    with pytest.raises(KeyboardInterrupt):
        getattr(bench.whole, how)()
    with pytest.raises(CancelledError):
        bench.whole.result(0)
    assert bench.over


@pytest.mark.parametrize("where", ["_note_failure", "_go_on", "close", "leave"])
def test_a_part_that_was_interrupted_as_it_ended_is_heard_again(
    monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    bench = Bench(1, [1, 1])
    bench.gather.begin()
    bench.end(*bench.running[0], 1, 0.1)

    def interrupt(*_: object) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    places: dict[str, Any] = {"close": bench.gather._meter, "leave": bench.feeds}
    monkeypatch.setattr(places.get(where, bench.gather), where, interrupt)
    with pytest.raises(KeyboardInterrupt):
        bench.whole.cancel()
    with pytest.raises(CancelledError):
        bench.whole.result(0)
    assert bench.over


class BrokenBar:
    """A bar on a terminal that is gone."""

    def advance(self, items: int) -> None:
        """There is nothing to see yet."""

    def close(self) -> None:
        raise OSError("no terminal")


def test_a_bar_that_cannot_be_put_away_keeps_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    said = list[object]()
    monkeypatch.setattr(sys, "excepthook", lambda kind, error, traceback: said.append(str(error)))
    bench = Bench(1, [1])
    bench.gather._meter = progress_._Guarded(BrokenBar())
    bench.gather.begin()
    bench.end(*bench.running[0], 1, 0.1)
    assert bench.whole.result(0) == [0]
    assert bench.over
    assert said == ["no terminal"]


# in a worker


@pytest.mark.parametrize("count", [1, 2, 63, 64, 65, 10_000])
def test_a_slice_of_short_items_is_done_at_once(count: int) -> None:
    items = [-number for number in range(count)]
    values, _ = run_slice(abs, items, False, (0, count, 1e9, MANY))
    assert values == list(range(count))
    values, _ = run_slice(abs, items, False, (count // 2, count, 1e9, MANY))
    assert values == list(range(count // 2, count))


def test_a_slice_ends_after_the_item_at_which_its_time_is_over() -> None:
    values, seconds = run_slice(time.sleep, [0.02] * 50, False, (10, 50, 0.01, MANY))
    assert values == [None]
    assert seconds >= 0.02
    values, _ = run_slice(abs, [1, 2, 3], False, (1, 3, 0.0, MANY))
    assert values[:1] == [2]


def stop_at(number: int) -> int:
    if number == 700:
        raise StopIteration("the function's own")
    return number


@pytest.mark.parametrize("star", [False, True])
def test_a_stop_iteration_of_the_function_is_no_end_of_the_items(star: bool) -> None:
    items: Any = [(number,) for number in range(1000)] if star else range(1000)
    with pytest.raises(StopIteration, match="own"):
        run_slice(stop_at, items, star, (0, 1000, 1e9, MANY))
    values, _ = run_slice(stop_at, items, star, (701, 1000, 1e9, MANY))
    assert values == list(range(701, 1000))


def pause(seconds: float) -> None:
    if seconds:
        time.sleep(seconds)


def test_where_time_is_limited_the_clock_is_looked_at_after_each_item() -> None:
    """Long items behind many short ones were done as many at a time as those."""
    values, _ = run_slice(pause, [0] * 300 + [0.02] * 100, False, (0, 400, 0.01, 1))
    assert len(values) <= 301


def test_items_of_a_slice_may_be_tuples_of_arguments() -> None:
    assert run_slice(pow, [(2, 3), (3, 2)], True, (0, 2, 1e9, MANY))[0] == [8, 9]


@pytest.mark.parametrize("size", [1, 200_000])
@pytest.mark.parametrize("fn", [abs, operator.methodcaller("upper")], ids=["by name", "pickled"])
def test_a_part_of_a_chunk_can_be_sent_more_than_once(fn: Any, size: int) -> None:
    items = ["a" * size, "b" * size]
    chunk = packing.pack_chunk(Call(fn, (items, False), {}), None)
    assert chunk is not None
    for start in range(2):
        data, parcel = packing.Part(chunk, (start, 2, 0.5, 7)).seal()
        fds: list[int] = []
        if parcel is not None:
            data, sent = parcel.seal(data)
            fds = [os.dup(fd) for fd in sent]
            parcel.close()
        assert bool(fds) == (size > 1)
        run, args, kwargs = packing.unpack(data, fds)
        assert (run, kwargs) == (run_slice, {})
        assert args[1:] == (items, False, (start, 2, 0.5, 7))


def test_what_cannot_be_sent_twice_is_no_chunk_of_parts() -> None:
    here, there = channel()
    for thing in (here, np.zeros(10**6), "x" * packing.MOST_AGAIN):
        assert packing.pack_chunk(Call(abs, ([thing], False), {}), None) is None
    here.close()  # is still ours
    there.close()


def test_the_longest_name_leaves_room_for_a_packet() -> None:
    chunk = packing.Chunk(bytes([254]) + b"n" * 254, b"x" * _parcel.MOST_INLINE)
    data, parcel = packing.Part(chunk, (0, 1, 0.5, MANY)).seal()
    assert parcel is None
    assert len(data) <= PACKET - 60
