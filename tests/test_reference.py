"""docs/reference.md documents all that is public, and nothing else."""

from __future__ import annotations

import importlib.util
import re

import pytest

import mpkit
from tests.documents import ROOT

PAGES = sorted(path for path in (ROOT / "docs").glob("*.md") if "{eval-rst}" in path.read_text())
TEXT = "\n".join(path.read_text(encoding="utf-8") for path in PAGES)
#: The extras that are modules of their own.
EXTRAS = [
    name for name in ("joblib", "dask", "protocols") if importlib.util.find_spec(f"mpkit.{name}")
]


def entries(module: str) -> list[str]:
    """Return what autodoc is told to document of a module, name by name."""
    return re.findall(rf"^\.\. auto\w+:: {re.escape(module)}\.(\w+)$", TEXT, re.MULTILINE)


def test_the_reference_has_each_public_name_of_mpkit_once() -> None:
    # `automodule` documents what is in `__all__`, but for what is excluded: the errors.
    (rest,) = re.findall(r"^\.\. automodule:: mpkit\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    (excluded,) = re.findall(r":exclude-members: (.*)$", rest, re.MULTILINE)
    named = entries("mpkit")
    assert sorted(named) == sorted(excluded.split(", "))
    errors = set(mpkit.__all__) - set(named)
    assert set(named) <= set(mpkit.__all__)
    for name in errors:
        assert issubclass(getattr(mpkit, name), BaseException), f"{name} has no entry"


@pytest.mark.parametrize("extra", EXTRAS)
def test_the_reference_has_each_public_name_of_an_extra_once(extra: str) -> None:
    module = pytest.importorskip(f"mpkit.{extra}", exc_type=ImportError)
    # What it only passes on, as errors, is told of as mpkit's.
    own = {
        name for name in module.__all__ if getattr(module, name) is not getattr(mpkit, name, None)
    }
    assert own <= set(entries(f"mpkit.{extra}")) <= set(module.__all__)
    assert len(entries(f"mpkit.{extra}")) == len(set(entries(f"mpkit.{extra}")))
