"""A picture of where a task's score lies: layers upwards, heads across, then groups that share keys, then the MLP.

The colours are cividis, which reads the same for colour-blind eyes and in grey, on a scale from zero to the picture's
largest score; numbers are in units of that largest score, in per cent, so that they stay short for any task.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import polars as pl
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

#: Cells in a row beyond which numbers would no longer be readable.
MAX_NUMBERED = 24


def draw_heatmaps(summary: pl.DataFrame) -> dict[str, bytes]:
    """Draw every task and wrong answer.

    Args:
        summary: table with the schema `gbcd.analysis.reduce.SUMMARY`; its ranked nodes are drawn.

    Returns:
        PNG files by name, `heatmap_<task>_<wrong answer>.png`, in the order of the table. A task and wrong answer
        without a single score has none.
    """
    nodes = summary.filter((pl.col("level") == "node") & pl.col("rank").is_not_null())
    files: dict[str, bytes] = {}
    for (task, wrong_answer), rows in nodes.group_by("task", "wrong_answer", maintain_order=True):
        png = io.BytesIO()
        heatmap(rows, f"{task}, {wrong_answer} ({rows['n'][0]} prompts)").savefig(png, format="png", dpi=120)
        files[f"heatmap_{task}_{wrong_answer}.png"] = png.getvalue()
    return files


def heatmap(nodes: pl.DataFrame, title: str) -> Figure:
    """Draw one row of the summary per head, group and MLP (`component`, `layer`, `score`)."""
    grids = score_grids(nodes)
    largest = max(float(np.nanmax(grid)) for grid in grids.values()) or 1.0
    layers, columns = len(grids["MLP"]), sum(grid.shape[1] for grid in grids.values())
    figure = Figure(figsize=(2.6 + 0.52 * columns, 1.9 + 0.42 * layers), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(grids), width_ratios=[grid.shape[1] for grid in grids.values()], squeeze=False)[0]
    for axes, (kind, grid) in zip(panels, grids.items(), strict=True):
        share = 100 * grid / largest
        axes.imshow(share, cmap="cividis", vmin=0, vmax=100, origin="lower", aspect="auto")
        _label(axes, ["MLP"] if kind == "MLP" else [str(number) for number in range(grid.shape[1])], layers)
        axes.set(xlabel="" if kind == "MLP" else kind)
        if columns <= MAX_NUMBERED:
            _number(axes, share)
    panels[0].set_ylabel("layer")
    for axes in panels[1:]:
        axes.set_yticklabels([])
    figure.colorbar(panels[0].images[0], ax=list(panels), label="score, % of the largest")
    figure.suptitle(title, fontsize=10)
    return figure


def score_grids(nodes: pl.DataFrame) -> dict[str, Float[np.ndarray, "layers columns"]]:
    """Scores by layer and number, for `head`, `group` and `MLP`, of the kinds that there are; NaN where no node is."""
    layers = int(nodes["layer"].to_numpy().max()) + 1
    found: dict[str, np.ndarray] = {}
    for kind, pattern in (("head", r"\.h(\d+)$"), ("group", r"\.g(\d+)$"), ("MLP", r"^m\d+()$")):
        rows = nodes.select("layer", "score", number=pl.col("component").str.extract(pattern)).drop_nulls("number")
        cells = [(layer, int(number or 0), score) for layer, score, number in rows.iter_rows()]
        if cells:
            found[kind] = np.full((layers, 1 + max(number for _, number, _ in cells)), np.nan)
        for layer, number, score in cells:
            found[kind][layer, number] = score
    return found


def _label(axes: Axes, columns: Sequence[str], layers: int) -> None:
    axes.set_xticks(range(len(columns)), list(columns))
    axes.set_yticks(range(layers))
    axes.tick_params(length=0)


def _number(axes: Axes, share: Float[np.ndarray, "layers columns"]) -> None:
    for (layer, column), value in np.ndenumerate(share):
        if not np.isnan(value):
            colour = "black" if value > 55 else "white"
            axes.text(column, layer, f"{value:.0f}", ha="center", va="center", fontsize=8, color=colour)
