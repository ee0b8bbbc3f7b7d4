"""Pictures of score against effect: does a large gradient mean that a component matters?

For each task and wrong answer two panels, against the measured effect of resampling and against the direct effect on
the metric, which is the comparison that the project started from. A dot is a head or an MLP; those with the largest
effects are named. Colours and shapes both tell heads from MLPs.
"""

from __future__ import annotations

import io

import polars as pl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from gbcd.evaluation.agreement import spearman

#: Components that are named in a panel.
NAMED = 8

_AGAINST = {"resample": "effect of resampling, % of the gap", "direct_effect": "direct effect, % of the gap"}
_WITHOUT_COUNTERFACTUAL = {"mean": "effect of the mean, % of the gap", "zero": "effect of zero, % of the gap"}


def draw_effect_plots(effects: pl.DataFrame, scores: pl.DataFrame) -> dict[str, bytes]:
    """Draw every task and wrong answer.

    Args:
        effects: table `gbcd.evaluation.tables.EFFECTS`.
        scores: `task, wrong_answer, component, score`.

    Returns:
        PNG files by name, `effects_<task>_<wrong answer>.png`.
    """
    files: dict[str, bytes] = {}
    for (task, wrong_answer), rows in scores.group_by("task", "wrong_answer", maintain_order=True):
        joined = effects.filter(pl.col("task") == task).join(rows.select("component", "score"), on="component")
        png = io.BytesIO()
        effect_plot(joined, f"{task}, {wrong_answer}").savefig(png, format="png", dpi=120)
        files[f"effects_{task}_{wrong_answer}.png"] = png.getvalue()
    return files


def effect_plot(rows: pl.DataFrame, title: str) -> Figure:
    """Draw one task and wrong answer; `rows` are effects with a column `score`."""
    against = _AGAINST if "resample" in rows["method"] else _WITHOUT_COUNTERFACTUAL
    shown = [name for name in against if name in rows["method"]]
    figure = Figure(figsize=(0.8 + 4.6 * len(shown), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    panels: list[Axes] = figure.subplots(1, len(shown), squeeze=False, sharey=True)[0].tolist()
    for axes, method in zip(panels, shown, strict=True):
        _panel(axes, rows.filter(pl.col("method") == method), against[method])
    panels[0].set_ylabel("score")
    panels[0].legend(loc="lower right", fontsize=8)
    figure.suptitle(title, fontsize=10)
    return figure


def _panel(axes: Axes, rows: pl.DataFrame, label: str) -> None:
    rows = rows.with_columns(share=100 * pl.col("value").abs() / pl.col("gap").abs())
    for name, marker, colour, kind in (
        ("head", "o", "#0072B2", pl.col("head").is_not_null()),
        ("MLP", "s", "#D55E00", pl.col("head").is_null()),
    ):
        some = rows.filter(kind)
        axes.scatter(some["share"], some["score"], s=18, marker=marker, color=colour, label=name)
    for component, share, score in rows.top_k(NAMED, by="share").select("component", "share", "score").iter_rows():
        axes.annotate(component, (share, score), xytext=(4, 2), textcoords="offset points", fontsize=7)
    correlation = float(spearman(rows["score"].to_numpy(), rows["value"].to_numpy()))
    axes.set_title(f"Spearman {correlation:.2f}", fontsize=9)
    axes.set_xlabel(label)
