"""How charts look, on the page and on paper: one set of sizes, a palette for light and one for dark.

The series are the colours of Okabe and Ito (2008), which colour-blind eyes tell apart, and the same hues lighter for
the dark; wherever they tell something, a shape or a dash says the same.
"""

from __future__ import annotations

from typing import Any, NamedTuple

#: Shapes of points, in the order of the series.
SHAPES = ["circle", "square", "triangle-up", "diamond", "cross", "triangle-down"]

#: Scale of what has an order, light for much; the same for colour-blind eyes and in grey.
SCHEME = "cividis"

#: Lines between nodes, legible on white and on black.
EDGE = "#888c92"

#: Style of text on a series' colour.
INSIDE = "inside"

#: Pixels between two numbers of an axis that lies.
TICK_EVERY = 90


class Palette(NamedTuple):
    """Colours of the page and its charts.

    Attributes:
        paper, panel: behind text, behind what is set apart from it.
        ink, quiet, line: text, text beside it, rules.
        warn: behind warnings.
        link, accent: links; focus, and the median of a spread.
        series: of what has no order.
    """

    paper: str
    panel: str
    ink: str
    quiet: str
    line: str
    warn: str
    link: str
    accent: str
    series: tuple[str, ...]


LIGHT = Palette(
    *("#ffffff", "#f4f5f7", "#1b1d21", "#565b63", "#d9dce1", "#fff4d6", "#00558c", "#d55e00"),
    ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"),
)
DARK = Palette(
    *("#15171a", "#20242a", "#e9eaec", "#a9afb8", "#363b42", "#3a3115", "#7cc4f5", "#ff9a55"),
    ("#4aa8e0", "#f58a4b", "#35c79b", "#e3a3c6", "#f0b93a", "#a5daf7"),
)


def variables() -> str:
    """The palettes as variables of a style sheet: the dark one where the reader prefers the dark."""
    light, dark = (
        "".join(f"--{name}:{value};" for name, value in palette._asdict().items() if isinstance(value, str))
        for palette in (LIGHT, DARK)
    )
    return f":root{{{light}}}@media (prefers-color-scheme:dark){{:root{{{dark}}}}}"


def theme(palette: Palette, font: str | None = None) -> dict[str, Any]:
    """Configuration of Vega-Lite; without `font` the page gives its own."""
    text = {"labelColor": palette.ink, "titleColor": palette.quiet, "labelFontSize": 11, "titleFontSize": 11}
    quiet_axis = {"titleFontWeight": "normal", "titlePadding": 10, "labelPadding": 6, "labelSeparation": 8}
    return {
        "background": palette.paper,
        "padding": {"left": 2, "right": 14, "top": 6, "bottom": 4},
        "view": {"stroke": None},
        "range": {"category": list(palette.series)},
        "axis": {**text, **quiet_axis, "ticks": False, "domain": False, "gridColor": palette.line},
        "axisXQuantitative": {"labelFlush": False, "tickCount": {"expr": f"max(2, floor(width / {TICK_EVERY}))"}},
        "legend": {**text, "titleFontWeight": "normal", "labelFontSize": 12, "symbolSize": 90, "offset": 14},
        "text": {"color": palette.ink, "fontSize": 11},
        "bar": {"color": palette.series[0]},
        "rule": {"color": palette.quiet},
        "tick": {"color": palette.accent},
        "style": {INSIDE: {"color": palette.paper, "fill": palette.paper}},
    } | ({} if font is None else {"font": font})
