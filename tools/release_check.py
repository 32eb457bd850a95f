"""Rehearse a release of what is in dist/, from the archives to what strangers get to see.

``make release-check`` builds dist/ and runs this. It needs the network for `typing-extensions` and `tqdm` only,
works in a temporary folder, and leaves nothing behind (that folder, if it is killed by SIGKILL).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from tests.documents import blocks, check
from tools import index, pythons, versions
from tools.archives import (
    ROOT,
    Refused,
    allowed,
    build,
    call,
    compare,
    compare_with_git,
    hashes,
    metadata,
    names_in_sdist,
    names_in_wheel,
    same,
    unpack,
)

if TYPE_CHECKING:
    from collections.abc import Generator
    from types import FrameType

#: What the tutorial has strangers install, for the bar of its last steps.
WITH_A_BAR = "mpkit[progress]"
#: What an environment has in which nothing but mpkit was installed (before Python 3.12, setuptools, too).
INSTALLED = {"mpkit", "typing_extensions", "pip", "setuptools"}


def main() -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.release_check", description=__doc__)
    parser.add_argument("--tag", help="what it is to be published as; else the tag on HEAD, if any")
    tag = parser.parse_args().tag or versions.tag_here()
    signal.signal(signal.SIGTERM, _leave)
    os.environ.pop("PYTHONPATH", None)  # or environments would find what is not installed in them
    try:
        with tempfile.TemporaryDirectory(prefix="mpkit-release-") as folder:
            rehearse(ROOT / "dist", Path(folder), tag)
    except Refused as refusal:
        print(f"\nThis is not to be released: {refusal}", file=sys.stderr)
        return 1
    return 0


def _leave(number: int, frame: FrameType | None) -> None:
    """Leave by an exception, so that what is temporary is removed."""
    raise SystemExit(128 + number)


def rehearse(dist: Path, folder: Path, tag: str | None) -> None:
    """Do all of it, or raise `Refused`."""
    version = versions.declared()
    with step("version, CHANGELOG and tag agree"):
        if wrong := versions.check(tag):
            raise Refused("\n".join(wrong))
    with step("the same archives from the tree, and from the sdist alone"):
        wheel, sdist = expected = (
            dist / f"mpkit-{version}-py3-none-any.whl",
            dist / f"mpkit-{version}.tar.gz",
        )
        if set(hashes(dist)) != {path.name for path in expected}:
            raise Refused(
                f"dist/ holds {', '.join(hashes(dist)) or 'nothing'}: `make build` first."
            )
        build_again(dist, sdist, folder)
    with step("they hold what is allowed, and all of it"):
        look_into(wheel, sdist, version)
    packages = folder / "packages"
    packages.mkdir()
    with step("what mpkit requires is fetched"):
        said = metadata(wheel)
        wanted = [*requirements(said), *requirements(said, extra="progress")]
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps"]
        call(*command, "--only-binary=:all:", "--dest", str(packages), *wanted)
    with index.serving(packages) as address:
        with step("upload to an index, and download"):
            index.upload(dist, address)
            index.download(f"mpkit=={version}", address, hashes(dist), folder / "downloaded")
        for python in pythons.found().items():
            try_it(*python, version, address, folder)
    for name, digest in hashes(dist).items():
        print(f"{digest}  {name}")


@contextlib.contextmanager
def step(what: str) -> Generator[None]:
    """Say what was done, and how long it took."""
    began = time.monotonic()
    print(what, end=" ", flush=True)
    yield
    print(f"({time.monotonic() - began:.1f} s)", flush=True)


def build_again(dist: Path, sdist: Path, folder: Path) -> None:
    """Build both twice more, in other ways; refuse what differs from dist/ in a byte."""
    tree = folder / "from-tree"
    build(ROOT, tree, "--sdist", "--wheel")
    same(hashes(dist), tree, "when both are built from the tree")
    alone = folder / "from-sdist"
    build(unpack(sdist, folder / "unpacked"), alone)
    same(hashes(dist), alone, "when built from the unpacked sdist, without git")


def look_into(wheel: Path, sdist: Path, version: str) -> None:
    """Refuse what should not be in there, and what is missing."""
    patterns = allowed(version)
    compare(names_in_wheel(wheel), patterns["wheel"], wheel.name)
    compare(names_in_sdist(sdist), patterns["sdist"], sdist.name)
    compare_with_git(names_in_sdist(sdist), names_in_wheel(wheel))
    said = metadata(wheel)
    if f"\nVersion: {version}\n" not in said or "\n# mpkit\n" not in said:
        raise Refused(f"{wheel.name} does not say its version, or lacks the README.")
    needs = requirements(said)
    if len(needs) != 1 or not needs[0].startswith("typing-extensions"):
        raise Refused(f"{wheel.name} requires {needs}: the README says typing-extensions alone.")


def requirements(said: str, extra: str | None = None) -> list[str]:
    """Return what metadata requires, extras aside; or what it does for one extra."""
    lines = [
        line.partition(": ") for line in said.splitlines() if line.startswith("Requires-Dist: ")
    ]
    wanted = "" if extra is None else f"extra == '{extra}'"
    parted = [what.partition("; ") for _, _, what in lines]
    return [package for package, _, condition in parted if condition == wanted]


def try_it(version: str, python: str, release: str, index: str, folder: Path) -> None:
    """Install from an index into an empty environment of one Python, and use it there."""
    place = folder / version
    inside = str(place / "venv/bin/python")
    with step(f"Python {version}: installed, alone"):
        call(python, "-m", "venv", str(place / "venv"))
        _pip(inside, "install", "-q", "--index-url", f"{index}/simple", f"mpkit=={release}")
        _pip(inside, "check")
        there = {each["name"] for each in json.loads(_pip(inside, "list", "--format=json"))}
        if not there <= INSTALLED:
            raise Refused(
                f"mpkit came with {', '.join(sorted(there - INSTALLED))}: it needs too much."
            )
    with step(f"Python {version}: doctor, and the README"):
        _in_place(place, inside, "-W", "error", "-m", "mpkit", "limits")
        _in_place(place, inside, "-m", "mpkit", "doctor", "--json")
        follow("README.md", place, inside)
    with step(f"Python {version}: a program that depends on it, run and checked"):
        consume(place, inside)
    with step(f"Python {version}: {WITH_A_BAR}, and the tutorial"):
        _pip(inside, "install", "-q", "--index-url", f"{index}/simple", f"{WITH_A_BAR}=={release}")
        follow("docs/tutorial.md", place, inside)


def follow(document: str, place: Path, inside: str) -> None:
    """Do what a document shows to somebody who has just installed mpkit."""
    try:
        for block in blocks(document):
            check(block, place, None, inside)
    except AssertionError as error:
        raise Refused(str(error)) from error


def consume(place: Path, inside: str) -> None:
    """Check the types of a project that depends on mpkit, with mypy and pyright, and run it."""
    project = place / "consumer"
    project.mkdir()
    for path in (ROOT / "tests/consumer").glob("*.*"):
        (project / path.name).write_bytes(path.read_bytes())
    shown = [*blocks("README.md"), *blocks("docs/tutorial.md")]  # and so begins a stranger's own
    for number, block in enumerate(shown):
        (project / f"shown_{number}.py").write_text(f"# {block.place}\n{block.code}", "utf-8")
    bin = Path(sys.executable).parent
    cache = str(place / "mypy")
    checks = [
        (str(bin / "mypy"), "--python-executable", inside, "--cache-dir", cache),
        (str(bin / "pyright"), "--pythonpath", inside),
    ]
    checks += [(inside, "words.py", method) for method in ("fork", "forkserver", "spawn")]
    with ThreadPoolExecutor(2) as threads:
        for running in [threads.submit(_in_place, project, *command) for command in checks]:
            running.result()


def _pip(inside: str, *arguments: str) -> str:
    """Run an environment's own pip."""
    return _in_place(Path(inside).parent, inside, "-m", "pip", *arguments)


def _in_place(place: Path, *command: str) -> str:
    """Run a command in a folder, with nothing in its environment that leads elsewhere."""
    runtime = {"MPKIT_RUNTIME_DIR": str(place / "runtime")}
    return call(*command, cwd=place, environment=index.without_settings() | runtime)


if __name__ == "__main__":
    sys.exit(main())
