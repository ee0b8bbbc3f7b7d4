"""Scores held against measured effects: figures with intervals, and the choice of a score on half of the templates.

Of a score, the mean over prompts is taken (of attributions also of their sizes), and its size held against that of the
mean effect of every node:

    spearman   rank correlation over the nodes
    auroc      of the nodes whose effect is at least `MEMBER` of the gap between prompts and counterfactuals
    top15      how many of the 15 largest effects are among the 15 highest scores

The same is shown for heads and MLPs apart, and for the first, second and last third of the layers.

Intervals are those of `gbcd evaluate`: over draws of whole templates, in which scores and effects are drawn together.
Differences from the score that gbcd ranks by are taken draw by draw: a score is better, or worse, only where the
interval of its difference leaves zero out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from gbcd.analysis.nodes import SIGNED
from gbcd.evaluation.recovery import auroc, spearman
from gbcd.evaluation.resampling import Draws

MEMBER, TOP = 0.05, 15
FIGURES = ("spearman", "auroc", "top15")
_BOUNDS = {"spearman": (-1.0, 1.0), "auroc": (0.0, 1.0), "top15": (0.0, float(TOP))}
#: Statistics that compare with the reference; the others need none.
COMPARED = ("contrast_norm", "attribution", "attribution_signed")

Tables = Mapping[str, np.ndarray]
Row = dict[str, Any]


class Name(NamedTuple):
    """What a score is."""

    loss: str
    rules: str
    statistic: str

    @property
    def compares(self) -> bool:
        return self.statistic in COMPARED


#: What gbcd ranks by where prompts have a reference.
DEFAULT = Name("margin", "plain", "attribution_signed")


def figures(truth: str, tables: Tables, seed: int) -> list[Row]:
    """One row for each score and group of nodes, the best first; none where no prompt has this reference."""
    if not tables:
        return []
    draws = Draws(tables["templates"].tolist(), seed)
    weights = draws.weights
    effects = _means(weights, tables["effects"])
    members = np.abs(effects) >= MEMBER * np.abs(_means(weights, tables["gap"][:, None]))
    rows: list[Row] = []
    scores_of = dict(_scores(tables, weights))
    for group, inside in _groups(tables["nodes"]).items():
        by_name = {
            name: _figures(scores[:, inside], effects[:, inside], members[:, inside])
            for name, scores in scores_of.items()
        }
        default = by_name[DEFAULT]["spearman"] if DEFAULT in by_name else None
        for name, found in by_name.items():
            row: Row = {"truth": truth, "group": group, **name._asdict(), "n_prompts": len(tables["templates"])}
            row |= {"n_templates": len(set(tables["templates"])), "n_members": int(members[0, inside].sum())}
            for figure, values in found.items():
                row |= {figure: float(values[0]), f"{figure}_ci": draws.interval(values, *_BOUNDS[figure])}
            if default is not None:
                row |= {"less_default_ci": draws.interval(found["spearman"] - default, -2.0, 2.0)}
            rows.append(row)
    return sorted(rows, key=lambda row: -row["spearman"])


def held_out(by_truth: Mapping[str, Tables]) -> Iterator[Row]:
    """The best score on one half of the templates, by Spearman, as it does on the other; with and without reference."""
    for truth, tables in by_truth.items():
        if not tables:
            continue
        half = np.unique(tables["templates"], return_inverse=True)[1] % 2
        for compares in (True, False):
            for chosen_on in (0, 1):
                by_half = [_by_name(tables, half == side) for side in (chosen_on, 1 - chosen_on)]
                kept = {name: row for name, row in by_half[0].items() if name.compares == compares}
                name = max(kept, key=lambda one: kept[one]["spearman"])
                row: Row = {"truth": truth, "compares": compares, "half": chosen_on, **name._asdict()}
                yield row | {f"chosen_{figure}": by_half[0][name][figure] for figure in FIGURES} | by_half[1][name]


def _by_name(tables: Tables, kept: Bool[np.ndarray, " prompts"]) -> dict[Name, Row]:
    weights = kept[None].astype(np.float64)
    effects = _means(weights, tables["effects"])
    members = np.abs(effects) >= MEMBER * np.abs(_means(weights, tables["gap"][:, None]))
    return {
        name: {figure: float(values[0]) for figure, values in _figures(scores, effects, members).items()}
        for name, scores in _scores(tables, weights)
    }


def _scores(
    tables: Tables, weights: Float[np.ndarray, "draws prompts"]
) -> Iterator[tuple[Name, Float[np.ndarray, "draws nodes"]]]:
    for key, values in tables.items():
        if key.count("/") == 2:
            name = Name(*key.split("/"))
            yield name, np.abs(_means(weights, values))
            if name.statistic.endswith(SIGNED):
                sizes = name._replace(statistic=name.statistic.removesuffix(SIGNED))
                yield sizes, _means(weights, np.abs(values))


def _means(
    weights: Float[np.ndarray, "draws prompts"], values: Float[np.ndarray, "prompts columns"]
) -> Float[np.ndarray, "draws columns"]:
    """Weighted means over the prompts that have a value."""
    has = np.isfinite(values).all(axis=1)
    return weights[:, has] @ values[has] / weights[:, has].sum(axis=1, keepdims=True)


def _figures(
    scores: Float[np.ndarray, "draws nodes"],
    effects: Float[np.ndarray, "draws nodes"],
    members: Bool[np.ndarray, "draws nodes"],
) -> dict[str, Float[np.ndarray, " draws"]]:
    def first(values: Float[np.ndarray, "draws nodes"]) -> Bool[np.ndarray, "draws nodes"]:
        return np.argsort(np.argsort(-values, axis=1, kind="stable"), axis=1) < TOP

    common = (first(scores) & first(np.abs(effects))).sum(axis=1).astype(np.float64)
    return {"spearman": spearman(scores, effects), "auroc": auroc(scores, members), "top15": common}


def _groups(nodes: np.ndarray) -> dict[str, Bool[np.ndarray, " nodes"]]:
    heads, layers = np.char.startswith(nodes, "a"), layers_of(nodes)
    third = 3 * layers // (layers.max() + 1)
    by_depth = {name: third == number for number, name in enumerate(("early", "middle", "late"))}
    return {"all": np.ones_like(heads), "heads": heads, "mlps": ~heads, **by_depth}


def layers_of(nodes: np.ndarray) -> Int[np.ndarray, " nodes"]:
    """The layer of each node."""
    return np.array([int(name.split(".")[0][1:]) for name in nodes])


def printed(record: Mapping[str, Any]) -> str:
    """Markdown: all scores of each task and truth, best first, and the choice on half of the templates."""
    lines: list[str] = []
    for task, found in record["tasks"].items():
        for truth in dict.fromkeys(row["truth"] for row in found["figures"]):
            rows = [row for row in found["figures"] if row["truth"] == truth]
            lines += _table(f"{task}, effects of resampling by {truth}", rows)
        lines += [
            f"\n## {task}: chosen on half of the templates, judged on the other",
            _line(_HELD),
            _line(["---"] * 9),
        ]
        lines += [_line(_held_cells(row)) for row in found["held_out"]]
    return "\n".join(lines)


_HELD = ("truth", "reference", "loss", "rules", "statistic", "Spearman there", "Spearman", "AUROC", "top 15")


def _held_cells(row: Row) -> list[str]:
    shown = [f"{row[name]:.2f}" for name in ("chosen_spearman", "spearman", "auroc")]
    reference = row["truth"] if row["compares"] else "none"
    return [row["truth"], reference, row["loss"], row["rules"], row["statistic"], *shown, f"{row['top15']:.0f}"]


def _table(title: str, rows: list[Row]) -> list[str]:
    whole = [row for row in rows if row["group"] == "all"]
    n = f"{whole[0]['n_prompts']} prompts, {whole[0]['n_templates']} templates, {whole[0]['n_members']} members"
    apart_by = ("heads", "mlps", "early", "middle", "late")
    headings = ("loss", "rules", "statistic", "Spearman", "less the default's", "AUROC", "top 15", *apart_by)
    lines = [f"\n## {title} ({n})", _line(headings), _line(["---"] * len(headings))]
    apart = {(row["group"], row["loss"], row["rules"], row["statistic"]): row["spearman"] for row in rows}
    for row in whole:
        name = row["loss"], row["rules"], row["statistic"]
        groups = [f"{apart[group, *name]:.2f}" for group in apart_by]
        correlation, *others = (_bounded(row, figure) for figure in FIGURES)
        low, high = row.get("less_default_ci", (np.nan, np.nan))
        lines.append(_line([*name, correlation, f"{low:.2f} to {high:.2f}", *others, *groups]))
    return lines


def _bounded(row: Row, figure: str) -> str:
    low, high = row[f"{figure}_ci"]
    digits = 0 if figure == "top15" else 2
    return f"{row[figure]:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def _line(cells: Any) -> str:
    return f"| {' | '.join(cells)} |"
