"""What joblib returns by mpkit is what it returns anyway."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import mpkit
from tests import poolwork

joblib: Any = pytest.importorskip("joblib")
import mpkit.joblib  # noqa: E402  which needs the one above


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(
    items=st.lists(st.integers(-9, 9), max_size=40),
    batch=st.sampled_from(["auto", 1, 3]),
    way=st.sampled_from(["list", "generator", "generator_unordered"]),
)
def test_the_results_are_those_of_a_loop(items: list[int], batch: int | str, way: str) -> None:
    with mpkit.TaskPool(2) as pool, joblib.parallel_config("mpkit", pool=pool):
        parallel = joblib.Parallel(n_jobs=2, batch_size=batch, return_as=way)
        results = list(parallel(joblib.delayed(poolwork.square)(n) for n in items))
    expected = [n * n for n in items]
    assert (
        results == expected if way != "generator_unordered" else sorted(results) == sorted(expected)
    )
