"""Programs of the documentation and of examples/, as subprocesses.

In README.md and docs/, every block marked ``python`` is a whole program. A block marked
``text`` behind it is what it prints; a line ``...`` there stands for any lines.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.support import PATIENCE

ROOT = Path(__file__).resolve().parent.parent

_BLOCK = re.compile(
    r"^```python\n(?P<code>.*?)^```\n(?:\n```text\n(?P<prints>.*?)^```\n)?",
    re.MULTILINE | re.DOTALL,
)

# As `python PROGRAM ARGS`, with another start method than this Python's default.
_RUN = """
import multiprocessing, runpy, sys
multiprocessing.set_start_method(sys.argv[1])
del sys.argv[:2]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@dataclass(frozen=True)
class Block:
    """A program in a document."""

    place: str
    code: str
    prints: str | None

    def missing(self) -> list[str]:
        """Return which packages it imports that are not installed here."""
        packages = sorted(self.imported())
        return [package for package in packages if importlib.util.find_spec(package) is None]

    def imported(self) -> set[str]:
        """Return which packages and modules it imports."""
        names: set[str] = set()
        for node in ast.walk(ast.parse(self.code)):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add(node.module or "")
        return {name.partition(".")[0] for name in names}


def blocks(document: str) -> list[Block]:
    """Return the programs in a document of this repository."""
    text = (ROOT / document).read_text(encoding="utf-8")
    return [
        Block(f"{document}:{text.count(chr(10), 0, match.start()) + 2}", *match.groups())
        for match in _BLOCK.finditer(text)
    ]


def check(
    block: Block, folder: Path, start_method: str | None, python: str = sys.executable
) -> None:
    """Run a block as a program of its own; fail if it fails, or prints something else."""
    program = folder / "program.py"
    program.write_text(block.code, encoding="utf-8")
    # What has a name is shared by all programs, and another run of these tests is one.
    runtime = str(folder / "runtime")
    ran = run(program, start_method=start_method, python=python, MPKIT_RUNTIME_DIR=runtime)
    assert ran.returncode == 0, f"{block.place} failed:\n{ran.stderr}"
    assert not ran.stderr, f"{block.place} said:\n{ran.stderr}"
    if block.prints is not None:
        assert matches(ran.stdout, block.prints), f"{block.place} printed:\n{ran.stdout}"


def matches(printed: str, expected: str) -> bool:
    """Tell whether ``printed`` is ``expected``, in which ``...`` stands for anything."""
    pieces = (re.escape(piece) for piece in expected.split("..."))
    return re.fullmatch(".*".join(pieces), printed, re.DOTALL) is not None


def same_program(one: str, other: str, *, but_for_texts: bool = False) -> bool:
    """Tell whether two programs differ in comments and form only, or in their strings too."""

    def shape(code: str) -> str:
        tree = ast.parse(code)
        if but_for_texts:
            for node in ast.walk(tree):
                if isinstance(node, ast.JoinedStr):
                    node.values = [v for v in node.values if isinstance(v, ast.FormattedValue)]
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    node.value = ""
        return ast.dump(tree)

    return shape(one) == shape(other)


def run(
    program: Path,
    *args: str,
    start_method: str | None = None,
    python: str = sys.executable,
    **environment: str,
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end. Without a start method it chooses its own."""
    how = [str(program)] if start_method is None else ["-c", _RUN, start_method, str(program)]
    return subprocess.run(
        [python, "-Werror", "-Wignore::DeprecationWarning", *how, *args],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=2 * PATIENCE,
        cwd=program.parent,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONIOENCODING": "utf-8", **environment},
    )
