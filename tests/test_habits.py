"""What hooks, forms and documents tell people to run is there to be run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent

TARGETS = set(
    re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
)

#: Without .github/ and .ci/ in an unpacked sdist.
TEXTS = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", ".pre-commit-config.yaml", ".github/**/*.*", ".ci/run")
    for path in ROOT.glob(pattern)
)
FORMS = [path for path in TEXTS if path.suffix in (".yml", ".yaml")]


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_is_to_be_made_can_be_made(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    told = re.findall(r"(?:^|\$ |`|run: |entry: )make ([a-z][a-z-]*)", text, re.MULTILINE)
    assert set(told) <= TARGETS


@pytest.mark.parametrize("path", FORMS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_form_or_workflow_can_be_read(path: Path) -> None:
    read = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert isinstance(read, dict)
    if path.parent.name == "ISSUE_TEMPLATE" and "body" in read:
        assert {"name", "description"} <= read.keys()
        for field in read["body"]:
            assert field["attributes"]["label"]
        assert len({field["id"] for field in read["body"]}) == len(read["body"])


#: From outside of docs/, whose links Sphinx checks: as PyPI and GitHub show them.
LINKS = [
    (path, link)
    for path in TEXTS
    for link in re.findall(
        r"https://github\.com/mpkit/mpkit/(?:blob|tree)/main/([^\s)#]*)"
        if ROOT / "docs" in path.parents
        else r"(?:\]\(|https://github\.com/mpkit/mpkit/(?:blob|tree)/main/)(?!https?:)([^\s)#]+)",
        path.read_text(encoding="utf-8"),
    )
]


@pytest.mark.parametrize(("path", "link"), LINKS, ids=[f"{p.name}-{link}" for p, link in LINKS])
def test_a_link_into_this_repository_leads_somewhere(path: Path, link: str) -> None:
    assert (ROOT / link).exists(), f"{path.relative_to(ROOT)} links to {link}"


def test_the_readme_has_no_link_that_only_github_would_follow() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert not re.findall(r"\]\((?!https?://|#)[^)]*\)", text)  # PyPI shows it, too
