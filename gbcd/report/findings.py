"""The section that opens the page: the strongest components with both scores, how faithful the circuit is, and where
the norm says something else."""

from __future__ import annotations

from typing import Any

import polars as pl

from gbcd.analysis.ranking import CIRCUIT_SHARE
from gbcd.analysis.shard_values import Key
from gbcd.report.charts import Column, Grid, Rows, Section, key
from gbcd.report.data import ReportData, Statistic, bounded, label, number

#: Components that are named in a sentence, and that the two scores are compared on.
NAMED, COMPARED = 5, 10

#: Components of the table.
LISTED = 10

_SCORES = (
    "a3.h5 is head 5 of layer 3, m3 the MLP of layer 3; both count from 0. The attribution is the first-order estimate "
    "of what a component's output adds to the loss, compared with its output on the reference (the counterfactual, "
    "another prompt, or else the mean): above zero it works for the right answer, below zero against it. The norm says "
    "how hard the loss pulls at the weights by which a component writes, and has no sign."
)


def section(data: ReportData) -> Section:
    """The section; without any group it says so."""
    if not data.groups:
        return Section("found", "What was found", "No component has a finite score, so there is nothing to rank.")
    groups = {key(index): group for index, group in enumerate(data.groups)}
    return Section(
        "found",
        "What was found",
        _SCORES,
        {name: [_strongest(data, group), _faithful(data, group), _norm(data, group)] for name, group in groups.items()},
        grids=(
            Grid(
                "components",
                "All heads and MLPs. In brackets 95 % intervals with templates as clusters; same sign: share "
                "of prompts whose value has the sign of the mean; effects in per cent of the gap.",
                components(data),
                LISTED,
            ),
        ),
    )


def components(data: ReportData) -> Rows:
    """Both scores of the heads and MLPs of every group, beside their effects."""
    tables = {key(index): both_scores(data, group) for index, group in enumerate(data.groups)}
    shown = pl.concat(tables.values(), how="diagonal_relaxed")
    columns = [
        Column("component", "component"),
        Column("rank", "rank", "rank_ci_low", "rank_ci_high"),
        Column("attribution", "attribution", "attribution_low", "attribution_high"),
        Column("same sign, %", "agreement"),
        Column("norm", "norm", "norm_low", "norm_high"),
        Column("rank by norm", "norm_rank"),
        Column("effect, %", "effect", "effect_low", "effect_high"),
    ]
    return Rows(tables, [column for column in columns if shown[column.value].is_not_null().any()])


def both_scores(data: ReportData, group: Key) -> pl.DataFrame:
    """`rank, component, layer, score`, attribution and norm with intervals, and the effect, best first."""
    nodes = data.nodes(group)
    found = [_named(data.attribution(group), "attribution"), _named(data.norm(group), "norm")]
    attribution = data.attribution(group)
    agreement = "" if attribution is None else f"{attribution.name}_sign_agreement"
    share = 100 * pl.col(agreement) if agreement in nodes.columns else pl.lit(None, pl.Float64)
    return (
        nodes.select(
            *("rank", "rank_ci_low", "rank_ci_high", "component", "layer", "score"),
            *(column for columns in found for column in columns),
            agreement=share,
        )
        .with_columns(norm_rank=pl.col("norm").rank("min", descending=True))
        .join(data.effects(group.task), on="component", how="left", maintain_order="left")
    )


def _named(statistic: Statistic | None, name: str) -> list[pl.Expr]:
    if statistic is None:
        return [pl.lit(None, pl.Float64).alias(f"{name}{end}") for end in ("", "_low", "_high")]
    return [
        column.alias(f"{name}{end}") for column, end in zip(statistic.columns(), ("", "_low", "_high"), strict=True)
    ]


def _strongest(data: ReportData, group: Key) -> str:
    rows = both_scores(data, group).filter(pl.col("score") > 0).head(NAMED)
    n, of = data.nodes(group).select("n", "n_prompts").row(0)
    prompts = f"{n:,} prompts" if n == of else f"{n:,} of {of:,} prompts"
    start = f"Strongest in {data.called(group.task)}, by {label(data.score_name(group))} over {prompts}: "
    if not rows.height:
        return start + "none above zero."
    value = "norm" if rows["attribution"].null_count() == rows.height else "attribution"
    return start + "; ".join(_described(row, value) for row in rows.iter_rows(named=True)) + "."


def _described(row: dict[str, Any], value: str) -> str:
    effect = "" if row["effect"] is None else f", effect {round(row['effect'])} %"
    return f"{row['component']} {bounded(row[value], row[f'{value}_low'], row[f'{value}_high'])}{effect}"


def _faithful(data: ReportData, group: Key) -> str:
    """What the best components keep alone, and how well the scores agree with effects."""
    measured = data.measured
    if measured is None or measured.truth(group.task) is None:
        return (
            "How faithful: not measured. Scores are first-order estimates and say where to look; "
            f"gbcd evaluate {data.location} ablates every component and runs the circuit alone."
        )
    name = data.score_name(group)
    rows = measured.of_group(measured.faithfulness, group).filter(
        pl.col("method") == name, pl.col("size") == CIRCUIT_SHARE, pl.col("faithfulness").is_finite()
    )
    said = [
        f"the best {row['n_components']} components alone keep "
        f"{bounded(100 * row['faithfulness'], *_percent(row))} % of the gap"
        for row in rows.head(1).iter_rows(named=True)
    ]
    figures = {"AUROC": measured.figure(group, name, "auroc"), "Spearman": measured.figure(group, name, "spearman")}
    said += [f"{called} with measured effects {value}" for called, value in figures.items() if value is not None]
    return f"How faithful: {'; '.join(said) or 'no figure of this score is finite'}."


def _percent(row: dict[str, Any]) -> list[float | None]:
    return [None if row[end] is None else 100 * row[end] for end in ("ci_low", "ci_high")]


def _norm(data: ReportData, group: Key) -> str:
    """Where the norm disagrees with the score that ranks."""
    norm, attribution = data.norm(group), data.attribution(group)
    if norm is None or attribution is None:
        missing = "attribution: no prompt has a reference" if attribution is None else "norm"
        return f"There is no {missing}, so there is one score only."
    rows = both_scores(data, group)
    n = min(COMPARED, rows.height // 2)
    first, by_norm = rows.head(n), rows.sort("norm_rank").head(n)
    only = by_norm.filter(~pl.col("component").is_in(first["component"].to_list()))
    shared = n - only.height
    said = f"What the norm says differently: {shared} of its {n} highest are among the {n} highest of the score."
    if only.height:
        names = [_beside(row) for row in only.head(NAMED).iter_rows(named=True)]
        said += f" High by the norm only: {', '.join(names)}."
    correlation = None if data.measured is None else data.measured.figure(group, norm.name, "spearman")
    return said + (f" Its Spearman with measured effects: {correlation}." if correlation else "")


def _beside(row: dict[str, Any]) -> str:
    """A component that the norm overrates, with what speaks against it."""
    if row["effect"] is not None:
        return f"{row['component']} (effect {round(row['effect'])} %)"
    return f"{row['component']} (attribution {number(row['attribution'])}, rank {row['rank']})"
