"""Tasks that one caller submits in a row, and sends to workers himself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from hypothesis import given
from hypothesis import strategies as st

from mpkit._engine.ledger import Entry
from mpkit._engine.shortcut import Shortcut, Volley
from mpkit._task.options import Options
from mpkit._task.task import Task
from mpkit._worker import wire

if TYPE_CHECKING:
    from mpkit._engine.crew import Worker
    from mpkit._worker.wire import Load


class FakeWorker:
    """Takes what it is sent, if it has room, and is its own inbox."""

    def __init__(self, log: list[tuple[int, list[int]]], number: int, *, room: bool = True) -> None:
        self._log = log
        self._number = number
        self.room = room

    @property
    def inbox(self) -> FakeWorker:
        return self

    def written(self) -> int:
        return 0

    def has_room(self) -> bool:
        return True

    def hand(self, loads: list[Load], receipt: list[int]) -> None:
        assert len(wire.encode_run(loads)) <= wire.ROOM + 64, "it fits into a packet"
        if self.room:
            self._log.append((self._number, [task for task, _ in loads]))
            receipt.append(len(loads))


class Scene:
    """Some idle workers, a volley for them, and what each was sent, in order."""

    def __init__(self, workers: int) -> None:
        self.log: list[tuple[int, list[int]]] = []
        self.workers = [FakeWorker(self.log, number) for number in range(workers)]
        self.shortcut = Shortcut()
        self.volley = Volley()
        for number, worker in enumerate(self.workers):
            self.shortcut.offer(number, cast("Worker", worker))

    def add(self, head: bytes = b"call") -> Task[Any]:
        task = Task[Any]("call", Options())
        self.volley.waiting.append(Entry(task, head, None))
        return task

    def launch(self, most: int) -> bool:
        return self.shortcut.launch(self.volley, most, len(self.workers))

    def sent(self, number: int) -> list[int]:
        """Return the tasks that a worker was sent."""
        return [task for which, tasks in self.log if which == number for task in tasks]


def test_what_is_behind_the_first_is_dealt_out_and_who_is_at_work_gets_it_first() -> None:
    scene = Scene(2)
    first = scene.add().number
    assert not scene.launch(8)
    later = [scene.add().number for _ in range(7)]
    assert not scene.launch(8)
    (one, _), (same, its), (other, others) = scene.log
    assert one == same != other
    assert scene.log[0][1] == [first]
    assert (its, others) == (later[::2], later[1::2])
    assert [handed.entry.task.number for handed in scene.shortcut.handed()] == [
        first,
        *its,
        *others,
    ]


def test_nobody_has_more_of_it_than_may_be() -> None:
    scene = Scene(2)
    tasks = [scene.add() for _ in range(9)]
    scene.launch(3)
    assert [len(scene.sent(number)) for number in range(2)] == [3, 3]
    assert [entry.task for entry in scene.volley.waiting] == tasks[6:]
    scene.launch(3)
    scene.launch(2)  # they have turned out to take longer
    assert len(scene.volley.waiting) == 3


def test_who_may_have_something_of_the_supervisors_gets_no_more() -> None:
    scene = Scene(2)
    scene.add()
    scene.launch(4)
    (busy, _), *_ = scene.log
    assert len(list(scene.shortcut.handed())) == 1
    scene.add(), scene.add()
    scene.launch(4)
    assert [len(scene.sent(number)) for number in (busy, 1 - busy)] == [1, 2]
    assert not scene.shortcut.withdraw(1 - busy)
    scene.add()
    scene.launch(4)
    assert len(scene.volley.waiting) == 1


def test_the_supervisor_is_wanted_if_a_worker_is_left_out_that_may_be_idle_soon() -> None:
    scene = Scene(3)
    scene.shortcut.withdraw(2)  # a caller has it, and will be done sooner than the supervisor hears
    scene.add(), scene.add()
    assert not scene.launch(4), "each has one, as from any other callers"
    scene.add()
    assert scene.launch(4)


def test_the_supervisor_is_wanted_for_what_could_not_be_sent() -> None:
    scene = Scene(1)
    scene.add()
    assert not scene.launch(4)
    scene.workers[0].room = False
    scene.add(), scene.add()
    assert scene.launch(4)
    assert [bool(handed.receipt) for handed in scene.shortcut.handed()] == [True, False, False]


def test_nothing_is_sent_when_the_pool_was_terminated() -> None:
    scene = Scene(1)
    scene.add()
    scene.launch(4)
    scene.shortcut.close()
    scene.add()
    scene.launch(4)
    assert len(scene.volley.waiting) == 1


@given(
    st.integers(1, 5),
    st.integers(1, 6),
    st.lists(
        st.lists(st.tuples(st.sampled_from([1, 1000, wire.ROOM // 3, 40_000]), st.booleans())),
        max_size=4,
    ),
)
def test_each_is_sent_once_or_waits_in_order(
    workers: int, most: int, launches: list[list[tuple[int, bool]]]
) -> None:
    scene, tasks, cancelled = Scene(workers), list[Task[Any]](), set[int]()
    for sizes in launches:
        for size, cancel in sizes:
            tasks.append(scene.add(bytes(size)))
            if cancel:
                assert tasks[-1].cancel()
                cancelled.add(tasks[-1].number)
        scene.launch(most)
    numbers = [task.number for task in tasks]
    sent = [scene.sent(number) for number in range(workers)]
    waiting = [entry.task.number for entry in scene.volley.waiting]
    assert all(its == sorted(its) and len(its) <= most for its in sent)
    assert waiting == numbers[len(numbers) - len(waiting) :]
    gone = sorted(number for its in sent for number in its)
    assert gone == [n for n in numbers if n not in cancelled and n not in waiting]
    handed = list(scene.shortcut.handed())
    assert sorted(it.entry.task.number for it in handed if it.receipt) == gone
    assert {it.entry.task.number for it in handed if not it.receipt} <= cancelled
    assert all(task.running() for task in tasks if task.number in gone)
