"""The mailbox of a supervisor: what is put in is taken out, or refused, and nothing is forgotten."""

from __future__ import annotations

import select
import threading
from typing import TYPE_CHECKING, Any

import pytest

from mpkit._engine.mailbox import Mailbox
from tests.support import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterator


class Box(Mailbox):
    """One of which it is noted what was refused."""

    def __init__(self) -> None:
        super().__init__(lambda: self.refused.extend(self.submissions()))
        self.refused: list[Any] = []

    def put(self, number: int) -> None:
        self.submit((number, b"", None))  # type: ignore[arg-type]

    def readable(self) -> bool:
        return bool(select.select([self.reader], [], [], 0)[0])


@pytest.fixture
def box() -> Iterator[Box]:
    made = Box()
    yield made
    made.close()


def test_who_puts_in_wakes_the_supervisor_once(box: Box) -> None:
    assert not box.readable()
    for number in range(100_000):  # far more than bytes fit into the pipe
        box.put(number)
    assert box.readable()
    box.woke()
    assert not box.readable()
    assert [number for number, *_ in box.submissions()] == list(range(100_000))
    box.tell(lambda: None)
    assert box.readable()


def test_what_comes_too_late_is_refused(box: Box) -> None:
    box.put(1)
    box.end(lambda: None)
    box.put(2)
    assert [number for number, *_ in box.refused] == [1, 2]


def test_who_waits_for_the_end_waits_until_all_is_refused(box: Box) -> None:
    over: list[bool] = []
    box._refuse = lambda: over.append(box.over.is_set())
    box.end(lambda: None)
    assert over == [False]
    assert box.over.is_set()


def test_what_comes_while_the_rest_is_refused_is_refused_too(box: Box) -> None:
    """Who came then believed that the supervisor was awake, and waited for ever."""
    refuse = box._refuse

    def slowly() -> None:
        refuse()
        box._refuse = refuse
        box.put(2)

    box._refuse = slowly
    box.put(1)  # this one wakes the supervisor, which does not look any more
    box.end(lambda: None)
    assert [number for number, *_ in box.refused] == [1, 2]


def test_none_of_many_threads_is_forgotten_when_it_ends(box: Box) -> None:
    def put_all(first: int) -> None:
        for number in range(first, first + 1000):
            box.put(number)

    threads = [threading.Thread(target=put_all, args=(n * 1000,)) for n in range(4)]
    for thread in threads:
        thread.start()
    box.end(lambda: None)
    for thread in threads:
        thread.join(PATIENCE)
    assert sorted(number for number, *_ in box.refused) == list(range(4000))
