"""The Chinese edition has what the English one has, and its programs run.

In a Chinese page each heading has a comment behind it that names the English one:
``<!-- en: Progress -->``. So a section that is new, gone or renamed in English is found
here by name; and so are programs, rows of tables and items of lists.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.documents import ROOT, Block, blocks, check, same_program

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.any_python

EDITION = {
    "README.zh.md": "README.md",
    "docs/zh/tutorial.md": "docs/tutorial.md",
    "docs/zh/lessons.md": "docs/lessons.md",
}
# The lessons are run by tests/process/test_lessons.py.
RUN_HERE = [block for page in EDITION if "lessons" not in page for block in blocks(page)]

_CODE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_SECTION = re.compile(r"^(#+ [^\n]+)\n(?:<!-- en: ([^\n]+) -->\n)?(.*?)(?=^#|\Z)", re.M | re.S)


def sections(page: str) -> list[tuple[str, str, str]]:
    """Return level with heading, the English heading that is named, and the prose."""
    prose = _CODE.sub("", (ROOT / page).read_text(encoding="utf-8"))
    return [match.groups("") for match in _SECTION.finditer(prose)]


def english_names(page: str) -> list[str]:
    return [heading for heading, _, _ in sections(page)]


def translated_names(page: str) -> list[str]:
    return [f"{heading.split()[0]} {english}" for heading, english, _ in sections(page)]


@pytest.mark.parametrize(("chinese", "english"), EDITION.items())
def test_every_section_is_there_in_chinese(chinese: str, english: str) -> None:
    expected, found = english_names(english), translated_names(chinese)
    for heading in expected:
        assert heading in found, f"{chinese} lacks the section '{heading}' of {english}"
    for heading in found:
        assert heading in expected, f"{english} has no section '{heading}' any more: see {chinese}"
    assert found == expected, f"the sections of {chinese} come in another order"


@pytest.mark.parametrize(("chinese", "english"), EDITION.items())
def test_tables_and_lists_are_as_long_in_chinese(chinese: str, english: str) -> None:
    for (heading, _, original), (_, _, translated) in zip(sections(english), sections(chinese)):
        for what, mark in {"rows of tables": "|", "items of lists": "* ", "items": "- "}.items():
            lines = [
                sum(line.startswith(mark) for line in text.splitlines())
                for text in (original, translated)
            ]
            assert lines[0] == lines[1], (
                f"'{heading}': {lines[0]} {what} in {english}, {lines[1]} in {chinese}"
            )


@pytest.mark.parametrize(("chinese", "english"), EDITION.items())
def test_the_programs_are_those_of_the_english_edition(chinese: str, english: str) -> None:
    ours, theirs = blocks(chinese), blocks(english)
    assert len(ours) == len(theirs)
    for block, original in zip(ours, theirs):
        assert same_program(block.code, original.code, but_for_texts=True), (
            f"{block.place} is another program than {original.place}"
        )
        assert (block.prints is None) == (original.prints is None), block.place


# The programs run under every start method in English; what may be wrong here is a text.
@pytest.mark.parametrize("block", RUN_HERE, ids=[block.place for block in RUN_HERE])
def test_a_program_of_the_chinese_edition_runs(block: Block, tmp_path: Path) -> None:
    check(block, tmp_path, "spawn")


def test_the_two_readmes_link_to_each_other() -> None:
    readme, chinese = (
        (ROOT / page).read_text(encoding="utf-8") for page in ("README.md", "README.zh.md")
    )
    # An address and not a path: README.md is the page on PyPI, too.
    assert "(https://github.com/mpkit/mpkit/blob/main/README.zh.md)" in readme
    assert "(README.md)" in chinese
