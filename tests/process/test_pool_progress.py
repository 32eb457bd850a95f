"""What is told of progress is right, whatever becomes of the tasks; and where bars are drawn."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
import termios
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tqdm import tqdm

import mpkit
from tests import poolwork
from tests.support import PATIENCE, until

if TYPE_CHECKING:
    from collections.abc import Iterator


class Heard:
    """What was told, checked as it comes."""

    def __init__(self) -> None:
        self.done = 0
        self.total: int | None = None

    def __call__(self, done: int, total: int | None) -> None:
        assert done > self.done
        self.done, self.total = done, total


def die_at_seven(number: int) -> int:
    if number == 7:
        os._exit(3)
    return number


@pytest.fixture
def pool() -> Iterator[mpkit.TaskPool]:
    with mpkit.TaskPool(2) as pool:
        yield pool


@settings(
    deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.integers(-3, 9), max_size=30), st.integers(1, 7), st.booleans())
def test_every_item_is_counted_whether_it_fails_or_not(
    pool: mpkit.TaskPool, items: list[int], chunksize: int, ordered: bool
) -> None:
    heard = Heard()
    imap = pool.imap if ordered else pool.imap_unordered
    results = imap(poolwork.picky, items, chunksize, progress=heard)
    ends = 0
    while True:
        try:
            next(results)
        except StopIteration:
            break
        except ValueError:
            pass
        ends += 1
    assert ends == len(items)
    assert (heard.done, heard.total) == (len(items), len(items) if items else None)


@pytest.mark.parametrize("ordered", [True, False])
def test_each_item_of_a_chunk_whose_worker_died_is_told_of(
    pool: mpkit.TaskPool, ordered: bool
) -> None:
    heard, came, died = Heard(), set[int](), 0
    imap = pool.imap if ordered else pool.imap_unordered
    results = imap(die_at_seven, range(20), 5, progress=heard)
    for _ in range(20):
        try:
            came.add(next(results))
        except mpkit.WorkerDied:
            died += 1
    assert next(results, None) is None
    assert died == 5
    assert came == {*range(5), *range(10, 20)}
    assert heard.done == 20


def test_the_class_of_a_bar_is_no_bar(pool: mpkit.TaskPool) -> None:
    kind: Any = tqdm
    with pytest.raises(TypeError, match="not the class of one"):
        pool.map(abs, [1], progress=kind)


def test_the_items_of_a_map_that_failed_are_done_with(pool: mpkit.TaskPool) -> None:
    heard = Heard()
    with pytest.raises(mpkit.WorkerDied):
        pool.map(die_at_seven, range(20), 5, progress=heard)
    assert heard.done == 20


def test_an_item_that_is_tried_again_counts_once(tmp_path: Any) -> None:
    heard = Heard()
    with mpkit.TaskPool(1, retries=1) as pool:
        pool.map(poolwork.crash_once, [str(tmp_path / "once")], progress=heard)
    assert heard.done == 1


def test_what_was_cancelled_is_not_done(pool: mpkit.TaskPool, tmp_path: Any) -> None:
    heard = Heard()
    began, go = mpkit.Signal(), mpkit.Signal()
    items = [(began, go)] * 20
    results = pool.imap(wait_with, items, progress=heard)
    assert began.wait(PATIENCE)
    until(lambda: results._window.ended)  # all are pulled
    results.close()
    go.set()
    ends = 0
    while True:
        try:
            next(results)
        except StopIteration:
            break
        except CancelledError:
            ends += 1
    assert ends > 0
    assert heard.done + ends <= 20


def wait_with(signals: tuple[mpkit.Signal, mpkit.Signal]) -> None:
    began, go = signals
    began.set()
    go.wait(PATIENCE)


PROGRAM = """
import mpkit
with mpkit.TaskPool(1) as pool:
    pool.map(abs, range(10), 2, progress="absolutely")
    list(pool.imap(abs, range(11), progress=True))
"""


def test_a_bar_is_drawn_on_a_terminal() -> None:
    master, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 100))
    program = subprocess.Popen([sys.executable, "-c", PROGRAM], stderr=terminal)
    os.close(terminal)
    drawn = b""
    with open(master, "rb", buffering=0) as reader:
        try:
            while part := reader.read(4096):
                drawn += part
        except OSError:  # how a terminal says that nobody has it open any more
            pass
    assert program.wait(PATIENCE) == 0
    assert b"absolutely: 100%" in drawn
    assert b"10/10" in drawn
    assert b"11/11" in drawn


def test_nothing_is_drawn_where_there_is_no_terminal() -> None:
    program = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, check=True, timeout=PATIENCE
    )
    assert program.stdout + program.stderr == b""


def test_a_bar_of_ones_own_is_drawn_where_it_says(
    pool: mpkit.TaskPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tqdm, "monitor_interval", 0)  # its thread would outlive the test
    drawn = io.StringIO()
    bar = tqdm(total=10, file=drawn, disable=False)
    pool.map(abs, range(10), 2, progress=bar)
    assert "10/10" in drawn.getvalue()
    assert bar.disable  # as it is closed


def test_without_tqdm_a_bar_is_refused_at_the_call(
    pool: mpkit.TaskPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    with pytest.raises(ImportError, match=r"mpkit\[progress\]"):
        pool.map(abs, [1], progress=True)
