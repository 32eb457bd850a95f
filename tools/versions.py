"""Do the version, the CHANGELOG and the tag say the same?

``python -m tools.versions`` asks that of this tree; with ``--tag v1.2.3`` also whether it may be
published under that tag. It needs nothing but Python.
"""

from __future__ import annotations

import argparse
import datetime
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

_HEADING = re.compile(r"^## \[(?P<version>[^\]]+)\](?: - (?P<date>.*))?$", re.MULTILINE)
_DAY = datetime.timedelta(days=1)


def declared() -> str:
    """Return the version that the package says it is."""
    text = (ROOT / "src/mpkit/__init__.py").read_text(encoding="utf-8")
    (version,) = re.findall(r'^__version__ = "(.+)"$', text, re.MULTILINE)
    return str(version)


def tag_here() -> str | None:
    """Return the version tag on the commit that is checked out, if there is one."""
    tags = [tag for tag in git("tag", "--points-at", "HEAD") if re.match(r"v\d", tag)]
    return tags[0] if tags else None


def committed() -> datetime.date | None:
    """Return the day, in UTC, of the commit that is checked out; None where git knows of none."""
    seconds = git("log", "-1", "--format=%ct")
    return (
        datetime.datetime.fromtimestamp(int(seconds[0]), datetime.UTC).date() if seconds else None
    )


def git(*command: str) -> list[str]:
    """Return the lines that git answers; none where this is not a clone, or git is missing."""
    # An unpacked sdist may lie inside of a clone of something else.
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        return []
    done = subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def complaints(
    version: str, changelog: str, tag: str | None, committed: datetime.date | None
) -> list[str]:
    """Return what does not fit, each as a sentence that says what to do.

    Without a tag, the version may also be one that is still to come, if its changes
    are collected under "Unreleased". With one, nothing may be left to decide.
    """
    headings = list(_HEADING.finditer(changelog))
    unreleased = [heading for heading in headings if heading["version"] == "Unreleased"]
    dated = [heading for heading in headings if heading["version"] != "Unreleased"]
    newest = dated[0]["version"] if dated else None
    wrong: list[str] = []
    for heading in dated:
        wrong += _about_the_date(heading)
    for heading in headings:
        if f"\n[{heading['version']}]: " not in changelog:
            wrong.append(
                f"CHANGELOG.md has no link for [{heading['version']}] at its end: add one."
            )
    if newest != version and (tag or not unreleased):
        wrong.append(
            f"CHANGELOG.md's newest version is {newest}, but mpkit.__version__ is {version}: "
            f"give it a heading, ## [{version}] - <date>."
        )
    if tag is None:
        return wrong
    if tag != f"v{version}":
        wrong.append(
            f"The tag is {tag}, but mpkit.__version__ is {version}: it has to be v{version}."
        )
    for heading in unreleased:
        if changelog[heading.end() :].lstrip()[:3] not in ("## ", ""):
            wrong.append(
                f"CHANGELOG.md has changes under Unreleased, but {tag} releases them: "
                f"move them below ## [{version}]."
            )
    if newest == version and committed and not wrong:
        day = datetime.date.fromisoformat(dated[0]["date"])
        if abs(day - committed) > _DAY:  # whoever wrote the date has another timezone
            wrong.append(
                f"CHANGELOG.md dates {version} {day}, but the commit that has the tag is of {committed}: "
                "set the date in a commit, and give that the tag."
            )
    return wrong


def _about_the_date(heading: re.Match[str]) -> list[str]:
    """Return what is wrong with the date in a heading."""
    try:
        day = datetime.date.fromisoformat(heading["date"] or "")
    except ValueError:
        return [f"CHANGELOG.md has no date behind [{heading['version']}]: add one, as 2026-01-31."]
    if day > datetime.datetime.now(datetime.UTC).date() + _DAY:
        return [f"CHANGELOG.md dates {heading['version']} {day}, which is still to come."]
    return []


def check(tag: str | None) -> list[str]:
    """Return what does not fit in this tree, under a tag or without one."""
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    return complaints(declared(), changelog, tag, committed())


def main() -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.versions", description=__doc__)
    parser.add_argument("--tag", help="what it is to be published as; else the tag on HEAD, if any")
    tag = parser.parse_args().tag or tag_here()
    wrong = check(tag)
    for complaint in wrong:
        print(complaint, file=sys.stderr)
    if not wrong:
        print(
            f"mpkit {declared()}, and so say the CHANGELOG and {f'the tag {tag}' if tag else 'no tag yet'}"
        )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
