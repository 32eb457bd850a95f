"""Run the benchmarks: ``python -m benchmarks [--quick] [--rounds N] [--json FILE]``.

Each library runs each case in a process of its own, and the libraries take turns within
a round, so that a slow moment of the machine hits all alike. The table has medians, the
spread (lowest to highest), and the ratio of mpkit to the best peer: below 1.00x mpkit is
better. Only ratios of one run mean anything.

``--picture FILE`` draws the ratios, ``--from FILE`` takes the figures of an earlier run
instead of measuring.

``--growth PICTURE`` measures and draws how the cost grows instead, with the number of
tasks and of workers. ``--curve PICTURE`` draws what a channel carries over the size of a
message, and ``--thresholds`` prints what mpkit's own limits of size were chosen by.
``python -m benchmarks.simulate`` tries the pool's policy without any process, and
``python -m benchmarks.endings`` measures how soon ends are told.
"""

from __future__ import annotations

import argparse
import json
import platform

from benchmarks import cases, growth, sizes
from benchmarks.harness import Figures, measure
from benchmarks.table import picture, table


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="smaller counts, a single round")
    parser.add_argument("--rounds", type=int, help="rounds (5, or 1 with --quick)")
    parser.add_argument("--json", metavar="FILE", help="write the raw figures to this file")
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    parser.add_argument("--from", dest="earlier", metavar="FILE", help="take these raw figures")
    parser.add_argument("--picture", metavar="FILE", help="draw the ratios")
    parser.add_argument("--growth", metavar="PICTURE", help="draw how the cost grows, and end")
    parser.add_argument("--curve", metavar="PICTURE", help="draw throughput over sizes, and end")
    parser.add_argument("--thresholds", action="store_true", help="measure mpkit's own, and end")
    options = parser.parse_args()
    rounds = options.rounds or (1 if options.quick else 5)
    if options.growth:
        growth.growth(options.growth, options.rounds or 3, options.json)
    elif options.curve:
        sizes.curve(options.curve, rounds)
    elif options.thresholds:
        sizes.thresholds(rounds)
    else:
        _table(options, rounds)


def _table(options: argparse.Namespace, rounds: int) -> None:
    wanted = [case for case in cases.CASES if options.only in case.name]
    figures: Figures
    if options.earlier:
        with open(options.earlier, encoding="utf-8") as file:
            figures = json.load(file)
        wanted = [case for case in wanted if case.name in figures]
    else:
        wanted = [case for case in wanted if case.quick or not options.quick]
        figures = measure(wanted, cases.run, rounds, quick=options.quick)
        print(f"Python {platform.python_version()}, {platform.system()}, {rounds} rounds\n")
    print(table(wanted, figures))
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(figures, file, indent=1)
    if options.picture:
        picture(options.picture, wanted, figures)


if __name__ == "__main__":
    main()
