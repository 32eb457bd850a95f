"""Functions and classes of ``__main__`` travel, whichever way that came to be."""

from __future__ import annotations

import json
import multiprocessing
from typing import TYPE_CHECKING

import pytest

from tests.process import anywhere

if TYPE_CHECKING:
    from pathlib import Path

METHODS = pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
HOWS = pytest.mark.parametrize("how", anywhere.WAYS)


@METHODS
@HOWS
def test_all_that_is_in_main_travels_with_cloudpickle(
    how: str, method: str, tmp_path: Path
) -> None:
    pytest.importorskip("cloudpickle")
    ran = anywhere.run(anywhere.EVERYTHING, how, tmp_path, method, cloudpickle=True)
    assert ran.returncode == 0, ran.stderr
    said, more = json.loads(ran.stdout)
    assert said == anywhere.EXPECTED
    assert more == anywhere.EXPECTED_MORE


@METHODS
@HOWS
def test_without_cloudpickle_what_workers_have_travels(
    how: str, method: str, tmp_path: Path
) -> None:
    if method != "fork" and how not in anywhere.IMPORTED:
        pytest.skip("there workers have none of it")
    ran = anywhere.run(anywhere.EVERYTHING, how, tmp_path, method, cloudpickle=False)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout) == [anywhere.EXPECTED, []]


@METHODS
@HOWS
def test_without_cloudpickle_a_call_names_what_cannot_travel(
    how: str, method: str, tmp_path: Path
) -> None:
    ran = anywhere.run(anywhere.REFUSED, how, tmp_path, method, cloudpickle=False)
    assert ran.returncode == 0, ran.stderr
    init, job, *by_name, late, late_class, a_lambda = json.loads(ran.stdout)
    check_refusals(
        [init, job, *by_name] if method != "fork" and how not in anywhere.IMPORTED else []
    )
    if method == "fork" or how in anywhere.IMPORTED:
        assert {init, job, *by_name} == {"it went"}
    check_refusal(late, "late(...)", "the function, which is __main__.late,")
    check_refusal(late_class, "len(...)", "the class of args[0]['key'][0], which is __main__.Late,")
    assert "a lambda cannot" not in a_lambda
    assert "mpkit[cloudpickle]" in a_lambda
    why = {
        "fork": "defined after the workers were forked",
        "script": 'below `if __name__ == "__main__":`',
        "-m": 'below `if __name__ == "__main__":`',
        "-m package": "new processes do not import package.__main__",
    }
    assert why.get("fork" if method == "fork" else how, "typed in") in late


def check_refusals(refusals: list[str]) -> None:
    """Check what is said of what new processes have nothing of; there may be none."""
    if not refusals:
        return
    init, job, applied, mapped, lazily, argument, method = refusals
    check_refusal(init, "prepare(...)", "the function, which is __main__.prepare,")
    for said in (job, applied, lazily):
        check_refusal(said, "doubled(...)", "the function, which is __main__.doubled,")
    check_refusal(mapped, "doubled(...)", "args[0], which is __main__.doubled,")
    check_refusal(argument, "max(...)", "the class of args[0][0], which is __main__.Point,")
    check_refusal(method, "plus(...)", "__main__.Point")


def check_refusal(said: str, what: str, which: str) -> None:
    assert f"{what} cannot be pickled: " in said
    assert which in said
    assert "move it to a module" in said
    assert "mpkit[cloudpickle]" in said
