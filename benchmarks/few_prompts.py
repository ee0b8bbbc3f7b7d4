"""How well a study of few prompts ranks: Spearman of its scores with those of a large one, as `gbcd run` gives both.

    python benchmarks/few_prompts.py

Every study draws its own prompts and takes its means from them, as a user's does; seeds differ. The table is in
docs/findings.md.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import polars as pl
from rich.console import Console

import gbcd
from gbcd.evaluation.agreement import spearman

#: Of the large study, which no small one has.
LARGE_SEED = 9


def ranking(out: Path, task: str, wrong_answers: tuple[str, ...], n_prompts: int, seed: int) -> pl.DataFrame:
    """Heads and MLPs of the summary of a study."""
    study = gbcd.Study(
        tasks=(task,),
        wrong_answers=wrong_answers,
        prompts_per_task=n_prompts,
        seed=seed,
        out=str(out / f"{n_prompts}_{seed}"),
        compute=gbcd.Compute(workers=0),
    )
    run = gbcd.run_study(study, Console(file=io.StringIO()))
    assert run.summary is not None
    return run.summary.filter(pl.col("level") == "node", pl.col("rank").is_not_null()).sort("component")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="ioi")
    parser.add_argument("--wrong-answer", nargs="*", default=[], help="one definition; without one, the default")
    parser.add_argument("--prompts", type=int, nargs="+", default=[16, 32, 64, 128])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--against", type=int, default=512, help="prompts of the study that the others are held against"
    )
    asked = parser.parse_args()
    losses = tuple(asked.wrong_answer)
    with TemporaryDirectory() as folder:
        whole = ranking(Path(folder), asked.task, losses, asked.against, LARGE_SEED)
        for n_prompts in asked.prompts:
            small = [ranking(Path(folder), asked.task, losses, n_prompts, seed) for seed in range(asked.seeds)]
            for name in ("score", "writing_norm_mean"):
                found = [
                    float(spearman(one[name].to_numpy(), whole[name].to_numpy()))
                    if one[name].null_count() == 0
                    else np.nan
                    for one in small
                ]
                print(f"{n_prompts:5d} prompts  {name:18s} {np.mean(found):.2f} ({min(found):.2f} to {max(found):.2f})")


if __name__ == "__main__":
    main()
