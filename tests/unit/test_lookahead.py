"""How far an imap pulls its input ahead."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mpkit._pool.lookahead import LAST, MOST_TIMES, Lookahead

FAST, FAIR, SLOW = LAST / 2, 2 * LAST, 5 * LAST


def test_it_grows_while_it_is_consumed_fast_and_shrinks_when_that_is_over() -> None:
    ahead = Lookahead(64)
    least = ahead.bound
    for _ in range(20):
        ahead.half_consumed(FAST)
    assert ahead.bound + ahead.at_a_time == MOST_TIMES * 64
    ahead.half_consumed(FAIR)
    assert ahead.bound + ahead.at_a_time == MOST_TIMES * 64
    for _ in range(20):
        ahead.half_consumed(SLOW)
    assert ahead.bound == least


def test_what_was_lifted_stays_so() -> None:
    ahead = Lookahead(64)
    ahead.lift()
    lifted = ahead.bound
    ahead.half_consumed(FAST)
    ahead.half_consumed(SLOW)
    assert ahead.bound == lifted


@given(st.integers(2, 10_000), st.lists(st.sampled_from([FAST, FAIR, SLOW])))
def test_there_is_room_for_some_and_never_for_more_than_is_said(
    least: int, halves: list[float]
) -> None:
    ahead = Lookahead(least)
    for seconds in halves:
        ahead.half_consumed(seconds)
        assert ahead.at_a_time >= 1
        assert ahead.bound >= 1
        assert least <= ahead.bound + ahead.at_a_time <= MOST_TIMES * least
