"""From a results folder to `ReportData`: its small tables, and of the evaluation what holds.

A table that an evaluation left damaged, or that another version wrote, is named and left out; so is a task without any
finite effect. Neither keeps the rest from being shown.
"""

from __future__ import annotations

from collections.abc import Iterable

import polars as pl

from gbcd.analysis.edges import read_neurons
from gbcd.analysis.nodes import Key
from gbcd.analysis.stored import COUNTS_FILE, EXTREMES_FILE, read_sample
from gbcd.errors import BadInput
from gbcd.evaluation.tables import EDGE_SCORES_FILE, EVALUATION_FILE, TABLES
from gbcd.printing import duration
from gbcd.report.data import EXAMPLES, Measured, ReportData
from gbcd.run.results import EDGES_FILE, SUMMARY_FILE, read_stored
from gbcd.run.status import FolderStatus, folder_status
from gbcd.run.store import Store

#: Edges of a group that are read, the largest of those that are not zero within their intervals.
MAX_EDGES = 2_000

#: Neurons of a group that are read.
MAX_NEURONS = 20


def read_data(out: str) -> ReportData:
    """Read a results folder.

    Raises:
        BadInput: there is no study in it, it was not reduced, or a table that is needed is damaged.
    """
    store = Store(out)
    status = folder_status(out)
    summary = read_stored(store, SUMMARY_FILE)
    keys = summary.select("task", "wrong_answer", "score_name").unique(maintain_order=True)
    scores = {Key(task, wrong_answer): name for task, wrong_answer, name in keys.iter_rows()}
    first_of_tasks = [*{group.task: group for group in reversed(scores)}.values()][::-1]
    counts = read_stored(store, COUNTS_FILE)
    problems = _missing(status)
    return ReportData(
        location=store.location,
        model=status.plan.study.model,
        source=status.plan.study.prompts,
        computed=_computed(status),
        summary=summary,
        examples=pl.DataFrame([_example(store, group, counts) for group in first_of_tasks], schema=EXAMPLES),
        statuses=_shares(
            counts.group_by("task", "column", "value", maintain_order=True).agg(pl.col("n").max()), "status"
        ),
        problems=problems,
        measured=_measured(store, problems),
        edges=_edges(store, scores, problems),
        neurons=_neurons(store, scores),
        samples={group: _sample(store, group, name) for group, name in scores.items() if name is not None},
        extremes=read_stored(store, EXTREMES_FILE),
    )


def _missing(status: FolderStatus) -> list[str]:
    missing, wanted = len(status.left), len(status.plan.shards)
    said = f"{missing} of {wanted} shards are missing; the command that started the study goes on with them."
    return ([said] if missing else []) + [f"Given up: {record.message}." for record in status.given_up]


def _shares(counts: pl.DataFrame, column: str) -> dict[str, int]:
    """Rows of the table of prompts by the value of `column`, as text; those without a value are not among them."""
    rows = counts.filter(pl.col("column") == column).drop_nulls("value")
    return dict(rows.group_by("value", maintain_order=True).agg(pl.col("n").sum()).iter_rows())


def _example(store: Store, group: Key, counts: pl.DataFrame) -> dict[str, object]:
    """A prompt of a task, and how often the model solves it."""
    mine = counts.filter(pl.col("task") == group.task, pl.col("wrong_answer") == group.wrong_answer)

    def share(column: str, value: str) -> float | None:
        found = _shares(mine, column)
        return found.get(value, 0) / sum(found.values()) if found else None

    prompts = read_sample(store, group, ()).prompts.head(1)
    columns = ("prompt", "answer", "wrong_token")
    shown = prompts.select(columns).row(0, named=True) if prompts.height else {"prompt": "-", "answer": "-"}
    return {
        **group._asdict(),
        **shown,
        "n": sum(_shares(mine, "status").values()),
        "correct": share("correct", "true"),
        "above_wrong": share("above_wrong", "true"),
        "partner": share("reference", "partner"),
    }


def _sample(store: Store, group: Key, statistic: str) -> pl.DataFrame:
    sample = read_sample(store, group, (statistic,))
    names = [node.name for node in sample.nodes]
    values = pl.DataFrame(sample.values.get(statistic), schema=dict.fromkeys(names, pl.Float32))
    whole = values.with_columns(sample.prompts["template"]) if values.height else values
    return whole.filter(pl.all_horizontal(pl.col(names).is_finite()))


def _measured(store: Store, problems: list[str]) -> Measured:
    if not store.exists(EVALUATION_FILE):
        return Measured()
    tables: list[pl.DataFrame] = []
    for path, schema in TABLES.items():
        try:
            tables.append(read_stored(store, path))
            lacking = sorted(set(schema) - set(tables[-1].columns))
            why = lacking and f"lacks the columns {', '.join(lacking)}"
        except BadInput:
            why = "cannot be read"
        if why:
            problems.append(f"The evaluation is left out: {path} {why}. Run `gbcd evaluate {store.location}` again.")
            return Measured()
    figures, effects, faithfulness, edge_faithfulness = tables
    usable = pl.col("gap").is_finite() & (pl.col("gap") != 0) & pl.col("value").is_finite()
    kept = effects.filter(usable)
    for task in effects["task"].unique(maintain_order=True).to_list():
        if task not in kept["task"]:
            problems.append(f"The evaluation of {task} is left out: it measured no effect that is a share of a gap.")
    return Measured(figures, kept, faithfulness, edge_faithfulness)


def _edges(store: Store, groups: Iterable[Key], problems: list[str]) -> dict[Key, pl.DataFrame]:
    """The largest edges of every group, in canonical order: of the study, or else those that an evaluation scored."""
    read = _edges_of_study if store.exists(EDGES_FILE) else _edges_of_evaluation
    found: dict[Key, pl.DataFrame] = {}
    for group in groups:
        try:
            largest = read(store, group).with_row_index("_row").top_k(MAX_EDGES, by=pl.col("mean").abs())
            found[group] = largest.sort("_row").drop("_row").collect()
        except (BadInput, pl.exceptions.PolarsError) as error:
            problems.append(f"The edges of {', '.join(group)} are left out: {error}")
    return found


def _neurons(store: Store, groups: Iterable[Key]) -> dict[Key, pl.DataFrame]:
    table = read_neurons(store)
    if table is None:
        return {}
    found = {group: table.filter(**group._asdict()) for group in groups}
    return {group: rows.top_k(MAX_NEURONS, by=pl.col("mean").abs()) for group, rows in found.items()}


def _edges_of_study(store: Store, group: Key) -> pl.LazyFrame:
    is_group = (pl.col("task") == group.task) & (pl.col("wrong_answer") == group.wrong_answer)
    rows = pl.scan_parquet(store.url(EDGES_FILE), glob=False).filter(is_group)
    return rows.select("source", "target", "mean", "ci_low", "ci_high")


def _edges_of_evaluation(store: Store, group: Key) -> pl.LazyFrame:
    """Those between the best components, without intervals."""
    numbers = [pl.lit(None, pl.Float64).alias(name) for name in ("ci_low", "ci_high")]
    if not store.exists(EDGE_SCORES_FILE):
        names = dict.fromkeys(("source", "target"), pl.String())
        return pl.LazyFrame(schema={**names, **dict.fromkeys(("mean", "ci_low", "ci_high"), pl.Float64())})
    rows = pl.scan_parquet(store.url(EDGE_SCORES_FILE), glob=False).filter(
        pl.col("task") == group.task, pl.col("method") == "attribution_patching"
    )
    return rows.select("source", "target", pl.col("score").alias("mean"), *numbers)


def _computed(status: FolderStatus) -> list[tuple[str, str]]:
    """Model, settings, cost, versions: what it takes to do it again."""
    plan, study, compute = status.plan, status.plan.study, status.plan.study.compute
    size = sum(file.bytes for commit in status.commits for file in commit.files.values())
    taken = duration(sum(commit.seconds for commit in status.commits))
    return [
        ("model", f"{study.model}, weights {plan.sources.hashes['model'][:12]}"),
        ("prompts", f"{status.n_prompts:,} of {plan.n_prompts:,}, seed {study.seed}"),
        *([] if study.prompts is None else [("prompt file", study.prompts)]),
        ("computed with", f"{compute.device}, {compute.dtype}, batches of {plan.batch_size}"),
        ("centred by", f"{study.centering}, over up to {study.calibration_prompts:,} prompts of each task"),
        ("cost", f"{taken} of computing, summed over workers; {size / 1e6:,.2f} MB of tables"),
        ("versions", ", ".join(f"{name} {version}" for name, version in plan.sources.versions.items())),
        ("results", status.out),
    ]
