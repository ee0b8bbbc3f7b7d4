from __future__ import annotations

import math
from collections.abc import Callable

import pyarrow as pa
import pytest

from gbcd.engine.tables import PROMPTS, STATISTICS, norms_schema
from gbcd.run.norms_work import check_norms
from gbcd.run.work import Tables, UnsoundShardError

STATUS = {"p0": "ok", "p1": "non_finite", "p2": "uncalibrated", "p3": "failed"}

Rows = list[dict[str, object]]


def prompt_rows() -> Rows:
    return [
        {"prompt_id": name, "task": "ioi", "wrong_answer": "foil", "status": status} for name, status in STATUS.items()
    ]


def norm_rows() -> Rows:
    rows: Rows = []
    for name, status in STATUS.items():
        row: dict[str, object] = {"prompt_id": name, "task": "ioi", "template": "t", "wrong_answer": "foil"}
        has_values = status not in ("non_finite", "failed")
        row |= {statistic: [0.5, 0.25] if has_values else None for statistic in STATISTICS}
        if status == "uncalibrated":
            row["centered_grad_norm"] = None
        rows.append(row)
    return rows


def tables(
    change_prompts: Callable[[Rows], object] = lambda rows: None,
    change_norms: Callable[[Rows], object] = lambda rows: None,
) -> Tables:
    prompts, norms = prompt_rows(), norm_rows()
    change_prompts(prompts)
    change_norms(norms)
    return {
        "prompts": pa.Table.from_pylist(prompts, schema=PROMPTS),
        "norms": pa.Table.from_pylist(norms, schema=norms_schema(2)),
    }


def check(found: Tables) -> None:
    check_norms(found, list(STATUS), ("foil",), 2)


def test_whole_tables_pass() -> None:
    check(tables())


@pytest.mark.parametrize(
    ("unsound", "said"),
    [
        (tables(change_prompts=lambda rows: rows.pop()), "prompts has 3 rows"),
        (tables(change_norms=lambda rows: rows.pop()), "norms has 3 rows"),
        (tables(change_norms=lambda rows: rows.append(rows[0])), "norms has 5 rows"),
        (tables(change_norms=lambda rows: rows[0].update(prompt_id="p2")), "norms has 4 rows, not one for each"),
        (tables(change_norms=lambda rows: rows[0].update(taylor=[math.inf, 0.0])), "taylor holds values that are not"),
        (tables(change_norms=lambda rows: rows[0].update(grad_norm=None)), "grad_norm is present in other rows"),
        (tables(change_norms=lambda rows: rows[1].update(taylor=[1.0, 1.0])), "taylor is present in other rows"),
        (tables(change_norms=lambda rows: rows[3].update(taylor=[1.0, 1.0])), "taylor is present in other rows"),
        ({**tables(), "norms": norms_schema(3).empty_table()}, "norms has the schema"),
        ({"prompts": tables()["prompts"]}, "there is no table of norms"),
    ],
)
def test_tables_that_are_not_whole_are_refused(unsound: Tables, said: str) -> None:
    with pytest.raises(UnsoundShardError, match=said):
        check(unsound)
