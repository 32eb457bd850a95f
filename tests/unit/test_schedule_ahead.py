"""How many tasks a worker has ahead of need."""

from __future__ import annotations

from mpkit._engine.schedule import Schedule
from tests.unit.test_schedule_withdrawn import act


def test_a_worker_that_had_enough_gets_more_when_more_has_come() -> None:
    """And not only when it reports: it was passed over as one that wants nothing."""
    schedule = Schedule(1)
    act(schedule, set())
    schedule.submitted(0)
    assert act(schedule, set()) == [0]
    schedule.finished(0, [0], seconds=1e-6)
    sent: list[int] = []
    for task in (1, 2, 3):
        schedule.submitted(task)
        sent += act(schedule, set())
    for task in range(4, 40):
        schedule.submitted(task)
    sent += act(schedule, set())
    assert len(sent) > 20
    assert sent == list(range(1, len(sent) + 1))
