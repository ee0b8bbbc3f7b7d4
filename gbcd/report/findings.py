"""The section that opens the page: the strongest components with both scores, how faithful the circuit is, and where
the norm says something else."""

from __future__ import annotations

from typing import Any

import polars as pl

from gbcd.analysis.ranking import CIRCUIT_SHARE
from gbcd.printing import number
from gbcd.report.charts import Grid, Rows, Section
from gbcd.report.data import Group, ReportData, bounded, label

#: Components that are named in a sentence, and that the two scores are compared on.
NAMED, COMPARED = 5, 10

#: Components of the table.
LISTED = 10

_SCORES = (
    "a3.h5 is head 5 of layer 3, m3 the MLP of layer 3, a3.g1 a group of heads that share keys and values; all count "
    "from 0. The attribution is the first-order estimate of what a component's output adds to the loss, compared with "
    "its output on the reference (the counterfactual, another prompt, or else the mean). The norm says how hard the "
    "loss pulls at the weights by which a component writes, and has no sign."
)


def section(data: ReportData) -> Section:
    """The section; without any group it says so."""
    if not data.groups:
        return Section("found", "What was found", "No component has a finite score, so there is nothing to rank.")
    return Section(
        "found",
        "What was found",
        _SCORES,
        {group.id: [_strongest(data, group), _faithful(data, group), _norm(group)] for group in data.groups},
        grids=(_components(data.groups),),
    )


def _components(groups: list[Group]) -> Grid:
    shown = pl.concat([group.scores for group in groups], how="diagonal_relaxed")
    columns = {
        "component": "component",
        "rank": "rank",
        "attribution": "attribution",
        "same sign, %": "agreement",
        "norm": "norm",
        "rank by norm": "norm_rank",
        "effect, %": "effect",
    }
    caption = (
        "All heads and MLPs. In brackets 95 % intervals with templates as clusters; same sign: share of prompts whose "
        "value has the sign of the mean; effects in per cent of the gap."
    )
    defined = {title: column for title, column in columns.items() if shown[column].is_not_null().any()}
    return Grid("components", caption, Rows({group.id: group.scores for group in groups}, defined), LISTED)


def _strongest(data: ReportData, group: Group) -> str:
    n, of = group.nodes.select("n", "n_prompts").row(0)
    prompts = f"{n:,} prompts" if n == of else f"{n:,} of {of:,} prompts"
    value = "norm" if group.attribution is None else "attribution"
    rows = group.scores.filter(pl.col("score") > 0).head(NAMED)
    named = "; ".join(_described(row, value) for row in rows.iter_rows(named=True)) or "none above zero"
    sign = "" if group.attribution is None else f" Of attributions by {group.key.wrong_answer}: {group.sign}."
    return f"Strongest in {data.called(group.key.task)}, by {label(group.score_name)} over {prompts}: {named}.{sign}"


def _described(row: dict[str, Any], value: str) -> str:
    effect = "" if row["effect"] is None else f", effect {round(row['effect'])} %"
    return f"{row['component']} {bounded(row[value], row[f'{value}_low'], row[f'{value}_high'])}{effect}"


def _faithful(data: ReportData, group: Group) -> str:
    """What the best components keep alone, and how well the score agrees with effects."""
    if not group.is_evaluated:
        return (
            "How faithful: not measured. Scores are first-order estimates and say where to look; "
            f"gbcd evaluate {data.location} ablates every component and runs the circuit alone."
        )
    rows = group.measured.faithfulness.filter(
        pl.col("method") == group.score_name, pl.col("size") == CIRCUIT_SHARE, pl.col("faithfulness").is_finite()
    )
    numbers = rows.select("n_components", pl.col("faithfulness", "ci_low", "ci_high") * 100).head(1)
    said = [f"the best {n} components alone keep {bounded(*kept)} % of the gap" for n, *kept in numbers.iter_rows()]
    figures = {"AUROC": group.figure(group.score_name, "auroc"), "Spearman": group.figure(group.score_name, "spearman")}
    said += [f"{called} with measured effects {value}" for called, value in figures.items() if value is not None]
    return f"How faithful: {'; '.join(said) or 'no figure of this score is finite'}."


def _norm(group: Group) -> str:
    """Where the norm disagrees with the score that ranks."""
    if group.norm is None or group.attribution is None:
        missing = "attribution: no prompt has a reference" if group.attribution is None else "norm"
        return f"There is no {missing}, so there is one score only."
    n = min(COMPARED, group.scores.height // 2)
    first, by_norm = group.scores.head(n), group.scores.sort("norm_rank").head(n)
    only = by_norm.filter(~pl.col("component").is_in(first["component"].to_list()))
    names = ", ".join(_beside(row) for row in only.head(NAMED).iter_rows(named=True))
    others = ", among others" if only.height > NAMED else ""
    correlation = group.figure(group.norm, "spearman")
    return (
        f"What the norm says differently: {n - only.height} of its {n} highest are among the {n} highest of the score."
        + (f" High by the norm only{others}: {names}." if names else "")
        + (f" Its Spearman with measured effects: {correlation}." if correlation else "")
    )


def _beside(row: dict[str, Any]) -> str:
    """A component that the norm overrates, with what speaks against it."""
    if row["effect"] is not None:
        return f"{row['component']} (effect {round(row['effect'])} %)"
    return f"{row['component']} (attribution {number(row['attribution'])}, rank {row['rank']})"
