"""The wheel works in an empty environment, and the sdist has what is needed to make it."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from typing import TYPE_CHECKING

import pytest

import mpkit
from tests.documents import ROOT, Block, blocks, check

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build both into a folder: the sdist from the tree, and the wheel from that."""
    folder = tmp_path_factory.mktemp("dist")
    # Without isolation: hatchling is there, and nothing has to be downloaded.
    call(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT))
    return folder


@pytest.fixture(scope="module")
def empty_python(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the interpreter of a venv that has the wheel and its requirement only."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, with_pip=False)
    python = str(folder / "bin" / "python")
    (wheel,) = dist.glob("*.whl")
    site = call(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    # Our own pip, which need not be copied into the new environment first.
    pip = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check"]
    call(*pip, "install", "-q", "--no-deps", "--no-compile", str(wheel))
    # Its one requirement is taken from here, so that the test needs no network.
    import typing_extensions

    os.symlink(typing_extensions.__file__, os.path.join(site, "typing_extensions.py"))
    return python


def call(*command: str) -> str:
    ran = subprocess.run(command, capture_output=True, text=True, cwd="/", check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def test_the_wheel_holds_the_package_and_nothing_else(dist: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        said = archive.read(metadata).decode()
    assert {name.split("/")[0] for name in names} == {"mpkit", metadata.split("/")[0]}
    assert "mpkit/py.typed" in names
    sources = {str(path.relative_to(ROOT / "src")) for path in (ROOT / "src").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == sources
    requirements = [
        line for line in said.splitlines() if line.startswith("Requires-Dist:") and ";" not in line
    ]
    assert requirements == ["Requires-Dist: typing-extensions>=4.12"]
    assert f"\nVersion: {mpkit.__version__}\n" in said
    assert "\n# mpkit\n" in said  # the README


def test_the_sdist_can_test_itself(dist: Path) -> None:
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for name in (
        "LICENSE",
        "Makefile",
        "README.md",
        "pyproject.toml",
        "docs/conf.py",
        "examples/survey.py",
        "src/mpkit/py.typed",
        "tests/conftest.py",
    ):
        assert name in names


def test_the_wheel_is_what_is_imported(empty_python: str) -> None:
    where = call(empty_python, "-c", "import mpkit; print(mpkit.__file__)")
    assert "site-packages" in where
    assert str(ROOT) not in where


@pytest.mark.parametrize("block", blocks("README.md"), ids=lambda block: block.place)
def test_the_readme_runs_in_an_empty_environment(
    block: Block, empty_python: str, tmp_path: Path
) -> None:
    check(block, tmp_path, "spawn", empty_python)
