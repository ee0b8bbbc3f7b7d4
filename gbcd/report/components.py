"""Sections about all heads and MLPs: where scores lie by layer and head, both scores side by side, and whether
definitions of the wrong answer agree."""

from __future__ import annotations

import json

import altair as alt
import polars as pl
import polars.selectors as cs

from gbcd.evaluation.recovery import spearman
from gbcd.report.charts import (
    BASE,
    FIND,
    GROUP,
    INSIDE,
    Chart,
    Control,
    Grid,
    RowHeight,
    Rows,
    Section,
    bound,
    by_kind,
    frame,
    key,
    layered,
)
from gbcd.report.data import Group, ReportData, ends, label
from gbcd.report.dots import dots, marked

#: Columns beyond which numbers in the cells would no longer be readable, and the share above which they are inverted.
MAX_NUMBERED, STRONG = 18, 60

#: Column between heads and MLPs, empty; name of theirs.
GAP, MLP = " ", "MLP"

#: Pixels of a cell, with a number and without; of a picture with few heads.
CELL, ROW, PLAIN_ROW, MIN_WIDTH = 84, 26, 18, 400

#: Components that are drawn with their intervals.
DRAWN = 20

#: The level of whole components; others are named for the part.
NODE = "node"

#: Parts in the order of the forward pass.
PARTS = ("q", "k", "v", "o", "in", "gate", "up", "out", "down")


def section(data: ReportData) -> Section | None:
    """Heat map, intervals of the best, and both scores against each other; None without any group."""
    if not data.groups:
        return None
    measures = {group.id: _measures(group) for group in data.groups}
    parts = pl.concat([group.parts.select("part", "component") for group in data.groups])
    of = {part: "MLPs" if name.startswith("m") else "attention" for part, name in parts.iter_rows()}
    levels = {NODE: "whole components"} | {part: f"{part} of {of[part]}" for part in PARTS if part in of}
    return Section(
        "where",
        "All heads and MLPs",
        "Norms are large in early layers for any task, so compare norms within a row first: one colour scale for each "
        "layer shows what stands out there.",
        controls=(
            Control("statistic", "Measure", measures[data.groups[0].id], measures),
            Control("level", "Of", levels),
            Control("scale", "One colour scale for", {"all": "all layers", "layer": "each layer"}),
        ),
        charts=(heat_map(data.groups, list(levels)), *_intervals(data.groups), *_against(data.groups)),
    )


def _measures(group: Group) -> dict[str, str]:
    """Statistics, the one that ranks first, and effects."""
    names = [*group.statistics, *([] if group.truth is None else ["effect"])]
    return {name: label(name) for name in names}


def heat_map(groups: list[Group], levels: list[str]) -> Chart:
    """Every measure of the components of `levels` by layer and head."""
    tables = {key(group.id, level): _cells(group, level) for group in groups for level in levels}
    measures = {name: said for group in groups for name, said in _measures(group).items()}
    places = pl.concat([table.select("column", "layer") for table in tables.values()]).unique()
    found = {
        level: {name for group in groups for name in tables[key(group.id, level)]["column"] if name.startswith("g")}
        for level in levels
    }
    across = {level: _across(places["column"].to_list(), shared) for level, shared in found.items()}
    return Chart(
        "heatmap",
        "Columns are heads, the last one MLPs; the input is below. In per cent of the largest size; blue is above "
        "zero, orange below.",
        _cells_picture(across, 1 + max(places["layer"].to_list())),
        Rows(tables, {"component": "component"} | {said: name for name, said in measures.items()}, (GROUP, "level")),
        ("statistic", "scale", "level", FIND),
        max_width=max(MIN_WIDTH, CELL * max(map(len, across.values()))),
    )


def _cells(group: Group, level: str) -> pl.DataFrame:
    """Every measure of one level of a group; of parts without intervals, which would be most of the file."""
    rows = group.nodes if level == NODE else group.parts.filter(pl.col("part") == level)
    measures = [column for name in group.statistics for column in group.columns(name, name)]
    place = pl.col("component").map_elements(_column, pl.String)
    cells = rows.select("component", "layer", *measures, column=place)
    if group.truth is not None:
        cells = cells.join(group.effects(), on="component", how="left", maintain_order="left")
    return cells if level == NODE else cells.drop(cs.ends_with(*ends("")))


def _column(component: str) -> str:
    """`5` of head a3.h5 and its parts, `g1` of the group a3.g1, `MLP` of m3."""
    place = component.partition(".")[2].partition(".")[0]
    return MLP if component.startswith("m") else place.removeprefix("h")


def _across(found: list[str], groups: set[str]) -> list[str]:
    """Columns: heads, the groups of a level, an empty one, MLPs."""
    heads = [name for name in found if name.isdigit()]
    shared = sorted(groups, key=lambda name: int(name[1:]))
    return [*map(str, range(1 + max(map(int, heads), default=-1))), *shared, *([GAP] if heads else []), MLP]


def _cells_picture(across: dict[str, list[str]], n_layers: int) -> alt.LayerChart:
    """The picture, with the columns `across` of the level that is chosen."""
    is_numbered = max(map(len, across.values())) <= MAX_NUMBERED
    named = {level: [name for name in columns if name != GAP] for level, columns in across.items()}
    domain, shown = (alt.ExprRef(f"({json.dumps(columns)})[level]") for columns in (across, named))
    columns = alt.Axis(labelAngle=0, values=shown, labelOverlap="greedy")
    rows = alt.Axis(labelOverlap="greedy")
    base = (
        BASE.transform_calculate(
            value="datum[statistic]", low="datum[statistic + '_low']", high="datum[statistic + '_high']"
        )
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
            x=alt.X("column:N", title="head", scale=alt.Scale(domain=domain, paddingInner=0.05), axis=columns),
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


def _intervals(groups: list[Group]) -> list[Chart]:
    """The best components with intervals, by attribution and by norm, in the same rows."""
    captions = {
        "attribution": f"Attribution of the {DRAWN} highest scores. Where 95 % intervals overlap, the order may turn "
        "with other templates.",
        "norm": "Their norm, in the same order.",
    }
    tables = {name: {group.id: group.scores.head(DRAWN).drop_nulls(name) for group in groups} for name in captions}
    drawn = [name for name in captions if any(rows.height for rows in tables[name].values())]
    return [interval_chart(f"top_{name}", captions[name], name, tables[name], is_half=len(drawn) > 1) for name in drawn]


def interval_chart(
    name: str, caption: str, value: str, tables: dict[str, pl.DataFrame], what: str = "component", is_half: bool = False
) -> Chart:
    """The column `value` of components, or `what` they are, with intervals, by `rank`."""
    order = alt.EncodingSortField("rank", order="ascending")
    base = BASE.encode(y=alt.Y("component:N", sort=order, title=None))
    low, high = ends(value)
    numbers = [alt.Tooltip(f"{column}:Q", format=".4~g") for column in (value, low, high)]
    points = base.mark_point(filled=True, size=60, opacity=1).encode(
        x=f"{value}:Q", tooltip=["rank:Q", "component:N", *numbers]
    )
    title, scale = f"{value}, mean over prompts", alt.Scale(zero=True)
    lines = base.mark_rule(strokeWidth=2).encode(
        x=alt.X("start:Q", title=title, scale=scale), x2="stop:Q", color="kind:N"
    )
    both = layered(lines, by_kind(points, has_legend=False))
    picture = both.transform_calculate(start=bound(low, value), stop=bound(high, value))
    rows = Rows(tables, {what: "component", value: value})
    return Chart(name, caption, picture, rows, (FIND,), RowHeight("component", 18), is_half=is_half)


def _against(groups: list[Group]) -> list[Chart]:
    """Norm against attribution; none where no group has both."""
    both = {group.id: group.scores.drop_nulls(["attribution", "norm"]) for group in groups}
    if not any(rows.height for rows in both.values()):
        return []
    columns = {name: name for name in ("component", "attribution", "norm", "rank")}
    return [
        Chart(
            "scores",
            "The norm against the attribution. High near zero: the loss pulls hard there, and yet nothing that differs "
            "between prompt and reference passes through. The highest norms and the largest attributions are named.",
            layered(*dots("attribution", "norm", ("attribution", "norm, mean over prompts")), height=320),
            Rows({name: marked(rows, "attribution", "norm") for name, rows in both.items()}, columns),
            (FIND,),
        )
    ]


def agreement(data: ReportData) -> Section | None:
    """Rank correlations between definitions of the wrong answer; None for a study of one."""
    names = list(dict.fromkeys(group.key.wrong_answer for group in data.groups))
    if len(names) < 2:
        return None
    caption = "Spearman's rank correlation of the scores of all heads and MLPs: 1 is the same order, 0 no relation."
    columns = {"wrong answer": "one"} | {name: name for name in names}
    by_task = {
        task: _correlations([group for group in data.groups if group.key.task == task], names)
        for task in {group.key.task for group in data.groups}
    }
    rows = Rows({group.id: by_task[group.key.task] for group in data.groups}, columns)
    text = "Does it matter what the loss pulls towards?"
    grid = Grid("agreement", caption, rows, len(names))
    return Section("agreement", "Agreement between wrong answers", text, grids=(grid,))


def _correlations(groups: list[Group], names: list[str]) -> pl.DataFrame:
    scores = {group.key.wrong_answer: group.nodes.select("component", "score") for group in groups}

    def correlation(one: str, other: str) -> float:
        joined = scores[one].join(scores[other], on="component", suffix="_other")
        return float(spearman(joined["score"].to_numpy(), joined["score_other"].to_numpy()))

    rows = [{"one": one, **{name: correlation(one, name) for name in scores}} for one in scores]
    return pl.DataFrame(rows, schema=["one", *names])
