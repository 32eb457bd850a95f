"""The Pythons of this machine that mpkit supports.

``python -m tools.pythons`` lists them, the newest first: of each version one that runs and can make a venv.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path

#: Minor versions of Python 3 that are looked for. The first is what `requires-python` says.
MINORS = range(11, 16)

_ASK = "import ensurepip, sys, venv; print('%d.%d' % sys.version_info[:2], sys.executable)"


def found() -> dict[str, str]:
    """Return the path of a Python for each version that is here, as "3.13"; the newest first."""
    pythons: dict[str, str] = {}
    for name in candidates():
        version, _, path = asked(name).partition(" ")
        if re.fullmatch(r"3\.\d+", version) and int(version.removeprefix("3.")) in MINORS:
            pythons.setdefault(version, path)
    return dict(sorted(pythons.items(), key=lambda item: -int(item[0].removeprefix("3."))))


def candidates() -> list[str]:
    """Return what may be a Python: on PATH, or one that pyenv made."""
    names = [shutil.which(f"python3.{minor}") for minor in reversed(MINORS)]
    paths = [name for name in names if name is not None]
    if pyenv := shutil.which("pyenv"):
        root = subprocess.run([pyenv, "root"], capture_output=True, text=True, check=True)
        paths += map(str, sorted(Path(root.stdout.strip()).glob("versions/3.*/bin/python3")))
    return paths


def asked(python: str) -> str:
    """Return what a Python answers about itself, as "3.12 /its/real/path"; "" if it cannot be used.

    A shim of pyenv's for a version that is not chosen does not run, and Debian's Python
    has no venv unless another package is installed.
    """
    try:
        done = subprocess.run([python, "-c", _ASK], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m tools.pythons", description=__doc__)
    parser.add_argument(
        "--newest-other", action="store_true", help="one line: the newest that is not this one"
    )
    this = f"{sys.version_info.major}.{sys.version_info.minor}"
    pythons = list(found().items())
    if parser.parse_args().newest_other:
        pythons = [item for item in pythons if item[0] != this][:1]
    for version, path in pythons:
        print(version, path)


if __name__ == "__main__":
    main()
