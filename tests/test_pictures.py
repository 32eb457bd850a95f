"""Pictures of the documentation can be read on a light page and on a dark one."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from typing import TYPE_CHECKING

import pytest

from tests.documents import ROOT

if TYPE_CHECKING:
    from pathlib import Path

DOCS = ROOT / "docs"
DRAWN = sorted(DOCS.rglob("*.svg"))
#: The backgrounds of furo, light and dark.
PAPERS = ("#ffffff", "#131416")
#: For letters as large as these are, and for lines (WCAG 1.4.3 and 1.4.11).
ENOUGH = 3.0


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(ink: str, paper: str) -> float:
    lighter, darker = sorted((luminance(ink), luminance(paper)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("path", DRAWN, ids=lambda path: path.name)
def test_a_drawing_has_no_background_and_colours_for_both(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    root = ElementTree.fromstring(text)
    assert root.get("viewBox")
    # Strokes are all on the page itself; of matplotlib's so is what is filled.
    drawn_by_hand = path.parent.name == "pictures"
    kinds = "stroke" if drawn_by_hand else "stroke|fill"
    colours = set(re.findall(rf"\b(?:{kinds}): *(#[0-9a-f]{{6}})", text))
    if drawn_by_hand:
        colours |= set(re.findall(r"\.(?:loose|note)\b[^}]*fill: (#[0-9a-f]{6})", text))
        # What is written into boxes is dark, and all boxes are light.
        (ink,) = re.findall(r"text \{[^}]*fill: (#[0-9a-f]{6})", text)
        boxes = re.findall(r"\.\w+ \{ fill: (#[0-9a-f]{6}); stroke:", text)
        assert boxes
        assert min(contrast(ink, box) for box in boxes) >= 7
    assert colours
    for colour in colours:
        for paper in PAPERS:
            assert contrast(colour, paper) >= ENOUGH, f"{colour} on {paper}"


def test_each_picture_is_shown_by_a_page_with_words_for_who_does_not_see_it() -> None:
    shown: set[Path] = set()
    for page in DOCS.rglob("*.md"):
        for words, target in re.findall(r"!\[(.*?)\]\((.*?)\)", page.read_text(encoding="utf-8")):
            assert len(words) > 20, f"{page}: {target} has no description"
            shown.add((page.parent / target).resolve())
    assert shown == {*DRAWN, *DOCS.rglob("*.png")}
