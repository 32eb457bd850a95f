"""docs/reference.md documents all that is public, and nothing else."""

from __future__ import annotations

import pkgutil
import re

import pytest

import mpkit
from tests.documents import ROOT

PAGES = sorted(path for path in (ROOT / "docs").glob("*.md") if "{eval-rst}" in path.read_text())
TEXT = "\n".join(path.read_text(encoding="utf-8") for path in PAGES)
#: What is public beside `mpkit` itself. (``python -m mpkit`` is no module to import.)
MODULES = [name for _, name, _ in pkgutil.iter_modules(mpkit.__path__) if not name.startswith("_")]


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


@pytest.mark.parametrize("name", MODULES)
def test_the_reference_has_each_public_name_of_another_module_once(name: str) -> None:
    module = pytest.importorskip(f"mpkit.{name}", exc_type=ImportError)
    # What it only passes on, as errors, is told of as mpkit's.
    own = {
        each for each in module.__all__ if getattr(module, each) is not getattr(mpkit, each, None)
    }
    assert own <= set(entries(f"mpkit.{name}")) <= set(module.__all__)
    assert len(entries(f"mpkit.{name}")) == len(set(entries(f"mpkit.{name}")))
