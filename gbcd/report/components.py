"""Sections about all heads and MLPs: where scores lie by layer and head, both scores side by side, and whether
definitions of the wrong answer agree."""

from __future__ import annotations

import altair as alt
import polars as pl

from gbcd.analysis.shard_values import Key
from gbcd.evaluation.agreement import spearman
from gbcd.report.charts import (
    FIND,
    INSIDE,
    Chart,
    Column,
    Control,
    Grid,
    RowHeight,
    Rows,
    Section,
    by_kind,
    data_set,
    frame,
    key,
    kind,
    layered,
)
from gbcd.report.data import ReportData, label
from gbcd.report.dots import dots, marked
from gbcd.report.findings import both_scores

#: Columns beyond which numbers in the cells would no longer be readable, and the share above which they are inverted.
MAX_NUMBERED, STRONG = 18, 60

#: Column between heads and MLPs, empty; name of theirs.
GAP, MLP = " ", "MLP"

#: Pixels of a cell, with a number and without; of a picture with few heads.
CELL, ROW, PLAIN_ROW, MIN_WIDTH = 84, 26, 18, 400

#: Components that are drawn with their intervals.
DRAWN = 20

_SCALES = {"all": "all layers", "layer": "each layer"}


def section(data: ReportData) -> Section | None:
    """Heat map, intervals, both scores against each other, and the table of all components."""
    if not data.groups:
        return None
    return Section(
        "where",
        "All heads and MLPs",
        "Early layers have large norms for any task, so compare within a row first: one colour scale for each layer "
        "shows what stands out there.",
        controls=(
            Control("statistic", "Measure", _statistics(data)["0"], _statistics(data)),
            Control("level", "Of", _levels(data)),
            Control("scale", "One colour scale for", _SCALES),
        ),
        charts=(_heat_map(data), *_intervals(data), *_against(data)),
    )


def _statistics(data: ReportData) -> dict[str, dict[str, str]]:
    """Measures by group: the one that ranks first."""
    found: dict[str, dict[str, str]] = {}
    for index, group in enumerate(data.groups):
        names = [statistic.name for statistic in data.statistics(group)]
        names = sorted(names, key=lambda name: name != data.score_name(group))
        found[key(index)] = {name: label(name) for name in names}
        if data.effects(group.task).height:
            found[key(index)]["effect"] = label("effect")
    return found


def _levels(data: ReportData) -> dict[str, str]:
    parts = pl.concat([data.parts(group).select("part", "component") for group in data.groups])
    of = {part: "MLPs" if name.startswith("m") else "attention" for part, name in parts.iter_rows()}
    return {"node": "whole components"} | {part: f"{part} of {kind}" for part, kind in of.items()}


def _heat_map(data: ReportData) -> Chart:
    tables = {
        key(index, level): _cells(data, group, level)
        for index, group in enumerate(data.groups)
        for level in _levels(data)
    }
    shown = list(dict.fromkeys(name for table in tables.values() for name in table.columns if name in _names(data)))
    across = _across(pl.concat([table["column"] for table in tables.values()]).unique().to_list())
    n_layers = 1 + max(int(table["layer"].max() or 0) for table in tables.values())  # pyright: ignore
    columns = [
        Column("component", "component"),
        *(Column(label(name), name, f"{name}_low", f"{name}_high") for name in shown),
    ]
    return Chart(
        "heatmap",
        "Columns are heads, the last one MLPs; the input is below. In per cent of the largest size; blue is above "
        "zero, orange below.",
        _cells_picture(across, n_layers),
        Rows(tables, columns, ("group", "level")),
        ("statistic", "scale", FIND),
        max_width=max(MIN_WIDTH, CELL * len(across)),
    )


def _names(data: ReportData) -> set[str]:
    return {name for names in _statistics(data).values() for name in names}


def _cells(data: ReportData, group: Key, level: str) -> pl.DataFrame:
    """Every measure of one level of a group; of parts without intervals, which would be most of the file."""
    rows = data.nodes(group) if level == "node" else data.parts(group).filter(pl.col("part") == level)
    measures = [column for statistic in data.statistics(group) for column in statistic.columns()]
    cells = rows.select("component", "layer", *measures, column=pl.col("component").map_elements(_column, pl.String))
    effects = data.effects(group.task)
    cells = cells.join(effects, on="component", how="left", maintain_order="left") if effects.height else cells
    return cells if level == "node" else cells.drop(name for name in cells.columns if name.endswith(_ENDS))


_ENDS = ("_low", "_high")


def _column(component: str) -> str:
    """`5` of head a3.h5 and its parts, `g1` of the group a3.g1, `MLP` of m3."""
    place = component.partition(".")[2].partition(".")[0]
    return MLP if component.startswith("m") else place.removeprefix("h")


def _across(found: list[str]) -> list[str]:
    """Columns: heads, groups, an empty one, MLPs."""
    heads = [name for name in found if name.isdigit()]
    groups = sorted((name for name in found if name.startswith("g")), key=lambda name: int(name[1:]))
    return [*map(str, range(1 + max(map(int, heads), default=-1))), *groups, *([GAP] if heads else []), MLP]


def _cells_picture(across: list[str], n_layers: int) -> alt.LayerChart:
    is_numbered = len(across) <= MAX_NUMBERED
    columns = alt.Axis(labelAngle=0, values=[name for name in across if name != GAP], labelOverlap="greedy")
    rows = alt.Axis(labelOverlap="greedy")
    ends = {"value": "", "low": "_low", "high": "_high"}
    base = (
        alt.Chart(data_set())
        .transform_calculate(**{name: f"datum[statistic + '{end}']" for name, end in ends.items()})
        .transform_filter("isValid(datum.value)")
        .transform_calculate(size="abs(datum.value)")
        .transform_joinaggregate(largest="max(size)")
        .transform_joinaggregate(largest_of_layer="max(size)", groupby=["layer"])
        .transform_calculate(of="scale === 'layer' ? datum.largest_of_layer : datum.largest")
        .transform_calculate(
            share="datum.of > 0 ? 100 * datum.value / datum.of : 0",
            interval="isValid(datum.low) ? format(datum.low, '.3~g') + ' to ' + format(datum.high, '.3~g') : 'none'",
        )
        .encode(
            x=alt.X("column:N", title="head", scale=alt.Scale(domain=across, paddingInner=0.05), axis=columns),
            y=alt.Y(
                "layer:O",
                title="layer",
                scale=alt.Scale(domain=list(range(n_layers))[::-1], paddingInner=0.08),
                axis=rows,
            ),
            tooltip=[
                alt.Tooltip("component:N"),
                alt.Tooltip("value:Q", format=".4~g"),
                alt.Tooltip("interval:N", title="95 % interval"),
                alt.Tooltip("share:Q", title="% of the largest", format=".1f"),
            ],
        )
    )
    legend = alt.Legend(orient="bottom", gradientLength=200, gradientThickness=10, values=[-100, -50, 0, 50, 100])
    scale = alt.Scale(domain=[-100, 0, 100], range="diverging", interpolate="rgb")
    cells = base.mark_rect().encode(
        color=alt.Color("share:Q", title="% of the largest", scale=scale, legend=legend),
    )
    layers = [cells, frame(base)]
    if is_numbered:
        numbers = base.transform_calculate(is_strong=f"abs(datum.share) > {STRONG}")
        weak = numbers.transform_filter("!datum.is_strong").mark_text()
        strong = numbers.transform_filter("datum.is_strong").mark_text(style=INSIDE)
        layers += [one.encode(text=alt.Text("share:Q", format=".0f")) for one in (weak, strong)]
    return layered(*layers, height=n_layers * (ROW if is_numbered else PLAIN_ROW))


def _intervals(data: ReportData) -> list[Chart]:
    """The best components with intervals, by attribution and by norm, in the same rows."""
    best = {key(index): both_scores(data, group).head(DRAWN) for index, group in enumerate(data.groups)}
    tables = {
        name: {key: rows.with_columns(kind=kind()).drop_nulls(name) for key, rows in best.items()}
        for name in ("attribution", "norm")
    }
    has = {name: any(rows.height for rows in of_name.values()) for name, of_name in tables.items()}
    captions = {
        "attribution": f"Attribution of the {DRAWN} highest scores. Where 95 % intervals overlap, the order may turn "
        "with other templates.",
        "norm": "Their norm, in the same order.",
    }
    return [
        Chart(
            f"top_{name}",
            captions[name],
            _interval_picture(name),
            Rows(tables[name], [Column("component", "component"), Column(name, name, f"{name}_low", f"{name}_high")]),
            (FIND,),
            RowHeight("component", 18),
            is_half=all(has.values()),
        )
        for name in captions
        if has[name]
    ]


def _interval_picture(name: str) -> alt.LayerChart:
    order = alt.EncodingSortField("rank", order="ascending")
    base = alt.Chart(data_set()).encode(y=alt.Y("component:N", sort=order, title=None))
    scale = alt.Scale(zero=True)
    points = base.mark_point(filled=True, size=60, opacity=1).encode(
        x=f"{name}:Q",
        tooltip=["rank:Q", "component:N", *(alt.Tooltip(f"{name}{end}:Q", format=".4~g") for end in ("", *_ENDS))],
    )
    lines = base.mark_rule(strokeWidth=2).encode(
        x=alt.X(f"{name}_low:Q", title=f"{name}, mean over prompts", scale=scale),
        x2=f"{name}_high:Q",
        color="kind:N",
    )
    return layered(lines, by_kind(points, has_legend=False))


def _against(data: ReportData) -> list[Chart]:
    """Norm against attribution: what stands high and far from the middle is strong by both."""
    tables = {
        key(index): marked(both_scores(data, group).drop_nulls(["attribution", "norm"]), "attribution", "norm")
        for index, group in enumerate(data.groups)
    }
    if not any(table.height for table in tables.values()):
        return []
    columns = [Column(name, name) for name in ("component", "attribution", "norm", "rank")]
    return [
        Chart(
            "scores",
            "The norm against the attribution. High near zero: the loss pulls hard there, and yet nothing that differs "
            "between prompt and reference passes through. The highest norms and the largest attributions are named.",
            layered(*dots("attribution", "norm", ("attribution", "norm, mean over prompts")), height=320),
            Rows(tables, columns),
            (FIND,),
        )
    ]


def agreement(data: ReportData) -> Section | None:
    """Rank correlations between definitions of the wrong answer; None for a study of one."""
    tasks = {task: [group for group in data.groups if group.task == task] for task in data.tasks}
    if max(map(len, tasks.values()), default=0) < 2:
        return None
    names = list(dict.fromkeys(group.wrong_answer for group in data.groups))
    by_task = {task: _correlations(data, groups, names) for task, groups in tasks.items()}
    rows = Rows(
        {key(index): by_task[group.task] for index, group in enumerate(data.groups)},
        [Column("wrong answer", "one"), *(Column(name, name) for name in names)],
    )
    caption = "Spearman's rank correlation of the scores of all heads and MLPs: 1 is the same order, 0 no relation."
    return Section(
        "agreement",
        "Agreement between wrong answers",
        "Does it matter what the loss pulls towards?",
        grids=(Grid("agreement", caption, rows, len(names)),),
    )


def _correlations(data: ReportData, groups: list[Key], names: list[str]) -> pl.DataFrame:
    scores = {group.wrong_answer: data.nodes(group).select("component", "score") for group in groups}

    def correlation(one: str, other: str) -> float:
        joined = scores[one].join(scores[other], on="component", suffix="_other")
        return float(spearman(joined["score"].to_numpy(), joined["score_other"].to_numpy()))

    rows = [{"one": one, **{name: correlation(one, name) for name in scores}} for one in scores]
    return pl.DataFrame(rows, schema=["one", *names])
