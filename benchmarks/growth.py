"""How the cost grows: with the tasks that wait, with the workers, with time that passes.

``python -m benchmarks --growth FILE.svg``. A library that would need more than `BUDGET`
seconds for a point, by what it took for the one before, is not asked for it: its curve
ends there. (mpkit's does not.) What is measured within each process is in `benchmarks.footprint`.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable
from typing import Any

from benchmarks import footprint
from benchmarks.harness import alone
from benchmarks.libraries import LIBRARIES
from benchmarks.table import figure, pyplot

TASKS = [1_000, 10_000, 100_000, 1_000_000]
WORKERS = [1, 4, 16, 64, 256]
#: Tasks for each of the measurements of `WORKERS`, and those of memory.
AT_ONCE, KEPT = 10_000, 50_000
STREAM = [10_000, 100_000, 1_000_000]

#: Seconds that a single measurement of a peer may take, by what is known before; and of
#: anybody, in fact.
BUDGET, PATIENCE = 40, 300

FUTURES = [library for library in LIBRARIES if library != "joblib"]

#: Of a library: the figure for each number, the median of the rounds.
Curves = dict[str, dict[int, float]]


def growth(path: str, rounds: int, raw: str | None) -> None:
    """Measure everything, print it in Markdown, and draw it."""
    tasks = _curves("tasks queued", footprint.queued, FUTURES, TASKS, rounds)
    print(_table("tasks queued, 2 workers (µs each)", tasks, TASKS))
    workers = _curves("workers", footprint.manned, FUTURES, WORKERS, rounds, AT_ONCE)
    print(_table(f"workers, {AT_ONCE:,} tasks (µs each)", workers, WORKERS))
    memory = _curves("tasks kept", footprint.kept, FUTURES, [KEPT], rounds)
    print(_table("tasks kept (bytes each)", memory, [KEPT], ends=False))
    stream = _curves("items of imap", footprint.streamed, list(LIBRARIES), STREAM, 1)
    print(_table("items of imap from a generator (MB more at most)", stream, STREAM, ends=False))
    idle = {library: footprint.idle_switches(library) for library in LIBRARIES}
    print(_idle_table(idle))
    _draw(path, tasks, workers, memory, stream)
    if raw:
        figures = {
            "tasks": tasks, "workers": workers, "memory": memory, "stream": stream, "idle": idle
        }  # fmt: skip
        with open(raw, "w", encoding="utf-8") as file:
            json.dump(figures, file, indent=1)


def _curves(
    what: str,
    function: Callable[..., tuple[float, float]],
    libraries: list[str],
    numbers: list[int],
    rounds: int,
    tasks_each: int | None = None,
) -> Curves:
    """Measure a curve for each library, where ``function`` returns the figure and seconds."""
    curves: Curves = {library: {} for library in libraries}
    last: dict[str, float] = dict.fromkeys(libraries, 0.0)
    for before, number in zip([numbers[0], *numbers], numbers):
        grown = number / before if tasks_each is None else 1
        taken: dict[str, list[float]] = {library: [] for library in libraries}
        able = [
            library for library in libraries if library == "mpkit" or last[library] * grown < BUDGET
        ]
        for turn in range(rounds):
            print(f"round {turn + 1} of {rounds}: {number:,} {what}", file=sys.stderr)
            for library in able:
                arguments = [number] if tasks_each is None else [number, tasks_each]
                answer = alone(function, library, *arguments, patience=PATIENCE)
                if answer is None:
                    last[library] = float("inf")
                    continue
                taken[library].append(answer[0])
                last[library] = answer[1]
        for library in able:
            if taken[library]:
                curves[library][number] = statistics.median(taken[library])
        for library in set(libraries) - set(able):
            last[library] = float("inf")
    return curves


def _table(what: str, curves: Curves, numbers: list[int], *, ends: bool = True) -> str:
    """Return curves in Markdown, with the ratio of the last figure to the first."""
    head = [what, *curves, "mpkit / best peer"]
    lines = [f"\n| {' | '.join(head)} |", "|--:" * len(head) + "|"]
    for number in numbers:
        cells = [_cell(curve.get(number)) for curve in curves.values()]
        peers = [
            curve[number] for name, curve in curves.items() if name != "mpkit" and number in curve
        ]
        ours = curves["mpkit"].get(number)
        ratio = (
            f"{ours / min(peers):.2f}x" if ours is not None and peers and min(peers) > 0 else "-"
        )
        lines.append(f"| {number:,} | {' | '.join(cells)} | {ratio} |")
    if ends:
        ratios = [_grown(curve, numbers) for curve in curves.values()]
        lines.append(f"| highest / lowest | {' | '.join(ratios)} | |")
    return "\n".join(lines)


def _cell(value: float | None) -> str:
    return "-" if value is None else figure(value)


def _grown(curve: dict[int, float], numbers: list[int]) -> str:
    if any(number not in curve for number in numbers):
        return "-"
    return f"{max(curve.values()) / min(curve.values()):.2f}x"


def _idle_table(idle: dict[str, int | None]) -> str:
    lines = [f"\n| an idle pool | context switches in {footprint.IDLE_SECONDS} s |", "|---|--:|"]
    for library, switches in idle.items():
        lines.append(f"| {library} | {'cannot' if switches is None else f'{switches:,}'} |")
    return "\n".join(lines)


def _draw(path: str, tasks: Curves, workers: Curves, memory: Curves, stream: Curves) -> None:
    plots = pyplot()
    drawing, axes = plots.subplots(2, 2, figsize=(10, 7.5), layout="constrained")
    _lines(axes[0][0], tasks, "tasks at once, 2 workers", "µs for each")
    _lines(axes[0][1], workers, f"workers, {AT_ONCE:,} tasks at once", "µs for each")
    _lines(axes[1][0], stream, "items of imap, from a generator", "MB more than before, at most")
    each = {name: curve[KEPT] for name, curve in memory.items() if KEPT in curve}
    bars = axes[1][1].barh(list(each), list(each.values()))
    axes[1][1].bar_label(bars, [f" {value:,.0f}" for value in each.values()])
    axes[1][1].invert_yaxis()
    axes[1][1].margins(x=0.15)
    axes[1][1].set_xlabel("bytes of memory for a task that waits")
    drawing.savefig(path)


def _lines(axes: Any, curves: Curves, x: str, y: str) -> None:
    for name, curve in curves.items():
        width = 2.5 if name == "mpkit" else 1.2
        axes.loglog(list(curve), list(curve.values()), marker=".", linewidth=width, label=name)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
