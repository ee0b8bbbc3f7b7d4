"""A picture of where a task's score lies: layers upwards, heads across, then groups that share keys, then the MLP.

The colours are cividis, which reads the same for colour-blind eyes and in grey, on a scale from zero to the picture's
largest score; numbers are in per cent of that largest score, so that they stay short for any task.
"""

from __future__ import annotations

import altair as alt
import polars as pl
import vl_convert

from gbcd.component import file_name

#: Cells in a row beyond which numbers would no longer be readable.
MAX_NUMBERED = 24

#: Pixels of a cell, with and without a number in it, and of the narrowest picture.
NUMBERED, BARE, LEAST = 34, 16, 220

DOTS_PER_INCH = 144

_FONT = "Liberation Sans, Arial, sans-serif"


def draw_heatmaps(summary: pl.DataFrame) -> dict[str, bytes]:
    """Draw every task and wrong answer.

    Args:
        summary: table `reduce.SUMMARY`; its ranked nodes are drawn.

    Returns:
        PNG files by name, `heatmap.TASK.WRONG-ANSWER.png`, in the order of the table. A task and wrong answer without a
        single score has none.
    """
    nodes = summary.filter((pl.col("level") == "node") & pl.col("rank").is_not_null())
    return {
        file_name("heatmap", str(task), str(wrong_answer), suffix="png"): vl_convert.vegalite_to_png(
            heatmap(rows, f"{task}, {wrong_answer}: {rows['score_name'][0]}, {rows['n'][0]:,} prompts").to_dict(),
            ppi=DOTS_PER_INCH,
        )
        for (task, wrong_answer), rows in nodes.group_by("task", "wrong_answer", maintain_order=True)
    }


def heatmap(nodes: pl.DataFrame, title: str) -> alt.LayerChart:
    """Draw one row of the summary per head, group and MLP (`component`, `layer`, `score`)."""
    cells = score_cells(nodes)
    columns = cells["column"].unique(maintain_order=True).to_list()
    is_numbered = len(columns) <= MAX_NUMBERED
    size = NUMBERED if is_numbered else BARE
    layers = sorted(cells["layer"].unique().to_list(), reverse=True)
    base = alt.Chart(alt.Data(values=cells.to_dicts())).encode(
        x=alt.X("column:N", title="head", scale=alt.Scale(domain=columns), axis=alt.Axis(labelAngle=0)),
        y=alt.Y("layer:O", title="layer", scale=alt.Scale(domain=layers)),
    )
    colour = alt.Color("share:Q", title="% of the largest", scale=alt.Scale(scheme="cividis", domain=[0, 100]))
    ink = alt.when("datum.share > 48").then(alt.value("black")).otherwise(alt.value("white"))
    numbers = base.mark_text(fontSize=11).encode(text=alt.Text("share:Q", format=".0f"), color=ink)
    marks = [base.mark_rect().encode(color=colour), *([numbers] if is_numbered else [])]
    width, height = max(LEAST, size * len(columns)), size * len(layers)
    chart = alt.LayerChart(layer=marks).properties(title=title, width=width, height=height)
    return chart.configure(font=_FONT, padding=10).configure_axis(ticks=False, domain=False).configure_view(stroke=None)


def score_cells(nodes: pl.DataFrame) -> pl.DataFrame:
    """Cells in the order of columns: `column` (`0`, `1`, ... of heads, `g0` ... of groups, `MLP`), `layer`, `share`."""
    place = pl.col("component").str.extract(r"\.h?(g?\d+)$").fill_null("MLP")
    kind = pl.col("column").str.starts_with("g").cast(pl.Int8) + 2 * (pl.col("column") == "MLP").cast(pl.Int8)
    share = 100 * pl.col("score") / pl.max_horizontal(pl.col("score").max(), pl.lit(1e-300))
    number = pl.col("column").str.extract(r"(\d+)").cast(pl.Int64)
    return nodes.with_columns(column=place, share=share).sort(kind, number, "layer").select("column", "layer", "share")
