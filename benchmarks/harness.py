"""Each library in a process of its own, and the libraries in turns.

A slow moment of the machine then hits all alike, and no library runs in what another has
left behind: imported modules, warm workers, memory.
"""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from benchmarks.registry import Case

#: Seconds after which a library is taken to hang.
PATIENCE = 120

#: The figures of each case and library, one a round.
Figures = dict[str, dict[str, list[float]]]


def alone(
    function: Callable[..., Any], *arguments: Any, patience: float = PATIENCE, imports: str = ""
) -> Any:
    """Return what a function returns in a process of its own, or None if it cannot.

    The function is one of a module. Its arguments and result are what JSON can say. The
    main module there imports what ``imports`` names.
    """
    with program(function, *arguments, imports=imports) as process:
        try:
            output, errors = process.communicate(timeout=patience)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            complain(arguments, f"did not end within {patience} s")
            return None
    if process.returncode:
        complain(arguments, (errors.strip().splitlines() or ["?"])[-1])
        return None
    return json.loads(output.splitlines()[-1])


def program(
    function: Callable[..., Any], *arguments: Any, imports: str = ""
) -> subprocess.Popen[str]:
    """Start a process that calls a function. It has a session of its own.

    So one that hangs can be ended with all its workers.
    """
    here = pathlib.Path(__file__).parent
    # Ours as if it were installed, as its peers are: found by every interpreter, the fork
    # server's too, without a detour.
    places = str(here.parent), str(here.parent / "src"), os.environ.get("PYTHONPATH", "")
    path = os.pathsep.join(filter(None, places))
    # By its path and not with -m, as only such a main module is known to the fork server.
    # -P, as then our directory would be where all imports begin.
    command = [sys.executable, "-P", str(here / "alone.py")]
    environment = os.environ | {"PYTHONPATH": path, "BENCHMARKS_IMPORT": imports}
    # With it mpkit, which is not installed here but in its source, would be compiled at each
    # import, and its peers would not.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    return subprocess.Popen(
        [*command, function.__module__, function.__qualname__, *map(json.dumps, arguments)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def complain(arguments: tuple[Any, ...], why: str) -> None:
    print(f"  {' '.join(map(str, arguments))} cannot: {why}", file=sys.stderr)


def measure(
    cases: list[Case], run: Callable[[str, str, int], float], rounds: int, *, quick: bool
) -> Figures:
    """Return the figures. ``run`` is a function of a module that runs a case by its name."""
    figures: Figures = {case.name: {} for case in cases}
    for number in range(rounds):
        for case in cases:
            print(f"round {number + 1} of {rounds}: {case.name}", file=sys.stderr)
            count = case.quick if quick else case.count
            for library in case.runs:
                imports = case.imports.get(library, "")
                seconds = alone(run, case.name, library, count, imports=imports)
                if seconds is not None:
                    figures[case.name].setdefault(library, []).append(case.figure(seconds, count))
    return figures
