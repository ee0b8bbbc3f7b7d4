"""Section that opens the page: the highest scores, and after an evaluation what ablation says of them.

Without effects the section says what a score is not; with them every name stands beside its effect, so that a high
score without effect is seen before anything else is read.
"""

from __future__ import annotations

import polars as pl

from gbcd.analysis.shard_values import Key
from gbcd.evaluation.recovery import MEMBER_SHARE
from gbcd.report.charts import Section, Table
from gbcd.report.findings import Findings, Measured
from gbcd.report.methods import effects_of, of_group, truth_of

#: Components that are named for a task and wrong answer, and of a measured circuit.
NAMED, MEMBERS = 5, 8

NBSP = "\N{NO-BREAK SPACE}"

_NAMES = "a3.h5 is head 5 of layer 3, m3 the MLP of layer 3; both count from 0, the input's side first."


def section(findings: Findings) -> Section:
    """The section."""
    measured = findings.measured
    if measured is None:
        text = (
            f"The heads and MLPs with the highest scores, best first. {_NAMES} High scores are where to look and not "
            "proof: early layers come too high, and "
            f"gbcd evaluate {findings.store.location} measures what matters."
        )
        return Section("short", "In short", text, tables=(_scores(findings, None),))
    text = (
        "The heads and MLPs with the highest scores, best first, each with its measured effect in per cent of the gap: "
        f"a high score beside 0 % misleads. {_NAMES}"
    )
    return Section("short", "In short", text, tables=(_scores(findings, measured), _circuits(findings, measured)))


def _scores(findings: Findings, measured: Measured | None) -> Table:
    last = () if measured is None else ("Spearman with effects",)
    rows = [
        (
            group.task,
            group.wrong_answer,
            _named(findings.strongest(group, NAMED), {} if measured is None else _effects(measured, group.task))
            or "none above zero",
            *(() if measured is None else (_correlation(findings, measured, group),)),
        )
        for group in findings.groups
    ]
    return Table("", ("task", "wrong answer", "highest scores", *last), rows, (3,))


def _circuits(findings: Findings, measured: Measured) -> Table:
    tasks = dict.fromkeys(group.task for group in findings.groups)
    return Table("", ("task", "measured circuit"), [(task, _circuit(_effects(measured, task))) for task in tasks])


def _circuit(effects: dict[str, float]) -> str:
    """What carries the behaviour, largest effect first."""
    if not effects:
        return "not measured"
    members = sorted((name for name in effects if abs(effects[name]) >= MEMBER_SHARE), key=lambda n: -abs(effects[n]))
    against = sum(effects[name] < 0 for name in members)
    said = (
        f"{len(members) or 'none'} of {len(effects)} components {'carries' if len(members) < 2 else 'carry'} at least "
        f"{100 * MEMBER_SHARE:.0f} % of the gap"
    )
    opposed = f", {against} of them against the behaviour" if against else ""
    rest = f" and {len(members) - MEMBERS} more" if len(members) > MEMBERS else ""
    return said + opposed + (f": {_named(members[:MEMBERS], effects)}{rest}" if members else "")


def _named(names: list[str], effects: dict[str, float]) -> str:
    """Components with their effects, as far as these were measured; lines break between them only."""
    return ", ".join(f"{name}{NBSP}{round(100 * effects[name])}{NBSP}%" if name in effects else name for name in names)


def _effects(measured: Measured, task: str) -> dict[str, float]:
    """Effects as shares of the gap by component; empty for a task that was not evaluated or has no gap."""
    if task not in measured.effects["task"]:
        return {}
    rows = effects_of(measured, task, truth_of(measured, task)).filter(pl.col("effect").is_finite())
    return dict(rows.select("component", pl.col("effect") / 100).iter_rows())


def _correlation(findings: Findings, measured: Measured, group: Key) -> str:
    if group.task not in measured.effects["task"]:
        return "-"
    figures = of_group(measured.figures, group).filter(
        pl.col("figure") == "spearman",
        pl.col("group") == "all",
        pl.col("truth") == truth_of(measured, group.task),
        pl.col("method") == findings.ranked_by[group],
    )
    value = figures["value"].first()
    return "-" if value is None or value != value else f"{value:.2f}"
