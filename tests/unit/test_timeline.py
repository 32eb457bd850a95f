"""Boxes of a timeline, of which there are never too many."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from mpkit._watch.picture import Run
from mpkit._watch.timeline import Timeline

#: The pause before a task, how long it takes, where it runs, its function, and whether it fails.
TASKS = st.lists(
    st.tuples(
        st.floats(0, 0.1), st.floats(0, 10), st.integers(1, 4), st.sampled_from("fg"), st.booleans()
    ),
    max_size=200,
)


def run(lane: int, began: float, ended: float, what: str = "f", outcome: str = "done") -> Run:
    return Run(lane, 1, f"task ({what})", what, 1, began, began, ended, outcome, 0, 0)


@settings(deadline=None)
@given(TASKS, st.integers(16, 64))
def test_boxes_have_bounds_and_nothing_is_lost(
    tasks: list[tuple[float, float, int, str, bool]], most: int
) -> None:
    timeline = Timeline(most)
    free = dict.fromkeys(range(1, 5), 0.0)
    for pause, took, lane, what, failed in tasks:
        began = free[lane] + pause
        free[lane] = began + took
        timeline.add(run(lane, began, free[lane], what, "failed" if failed else "done"))
    boxes = [(lane, box) for lane, boxes in timeline.lanes.items() for box in boxes]
    assert len(boxes) <= most
    for lane in range(1, 5):
        ours = [task for task in tasks if task[2] == lane]
        there = [box for number, box in boxes if number == lane]
        assert sum(box.count for box in there) == len(ours)
        assert sum(box.failed for box in there) == sum(task[4] for task in ours)
        assert abs(sum(box.busy for box in there) - sum(task[1] for task in ours)) < 1e-6
        for box, behind in itertools.pairwise(there):
            assert box.ended <= behind.began + 1e-9, "they do not overlap"
        for box in there:
            assert box.count == 1 or box.ended - box.began <= timeline.resolution
            assert box.what in ("f", "g", None)


def test_while_there_is_room_each_task_has_its_box() -> None:
    timeline = Timeline(100)
    for number in range(100):
        timeline.add(run(1, number, number + 0.5))
    assert not timeline.resolution
    assert len(timeline.lanes[1]) == 100
    timeline.add(run(1, 100, 100.5))
    assert timeline.resolution
    assert len(timeline.lanes[1]) <= 50


def test_more_lanes_than_boxes_end_too() -> None:
    timeline = Timeline(8)
    for number in range(1000):
        timeline.add(run(number % 50, number, number + 0.5))
    assert sum(map(len, timeline.lanes.values())) <= 200


def test_what_comes_late_has_a_box_of_its_own() -> None:
    """Callers tell of their own tasks, and may do so in another order."""
    timeline = Timeline(4)
    for began in (5, 4, 3, 2, 1, 0):
        timeline.add(run(1, began, began + 0.5))
    assert sum(box.count for box in timeline.lanes[1]) == 6


def test_functions_that_are_merged_have_no_name() -> None:
    timeline = Timeline(16)
    for number in range(100):
        timeline.add(run(1, number, number + 1, "fg"[number % 2]))
    assert {box.what for box in timeline.lanes[1] if box.count > 1} == {None}
