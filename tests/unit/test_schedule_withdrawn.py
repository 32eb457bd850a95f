"""Tasks that are cancelled while they wait never leave a worker idle."""

from __future__ import annotations

import pytest

from mpkit._engine.actions import Send, Spawn
from mpkit._engine.schedule import Schedule


def act(schedule: Schedule, cancelled: set[int]) -> list[int]:
    """Do as the engine does; return the tasks that were really sent."""
    sent: list[int] = []
    for action in schedule.decide():
        match action:
            case Spawn():
                schedule.spawned(0)
                schedule.started(0)
            case Send(worker, tasks):
                for task in tasks:
                    if task in cancelled:
                        schedule.withdrawn(worker, task)
                    else:
                        sent.append(task)
    return sent


@pytest.mark.parametrize("alone", [False, True])
def test_a_worker_gets_the_first_task_that_was_not_cancelled(alone: bool) -> None:
    schedule = Schedule(1)
    assert act(schedule, set()) == []
    schedule.submitted(0, alone=alone)
    assert act(schedule, set()) == [0]
    for task in range(1, 6):
        schedule.submitted(task, alone=alone)
    schedule.finished(0, [0], seconds=1.0)
    assert act(schedule, {1, 2, 3}) == [4]


def test_a_pool_of_cancelled_tasks_is_over_when_it_is_closed() -> None:
    schedule = Schedule(1)
    assert act(schedule, set()) == []
    for task in range(5):
        schedule.submitted(task)
    schedule.close()
    assert act(schedule, {0, 1, 2, 3, 4}) == []
    assert schedule.idle


def test_a_priority_of_its_own_for_each_task_leaves_nothing_behind() -> None:
    schedule = Schedule(1)
    assert act(schedule, set()) == []
    for task in range(20):
        schedule.submitted(task, priority=task)
        assert act(schedule, set()) == [task]
        schedule.finished(0, [task], seconds=1.0)
    assert not schedule._queues


def test_a_packet_that_could_not_be_sent_is_not_tried_again_at_once() -> None:
    schedule = Schedule(1)
    assert act(schedule, set()) == []
    schedule.submitted(0)
    tries = 0
    for action in schedule.decide():
        if isinstance(action, Send):
            tries += 1
            schedule.returned(action.worker, action.tasks)
    assert tries == 1
