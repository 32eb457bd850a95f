"""Who has reported nothing for long is left out of account, though others report all the time."""

from __future__ import annotations

import pytest

from mpkit._engine.reserve import LONG, Reserve, WorkerState

pytestmark = pytest.mark.any_python

FEW = 2


def worker(tasks: int) -> WorkerState:
    state = WorkerState(None)
    state.tasks.extend(range(tasks))
    return state


def test_one_more_is_of_use_for_each_that_is_stuck() -> None:
    reserve = Reserve(FEW, ample=0)
    stuck, busy, *others = crew = [worker(1), worker(1), worker(0), worker(0)]
    open_ = dict(enumerate(crew))
    reserve.spare(open_, len(crew), reserve.useful(0.0))
    assert list(open_.values()) == [stuck, busy]
    for passed in range(1, LONG + 1):
        reserve.reported(busy, more=True)
        reserve.moment_passed(crew)
        assert not reserve.lifted
        reserve.spare(open_, len(crew), reserve.useful(0.0))
        assert len(reserve.spared) == len(others) - (passed == LONG)
    reserve.reported(stuck, more=True)
    reserve.moment_passed(crew)
    reserve.spare(open_, len(crew), reserve.useful(0.0))
    assert list(open_.values()) == [stuck, busy]


def test_the_last_report_of_all_tells_nothing_of_what_comes_later() -> None:
    reserve = Reserve(FEW, ample=0)
    first, second = worker(1), worker(1)
    reserve.reported(first, more=False)
    reserve.moment_passed([first, second])
    assert reserve.lifted
    reserve.reported(second, more=True)
    assert not reserve.lifted
