"""A picture of where in the model a task's score lies: layers upwards, heads across, the layer's MLP beside them.

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
        summary: table with the schema `gbcd.reduction.reduce.SUMMARY`; its ranked nodes are drawn.

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
    """Draw one row of the summary per head and MLP (`layer`, `head`, `score`; `head` is null for an MLP)."""
    grid = score_grid(nodes)
    share = 100 * grid / (np.nanmax(grid) or 1.0)
    layers, columns = grid.shape
    figure = Figure(figsize=(2.6 + 0.52 * columns, 1.9 + 0.42 * layers), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=[max(columns - 1, 1), 1])
    image = left.imshow(share[:, :-1], cmap="cividis", vmin=0, vmax=100, origin="lower", aspect="auto")
    right.imshow(share[:, -1:], cmap="cividis", vmin=0, vmax=100, origin="lower", aspect="auto")
    _label(left, [str(head) for head in range(columns - 1)], layers)
    _label(right, ["MLP"], layers)
    left.set(xlabel="head", ylabel="layer")
    right.set_yticklabels([])
    if columns <= MAX_NUMBERED:
        _number(left, share[:, :-1])
        _number(right, share[:, -1:])
    figure.colorbar(image, ax=[left, right], label="score, % of the largest")
    figure.suptitle(title, fontsize=10)
    return figure


def score_grid(nodes: pl.DataFrame) -> Float[np.ndarray, "layers columns"]:
    """Scores by layer and head, the MLP in the last column; NaN where the model has no such node."""
    heads = nodes["head"].max()
    columns = 1 + (int(heads) + 1 if isinstance(heads, int) else 0)
    grid = np.full((int(nodes["layer"].to_numpy().max()) + 1, columns), np.nan)
    for layer, head, score in nodes.select("layer", "head", "score").iter_rows():
        grid[layer, columns - 1 if head is None else head] = score
    return grid


def _label(axes: Axes, columns: Sequence[str], layers: int) -> None:
    axes.set_xticks(range(len(columns)), list(columns))
    axes.set_yticks(range(layers))
    axes.tick_params(length=0)


def _number(axes: Axes, share: Float[np.ndarray, "layers columns"]) -> None:
    for (layer, column), value in np.ndenumerate(share):
        if not np.isnan(value):
            colour = "black" if value > 55 else "white"
            axes.text(column, layer, f"{value:.0f}", ha="center", va="center", fontsize=8, color=colour)
