"""docs/stability.md and docs/architecture.md say of mpkit what is so."""

from __future__ import annotations

import dataclasses
import re
import tomllib

import mpkit
from mpkit import _doctor, _listing
from tests.documents import ROOT

PAGE = (ROOT / "docs/stability.md").read_text(encoding="utf-8")


def keys_in_the_row(begin: str) -> set[str]:
    """Return what is in backquotes in the second cell of the row that begins so."""
    (row,) = (line for line in PAGE.splitlines() if line.startswith(f"| {begin} |"))
    return set(re.findall(r"`(\w+)`", row.split("|")[2]))


def fields(kind: type) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}


def test_the_keys_that_stay_are_those_that_there_are() -> None:
    assert keys_in_the_row("`limits`, a list of") == fields(_listing.InUse)
    parties = keys_in_the_row("... its `user`, `holders`, `waiting`")
    assert parties == fields(_listing.Party) | {"seconds"}
    assert keys_in_the_row("`doctor`") == fields(_doctor.Report) | {"problems"}


def test_the_supported_pythons_are_those_that_the_package_names() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = re.findall(r"Python :: (3\.\d+)", "\n".join(project["classifiers"]))
    assert f"CPython {', '.join(named)}." in PAGE
    assert project["requires-python"] == f">={named[0]}"


def test_every_variable_of_the_environment_is_public_or_said_to_be_private() -> None:
    sources = (ROOT / "src").rglob("*.py")
    read = {name for path in sources for name in re.findall(r"MPKIT_[A-Z_]+", path.read_text())}
    assert read <= set(re.findall(r"MPKIT_[A-Z_]+", PAGE))


def test_who_is_to_depend_on_a_range_is_told_one_of_this_version() -> None:
    minor = mpkit.__version__.rpartition(".")[0]
    assert f"`mpkit~={minor}.0`" in PAGE
