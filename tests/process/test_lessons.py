"""The nine small programs of examples/lessons, under every start method."""

from __future__ import annotations

import re

import pytest

from tests.documents import ROOT, run

TENS = "".join(f"{number * 10}\n" for number in range(10))
PRINTS = {
    "01_pipe": "child got: hello, child\nparent got: 12\n",
    "03_event": "at first: False\nafter set: True\nwait returns at once: True\n"
    "after clear: False\nwait gives up after 10 ms: False\n",
    "04_event_between_processes": "waiting ...\ndone: True\nresult: 499500\n",
    "05_pool_against_processes": r"pool: +\d+\.\d+ s\nprocesses: +\d+\.\d+ s\nsame results: True\n",
    "06_apply": TENS + "one after the other: True\n",
    "07_apply_async": "submitted: 10\n" + TENS,
    "08_close_join_results": r"all ready: True\n\[0, 10, 20, 30, 40, 50, 60, 70, 80, 90\]\n",
}


def printed_by(lesson: str, start_method: str) -> str:
    ran = run(ROOT / "examples" / "lessons" / f"{lesson}.py", start_method=start_method)
    assert (ran.returncode, ran.stderr) == (0, "")
    return ran.stdout


@pytest.mark.parametrize("lesson", PRINTS)
def test_a_lesson_prints_what_it_teaches(lesson: str, start_method: str) -> None:
    printed = printed_by(lesson, start_method)
    assert re.fullmatch(PRINTS[lesson], printed), printed


def test_ten_guests_never_take_more_than_four_seats(start_method: str) -> None:
    printed = printed_by("02_semaphore", start_method)
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


def test_the_callback_runs_in_the_main_process(start_method: str) -> None:
    printed = printed_by("09_callback", start_method)
    found = re.fullmatch(
        r"main process (\d+)\ncallback in (\d+): process (\d+) returned 50\n", printed
    )
    assert found, printed
    main, callback, worker = found.groups()
    assert callback == main != worker


def test_every_lesson_is_tested() -> None:
    lessons = {path.stem for path in (ROOT / "examples" / "lessons").glob("*.py")}
    assert lessons == {*PRINTS, "02_semaphore", "09_callback"}
