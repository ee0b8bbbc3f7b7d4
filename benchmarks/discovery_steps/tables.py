"""The measurements as Markdown: what `docs/findings.md` quotes, for all models and for those held out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from discovery_steps.aggregation_curve import enough
from discovery_steps.cells import DEFAULT_ANSWER, DEFAULT_SCORE, RAW_SCORE

Row = dict[str, Any]
_QUALITY = ("spearman", "auroc")
_CIRCUITS = ("stability", "faithfulness", "cpr", "cmd", "completeness", "minimality")


def printed(record: dict[str, Any]) -> Iterator[str]:
    """All tables, one after the other, group by group."""
    rows, groups = record["figures"], list(dict.fromkeys(row["group"] for row in record["figures"]))
    together = [group for group in groups if group in ("all", "held out")] or groups
    for group in together:
        own = [row for row in rows if row["group"] == group and row["task"] == "all"]
        yield _scores(f"Plain norm by wrong answer: {group}", own, _QUALITY, lambda row: row["method"] == RAW_SCORE)
        title = f"Default score by wrong answer, with its lead over {DEFAULT_ANSWER}: {group}"
        leads = ("spearman", "spearman_lead", "auroc", "auroc_lead")
        yield _scores(title, own, leads, lambda row: row["method"] == DEFAULT_SCORE)
        yield _scores(f"Scores, {DEFAULT_ANSWER}, and baselines: {group}", own, _QUALITY, _is_default_answer)
        yield _scores(f"Circuits of a fifth of the nodes, and the whole curve: {group}", own, _CIRCUITS, _has_circuit)
        yield _aggregation(group, [row for row in record["aggregation"] if row["group"] == group])
        mixing = [row for row in record["factors"] if row["group"] == group]
        columns = ("purity", "purity_permuted", "auroc_of_tasks", "auroc_of_tasks_permuted")
        yield _scores(f"Factors against tasks: {group}", mixing, columns, lambda _: True)
    yield _each(rows, groups)
    yield _programs(record["programs"])


def markdown(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table with a heading; nothing where there are no rows."""
    if not rows:
        return ""
    lines = [headings, ["---"] * len(headings), *rows]
    return f"\n## {title}\n" + "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def figure(row: Row, name: str) -> str:
    """Estimate, interval over prompts, interval over prompts and models, and range over models where there are any."""
    value = row.get(name)
    if value is None:
        return "-"
    text = f"{value:.2f}"
    if row[f"{name}_ci"][0] is not None:
        text += _bounds(row[f"{name}_ci"])
    if row[f"{name}_ci_models"] is not None:
        text += f"; models{_bounds(row[f'{name}_ci_models'])}, {'{:.2f} to {:.2f}'.format(*row[f'{name}_range'])}"
    return text


def _bounds(bounds: Sequence[float]) -> str:
    return " [{:.2f}, {:.2f}]".format(*bounds)


def _scores(title: str, rows: Sequence[Row], names: Sequence[str], belongs: Callable[[Row], bool]) -> str:
    chosen = sorted(filter(belongs, rows), key=lambda row: -(row.get(names[0]) or 0.0))
    lines = [
        [row["method"], row["wrong_answer"], *(figure(row, name) for name in names), f"{row['cost']:g}"]
        for row in chosen
    ]
    return markdown(title, ["score", "wrong answer", *names, "passes"], lines)


def _is_default_answer(row: Row) -> bool:
    return row["wrong_answer"] in ("", DEFAULT_ANSWER)


def _has_circuit(row: Row) -> bool:
    return "cpr" in row


def _aggregation(group: str, rows: Sequence[Row]) -> str:
    lines: list[list[str]] = []
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        for row in own:
            agreement = [f"{row[name]:.2f} ({row[name + '_sd']:.2f})" for name in ("truth", "whole")]
            lines.append([method, str(row["n"]), *agreement])
        lines.append([method, "enough", f"{enough(own)} prompts are within 0.01 of all", ""])
    title = f"Spearman by number of prompts, mean (standard deviation) over draws: {group}"
    return markdown(title, ["score", "prompts", "with the effects", "with the ranking by all prompts"], lines)


def _each(rows: Sequence[Row], groups: Sequence[str]) -> str:
    """The default score and the baselines to beat, task by task and model by model."""
    methods = (DEFAULT_SCORE, "attribution_patching", "attribution_patching_ig")
    lines = [
        [row["method"], row["group"], row["task"], *(figure(row, name) for name in (*_QUALITY, *_CIRCUITS[:2]))]
        for method in methods
        for group in groups
        for row in rows
        if row["group"] == group and row["method"] == method and _is_default_answer(row)
    ]
    return markdown("By model and task", ["score", "models", "task", *_QUALITY, *_CIRCUITS[:2]], lines)


def _programs(rows: Sequence[Row]) -> str:
    columns = list(dict.fromkeys((row["program"], row["dtype"]) for row in rows))
    names = list(dict.fromkeys((row["wrong_answer"], row["method"]) for row in rows))
    found = {(row["wrong_answer"], row["method"], row["program"], row["dtype"]): row["auroc"] for row in rows}
    lines = [
        [method, answer, *(f"{found[answer, method, *column]:.3f}" for column in columns)] for answer, method in names
    ]
    return markdown("Compiled programs, AUROC of parts", ["score", "wrong answer", *map(" ".join, columns)], lines)
