"""How norms lie on disk: tidy (a row per prompt and part) against wide (a list per prompt), and how they are encoded.

    python benchmarks/layout.py --prompts 100000

The norms of 2,048 prompts are computed on the shipped model and written again and again under other identifiers. A page
is compressed by itself, so the repetition makes nothing smaller. Times are processor seconds of all threads, with the
files in the page cache: mean per component over all prompts, and the distribution of one part. One JSON object a line.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from gbcd.engine.tables import STATISTICS
from gbcd.pipeline import run_study
from gbcd.run.results import components, shard_tables, unfold
from gbcd.run.store import Store
from gbcd.study import Compute, Study

COMPUTED = 2048

#: Rows of prompts in a file, as `gbcd compact` leaves them.
PER_FILE = 8192

PART = "a2.h3.q"

LISTS = [f"{name}.list.element" for name in STATISTICS]
WIDE: dict[str, Any] = {"use_dictionary": ["prompt_id", "task", "template", "wrong_answer"]}
TIDY: dict[str, Any] = {"use_dictionary": ["prompt_id", "task", "template", "wrong_answer", "component"]}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--prompts", type=int, default=100_000)
    asked = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        norms, parts = computed(f"{folder}/out")
        encodings(norms, Path(folder))
        layouts(norms, parts, Path(folder), asked.prompts)


def computed(out: str) -> tuple[pa.Table, pl.DataFrame]:
    """Norms of the shipped model, wide, and its parts."""
    compute = Compute(workers=0, device="cpu")
    study = Study(tasks=("ioi",), prompts_per_task=COMPUTED, out=out, compute=compute)
    run_study(study, Console(file=io.StringIO()))
    return pa.concat_tables([shard.norms for shard in shard_tables(Store(out))]), components(out).collect()


def encodings(norms: pa.Table, folder: Path) -> None:
    """Bytes per prompt, and seconds to write and read, of one file of computed norms."""
    path = folder / "encoded.parquet"
    for codec, level in (("none", None), ("snappy", None), ("zstd", 1), ("zstd", 3), ("zstd", 9)):
        for split in (False, True):
            options = {**WIDE, "compression": codec, "compression_level": level}
            options["use_byte_stream_split"] = LISTS if split else False
            writing = seconds(partial(pq.write_table, norms, path, **options))
            show(
                measured="encoding",
                codec=codec if level is None else f"{codec} {level}",
                byte_stream_split=split,
                bytes_per_prompt=round(path.stat().st_size / norms.num_rows, 1),
                write_ms=round(1e3 * writing, 1),
                read_ms=round(1e3 * seconds(partial(pq.read_table, path)), 1),
            )


def layouts(norms: pa.Table, parts: pl.DataFrame, folder: Path, n_prompts: int) -> None:
    """The same norms in both layouts: bytes and the two queries."""
    for name in ("wide", "tidy"):
        (folder / name).mkdir()
    for start in range(0, n_prompts, PER_FILE):
        stop = min(start + PER_FILE, n_prompts)
        table = pa.concat_tables(
            [renamed(norms, first, min(COMPUTED, stop - first)) for first in range(start, stop, COMPUTED)]
        )
        path = f"{start:08d}.parquet"
        pq.write_table(table, folder / "wide" / path, compression="zstd", use_byte_stream_split=LISTS, **WIDE)
        rows = unfold(pl.DataFrame(table).lazy(), parts).drop("node", "layer", "head", "part").collect().to_arrow()
        split = list(STATISTICS)
        pq.write_table(rows, folder / "tidy" / path, compression="zstd", use_byte_stream_split=split, **TIDY)
    wide, tidy = (pl.scan_parquet(folder / name / "*.parquet") for name in ("wide", "tidy"))
    for name, table in (("wide, as scan reads it", unfold(wide, parts)), ("tidy", tidy)):
        mean = table.group_by("component").agg(pl.col("grad_norm").mean())
        one = table.filter(pl.col("component") == PART).select("prompt_id", "grad_norm")
        report(name, folder / name.split(",")[0], streamed(mean), streamed(one), n_prompts)
    index = parts["component"].to_list().index(PART)
    one = wide.select("prompt_id", pl.col("grad_norm").arr.get(index))
    mean = seconds(partial(wide_means, folder / "wide"))
    report("wide, by list", folder / "wide", mean, streamed(one), n_prompts)


def streamed(query: pl.LazyFrame) -> float:
    return seconds(partial(query.collect, engine="streaming"))


def wide_means(folder: Path) -> list[float]:
    total, n = 0.0, 0
    for file in sorted(folder.iterdir()):
        lists = pq.read_table(file, columns=["grad_norm"])["grad_norm"].combine_chunks()
        values = lists.flatten().to_numpy().reshape(len(lists), -1)
        total, n = total + values.sum(0, dtype="float64"), n + len(lists)
    return list(total / n)


def renamed(norms: pa.Table, first: int, count: int) -> pa.Table:
    ids = pa.array([f"ioi/{number:06d}" for number in range(first, first + count)])
    return norms.slice(0, count).set_column(0, norms.schema.field(0), ids)


def report(name: str, folder: Path, mean: float, one: float, n_prompts: int) -> None:
    size = sum(file.stat().st_size for file in folder.iterdir())
    show(
        measured="layout",
        layout=name,
        prompts=n_prompts,
        mb=round(size / 1e6, 1),
        bytes_per_prompt=round(size / n_prompts),
        mean_per_component_s=round(mean, 2),
        one_part_s=round(one, 2),
    )


def seconds(work: Callable[[], object]) -> float:
    """Least processor seconds of three goes."""
    found: list[float] = []
    for _ in range(3):
        started = time.process_time()
        work()
        found.append(time.process_time() - started)
    return min(found)


def show(**fields: Any) -> None:
    print(json.dumps(fields), flush=True)


if __name__ == "__main__":
    main()
