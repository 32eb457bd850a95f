"""What a forked process' arguments reach, and what they do not."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import logging
import multiprocessing
import queue
import threading
import types
from collections import OrderedDict, defaultdict, deque
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from mpkit import Channel, TaskPool, channel, start
from mpkit._call import Call
from mpkit._reach import MOST, reached_from
from tests.support import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")

End = Channel[Any, Any]

fork: Any = multiprocessing.get_context("fork")


@dataclasses.dataclass
class Record:
    end: Any

    def use(self) -> None:
        self.end.send("mine now")


@dataclasses.dataclass(frozen=True, slots=True)
class Slotted:
    number: int
    end: Any


class Both(Slotted):
    """Has slots and attributes."""


class Pair(NamedTuple):
    number: int
    end: Any


class Labelled(list[Any]):
    """A list with attributes."""

    end: Any


class Node:
    def __init__(self, inner: object) -> None:
        self.inner = inner
        self.me = self


def labelled(end: object) -> Labelled:
    result = Labelled(range(10))
    result.end = end
    return result


def closing_over(end: End) -> Callable[[], None]:
    def inner() -> None:
        end.send("mine now")

    return lambda: inner()


def with_default(end: End) -> Callable[[], None]:
    def inner(number: int = 1, *, end: End = end) -> None:
        end.send("mine now")

    return inner


#: Where an end can be among the arguments, and how to get it from there.
WHERE: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "itself": (lambda end: end, lambda it: it),
    "list": (lambda end: [end], lambda it: it[0]),
    "nested": (lambda end: (1, (2, [end])), lambda it: it[1][1][0]),
    "dict value": (lambda end: {"key": {"inner": end}}, lambda it: it["key"]["inner"]),
    "dict key": (lambda end: {end: 1}, lambda it: next(iter(it))),
    "set": (lambda end: {end}, lambda it: next(iter(it))),
    "frozenset": (lambda end: frozenset([end]), lambda it: next(iter(it))),
    "deque": (lambda end: deque([end]), lambda it: it[0]),
    "OrderedDict": (lambda end: OrderedDict(a=end), lambda it: it["a"]),
    "defaultdict": (lambda end: defaultdict(list, a=[end]), lambda it: it["a"][0]),
    "named tuple": (lambda end: Pair(1, end), lambda it: it.end),
    "partial": (lambda end: functools.partial(max, key=[end]), lambda it: it.keywords["key"][0]),
    "attribute": (Record, lambda it: it.end),
    "slot": (lambda end: Slotted(1, end), lambda it: it.end),
    "slot below": (lambda end: Both(1, end), lambda it: it.end),
    "namespace": (lambda end: types.SimpleNamespace(end=end), lambda it: it.end),
    "attribute of a list": (labelled, lambda it: it.end),
    "object graph": (
        lambda end: Node([Node({"a": Node(end)})]),
        lambda it: it.inner[0].inner["a"].inner,
    ),
    "exception": (lambda end: ValueError("no", end), lambda it: it.args[1]),
    "long list": (lambda end: [0] * 1500 + [end], lambda it: it[-1]),
    "long dict": (lambda end: {n: n for n in range(1500)} | {"end": end}, lambda it: it["end"]),
}
#: What can be called, and has an end with it.
CALLS: dict[str, Callable[[Any], Callable[[], None]]] = {
    "bound method": lambda end: Record(end).use,
    "method of the end": lambda end: functools.partial(end.send, "mine now"),
    "closure": closing_over,
    "default": with_default,
}


@pytest.fixture
def pair() -> Iterator[tuple[End, End]]:
    here, there = channel()
    yield here, there
    here.close()
    there.close()


def send_from(where: str, thing: Any) -> None:
    WHERE[where][1](thing).send("mine now")


@pytest.mark.parametrize("where", WHERE)
def test_an_end_moves_from_anywhere_among_the_arguments(pair: tuple[End, End], where: str) -> None:
    here, there = pair
    process = fork.Process(target=send_from, args=(where, WHERE[where][0](there)))
    process.start()
    assert there.closed
    assert list(here) == ["mine now"]
    process.join()
    process.close()


@pytest.mark.parametrize("how", CALLS)
def test_an_end_moves_with_what_is_called(pair: tuple[End, End], how: str) -> None:
    here, there = pair
    process = fork.Process(target=CALLS[how](there))
    process.start()
    assert there.closed
    assert list(here) == ["mine now"]
    process.join()
    process.close()


def test_all_that_moves_under_fork_moves_under_each_start_method(start_method: str) -> None:
    pairs = {name: channel() for name in (*WHERE, *CALLS)}
    things = {where: WHERE[where][0](pairs[where][1]) for where in WHERE if "long" not in where}
    calls = [CALLS[how](pairs[how][1]) for how in CALLS]
    with start(send_from_all, things, calls) as job:
        job.result(PATIENCE)
    for name in (*things, *CALLS):
        assert pairs[name][1].closed, name
        assert pairs[name][0].recv(PATIENCE) == "mine now", name
    for pair in pairs.values():
        for end in pair:
            end.close()


def send_from_all(things: dict[str, Any], calls: list[Callable[[], None]]) -> None:
    for where, thing in things.items():
        send_from(where, thing)
    for call in calls:
        call()


class OwnProcess(fork.Process):  # type: ignore[misc]
    """Keeps its end where users of threads do."""

    def __init__(self, end: End) -> None:
        super().__init__()
        self.record = Record(end)
        self.siblings: list[Any] = []

    def run(self) -> None:
        self.record.use()


def test_an_end_moves_with_the_attributes_of_a_process(pair: tuple[End, End]) -> None:
    here, there = pair
    process = OwnProcess(there)
    process.start()
    assert list(here) == ["mine now"]
    process.join()
    process.close()


def test_a_call_brings_its_arguments(pair: tuple[End, End]) -> None:
    for call in (
        Call(print, (pair[0],), {}),
        Call(print, (), {"key": pair[0]}),
        Call(functools.partial(print, pair[0]), (), {}),
    ):
        found = reached_from((call,))
        assert id(pair[0]) in found
        assert id(pair[0]._end.link) in found
        assert id(pair[1]) not in found


class Reading(threading.Thread):
    def __init__(self, end: End) -> None:
        super().__init__()
        self.end = end


def decorated(end: End) -> Callable[[], None]:
    @functools.wraps(decorated)
    def inner() -> None:
        end.poll()

    return inner


def generator(end: End) -> Iterator[End]:
    yield end


async def coroutine(end: End) -> None:
    end.poll()


def in_a_loop(end: End) -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    loop.call_soon(end.poll)
    return loop


def in_a_queue(end: End) -> Any:
    waiting: queue.Queue[End] = queue.Queue()
    waiting.put(end)
    return waiting


def in_a_logger(end: End) -> Any:
    logger = logging.Logger("nobody's")
    logger.end = end  # type: ignore[attr-defined]
    return logger


@pytest.mark.parametrize(
    "wrap",
    [
        lambda end: Reading(end),
        lambda end: threading.Thread(target=end.poll),
        lambda end: multiprocessing.Process(target=end.poll),
        lambda end: OwnProcess(end),
        lambda end: generator(end),
        lambda end: in_a_queue(end),
        lambda end: in_a_logger(end),
        lambda end: decorated(end),
        lambda end: type("Local", (), {"end": end}),
    ],
)
def test_what_is_not_pickled_elsewhere_keeps_its_ends_here(
    pair: tuple[End, End], wrap: Callable[[Any], Any]
) -> None:
    assert id(pair[0]) not in reached_from((Record(wrap(pair[0])),))


def test_neither_do_loops_and_coroutines_give_their_ends_away(pair: tuple[End, End]) -> None:
    running, loop = coroutine(pair[0]), in_a_loop(pair[0])
    assert id(pair[0]) not in reached_from((Record(running), Record(loop)))
    running.close()
    loop.close()


def test_the_workers_of_a_pool_stay_with_it() -> None:
    """An object that has a pool may be an argument; the pool goes on here."""
    with TaskPool(1) as pool:
        holder = Record(pool)
        process = fork.Process(target=id, args=(holder,))
        process.start()
        process.join()
        process.close()
        assert pool.submit(abs, -1).result(PATIENCE) == 1


class Touchy:
    """Fails if any code of it is run."""

    def __init__(self, end: object) -> None:
        object.__setattr__(self, "end", end)

    def __getattribute__(self, name: str) -> Any:
        raise AssertionError(name)

    __len__ = __iter__ = __hash__ = __eq__ = __bool__ = __reduce__ = None  # type: ignore[assignment]


class TouchyList(list[Any]):
    def __len__(self) -> int:
        raise AssertionError

    __iter__ = __getitem__ = __hash__ = __eq__ = __bool__ = None  # type: ignore[assignment]


class TouchyType(type):
    def __getattribute__(cls, name: str) -> Any:
        raise AssertionError(name)


def test_no_code_of_the_user_is_run(pair: tuple[End, End]) -> None:
    class OfTouchyType(metaclass=TouchyType):
        __slots__ = ("end",)

    one = object.__new__(OfTouchyType)
    object.__setattr__(one, "end", [TouchyList([Touchy(pair[0])])])
    assert id(pair[0]) in reached_from((one,))


def test_near_ends_are_found_behind_any_amount_of_data(pair: tuple[End, End]) -> None:
    data = [[object() for _ in range(100)] for _ in range(MOST)]
    for args in ((data, pair[0]), (Record([pair[0]]), data), ({"a": data, "b": pair[0]},)):
        found = reached_from(args)
        assert id(pair[0]) in found
        assert len(found) <= MOST + 1


@pytest.mark.parametrize("make", [list, tuple, set, deque, dict.fromkeys, OrderedDict.fromkeys])
def test_of_a_long_container_only_the_beginning_is_searched(make: Callable[[Any], Any]) -> None:
    nodes = [Node(number) for number in range(3 * MOST)]
    assert len(reached_from(make(nodes))) <= MOST + 1
    assert len(reached_from([Record(make(nodes)) for _ in range(50)])) <= MOST + 1


def test_arguments_that_contain_themselves_are_searched_once() -> None:
    endless: list[Any] = []
    endless.append(endless)
    assert reached_from(endless) == {id(endless)}


def test_the_attributes_of_an_object_are_found_by_way_of_its_dict() -> None:
    """From Python 3.13 on they are in the object, and the collector finds that dict empty."""

    class Plain:
        def __init__(self, part: object) -> None:
            self.part = (part,)

    part: list[object] = []
    assert id(part) in reached_from(vars(Plain(part)))
