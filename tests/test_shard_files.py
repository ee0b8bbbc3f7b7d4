from __future__ import annotations

import math
from collections.abc import Callable

import pyarrow as pa
import pytest

from gbcd.engine.tables import COHERENCE, PROMPTS, STATISTICS, ShardTables, norms_schema
from gbcd.run.shard_files import Contents, Expected, UnsoundShardError, check, decode, encode
from gbcd.run.shards import Shard

SHARD = Shard(id=4, task="ioi", start=0, stop=3)
IDS = ["p0", "p1", "p2"]
EXPECTED = Expected(IDS, ("foil",), 2)
STATUS = {"p0": "ok", "p1": "non_finite", "p2": "uncalibrated"}

Rows = list[dict[str, object]]


def prompt_rows() -> Rows:
    return [
        {
            "prompt_id": name, "task": "ioi", "template": "t", "prompt": "x", "answer": "a", "wrong_answer": "foil",
            "wrong_token": None, "n_tokens": 3, "answer_logit": 1.0, "wrong_logit": 0.0, "correct": True,
            "loss": math.nan if status == "non_finite" else 1.0, "status": status,
        }
        for name, status in STATUS.items()
    ]  # fmt: skip


def norm_rows() -> Rows:
    rows: Rows = []
    for name, status in STATUS.items():
        row: dict[str, object] = {"prompt_id": name, "task": "ioi", "template": "t", "wrong_answer": "foil"}
        row |= {statistic: None if status == "non_finite" else [0.5, 0.25] for statistic in STATISTICS}
        if status == "uncalibrated":
            row["centered_grad_norm"] = None
        rows.append(row)
    return rows


def tables(
    change_prompts: Callable[[Rows], object] = lambda rows: None,
    change_norms: Callable[[Rows], object] = lambda rows: None,
) -> ShardTables:
    prompts, norms = prompt_rows(), norm_rows()
    change_prompts(prompts)
    change_norms(norms)
    return ShardTables(
        pa.Table.from_pylist(prompts, schema=PROMPTS),
        pa.Table.from_pylist(norms, schema=norms_schema(2)),
        COHERENCE.empty_table(),
    )


def test_what_is_encoded_is_decoded_again() -> None:
    files = encode(SHARD, tables(), EXPECTED)
    assert files.rows == {"prompts": 3, "norms": 3, "coherence": 0}
    assert files.statuses == {"non_finite": 1, "ok": 1, "uncalibrated": 1}
    assert decode(files.contents).norms.equals(tables().norms)


@pytest.mark.parametrize(
    ("unsound", "said"),
    [
        (tables(change_prompts=lambda rows: rows.pop()), "prompts has 2 rows"),
        (tables(change_norms=lambda rows: rows.pop()), "norms has 2 rows"),
        (tables(change_norms=lambda rows: rows.append(rows[0])), "norms has 4 rows"),
        (tables(change_norms=lambda rows: rows[0].update(prompt_id="p2")), "norms has 3 rows, not one for each"),
        (tables(change_norms=lambda rows: rows[0].update(taylor=[math.inf, 0.0])), "taylor holds values that are not"),
        (tables(change_norms=lambda rows: rows[0].update(grad_norm=None)), "grad_norm is there for other rows"),
        (tables(change_norms=lambda rows: rows[1].update(taylor=[1.0, 1.0])), "taylor is there for other rows"),
        (tables()._replace(norms=norms_schema(3).empty_table()), "norms has the schema"),
    ],
)
def test_tables_that_are_not_whole_are_refused(unsound: ShardTables, said: str) -> None:
    with pytest.raises(UnsoundShardError, match=said):
        check(SHARD, unsound, EXPECTED)


@pytest.mark.parametrize("kind", Contents._fields)
def test_a_flipped_byte_is_noticed_without_the_record(kind: str) -> None:
    """Pages carry checksums; the last bytes are the footer's."""
    contents = encode(SHARD, tables(), EXPECTED).contents
    content = bytearray(getattr(contents, kind))
    content[-3] ^= 255
    with pytest.raises(UnsoundShardError, match="a file is damaged"):
        decode(contents._replace(**{kind: bytes(content)}))
