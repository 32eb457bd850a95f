"""Every program in README.md and docs/ runs as it stands, and prints what it says."""

from __future__ import annotations

import os
import subprocess
import sys
from multiprocessing import get_all_start_methods
from typing import TYPE_CHECKING

import pytest

from tests.documents import ROOT, Block, blocks, check
from tests.support import PATIENCE

if TYPE_CHECKING:
    from pathlib import Path

# The README and the tutorial are followed on every Python by `make release-check`.
pytestmark = pytest.mark.any_python

DOCS = ROOT / "docs"
# The programs of docs/lessons.md are files that tests/process/test_lessons.py runs, and
# those of the Chinese edition are the English ones, which tests/test_chinese.py sees to.
ELSEWHERE = {DOCS / "lessons.md", *(DOCS / "zh").rglob("*.md")}
PAGES = [str(page.relative_to(ROOT)) for page in {*DOCS.rglob("*.md")} - ELSEWHERE]
BLOCKS = [block for page in sorted(["README.md", *PAGES]) for block in blocks(page)]
# What takes seconds to import, in each process. It, or its tests here, sees to start methods
# itself, so these programs run under the strictest only.
SLOW = {"dask", "distributed", "joblib", "pytest", "scipy", "sklearn"}
RUNS = [
    pytest.param(block, method, id=f"{method}-{block.place}")
    for block in BLOCKS
    for method in (["spawn"] if SLOW & block.imported() else get_all_start_methods())
]


@pytest.mark.parametrize(("block", "method"), RUNS)
def test_a_program_in_the_documentation_runs(block: Block, method: str, tmp_path: Path) -> None:
    if missing := block.missing():
        pytest.skip(f"it needs {missing}")
    check(block, tmp_path, method)


#: Packages without types of their own, or whose own programs are untyped.
UNTYPED = {"dask", "distributed", "mpire"}


def test_the_programs_of_the_documentation_have_types_that_are_right(tmp_path: Path) -> None:
    """A reader who has mypy look at what he has copied is told of nothing."""
    pytest.importorskip("mypy")
    places: dict[str, str] = {}
    for number, block in enumerate(BLOCKS):
        if not block.missing() and not UNTYPED & block.imported():
            program = tmp_path / f"program_{number}.py"
            program.write_text(block.code, encoding="utf-8")
            places[program.name] = block.place
    assert len(places) > len(BLOCKS) / 2
    settings = ["--strict", "--ignore-missing-imports", "--config-file=", "--no-error-summary"]
    ran = subprocess.run(
        [sys.executable, "-m", "mypy", *settings, "--cache-dir=cache", *places],
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        timeout=10 * PATIENCE,
    )
    told = [f"{places.get(line.split(':')[0])}: {line}" for line in ran.stdout.splitlines()]
    assert ran.returncode == 0, "\n".join(told) + ran.stderr
    assert not told


def test_the_readme_shows_every_primitive() -> None:
    code = "\n".join(block.code for block in blocks("README.md"))
    for name in ("limit", "Signal", "channel", "start", "TaskPool", "wait"):
        assert f"mpkit.{name}(" in code
