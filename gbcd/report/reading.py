"""From a results folder to `ReportData`: its small tables, and of the evaluation what holds.

A table that an evaluation left damaged, or that another version wrote, is named and left out; so is a task without any
finite effect. Neither keeps the rest from being shown.
"""

from __future__ import annotations

import io
from datetime import timedelta

import polars as pl

from gbcd.analysis.circuits import Circuit, ends
from gbcd.analysis.shard_values import Key
from gbcd.errors import BadInput
from gbcd.evaluation.tables import (
    EFFECTS,
    EFFECTS_FILE,
    EVALUATION,
    EVALUATION_FILE,
    FAITHFULNESS,
    FAITHFULNESS_FILE,
    edges_file,
)
from gbcd.printing import counted, duration
from gbcd.report.data import Measured, ReportData
from gbcd.run.commits import Commit, read_commits
from gbcd.run.quarantine import quarantined
from gbcd.run.results import SUMMARY_FILE, prompts
from gbcd.run.shards import Plan, read_plan
from gbcd.run.store import Store

#: Edges of a group that are read, largest first.
MAX_EDGES = 1_000

#: Moments of edges, where the study asked for them.
EDGES_FILE = "edges.parquet"


def read_data(out: str) -> ReportData:
    """Read a results folder.

    Raises:
        BadInput: there is no study in it, or it was not reduced.
    """
    store = Store(out)
    plan = read_plan(store)
    if not store.exists(SUMMARY_FILE):
        raise BadInput(f"{store.location!r} holds no {SUMMARY_FILE} (yet): run the study, or `gbcd reduce`")
    commits = read_commits(store)
    summary = _with_score_name(pl.read_parquet(io.BytesIO(store.read(SUMMARY_FILE))))
    groups = [Key(*row) for row in summary.select("task", "wrong_answer").unique(maintain_order=True).iter_rows()]
    problems = _missing(store, plan, commits)
    return ReportData(
        location=store.location,
        model=plan.study.model,
        source=plan.study.prompts,
        wrong_answers=plan.study.wrong_answers,
        computed=_computed(store, plan, commits),
        summary=summary,
        examples=_examples(store),
        statuses=_statuses(commits),
        problems=problems,
        measured=_measured(store, problems),
        edges=_edges(store, groups, problems),
    )


def _missing(store: Store, plan: Plan, commits: list[Commit]) -> list[str]:
    missing = len(plan.shards) - len(commits)
    said = f"{missing} of {len(plan.shards)} shards are missing; the command that started the study goes on with them."
    return ([said] if missing else []) + [f"Given up: {record.in_words}." for record in quarantined(store)]


def _statuses(commits: list[Commit]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for commit in commits:
        for status, count in commit.statuses.items():
            counts[status] = counts.get(status, 0) + count
    return counts


def _measured(store: Store, problems: list[str]) -> Measured | None:
    if not store.exists(EVALUATION_FILE):
        return None
    schemas = {EVALUATION_FILE: EVALUATION, EFFECTS_FILE: EFFECTS, FAITHFULNESS_FILE: FAITHFULNESS}
    tables: list[pl.DataFrame] = []
    for path, schema in schemas.items():
        table = _table(store, path)
        lacking = None if table is None else sorted(set(schema) - set(table.columns))
        if table is None or lacking:
            why = f"lacks the columns {', '.join(lacking)}" if lacking else "cannot be read"
            problems.append(f"The evaluation is left out: {path} {why}. Run `gbcd evaluate {store.location}` again.")
            return None
        tables.append(table)
    figures, effects, faithfulness = tables
    usable = pl.col("gap").is_finite() & (pl.col("gap") != 0) & pl.col("value").is_finite()
    kept = effects.filter(usable)
    for task in effects["task"].unique(maintain_order=True).to_list():
        if task not in kept["task"]:
            problems.append(f"The evaluation of {task} is left out: it measured no effect that is a share of a gap.")
    return Measured(figures, kept, faithfulness) if kept.height else None


def _edges(store: Store, groups: list[Key], problems: list[str]) -> dict[Key, pl.DataFrame]:
    """The largest edges of every group, of the study or else of the evaluation."""
    read = _edges_of_study if store.exists(EDGES_FILE) else _edges_of_evaluation
    found: dict[Key, pl.DataFrame] = {}
    for group in groups:
        try:
            rows = read(store, group)
        except (BadInput, pl.exceptions.PolarsError) as error:
            problems.append(f"The edges of {group.task}, {group.wrong_answer} are left out: {error}")
            continue
        if rows is not None:
            found[group] = rows.filter(pl.col("score").is_finite()).top_k(MAX_EDGES, by=pl.col("score").abs()).collect()
    return found


def _edges_of_study(store: Store, group: Key) -> pl.LazyFrame | None:
    rows = pl.scan_parquet(store.url(EDGES_FILE), glob=False)
    mine = rows.filter(pl.col("task") == group.task, pl.col("wrong_answer") == group.wrong_answer)
    return mine.select("source", "target", score="mean", low="ci_low", high="ci_high")


def _edges_of_evaluation(store: Store, group: Key) -> pl.LazyFrame | None:
    if not store.exists(path := edges_file(*group)):
        return None
    edges = Circuit.from_json(store.read(path), path).edges.items()
    numbers = dict.fromkeys(("score", "low", "high"), pl.Float64())
    return pl.DataFrame(
        [(*ends(name), edge.score, None, None) for name, edge in edges if edge.in_graph],
        schema={"source": pl.String(), "target": pl.String(), **numbers},
        orient="row",
    ).lazy()


def _table(store: Store, path: str) -> pl.DataFrame | None:
    try:
        return pl.read_parquet(io.BytesIO(store.read(path)))
    except (FileNotFoundError, pl.exceptions.PolarsError):
        return None


def _with_score_name(summary: pl.DataFrame) -> pl.DataFrame:
    if "score_name" in summary.columns:
        return summary
    has_writing = pl.col("writing_norm_mean").is_finite().any().over("task", "wrong_answer")
    name = pl.when(has_writing).then(pl.lit("writing_norm")).otherwise(pl.lit("grad_norm"))
    return summary.with_columns(score_name=name)


def _examples(store: Store) -> pl.DataFrame:
    """A prompt of each task, and how often the model solves it."""
    found = prompts(store.location)
    known = found.collect_schema().names()
    above = pl.col("above_wrong").mean() if "above_wrong" in known else pl.lit(None, pl.Float64)
    partner = (pl.col("reference") == "partner").mean() if "reference" in known else pl.lit(None, pl.Float64)
    return (
        found.group_by("task", maintain_order=True)
        .agg(
            pl.col("prompt", "answer").first(),
            n=pl.col("prompt_id").n_unique(),
            correct=pl.col("correct").mean(),
            above_wrong=above,
            partner=partner,
        )
        .collect()
    )


def _computed(store: Store, plan: Plan, commits: list[Commit]) -> list[tuple[str, str]]:
    """Model, settings, cost, versions: what it takes to do it again."""
    study = plan.study
    done = sum(commit.n_prompts for commit in commits)
    return [
        ("model", f"{study.model}, weights {plan.identity.hashes['model'][:12]}"),
        ("prompts", f"{done:,} of {plan.n_prompts:,}, seed {study.seed}"),
        *([] if study.prompts is None else [("prompt file", study.prompts)]),
        ("computed with", f"{study.device}, {study.dtype}, batches of {study.batch_size}, {_threads(study.threads)}"),
        ("centred by", f"{study.centering}, over up to {study.calibration_prompts:,} prompts of each task"),
        ("cost", _cost(commits)),
        ("versions", ", ".join(f"{name} {version}" for name, version in plan.identity.versions.items())),
        ("results", store.location),
    ]


def _threads(n: int) -> str:
    return f"{counted(n, 'thread')} a worker"


def _cost(commits: list[Commit]) -> str:
    if not commits:
        return "nothing is committed"
    seconds = sum(commit.seconds for commit in commits)
    n_prompts = sum(commit.n_prompts for commit in commits)
    size = sum(file.bytes for commit in commits for file in commit.files.values())
    moments = [commit.committed_at for commit in commits]
    spread = max(moments) - min(moments)
    between = f"; {duration(spread.total_seconds())} from the first shard to the last" if spread > timedelta(0) else ""
    rate = f"{n_prompts / seconds:,.0f} prompts/s a worker" if seconds else "too quick to time"
    taken = duration(seconds) if seconds >= 1 else "under 1 s"
    stored = f"{size / 1e6:,.1f} MB" if size >= 1e6 else f"{size / 1e3:,.0f} kB"
    return f"{taken} of computing, summed over workers ({rate}), {stored} of tables{between}"
