"""`gbcd evaluate`: how well each score finds what ablation finds, and at what cost."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import polars as pl
import typer
from rich.console import Console

from gbcd.commands import options
from gbcd.commands.report import write as write_report
from gbcd.commands.terminal import console, exit_status, hush_libraries
from gbcd.errors import BadInput
from gbcd.printing import counted, fact, heading, line, table
from gbcd.study import AskedDevice, check_names

if TYPE_CHECKING:
    from gbcd.evaluation.evaluate import Evaluation
    from gbcd.evaluation.patching import Ablation

Ablations = Annotated[
    str,
    typer.Option("--ablations", metavar="LIST", help="How nodes are ablated: resample, mean, zero; comma-separated."),
]
Nodes = Annotated[
    str,
    typer.Option(
        "--nodes", metavar="all|top:N", help="All, or the N best by the study's score and a sample of others."
    ),
]
Budget = Annotated[
    float | None, typer.Option("--budget", metavar="MINUTES", help="As many pairs as fit, up to --pairs.")
]
CircuitFile = Annotated[
    Path | None,
    typer.Option("--circuit", metavar="FILE", help="Judge this circuit (.json, .pt) instead of the study's."),
]

#: Of circuits of edges.
EDGE_FIGURES = ("edge_cpr", "edge_cmd", "edge_cmd_greedy")

#: Heads the difference to the score that ranks.
_LESS = "less the ranking's"

#: The words of the tables.
_LEGEND = {
    "AUROC": "chance that a component with such an effect, either way, has a higher score than one without; 0.5 by "
    "guessing, 1 is best",
    "Spearman": "correlation of the ranks by score with the ranks by size of effect; 1 is best",
    "Less ...": "Spearman, or CMD of circuits of edges, less that of the score that ranks the study; better or worse "
    "only where this interval leaves zero",
    "Passes": "forward passes over one prompt that a score takes, a backward pass counted as one",
}

#: And of those of edges.
_EDGE_LEGEND = {
    "CPR, CMD": "area under faithfulness of growing circuits, higher is better; area between it and 1, lower is better "
    "(greedy: grown from the logits). `edges` is the study's score of edges; of a score of nodes, an edge has that of "
    "its lesser end",
}

#: What the circuits of a file are called.
_JUDGED = {
    "given": "your circuit",
    "as_many_signed": "as many edges, by signed score",
    "as_many_size": "as many edges, by size",
    "signed": "by signed score",
    "size": "by size",
    "cpr": "CPR: area under those by signed score, higher is better",
    "cmd": "CMD: area between 1 and those by size, lower is better",
}

#: The truths that can be shown, best first.
TRUTHS = ("resample", "mean", "zero")


def evaluate(
    out: options.Results,
    pairs: options.Pairs = 128,
    ablations: Ablations = "resample",
    nodes: Nodes = "all",
    budget: Budget = None,
    circuit: CircuitFile = None,
    workers: options.Workers = None,
    device: options.Device = None,
    definitions: options.Definitions = None,
) -> None:
    """Hold a finished study against what components do when they are ablated, and against other methods."""
    with exit_status(resumes=True):
        hush_libraries()
        from gbcd.evaluation.evaluate import evaluate as measure
        from gbcd.run.own_definitions import changed_since, import_definitions, read_definitions
        from gbcd.run.shards import read_plan
        from gbcd.run.store import Store

        files = read_definitions(definitions or ())
        import_definitions(files)
        for file in changed_since(files, read_plan(Store(out))):
            fact(console, "Warning", f"{file} has changed since the study was planned")
        if circuit is not None:
            _judge(out, circuit, pairs, _device(device))
            return
        found = measure(
            out,
            pairs,
            ablations=_ablations(ablations),
            top=_top(nodes),
            budget=budget,
            workers=workers or 0,
            device=_device(device),
            console=console,
            definitions=files,
        )
        show_evaluation(found, out, console)
        write_report(out)
        fact(console, "Next", f"gbcd export {quote(out)} --mib circuits writes the circuit for other tools")


def show_evaluation(evaluation: Evaluation, out: str, console: Console) -> None:
    """Print one table per task and wrong answer, best rank correlation first, and one of circuits of edges."""
    from gbcd.evaluation.recovery import MEMBER_SHARE

    measured = set(evaluation.figures["truth"])
    truth = next(name for name in TRUTHS if name in measured)
    shown = evaluation.figures.filter(
        pl.col("truth") == truth,
        pl.col("group") == "all",
        pl.col("figure").is_in(["auroc", "spearman", "spearman_difference"]),
    )
    for (task, wrong_answer), rows in shown.group_by("task", "wrong_answer", maintain_order=True):
        n_pairs, members, total = (rows[column][0] for column in ("n_pairs", "n_members", "n_components"))
        effects = evaluation.effects.filter(task=task, method=truth)
        heading(
            console,
            f"{task}, {wrong_answer or 'baselines'}: against {truth} ablation on {counted(n_pairs, 'pair')} "
            f"({effects['cost'][0]:.3g} forward passes over each prompt measure them), {members} of {total} components "
            f"with an effect of {MEMBER_SHARE:.0%} of the gap or more" + _sample(effects),
        )
        table(
            console,
            ["score", "AUROC", "Spearman", _LESS, "passes"],
            _methods(rows, ("auroc", "spearman")),
            words=["score"],
        )
    edges = evaluation.figures.filter(pl.col("figure").is_in([*EDGE_FIGURES, "edge_cmd_difference"]))
    for (task,), rows in edges.group_by("task", maintain_order=True):
        heading(console, f"{task}: circuits of edges, as MIB measures them")
        table(
            console,
            ["score", "CPR", "CMD", "CMD, greedy", _LESS, "passes"],
            _methods(rows, EDGE_FIGURES),
            words=["score"],
        )
    console.print()
    for label, meaning in (_LEGEND if edges.is_empty() else _LEGEND | _EDGE_LEGEND).items():
        fact(console, label, meaning)
    for said in _samples(evaluation.effects, out):
        fact(console, "Sample", said)
    for note in evaluation.notes:
        line(console, note)
    fact(console, "Results", f"{out}, tables and circuits")


def _samples(effects: pl.DataFrame, out: str) -> list[str]:
    """Where scores are means over more prompts than effects, once for all tasks of which it is true."""
    from gbcd.evaluation.recovery import sample_of_effects
    from gbcd.run.results import summary

    n = summary(out).group_by("task").agg(pl.col("n").max()).collect()
    pairs = effects.group_by("task", maintain_order=True).agg(pl.col("n_pairs").max())
    said = [sample_of_effects(*row) for row in pairs.join(n, on="task").select("n", "n_pairs").iter_rows()]
    return list(dict.fromkeys(filter(None, said)))


def _sample(effects: pl.DataFrame) -> str:
    sampled = effects.filter(pl.col("weight") > 1)
    if sampled.is_empty():
        return ""
    return f"; {len(effects)} were ablated, {len(sampled)} of them drawn to stand for {sampled['weight'].sum()}"


def _methods(rows: pl.DataFrame, figures: tuple[str, ...]) -> list[tuple[str, ...]]:
    """A line for each score: its figures and the second's difference to that of the score that ranks, with intervals,
    and what it costs; the best second figure first, which of a distance (CMD) is the smallest."""
    found = {
        (str(method), wrong_answer): {row["figure"]: row for row in group.iter_rows(named=True)}
        for (method, wrong_answer), group in rows.group_by("method", "wrong_answer", maintain_order=True)
    }

    def place(key: tuple[str, str | None]) -> float:
        value = found[key][figures[1]]["value"]
        return inf if value is None or value != value else value if figures == EDGE_FIGURES else -value

    several = len({wrong_answer for _, wrong_answer in found}) > 1
    return [
        (
            f"{key[0]}, {key[1]}" if several and key[1] is not None else key[0],
            *(_interval(found[key].get(figure)) for figure in figures),
            _interval(found[key].get(f"{figures[1]}_difference"), signed=True),
            f"{found[key][figures[0]]['cost'] or 0:g}",
        )
        for key in sorted(found, key=place)
    ]


def _interval(row: Mapping[str, Any] | None, signed: bool = False) -> str:
    value, low, high = (None if row is None else row[name] for name in ("value", "ci_low", "ci_high"))
    if value is None or value != value:
        return "-"
    sign = "+z" if signed else "z"  # no zero has a minus
    return (
        f"{value:{sign}.2f}"
        if low is None or high is None
        else f"{value:{sign}.2f} [{low:{sign}.2f}, {high:{sign}.2f}]"
    )


def _judge(out: str, circuit: Path, pairs: int, device: AskedDevice) -> None:
    from gbcd.evaluation.mib import judge

    found = judge(out, circuit, pairs, device)
    for (task,), rows in found.group_by("task", maintain_order=True):
        heading(console, f"{task}: {circuit}")
        by_name = {row["circuit"]: row for row in rows.iter_rows(named=True)}
        lines = [
            (
                _JUDGED[row["circuit"]],
                "" if row["size"] is None else f"{100 * row['size']:.3g} %",
                "" if row["n_edges"] is None else f"{row['n_edges']:,}",
                _interval(row),
            )
            for row in rows.iter_rows(named=True)
        ]
        headings = ["circuit", "share of edges", "edges", "faithfulness (1: the whole model)"]
        table(console, headings, lines, words=["circuit"])
        kept = [
            f"{_JUDGED[name]} {_percent(by_name[name])}"
            for name in ("as_many_signed", "as_many_size")
            if name in by_name
        ]
        fact(console, "Result", "; ".join([f"your circuit keeps {_percent(by_name['given'])} of the gap", *kept]))
    console.print()
    fact(
        console,
        "Faithfulness",
        "share of the gap (the metric on the prompts less that on their counterfactuals) that a circuit keeps when "
        "every other edge carries what it carries in the counterfactual; edges are counted without dead ends",
    )


def _percent(row: Mapping[str, Any]) -> str:
    value, low, high = (row[name] for name in ("value", "ci_low", "ci_high"))
    bounds = "" if low != low else f" [{100 * low:z.0f}, {100 * high:z.0f}]"
    return "-" if value != value else f"{100 * value:z.0f} %{bounds}"


def _ablations(text: str) -> tuple[Ablation, ...]:
    from gbcd.evaluation.patching import Ablation

    names = tuple(dict.fromkeys(text.split(",")))
    check_names("ablation", names, [*get_args(Ablation)], "--ablations takes several, with commas between.")
    return cast("tuple[Ablation, ...]", names)


def _device(text: str | None) -> AskedDevice:
    name = text or "auto"
    check_names("device", (name,), [*get_args(AskedDevice)], "--device takes one.")
    return cast("AskedDevice", name)


def _top(text: str) -> int | None:
    if text == "all":
        return None
    number = text.removeprefix("top:")
    if not text.startswith("top:") or not number.isdigit() or int(number) < 1:
        raise BadInput(f"--nodes: {text!r} is neither `all` nor `top:N`")
    return int(number)
