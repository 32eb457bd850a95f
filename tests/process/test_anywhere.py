"""Functions and classes of ``__main__`` travel, whichever way that came to be."""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.process import anywhere
from tests.support import PATIENCE

if TYPE_CHECKING:
    from pathlib import Path

METHODS = pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
HOWS = pytest.mark.parametrize("how", anywhere.WAYS)


@pytest.fixture(autouse=True)
def _can_run_notebooks(request: pytest.FixtureRequest) -> None:
    if request.node.callspec.params.get("how") == "notebook":
        pytest.importorskip("nbclient")
        pytest.importorskip("ipykernel")


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


DEFINED_ANEW = """
import json, multiprocessing, os
import mpkit

class Version:
    def __init__(self, number):
        self.number = number

    def told(self):
        return f"first {self.number}"

def tell(version):
    assert isinstance(version, Version)
    return version.told(), version

if __name__ == "__main__":
    multiprocessing.set_start_method(os.environ["METHOD"])
    pool = mpkit.TaskPool(1)
    said = [pool.apply(tell, (Version(1),))[0]]
    older = Version(7)
# cell
if __name__ == "__main__":
    class Version:
        def __init__(self, number):
            self.number = number

        def told(self):
            return f"second {self.number}"
# cell
if __name__ == "__main__":
    def tell(version):
        assert isinstance(version, Version)
        return version.told(), version
# cell
if __name__ == "__main__":
    text, version = pool.apply(tell, (Version(2),))
    said += [text, type(version) is Version, version.told()]
    # A class that its own name is no more that of.
    said += [type(back) is type(older) for back in pool.map(list, [[older]])[0]]
    pool.close()
    assert pool.join(30)
    print(json.dumps(said))
"""


@METHODS
@pytest.mark.parametrize("how", ["-c", "notebook"])
def test_what_is_defined_anew_is_what_workers_have_from_then_on(
    how: str, method: str, tmp_path: Path
) -> None:
    pytest.importorskip("cloudpickle")
    ran = anywhere.run(DEFINED_ANEW, how, tmp_path, method, cloudpickle=True)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout) == ["first 1", "second 2", True, "second 2", True]


PROMPT = """
def square(n):
    return n * n

def typed(n):
    return square(n) + 1

class C:
    def said(self):
        return square(3)

print(pool.apply(typed, (2,)), pool.apply(square, (3,)), type(pool.apply(C)) is C)
print(pool.apply(C().said))
def square(n):
    return -n

print(pool.map(square, [4]))
pool.close()
pool.join()
"""


@METHODS
@pytest.mark.parametrize("has_file", [False, True], ids=["at once", "behind a program"])
def test_what_is_typed_at_a_prompt_travels(method: str, has_file: bool, tmp_path: Path) -> None:
    pytest.importorskip("cloudpickle")
    program = f"import mpkit\nif __name__ == '__main__':\n    pool = mpkit.TaskPool(1, context={method!r})\n"
    (tmp_path / "program.py").write_text(program)
    ran = subprocess.run(
        [sys.executable, "-i", *(["program.py"] if has_file else [])],
        input=PROMPT if has_file else f"{program}\n{PROMPT}",
        capture_output=True,
        text=True,
        timeout=4 * PATIENCE,
        cwd=tmp_path,
        env=anywhere.environment(tmp_path, method, cloudpickle=True),
    )
    # (What a prompt is shown as an expression's value goes there, too.)
    lines = [line for line in ran.stdout.splitlines() if line not in ("True", "False")]
    assert lines == ["5 9 True", "9", "[-4]"], ran.stderr


UNSURE = """
import mpkit, sys

if __name__ == "__main__":
    globals()["defined"] = defined = type("defined", (), {"__module__": "__main__"})
    with mpkit.TaskPool(1, context=sys.argv[1]) as pool:
        print(*pool.apply_async(id, (defined,)).exception().__notes__)
"""


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_what_a_worker_misses_all_the_same_is_told_with_a_remedy(
    method: str, tmp_path: Path
) -> None:
    """The source does not say who is to have it: then it goes by name, as ever."""
    (tmp_path / "program.py").write_text(UNSURE.replace("= defined = ", "= "))
    env = anywhere.environment(tmp_path, method, cloudpickle=True)
    ran = anywhere.ran(tmp_path, env, "program.py", method)
    assert ran.returncode == 0, ran.stderr
    assert "this process has no such name: move it to a module" in ran.stdout
