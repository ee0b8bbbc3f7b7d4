"""Which score finds the circuit? Every wrong answer and every score against measured effects, on several models.

    python benchmarks/discovery.py --models reference DIR DIR --json benchmarks/results/discovery.json

For each model and language task: resample effects of all heads and MLPs on `--pairs` prompts with their
counterfactuals, baselines on the same prompts, and the engine's norms of `--prompts` prompts for every definition of
the wrong answer (`gradient_scores.py` names the scores). Held against the sizes of mean effects:

    figures      Spearman over all nodes; AUROC of nodes whose effect is at least a tenth of the gap; stability, the
                 mean Jaccard index of circuits of a fifth of the nodes between bootstrap replicas; for some scores also
                 faithfulness of that circuit, CPR, CMD, completeness and minimality (`gbcd.evaluation.faithfulness`).
                 The measured effects themselves, and nodes found by elimination, say what is within reach.
    aggregation  how soon ranks settle with the number of prompts, on `--pool` prompts
    factors      how well patterns that mix separate the tasks
    programs     both compiled programs, part by part

The first model is the one that scores were chosen on; the others are `held out`. `groups.py` says what intervals are.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from discovery_steps.aggregation_curve import mean_curves
from discovery_steps.cells import DEFAULT_ANSWER, DEFAULT_SCORE, Cell, Settings, measure
from discovery_steps.groups import Found, averages, groups_of, with_differences
from discovery_steps.interference import factors_found, specificity_found
from discovery_steps.programs import program_rows
from discovery_steps.tables import printed
from rich.progress import track

from gbcd.versions import versions

LANGUAGE_TASKS = ("ioi", "greater_than", "docstring", "induction")


def main() -> None:
    arguments = _arguments()
    given = vars(arguments)
    cells = _measured(arguments, Settings(**{name: given[name] for name in Settings._fields}))
    settings = {name: value for name, value in given.items() if name not in ("json", "embedding_model", "workers")}
    record = {"versions": versions(), "settings": settings | {"models": _names(arguments.models)}} | _tables(
        cells, arguments.seed
    )
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(record, separators=(",", ":"), allow_nan=False) + "\n")
    for table in filter(None, printed(record)):
        print(table)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Scores and wrong answers against measured effects.")
    parser.add_argument("--models", nargs="+", default=["reference"], help="reference, and folders with other seeds")
    parser.add_argument("--tasks", nargs="+", default=list(LANGUAGE_TASKS))
    parser.add_argument("--prompts", type=int, default=384, help="prompts of each task")
    parser.add_argument("--pairs", type=int, default=96, help="prompts on which effects are measured")
    parser.add_argument("--pool", type=int, default=1024, help="prompts that the curve of aggregation draws from")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="processes, of one thread each")
    parser.add_argument("--embedding-model", help="sentence-embedding model for `semantic`; left out without one")
    parser.add_argument("--json", help="file for all figures")
    return parser.parse_args()


def _names(models: list[str]) -> list[str]:
    return [Path(model).name for model in models]


def _measured(arguments: argparse.Namespace, settings: Settings) -> list[Cell]:
    with ProcessPoolExecutor(arguments.workers, get_context("spawn")) as pool:
        waiting = [
            pool.submit(measure, model, task, settings) for model in arguments.models for task in arguments.tasks
        ]
        return [one.result() for one in track(waiting, description="tasks of models")]


def _tables(cells: list[Cell], seed: int) -> dict[str, list[dict[str, Any]]]:
    by_model: defaultdict[str, list[Cell]] = defaultdict(list)
    for cell in cells:
        by_model[cell.model].append(cell)
    groups = groups_of(list(by_model))
    found, separation = [one for cell in cells for one in cell.found], list[Found]()
    for own in by_model.values():
        if len(own) > 1:
            found += specificity_found(own)
            scores, apart = factors_found(own, seed)
            found, separation = found + scores, separation + apart
    return {
        "figures": list(averages(with_differences(found, DEFAULT_ANSWER, DEFAULT_SCORE), groups)),
        "aggregation": mean_curves([row for cell in cells for row in cell.curves], groups),
        "factors": list(averages(separation, groups)),
        "programs": list(program_rows()),
    }


if __name__ == "__main__":
    main()
