"""Every program in README.md and docs/ runs as it stands, and prints what it says."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.documents import ROOT, Block, blocks, check
from tests.support import PATIENCE

if TYPE_CHECKING:
    from pathlib import Path

DOCS = ROOT / "docs"
# The programs of docs/lessons.md are files that tests/process/test_lessons.py runs, and
# those of the Chinese edition are the English ones, which tests/test_chinese.py sees to.
ELSEWHERE = {DOCS / "lessons.md", *(DOCS / "zh").rglob("*.md")}
PAGES = [str(page.relative_to(ROOT)) for page in {*DOCS.rglob("*.md")} - ELSEWHERE]
BLOCKS = [block for page in sorted(["README.md", *PAGES]) for block in blocks(page)]


@pytest.mark.parametrize("block", BLOCKS, ids=[block.place for block in BLOCKS])
def test_a_program_in_the_documentation_runs(
    block: Block, tmp_path: Path, start_method: str
) -> None:
    if missing := block.missing():
        pytest.skip(f"it needs {missing}")
    check(block, tmp_path, start_method)


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
