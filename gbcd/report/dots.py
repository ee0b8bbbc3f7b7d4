"""Pictures with a dot for every component, of which some are named."""

from __future__ import annotations

import math
from typing import NamedTuple

import altair as alt
import polars as pl

from gbcd.report.charts import BASE, by_kind, ring

#: Components that are named beside their dot, and how many of them for their height.
NAMED, BY_HEIGHT = 14, 10

#: Width and height of a name, half those of a dot, and how far a name stands above its dot, as shares of the picture's.
NAME, DOT, LIFT = (0.07, 0.03), (0.007, 0.012), 0.012


def dots(x: str, y: str, titles: tuple[str, str]) -> list[alt.Chart]:
    """Layers: the dots, a ring around those that are looked for, and names; rows come from `marked`."""
    base = BASE.encode(x=alt.X(f"{x}:Q", title=titles[0]), y=alt.Y(f"{y}:Q", title=titles[1]))
    numbers = [alt.Tooltip(f"{name}:Q", format=".4~g") for name in ("rank", x, y)]
    points = by_kind(base.mark_point(filled=True, size=60, opacity=0.9)).encode(tooltip=["component:N", *numbers])
    return [points, ring(base, 200), beside(base)]


def beside(base: alt.Chart) -> alt.Chart:
    """Names beside the dots of `base`, as `marked` places them."""
    align = alt.ExprRef("datum.side === 'left' ? 'right' : 'left'")
    away = alt.ExprRef("datum.side === 'left' ? -7 : 7")
    return base.mark_text(align=align, dx=away, dy=-4).encode(text="name:N")


def marked(rows: pl.DataFrame, x: str, y: str, bound: float = 0.0, always: str = "") -> pl.DataFrame:
    """Rows with, of some, the `name` that stands at one `side` of the dot, right or left.

    The highest dots come first, since a high score without effect is what misleads most, then those farthest out. A
    name that would lie on a dot, on another name or beyond the left edge, `bound` or the leftmost dot, is left out.

    Args:
        rows: `component`, and the columns `x` and `y`.
        x: values on the horizontal axis, of either sign.
        y: values on the vertical axis.
        bound: how far the picture reaches to the left at least.
        always: the component that is named whatever its name lies on, before all others.
    """
    across, up = (pl.col(name) / pl.max_horizontal(pl.col(name).abs().max(), 1e-300) for name in (x, y))
    places = rows.select("component", x=across, y=up)
    edge = min([0.0, -bound / max((abs(value) for value in rows[x] if value), default=1.0), *places["x"]])
    best = [
        places.filter(pl.col("component") == always),
        places.sort("y", descending=True).head(BY_HEIGHT),
        places.sort(pl.col("x").abs(), descending=True).head(NAMED),
    ]
    taken = [_Box(-math.inf, edge, -math.inf, math.inf)]
    taken += [_Box(left - DOT[0], left + DOT[0], low - DOT[1], low + DOT[1]) for _, left, low in places.iter_rows()]
    sides: dict[str, str] = {}
    for name, left, height in pl.concat(best).unique(maintain_order=True).iter_rows():
        low, high = height + LIFT - NAME[1] / 2, height + LIFT + NAME[1] / 2
        right, left = left + DOT[0], left - DOT[0]
        for side, start, stop in (("right", right, right + NAME[0]), ("left", left - NAME[0], left)):
            box = _Box(start, stop, low, high)
            is_free = not any(box.meets(other) for other in taken) or (name == always and side == "left")
            if name not in sides and len(sides) < NAMED and is_free:
                sides[name] = side
                taken.append(box)
    component = pl.col("component")
    return rows.with_columns(
        side=component.replace_strict(sides, default=None, return_dtype=pl.String),
        name=pl.when(component.is_in(list(sides))).then(component).otherwise(pl.lit("")),
    )


class _Box(NamedTuple):
    """A rectangle, in shares of the largest values."""

    left: float
    right: float
    low: float
    high: float

    def meets(self, other: _Box) -> bool:
        """Whether they overlap."""
        across = self.left < other.right and other.left < self.right
        return across and self.low < other.high and other.low < self.high
