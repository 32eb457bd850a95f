"""``python -m mpkit``: ``limits``, who holds which slots and who waits; ``doctor``, a look at all."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from typing import TYPE_CHECKING

import mpkit
from mpkit import _listing

if TYPE_CHECKING:
    from mpkit._listing import InUse, Party

_WHAT = "Limits, signals, channels, jobs and pools that stay correct when processes die: a look at them."

#: Characters of a command line that are shown.
_WIDTH = 50


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m mpkit", description=_WHAT)
    parser.add_argument("--version", action="version", version=f"mpkit {mpkit.__version__}")
    commands = parser.add_subparsers(title="commands")
    for name, run, purpose, json_has in (
        ("limits", _limits, "show the limits of this user that are in use", "all there is to know"),
        ("doctor", _doctor, "say what this machine gives, and try everything", "the same"),
    ):
        command = commands.add_parser(name, help=purpose, description=f"{purpose}.".capitalize())
        command.add_argument("--json", action="store_true", help=f"as JSON, with {json_has}")
        command.set_defaults(run=run)
    options = parser.parse_args(arguments)
    if "run" not in options:
        parser.print_help()
        return 0
    code: int = options.run(options.json)
    return code


def _limits(as_json: bool) -> int:
    """Show which limits are in use."""
    found = _listing.limits()
    if as_json:
        print(json.dumps([_as_dict(limit) for limit in found], indent=1))
    else:
        print("\n".join(line for limit in found for line in _lines(limit)) or "No limit is in use.")
    return 0


def _doctor(as_json: bool) -> int:
    """Say what this machine gives; return 1 if something does not work on it."""
    from mpkit import _doctor as doctor  # noqa: PLC0415  it needs all of mpkit

    report = doctor.examine()
    if as_json:
        print(json.dumps({**dataclasses.asdict(report), "problems": report.problems}, indent=1))
    else:
        print("\n".join(doctor.lines(report)))
    return 1 if report.problems else 0


def _as_dict(limit: InUse) -> dict[str, object]:
    fields = dataclasses.asdict(limit)
    fields["holders"] = [{**dataclasses.asdict(p), "seconds": p.seconds} for p in limit.holders]
    return fields


def _lines(limit: InUse) -> list[str]:
    held = f"{len(limit.holders)} of {limit.slots} slots held"
    waiting = f", {len(limit.waiting)} waiting" if limit.waiting else ""
    lines = [f"{limit.place}: {held}{waiting}"]
    lines += [_line("holds", party) for party in limit.holders]
    lines += [_line("waits", party) for party in limit.waiting]
    if not limit.holders and not limit.waiting:
        lines.append(_line("uses", limit.user))
    return lines


def _line(role: str, party: Party) -> str:
    command = " ".join(party.command.split())
    if len(command) > _WIDTH:
        command = command[: _WIDTH - 3] + "..."
    duration = "" if party.seconds is None else _duration(party.seconds)
    return f"  {role:<5} {party.pid:>7}  {command:<{_WIDTH}}  {duration}".rstrip()


def _duration(seconds: float) -> str:
    """Return seconds as humans read them: ``12.3 s``, ``4 min``, ``3 h``, ``2 d``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    for unit, size, most in (("min", 60, 120), ("h", 3600, 48)):
        if seconds < size * most:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86400:.0f} d"


if __name__ == "__main__":
    sys.exit(main())
