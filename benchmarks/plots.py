"""Plots as SVG, whose text depends on the figures alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path


def draw(file: Path, against: str, points: Sequence[int], factors: Mapping[str, Sequence[float]], flat: float) -> None:
    """Draws the costs, as multiples of those at the first point, by what they are of; a line says what counts as
    flat."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "stigg-guard", "svg.fonttype": "none", "font.family": "sans-serif"})
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for what, multiples in factors.items():
        axes.plot(range(len(points)), multiples, marker="o", label=what)
    axes.axhline(flat, color="grey", linestyle="dotted", label=f"{flat:g}")
    axes.set_xticks(range(len(points)), [f"{point:,}" for point in points])
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlabel(against)
    axes.set_ylabel("times the cost at the first point")
    axes.grid(visible=True, which="major", alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    figure.savefig(file, metadata={"Date": None, "Creator": None})
    pyplot.close(figure)
