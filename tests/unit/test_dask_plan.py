"""Which calls go into a packet: none waits for a long one, and short ones go together."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

pytest.importorskip("distributed")

from hypothesis import given
from hypothesis import strategies as st

from mpkit.dask._plan import GROWTH, MOST, MOST_BYTES, PER_THREAD, SECONDS, Plan


@dataclass(eq=False)
class Call:
    number: int
    what: str = "f"
    size: int = 10
    alone: bool = False
    priority: int = 0


def plan_of(*calls: Call) -> Plan[Call]:
    plan: Plan[Call] = Plan()
    for call in calls:
        plan.add(call)
    return plan


def numbers(plan: Plan[Call], threads: int = 1) -> list[int]:
    return [call.number for call in plan.take(threads, lambda _: True)]


def test_a_function_of_which_nothing_is_known_begins_with_one_call_and_grows() -> None:
    plan = plan_of(*map(Call, range(3 * MOST)))
    sizes: list[int] = []
    while plan and len(sizes) < 8:
        took = numbers(plan)
        plan.ran("f", len(took), 1e-6 * len(took))
        sizes.append(len(took))
    assert sizes[:4] == [1, GROWTH, GROWTH**2, GROWTH**3]
    assert max(sizes) == MOST


def test_a_packet_takes_so_long_as_it_should() -> None:
    plan = plan_of(*map(Call, range(1000)))
    plan.ran("f", 500, 500 * SECONDS / 10)
    assert len(numbers(plan)) == 10
    many = 10 * int(SECONDS / PER_THREAD)
    plan = plan_of(*map(Call, range(100_000)))
    plan.ran("f", 5000, 5000 * SECONDS / 10)
    assert len(numbers(plan, many)) == pytest.approx(100, abs=1)


def test_few_calls_are_shared_out_among_the_threads() -> None:
    plan = plan_of(*map(Call, range(8)))
    plan.ran("f", 8, 8 * SECONDS / 10)
    assert numbers(plan, 4) == [0, 1]


def test_a_long_call_is_alone_and_what_must_be_is_too() -> None:
    plan = plan_of(*map(Call, range(4)))
    plan.ran("f", 8, 8 * 10.0)
    assert numbers(plan) == [0]
    assert plan.is_long(plan.first())
    plan = plan_of(Call(0), Call(1, alone=True), Call(2), Call(3))
    plan.ran("f", 8, 8e-6)
    assert [numbers(plan) for _ in range(3)] == [[0], [1], [2, 3]]


def test_what_was_given_back_comes_first_in_its_order() -> None:
    plan = plan_of(*map(Call, range(4)), Call(4, priority=1))
    plan.ran("f", 100, 1e-6)
    first = plan.take(1, lambda _: True)
    assert [call.number for call in first] == [4, 0, 1, 2, 3]
    plan.add(Call(5))
    plan.put_back(first[1:])
    assert numbers(plan) == [0, 1, 2, 3, 5]


def test_what_is_not_wanted_any_more_takes_no_room() -> None:
    plan = plan_of(*map(Call, range(4)))
    plan.ran("f", 100, 1e-6)
    assert [call.number for call in plan.take(1, lambda call: call.number > 1)] == [2, 3]
    assert not plan


KINDS = st.tuples(
    st.sampled_from("fgh"), st.integers(0, 2 * MOST_BYTES), st.booleans(), st.integers(-1, 1)
)
KNOWN = st.dictionaries(
    st.sampled_from("fgh"), st.tuples(st.integers(1, 5000), st.floats(1e-7, 100.0))
)


@given(st.lists(KINDS, max_size=40), KNOWN, st.integers(1, 2000))
def test_each_call_is_taken_once_by_priority_and_within_bounds(
    kinds: list[tuple[str, int, bool, int]],
    known: dict[str, tuple[int, float]],
    threads: int,
) -> None:
    plan = plan_of(*(Call(number, *kind) for number, kind in enumerate(kinds)))
    for what, (count, each) in known.items():
        plan.ran(what, count, count * each)
    taken: list[Call] = []
    while plan:
        packet = plan.take(threads, lambda _: True)
        assert 1 <= len(packet) <= MOST
        assert len(packet) == 1 or not any(call.alone for call in packet)
        assert len(packet) == 1 or all(call.what in known for call in packet)
        assert sum(call.size for call in packet[1:]) <= MOST_BYTES
        seconds = sum(plan.seconds(call) or 0.0 for call in packet[1:])
        assert seconds <= max(SECONDS, PER_THREAD * threads)
        taken += packet
    order = [(-call.priority, call.number) for call in taken]
    assert order == sorted(order)
    assert len(order) == len(kinds)


def test_one_long_call_does_not_part_those_that_are_short() -> None:
    plan = plan_of(*map(Call, range(1000)))
    plan.ran("f", 500, 500 * 0.001)
    plan.ran("f", 1, 60.0)
    for _ in range(4):
        plan.ran("f", 1, 0.001)
    assert len(numbers(plan)) > 5
