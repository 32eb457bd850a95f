"""The nine small programs of examples/lessons, with mpkit and with the standard library.

Beside ``01_pipe.py`` lies ``01_pipe_stdlib.py``, which prints the same, and (where there is
a trap) ``01_pipe_trap.py``, which steps into it with both. docs/lessons.md shows these files,
and so does docs/zh/lessons.md: that the pages have the same programs is tested here, and
each is run once under each start method.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.documents import ROOT, blocks, matches, run, same_program

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.any_python

FOLDER = ROOT / "examples" / "lessons"
LESSONS = sorted(path.stem for path in FOLDER.glob("[0-9][0-9]_*.py"))
OURS = [stem for stem in LESSONS if not stem.endswith(("_stdlib", "_trap"))]
# In the order of the pages: for each lesson the standard library's, ours, the trap.
SHOWN = [
    stem for ours in OURS for stem in (f"{ours}_stdlib", ours, f"{ours}_trap") if stem in LESSONS
]
PAGE = dict(zip(SHOWN, blocks("docs/lessons.md"), strict=True))
PAGES = ["docs/lessons.md", "docs/zh/lessons.md"]
# In this one, what is reported on standard error is the point.
REPORTS = "09_callback_trap"


def code(stem: str) -> str:
    """Return a program without its docstring, which in the pages is prose."""
    return (FOLDER / f"{stem}.py").read_text(encoding="utf-8").split('"""\n\n', 1)[1]


def printed_by(stem: str, folder: Path, start_method: str) -> str:
    program = folder / f"{stem}.py"
    # A hundred processes are for people; ten show as much.
    program.write_text(code(stem).replace("TASKS = 100", "TASKS = 10"), encoding="utf-8")
    ran = run(program, start_method=start_method)
    assert ran.returncode == 0, ran.stderr
    if stem != REPORTS:
        assert not ran.stderr
    return ran.stdout


@pytest.mark.parametrize("ours", OURS)
def test_a_lesson_prints_what_it_teaches(ours: str, tmp_path: Path, start_method: str) -> None:
    check(ours, printed_by(ours, tmp_path, start_method))


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("ours", OURS)
def test_a_lesson_prints_the_same_with_the_standard_library(
    ours: str, tmp_path: Path, method: str
) -> None:
    check(ours, printed_by(f"{ours}_stdlib", tmp_path, method))


def check(ours: str, printed: str) -> None:
    if ours == "02_semaphore":
        check_the_seats(printed)
        return
    shown = PAGE[ours].prints
    assert shown is not None
    assert matches(printed, shown), printed
    if ours == "09_callback":
        main, callback, worker = re.findall(r"\d+", printed)[:3]
        assert callback == main != worker


def check_the_seats(printed: str) -> None:
    seated: set[str] = set()
    came: list[str] = []
    # Two processes may write at once, so that a line's end comes after the next line.
    for guest, what in re.findall(r"guest (\d) (sits down|leaves)", printed):
        if what == "leaves":
            seated.remove(guest)
            continue
        seated.add(guest)
        came.append(guest)
        assert len(seated) <= 4, printed
    assert not seated
    assert sorted(came) == list("0123456789")


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("trap", [stem for stem in SHOWN if stem.endswith("_trap")])
def test_a_trap_is_one_for_the_standard_library_only(
    trap: str, tmp_path: Path, method: str
) -> None:
    shown = PAGE[trap].prints
    assert shown is not None
    assert printed_by(trap, tmp_path, method) == shown


def test_every_lesson_is_there_twice() -> None:
    assert [stem[:2] for stem in OURS] == [f"{number:02}" for number in range(1, 10)]
    assert {f"{stem}_stdlib" for stem in OURS} <= set(LESSONS)
    assert sorted(SHOWN) == LESSONS


def test_the_page_shows_the_files() -> None:
    for stem, block in PAGE.items():
        assert block.code == code(stem), f"{block.place} is not {stem}.py"


def test_the_chinese_page_shows_the_same_programs_and_their_output() -> None:
    for block, (stem, english) in zip(blocks(PAGES[1]), PAGE.items(), strict=True):
        assert same_program(block.code, english.code), f"{block.place} is not {stem}.py"
        assert block.prints == english.prints, f"{block.place} is not what {stem}.py prints"


@pytest.mark.parametrize("page", PAGES)
def test_the_lines_are_counted_right_and_ours_are_not_more(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    rows = re.findall(r"^\| \[(\d)\..*?\| (\d+) \| (\d+) \|", text, re.MULTILINE)
    counted = [(str(int(ours[:2])), lines(f"{ours}_stdlib"), lines(ours)) for ours in OURS]
    assert [(lesson, int(theirs), int(ours)) for lesson, theirs, ours in rows] == counted
    assert all(ours <= theirs for _, theirs, ours in counted)


def lines(stem: str) -> int:
    """Count lines of code."""
    program = code(stem).replace("from __future__ import annotations\n", "")
    stripped = (line.strip() for line in program.splitlines())
    return sum(1 for line in stripped if line and not line.startswith("#"))
