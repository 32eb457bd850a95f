"""Building the sdist and the wheel, and looking into them."""

from __future__ import annotations

import fnmatch
import hashlib
import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

from tools.versions import git

ROOT = Path(__file__).resolve().parent.parent


class Refused(Exception):
    """Why this must not be released, and what to do."""


def build(source: Path, into: Path, *kinds: str) -> None:
    """Build from a tree, or an unpacked sdist; without ``kinds`` (``--wheel``), the wheel from the sdist.

    It is done with the hatchling that is installed here, by a process that differs in
    all that must not matter: its umask, timezone, language and order of hashes.
    """
    environment = {**os.environ, "TZ": "Asia/Tokyo", "LC_ALL": "C", "PYTHONHASHSEED": "7"}
    environment.pop("SOURCE_DATE_EPOCH", None)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(into)]
    call(*command, *kinds, str(source), environment=environment, umask=0o077)


def call(
    *command: str,
    cwd: Path | None = None,
    environment: dict[str, str] | None = None,
    umask: int = -1,
) -> str:
    """Run a command that has to succeed; return what it printed."""
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment,
        umask=umask,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    if done.returncode:
        raise Refused(
            f"{' '.join(command)} failed ({done.returncode}):\n{done.stdout}{done.stderr}"
        )
    return done.stdout


def hashes(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each archive in a folder, by its name."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
        if path.suffix in (".whl", ".gz")
    }


def same(expected: dict[str, str], folder: Path, how: str) -> None:
    """Refuse archives in a folder that are not those that are expected."""
    found = hashes(folder)
    for name in sorted({*expected, *found}):
        if expected.get(name) != found.get(name):
            raise Refused(
                f"{name} is {expected.get(name, 'missing')} in dist/, and {found.get(name, 'missing')} {how}: "
                "compare what they hold (dist/ is out of date? `make build` builds it anew)."
            )


def unpack(sdist: Path, into: Path) -> Path:
    """Unpack an sdist; return the one folder that is in it."""
    with tarfile.open(sdist) as archive:
        archive.extractall(into, filter="data")
    (folder,) = into.iterdir()
    return folder


def names_in_wheel(wheel: Path) -> list[str]:
    """Return the names of the files in a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return sorted(archive.namelist())


def names_in_sdist(sdist: Path) -> list[str]:
    """Return the names of the files in an sdist, without the folder that all are in."""
    with tarfile.open(sdist) as archive:
        return sorted(name.partition("/")[2] for name in archive.getnames())


def allowed(version: str) -> dict[str, list[str]]:
    """Return the patterns of what a wheel and an sdist of this version hold."""
    with (ROOT / "tools/contents.toml").open("rb") as file:
        patterns: dict[str, list[str]] = tomllib.load(file)
    return {
        kind: [each.replace("VERSION", version) for each in patterns[kind]] for kind in patterns
    }


def compare(names: list[str], patterns: list[str], what: str) -> None:
    """Refuse names that fit no pattern, and patterns that no name fits."""
    stray = [
        name for name in names if not any(fnmatch.fnmatchcase(name, each) for each in patterns)
    ]
    missing = [each for each in patterns if not fnmatch.filter(names, each)]
    if stray:
        raise Refused(
            f"{what} holds {', '.join(stray)}: remove it, or allow it in tools/contents.toml."
        )
    if missing:
        raise Refused(f"{what} lacks {', '.join(missing)}, which tools/contents.toml asks for.")


def compare_with_git(sdist: list[str], wheel: list[str]) -> None:
    """Refuse what git does not track, and a wheel that lacks what it does. Outside a clone: pass."""
    tracked = set(git("ls-files"))
    if not tracked:
        return
    if stray := sorted({*sdist} - tracked - {"PKG-INFO"}):
        raise Refused(
            f"the sdist holds {', '.join(stray)}, which git does not track: add or remove it."
        )
    package = {name.removeprefix("src/") for name in tracked if name.startswith("src/")}
    if package != (inside := {name for name in wheel if name.startswith("mpkit/")}):
        raise Refused(
            f"in the wheel or in git, but not in both: {', '.join(sorted(package ^ inside))}"
        )


def metadata(wheel: Path) -> str:
    """Return what a wheel says of itself."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return archive.read(name).decode()
