"""A process that a test starts has no pytest before it uses it; see `tests/__init__.py`."""

from __future__ import annotations

import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor

import pytest

from tests.support import PATIENCE


def use(way: str) -> tuple[bool, bool]:
    """Use pytest; return whether it was there before, and whether it is now."""
    before = "_pytest" in sys.modules
    if way == "raises":
        with pytest.raises(LookupError):
            raise KeyError(way)
    else:
        try:
            pytest.fail("told")
        except pytest.fail.Exception as failed:
            assert str(failed) == "told"
    return before, "_pytest" in sys.modules and sys.modules["pytest"].__file__ is not None


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_pytest_is_imported_by_who_uses_it_and_is_all_there(method: str) -> None:
    with ProcessPoolExecutor(1, multiprocessing.get_context(method)) as executor:
        used = [executor.submit(use, way).result(PATIENCE) for way in ("raises", "fail")]
    assert used == [(False, True), (True, True)]
