"""Run the benchmarks: ``python -m benchmarks [--quick] [--rounds N] [--json FILE]``.

Each library runs each case in a process of its own, and the libraries take turns within
a round, so that a slow moment of the machine hits all alike. The table has medians, the
spread (lowest to highest), and the ratio of mpkit to the best peer: below 1.00x mpkit is
faster. Only ratios of one run mean anything.

``--curve PICTURE`` draws what a channel carries over the size of a message instead, and
``--thresholds`` prints what mpkit's own limits of size were chosen by.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys

from benchmarks import limits, pools, primitives, sizes
from benchmarks.registry import Case

CASES = pools.CASES + limits.CASES + primitives.CASES

#: Marks a peer that lacks what mpkit is for; it is shown, and not compared with.
UNFAIR = "not crash-safe"

#: Seconds after which a library is taken to hang.
PATIENCE = 120


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller counts, two rounds")
    parser.add_argument("--rounds", type=int, help="rounds (5, or 2 with --quick)")
    parser.add_argument("--json", help="write the raw figures to this file")
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    parser.add_argument("--curve", metavar="PICTURE", help="draw throughput over sizes, and end")
    parser.add_argument("--thresholds", action="store_true", help="measure mpkit's own, and end")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        case_number, library, count = options.one
        print(json.dumps(CASES[int(case_number)].runs[library](int(count))))
        return
    rounds = options.rounds or (2 if options.quick else 5)
    if options.curve:
        sizes.curve(options.curve, rounds)
        return
    if options.thresholds:
        sizes.thresholds(rounds)
        return
    cases = [case for case in CASES if options.only in case.name]
    figures = measure(cases, rounds, quick=options.quick)
    print(f"\nPython {platform.python_version()}, {platform.system()}, {rounds} rounds\n")
    print(table(cases, figures))
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(figures, file, indent=1)


def measure(cases: list[Case], rounds: int, *, quick: bool) -> dict[str, dict[str, list[float]]]:
    """Return the figures of each case and library, one a round."""
    figures: dict[str, dict[str, list[float]]] = {case.name: {} for case in cases}
    for number in range(rounds):
        for case in cases:
            print(f"round {number + 1} of {rounds}: {case.name}", file=sys.stderr)
            count = case.quick if quick else case.count
            for library in case.runs:
                seconds = run_once(case, library, count)
                if seconds is not None:
                    figures[case.name].setdefault(library, []).append(case.figure(seconds, count))
    return figures


def run_once(case: Case, library: str, count: int) -> float | None:
    """Return the seconds that a library took, or None if it cannot do the work here."""
    command = [sys.executable, "-m", "benchmarks", "--one"]
    arguments = [str(CASES.index(case)), library, str(count)]
    try:
        done = subprocess.run(
            [*command, *arguments], capture_output=True, text=True, timeout=PATIENCE, check=True
        )
    except subprocess.TimeoutExpired:
        print(f"  {library} did not end within {PATIENCE} s", file=sys.stderr)
        return None
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip().splitlines() or ["?"])[-1]
        print(f"  {library} cannot: {reason}", file=sys.stderr)
        return None
    return float(json.loads(done.stdout.splitlines()[-1]))


def table(cases: list[Case], figures: dict[str, dict[str, list[float]]]) -> str:
    """Return the table, in Markdown."""
    lines = ["| work | mpkit | peers | mpkit / best peer |", "|---|--:|---|--:|"]
    for case in cases:
        medians = {
            library: statistics.median(values) for library, values in figures[case.name].items()
        }
        ours = medians.pop("mpkit", None)
        ranked = sorted(medians.items(), key=lambda item: item[1], reverse=case.more_is_better)
        peers = ", ".join(f"{library} {_figure(value)}" for library, value in ranked)
        missing = [library for library in case.runs if library not in figures[case.name]]
        peers += "".join(f", {library} cannot" for library in missing if library != "mpkit")
        ratio = "-"
        fair = [value for library, value in ranked if UNFAIR not in library]
        if ours is not None and fair:
            best = fair[0]
            ratio = f"{best / ours if case.more_is_better else ours / best:.2f}x"
        spread = figures[case.name].get("mpkit", [])
        own = (
            "failed"
            if ours is None
            else f"{_figure(ours)} ({_figure(min(spread))} to {_figure(max(spread))})"
        )
        lines.append(f"| {case.name} ({case.unit}) | {own} | {peers} | {ratio} |")
    return "\n".join(lines)


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    main()
