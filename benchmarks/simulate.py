"""Try the policy of `mpkit._engine.schedule` without any process.

``python -m benchmarks.simulate [--workers N ...] [--policy NAME=VALUE,... ...] [--picture
FILE]`` runs the workloads of `benchmarks.workloads` on the pretended machine of
`benchmarks.machine`, and prints for each:

- the makespan over the optimum, which is what no scheduler could do better if messages
  cost nothing. For tasks of 1 µs that is far away for anybody who tells of each one;
- how long the supervisor was at work, of the whole: at 100 % it is what all wait for;
- packets for each task, and how many tasks were taken back from an inbox;
- the longest that a task lay with a worker before it began, and the longest that it was
  in a packet which that worker had taken, so that nobody else could have it.

A policy is the present one with other values of its constants (``MOST_IN_PACKET=1``), on a
machine with other `Costs` (``apart=0,message=5e-6``). ``decision=2e-7`` makes a decision
cost something for each worker, which is left out otherwise, as it says more of the code
than of the policy; ``--decide`` measures what it is. It is what the simulation itself takes
long for: a second or so with hundreds of workers, minutes with 10,000.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from collections import deque
from typing import Any

from benchmarks.machine import Costs, Outcome, with_policy
from benchmarks.table import figure, pyplot
from benchmarks.workloads import WORKLOADS
from mpkit._engine.actions import Send, Spawn, TakeBack
from mpkit._engine.schedule import Schedule

#: What is compared unless somebody asks for something else: the policy as it is, without
#: packets, with shorter and longer ones, with nothing sent ahead of need, and with packets
#: that a worker takes as a whole.
POLICIES = [
    "",
    "MOST_IN_PACKET=1",
    "PACKET_SECONDS=0.0002",
    "PACKET_SECONDS=0.005,MOST_IN_PACKET=512",
    "SEND_AHEAD_BELOW=0",
    "apart=0",
]
WORKERS = [2, 16, 256]

#: Outcomes by workload, workers and policy.
Outcomes = dict[tuple[str, int, str], Outcome]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.simulate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--workers", type=int, nargs="+", default=WORKERS)
    parser.add_argument("--policy", nargs="+", default=POLICIES, help="'' is the present one")
    parser.add_argument("--only", default="", help="workloads whose name has this in it")
    parser.add_argument("--tasks", type=int, help="tasks (20 for each worker, 4,000 at least)")
    parser.add_argument("--picture", metavar="FILE", help="draw the ratios")
    parser.add_argument("--decide", action="store_true", help="measure decisions, and end")
    options = parser.parse_args()
    if options.decide:
        print(decisions([1, 10, 100, 1_000, 10_000]))
        return
    outcomes: Outcomes = {}
    for name, workload in WORKLOADS.items():
        if options.only not in name:
            continue
        for workers in options.workers:
            lengths = workload(options.tasks or max(4_000, 20 * workers))
            for policy in options.policy:
                print(f"{name}, {workers} workers, {policy or 'present'}", file=sys.stderr)
                outcomes[name, workers, policy] = with_policy(*_parsed(policy), lengths, workers)
    print(table(outcomes))
    if options.picture:
        picture(options.picture, outcomes)


def _parsed(policy: str) -> tuple[dict[str, float], Costs]:
    """Return the constants that a policy changes, and what things cost."""
    constants: dict[str, float] = {}
    costs: dict[str, Any] = {}
    for part in filter(None, policy.split(",")):
        name, _, value = part.partition("=")
        number = int(value) if value.isdecimal() else float(value)
        (constants if name.isupper() else costs)[name] = number
    return constants, Costs(**costs)


def table(outcomes: Outcomes) -> str:
    """Return everything, in Markdown."""
    lines = [
        "| tasks | workers | policy | makespan / optimum | supervisor (%) | packets per task "
        "| taken back | longest wait (ms) | in a packet (ms) |",
        "|---|--:|---|--:|--:|--:|--:|--:|--:|",
    ]
    for (name, workers, policy), outcome in outcomes.items():
        cells = [
            name,
            f"{workers:,}",
            policy or "present",
            f"{outcome.ratio:.3g}",
            f"{100 * outcome.busy / outcome.makespan:.0f}",
            f"{outcome.messages / outcome.tasks:.2f}",
            f"{outcome.taken_back:,}",
            _ms(outcome.longest_wait),
            _ms(outcome.longest_stuck),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _ms(seconds: float) -> str:
    # Below that it is what sums of floats are off by.
    return "0" if seconds < 1e-9 else figure(seconds * 1e3)


def picture(path: str, outcomes: Outcomes) -> None:
    """Draw makespan / optimum over the number of workers, a field for each workload."""
    names = list(dict.fromkeys(name for name, _, _ in outcomes))
    numbers = sorted({workers for _, workers, _ in outcomes})
    plots = pyplot()
    rows = -(-len(names) // 3)
    drawing, fields = plots.subplots(
        rows, 3, figsize=(12, 3.2 * rows), layout="constrained", squeeze=False
    )
    for axes in fields.flat[len(names) :]:
        axes.set_axis_off()
    for axes, name in zip(fields.flat, names):
        curves: dict[str, dict[int, float]] = {}
        for (workload, workers, policy), outcome in outcomes.items():
            if workload == name:
                curves.setdefault(policy, {})[workers] = outcome.ratio
        for policy, curve in curves.items():
            width = 1.2 if policy else 2.5
            label = policy or "present"
            axes.loglog(list(curve), list(curve.values()), ".-", linewidth=width, label=label)
        # From the optimum, and not so near to it that what is nothing looks like much.
        axes.set_ylim(0.95, max(2.0, 1.1 * axes.get_ylim()[1]))
        axes.set_xticks(numbers, [f"{number:,}" for number in numbers])
        for formatter in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            formatter("{x:g}")
        axes.tick_params(axis="y", which="both", labelsize=7)
        if axes.get_ylim()[1] > 20:
            axes.yaxis.set_minor_formatter("")
        axes.set_title(name, fontsize=9)
        axes.grid(alpha=0.3)
        axes.set_xlabel("workers", fontsize=8)
        axes.set_ylabel("makespan / optimum", fontsize=8)
    handles = fields.flat[0].get_legend_handles_labels()
    drawing.legend(*handles, loc="outside lower center", ncols=3)
    drawing.savefig(path)


def decisions(numbers: list[int]) -> str:
    """Return what a decision takes after a single report, by the number of workers."""
    lines = [
        "| workers | many tasks wait (µs) | none waits, all are busy | none waits, half are idle |",
        "|--:|--:|--:|--:|",
    ]
    for workers in numbers:
        states = (40 * workers + 1_000, 2 * workers, workers // 2 + 1)
        cells = [f"{_decision(workers, tasks) * 1e6:,.3g}" for tasks in states]
        lines.append(f"| {workers:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _decision(workers: int, tasks: int) -> float:
    """Return the median time of what follows from a report, where tasks take 0.1 ms."""
    schedule = Schedule(workers)
    held: dict[int, deque[int]] = {}
    numbers = itertools.count()

    def act() -> None:
        for action in schedule.decide():
            match action:
                case Send(number, sent):
                    held[number].extend(sent)
                case Spawn():
                    number = next(numbers)
                    held[number] = deque()
                    schedule.spawned(number)
                    schedule.started(number)
                case TakeBack(number):  # it has taken them all
                    schedule.returned(number, [])

    def report() -> None:
        number = max(held, key=lambda worker: len(held[worker]))
        schedule.finished(number, [held[number].popleft()], 1e-4)

    schedule.submitted(0)
    act()
    report()  # now it knows how long tasks are
    for task in range(1, tasks + 1):
        schedule.submitted(task)
    act()
    taken: list[float] = []
    for _ in range(min(50, sum(map(len, held.values())))):
        report()
        began = time.perf_counter()
        act()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


if __name__ == "__main__":
    main()
