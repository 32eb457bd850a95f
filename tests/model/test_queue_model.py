"""No order of events loses a wake-up; and each rule is needed, as breaking it shows."""

from __future__ import annotations

import pytest

from tests.model.queue_model import RULES, Machine, explore, start

pytestmark = pytest.mark.any_python


@pytest.mark.timeout(1200)  # about a million states, which a busy machine takes long for
@pytest.mark.parametrize(
    ("waiters", "turns", "kills"), [(2, 1, 2), (2, 3, 2), (3, 1, 2)], ids=lambda n: str(n)
)
def test_no_wake_up_is_lost_in_any_order_of_events(waiters: int, turns: int, kills: int) -> None:
    states, lost = explore(start(waiters, turns), Machine(kills=kills))
    assert lost is None
    assert states > 10_000  # it went somewhere


@pytest.mark.parametrize("rule", RULES)
def test_without_a_rule_a_wake_up_is_lost(rule: str) -> None:
    found = (explore(start(2, 1), Machine(rule, kills))[1] for kills in (0, 1))
    assert any(found), RULES[rule]
