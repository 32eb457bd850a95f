"""Percentiles of any number of times, in little memory."""

from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from mpkit._watch.sketch import (
    AT_A_TIME,
    MOST_FUNCTIONS,
    OTHERS,
    Functions,
    Sketch,
    bounds,
)

#: Seconds that something may take: from nothing to some thirty years.
SECONDS = st.one_of(
    st.just(0.0),
    st.floats(1e-9, 1e9),
    st.floats(0.001, 0.002),  # many in few buckets
)


def sketch_of(values: list[float]) -> Sketch:
    sketch = Sketch()
    for value in values:
        sketch.note(value)
        if sketch.full:
            sketch.fold()
    return sketch


@settings(deadline=None)
@given(st.lists(SECONDS, min_size=1, max_size=3 * AT_A_TIME))
def test_percentiles_are_near_those_of_a_sorted_list(values: list[float]) -> None:
    times, total, *percentiles, longest = sketch_of(values).figures()
    assert times == len(values)
    assert math.isclose(total, sum(values), rel_tol=1e-9)
    assert longest == max(values)
    ordered = sorted(values)
    for share, told in zip((0.5, 0.9, 0.99), percentiles, strict=True):
        exact = ordered[max(1, math.ceil(share * len(values))) - 1]
        assert math.isclose(told, exact, rel_tol=0.07, abs_tol=1e-30)
    assert percentiles == sorted(percentiles)


@settings(deadline=None)
@given(st.floats(1e-30, 1e30))
def test_a_bucket_is_an_eighth_wide_at_most(value: float) -> None:
    sketch = sketch_of([value])
    sketch.fold()
    (bucket,) = sketch._counts
    low, high = bounds(bucket)
    # What is put there was made a 32-bit float first.
    assert low * (1 - 1e-7) <= value <= high * (1 + 1e-7)
    assert high - low <= low / 8


def test_what_is_negative_counts_as_nothing() -> None:
    figures = sketch_of([-1.0, -1e-9, 2.0]).figures()
    assert (figures.times, figures.p50, figures.longest) == (3, 0.0, 2.0)


def test_nothing_at_all_has_figures_too() -> None:
    assert Sketch().figures() == (0, 0.0, 0.0, 0.0, 0.0, 0.0)


def test_a_million_values_take_no_more_room_than_a_thousand() -> None:
    sketch = sketch_of([1e-6 * 1.00001**n for n in range(1_000_000)])
    figures = sketch.figures()
    assert figures.times == 1_000_000
    assert len(sketch._counts) < 200
    assert not sketch._fresh


def test_there_are_not_more_functions_than_there_is_room_for() -> None:
    functions = Functions()
    for number in range(3 * MOST_FUNCTIONS):
        functions.of(f"made for task {number}").runs.note(1.0)
    assert len(functions.records) == MOST_FUNCTIONS + 1
    assert functions.records[OTHERS].runs.figures().times == 2 * MOST_FUNCTIONS
    assert functions.of("made for task 0") is functions.records["made for task 0"]
