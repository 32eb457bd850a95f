"""What the figures are shown as: a table in Markdown, and a picture of the ratios."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.harness import Figures
from benchmarks.registry import Case

#: Marks a peer that lacks what mpkit is for; it is shown, and not compared with.
UNFAIR = "not crash-safe"

#: The colour of lines and letters, which can be read on white and on black: pictures have no
#: background, and a page that shows one may be light or dark.
INK = "#7b8494"
BLUE, ORANGE, GREEN = "#1f77b4", "#d9730d", "#2ca02c"
COLOURS = [BLUE, ORANGE, GREEN, "#d62728", "#9467bd", "#8c564b", "#b5527f", "#5f7a3a"]


def table(cases: list[Case], figures: Figures) -> str:
    """Return the table. A peer that cannot do the work says so in its cell."""
    lines = ["| work | mpkit | peers | mpkit / best peer |", "|---|--:|---|--:|"]
    for case in cases:
        ratio = ratio_of(case, figures)
        cells = [
            f"{case.name} ({case.unit})",
            _own(figures[case.name].get("mpkit", [])),
            ", ".join(_peers(case, figures)),
            "-" if ratio is None else f"{ratio:.2f}x" if ratio >= 0.1 else f"{ratio:.2g}x",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def ratio_of(case: Case, figures: Figures) -> float | None:
    """Return mpkit / best peer; below 1 mpkit is better, whatever the unit."""
    medians = _medians(case, figures)
    ours = medians.pop("mpkit", None)
    fair = [value for library, value in medians.items() if UNFAIR not in library]
    if ours is None or not fair:
        return None
    return max(fair) / ours if case.more_is_better else ours / min(fair)


def _medians(case: Case, figures: Figures) -> dict[str, float]:
    return {library: statistics.median(values) for library, values in figures[case.name].items()}


def _own(values: list[float]) -> str:
    if not values:
        return "failed"
    return f"{figure(statistics.median(values))} ({figure(min(values))} to {figure(max(values))})"


def _peers(case: Case, figures: Figures) -> list[str]:
    medians = _medians(case, figures)
    medians.pop("mpkit", None)
    ranked = sorted(medians.items(), key=lambda item: item[1], reverse=case.more_is_better)
    failed = [name for name in case.runs if name not in figures[case.name] and name != "mpkit"]
    return [
        *(f"{library} {figure(value)}" for library, value in ranked),
        *(f"{library} cannot" for library in failed),
        *(f"{library} cannot ({why})" for library, why in case.unable.items()),
    ]


def figure(value: float) -> str:
    """Return a figure with what of its digits may mean something."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def picture(path: str, cases: list[Case], figures: Figures) -> None:
    """Draw the ratios, a bar for each row."""
    ratios = {case.name: ratio_of(case, figures) for case in cases}
    bars = {name: ratio for name, ratio in reversed(ratios.items()) if ratio is not None}
    plots = pyplot()
    drawing, axes = plots.subplots(figsize=(9, 1 + 0.27 * len(bars)), layout="constrained")
    colors = [GREEN if ratio <= 1 else ORANGE for ratio in bars.values()]
    # From 1 to both sides: a bar to the left is so many times better, one to the right worse.
    widths = [ratio - 1 for ratio in bars.values()]
    drawn = axes.barh(list(bars), widths, left=1, color=colors)
    axes.bar_label(drawn, [f" {ratio:.2g}x " for ratio in bars.values()], fontsize=8)
    axes.axvline(1, color=INK, linewidth=0.8)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}x")
    axes.margins(x=0.1, y=0.01)
    axes.tick_params(axis="y", labelsize=8)
    axes.set_xlabel("mpkit / best peer (to the left mpkit is better)")
    drawing.savefig(path)


def pyplot() -> Any:
    """Return matplotlib.pyplot, set up to draw files that are the same in each run."""
    import matplotlib as untyped

    matplotlib: Any = untyped
    matplotlib.use("Agg")
    # Otherwise an SVG has the date and names by chance, and each run changes every line.
    matplotlib.rcParams["svg.hashsalt"] = "mpkit"
    matplotlib.rcParams["savefig.transparent"] = True
    matplotlib.rcParams["legend.framealpha"] = 0
    matplotlib.rcParams["axes.prop_cycle"] = matplotlib.cycler(color=COLOURS)
    for part in ("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor"):
        matplotlib.rcParams[part] = INK
    for part in ("xtick.color", "ytick.color", "grid.color", "legend.edgecolor"):
        matplotlib.rcParams[part] = INK
    import matplotlib.pyplot as plots

    return plots
