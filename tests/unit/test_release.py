"""What `make release-check` refuses, without building anything. (CI runs the whole of it.)"""

from __future__ import annotations

import datetime
import sys
import tomllib

import pytest

from tools import archives, pythons, versions

TODAY = datetime.datetime.now(datetime.UTC).date()
DAY = datetime.timedelta(days=1)

LINK = "\n[{0}]: https://example.org/{0}\n"


def changelog(*sections: str) -> str:
    """Return a CHANGELOG of sections like ``"1.2.0 - 2026-01-31"``, each with a change below it."""
    text = "# Changelog\n"
    for section in sections:
        version, *date = section.split(" - ")
        text += "\n" + " - ".join([f"## [{version}]", *date]) + "\n\n### Fixed\n\n- Something.\n"
    return text + "".join(LINK.format(section.split(" - ")[0]) for section in sections)


def test_this_tree_fits_together() -> None:
    assert versions.check(versions.tag_here()) == []


@pytest.mark.parametrize(
    ("sections", "tag"),
    [
        pytest.param([f"1.2.0 - {TODAY}"], "v1.2.0", id="a release"),
        pytest.param([f"1.2.0 - {TODAY - DAY}", "1.1.0 - 2025-03-31"], "v1.2.0", id="far west"),
        pytest.param([f"1.2.0 - {TODAY}"], None, id="ready to be released"),
        pytest.param(["1.2.0 - 2025-03-31"], None, id="an old one"),
        pytest.param(["Unreleased", "1.2.0 - 2025-03-31"], None, id="between releases"),
        pytest.param(["Unreleased", "1.1.0 - 2025-03-31"], None, id="the number is set already"),
    ],
)
def test_what_fits_may_be_released(sections: list[str], tag: str | None) -> None:
    assert versions.complaints("1.2.0", changelog(*sections), tag, TODAY) == []


@pytest.mark.parametrize(
    ("sections", "tag", "complaint"),
    [
        ([f"1.2.0 - {TODAY}"], "v1.2.1", "tag is v1.2.1, but mpkit.__version__ is 1.2.0"),
        ([f"1.2.0 - {TODAY}"], "1.2.0", "it has to be v1.2.0"),
        (["1.1.0 - 2025-03-31"], None, "newest version is 1.1.0, but mpkit.__version__ is 1.2.0"),
        (["Unreleased", "1.1.0 - 2025-03-31"], "v1.2.0", "give it a heading"),
        (["Unreleased"], "v1.2.0", "newest version is None"),
        (["Unreleased", f"1.2.0 - {TODAY}"], "v1.2.0", "changes under Unreleased"),
        (["1.2.0"], None, "no date behind \\[1.2.0\\]"),
        (["1.2.0 - soon"], None, "no date behind \\[1.2.0\\]"),
        ([f"1.2.0 - {TODAY + 3 * DAY}"], None, "still to come"),
        (["1.2.0 - 2025-03-31"], "v1.2.0", f"the commit that has the tag is of {TODAY}"),
    ],
)
def test_what_does_not_fit_is_said(sections: list[str], tag: str | None, complaint: str) -> None:
    wrong = versions.complaints("1.2.0", changelog(*sections), tag, TODAY)
    with pytest.raises(AssertionError, match=complaint):
        raise AssertionError("\n".join(wrong))


def test_a_version_without_a_link_is_told() -> None:
    text = changelog(f"1.2.0 - {TODAY}").replace("[1.2.0]: ", "[1.1.0]: ")
    assert "no link for [1.2.0]" in versions.complaints("1.2.0", text, None, TODAY)[0]


def test_an_empty_section_of_what_is_unreleased_may_stay() -> None:
    text = changelog(f"1.2.0 - {TODAY}")
    text = text.replace("\n## [1", "\n## [Unreleased]\n\n## [1", 1) + LINK.format("Unreleased")
    assert versions.complaints("1.2.0", text, "v1.2.0", TODAY) == []


PATTERNS = ["mpkit/*.py", "mpkit/py.typed", "mpkit-1.2.0.dist-info/*"]
NAMES = [
    "mpkit-1.2.0.dist-info/RECORD",
    "mpkit/__init__.py",
    "mpkit/_pool/pool.py",
    "mpkit/py.typed",
]


def test_what_is_allowed_passes() -> None:
    archives.compare(NAMES, PATTERNS, "the wheel")


@pytest.mark.parametrize(
    "stray", ["mpkit/notes.txt", "tests/x.py", "mpkit/_x.pyc", "mpkit/py.typed~"]
)
def test_a_stray_file_is_refused_by_its_name(stray: str) -> None:
    with pytest.raises(archives.Refused, match=f"the wheel holds {stray}: remove it"):
        archives.compare([*NAMES, stray], PATTERNS, "the wheel")


def test_a_file_that_is_missing_is_refused() -> None:
    with pytest.raises(archives.Refused, match="the wheel lacks mpkit/py.typed"):
        archives.compare(NAMES[:-1], PATTERNS, "the wheel")


def test_the_list_of_what_is_allowed_knows_the_version() -> None:
    patterns = archives.allowed("1.2.0")
    assert "mpkit-1.2.0.dist-info/RECORD" in patterns["wheel"]
    assert not [each for kind in patterns.values() for each in kind if "VERSION" in each]


def test_a_python_tells_its_version_and_its_path() -> None:
    assert pythons.asked(sys.executable) == "{}.{} {}".format(*sys.version_info[:2], sys.executable)


def test_pythons_are_looked_for_from_the_first_that_the_package_allows() -> None:
    project = tomllib.loads((archives.ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["requires-python"] == f">=3.{pythons.MINORS.start}"


def test_what_is_no_python_is_passed_over() -> None:
    assert pythons.asked("/bin/false") == pythons.asked("/no/such/python") == ""
