"""Every program in README.md and docs/ runs as it stands, and prints what it says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.documents import ROOT, Block, blocks, check

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


def test_the_readme_shows_every_primitive() -> None:
    code = "\n".join(block.code for block in blocks("README.md"))
    for name in ("limit", "Signal", "channel", "start", "TaskPool", "wait"):
        assert f"mpkit.{name}(" in code
