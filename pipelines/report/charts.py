"""Charts as inline SVG: no script, colours from the page's CSS (so light and dark both work), unique ids."""

# pyright: reportUnknownMemberType=false
# (matplotlib is typed in part only)

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import matplotlib as mpl
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Placeholder colours in the SVG -> the names in the page's style sheet. The palette itself (after Okabe and
# Ito, made for colour-blind readers) is in report.css; lines also differ in dash.
_TEXT: Final = "#010203"
_GRID: Final = "#010204"
SERIES: Final = tuple(f"#0102{number:02x}" for number in range(0x10, 0x13))
_CSS: Final = {
    _TEXT: "currentColor",
    _GRID: "var(--grid)",
    **{colour: f"var(--series-{number})" for number, colour in enumerate(SERIES, start=1)},
}
_DASHES: Final = ("-", "--", ":")
_STYLE: Final[dict[Any, Any]] = {
    "svg.fonttype": "none",  # text stays text: readable by screen readers, set in the page's font
    "svg.hashsalt": "plumbline",
    "text.parse_math": False,
    "font.size": 9.0,
    "text.color": _TEXT,
    "axes.labelcolor": _TEXT,
    "xtick.color": _TEXT,
    "ytick.color": _TEXT,
    "axes.edgecolor": _GRID,
    "grid.color": _GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


@dataclass(frozen=True, kw_only=True)
class Chart:
    title: str
    svg: Markup


def line_chart(
    name: str,
    title: str,
    unit: str,
    series: Mapping[str, Sequence[tuple[float, float]]],
    x: str = "learner step",
) -> Chart:
    """Lines of (x, y) points by label; `unit` names the y axis; `name` makes the ids unique on the page."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(4.2, 2.5), layout="constrained")
        axes: Axes = figure.subplots()
        for (label, points), colour, dash in zip(series.items(), SERIES, _DASHES, strict=False):
            xs, ys = [p[0] for p in points], [p[1] for p in points]
            marker = "o" if len(points) == 1 else None
            axes.plot(xs, ys, color=colour, linestyle=dash, linewidth=1.6, marker=marker, label=label)
        axes.set_xlabel(x)
        axes.set_ylabel(unit)
        axes.grid(axis="y", linewidth=0.6)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if len(series) > 1:
            figure.legend(loc="outside upper left", ncols=len(series), fontsize=8.5)
        return Chart(title=title, svg=_svg(figure, name, f"{title}, {unit}, by {x}. {_in_words(series)}"))


def _in_words(series: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    return " ".join(
        f"{label}: from {points[0][1]:.3g} at {points[0][0]:g} to {points[-1][1]:.3g} at {points[-1][0]:g}."
        for label, points in series.items()
    )


def _svg(figure: Figure, name: str, description: str) -> Markup:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]  # without the XML prologue
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\b(id=")', rf"\1{name}-", text)
    text = re.sub(r'(url\(#|href="#)', rf"\1{name}-", text)
    for placeholder, colour in _CSS.items():
        text = text.replace(placeholder, colour)
    opening = re.sub(r' (width|height)="[^"]*"', "", text[: text.index(">")])
    label = f' role="img" aria-label="{escape(description)}"'
    return Markup(opening + label + text[text.index(">") :])
