"""What the tables of a shard of prompts must hold: each prompt once for every wrong answer, and finite values."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from gbcd.engine.tables import FAILED, NON_FINITE, PROMPTS, STATISTICS, norms_schema
from gbcd.run.work import Tables, UnsoundShardError


def check_norms(tables: Tables, ids: Sequence[str], wrong_answers: Sequence[str], n_components: int) -> None:
    """Refuse tables that lack a prompt or hold a value that is neither finite nor flagged.

    Args:
        tables: `prompts` and `norms`; others are not looked at.
        ids: of the shard's prompts.
        wrong_answers: definitions of the study.
        n_components: values of each statistic.

    Raises:
        UnsoundShardError: says what is wrong.
    """
    schemas = {"prompts": PROMPTS, "norms": norms_schema(n_components)}
    if missing := schemas.keys() - tables.keys():
        raise UnsoundShardError(f"there is no table of {' and '.join(sorted(missing))}")
    wanted = sorted((prompt, wrong) for prompt in ids for wrong in wrong_answers)
    for name, schema in schemas.items():
        table = tables[name]
        if not table.schema.equals(schema):
            raise UnsoundShardError(f"{name} has the schema\n{table.schema}\nnot\n{schema}")
        if sorted(_keys(table)) != wanted:
            raise UnsoundShardError(
                f"{name} has {table.num_rows} rows, not one for each of {len(ids)} prompts and {len(wrong_answers)} "
                "wrong answers"
            )
    _check_finite(tables)


def _check_finite(tables: Tables) -> None:
    """Values are finite where there are any; a prompt without values has the status that says so."""
    statuses = dict(zip(_keys(tables["prompts"]), tables["prompts"]["status"].to_pylist(), strict=True))
    has_values = np.array([statuses[key] not in (NON_FINITE, FAILED) for key in _keys(tables["norms"])])
    for statistic in STATISTICS:
        lists = tables["norms"][statistic].combine_chunks()
        if not np.isfinite(lists.flatten().to_numpy(zero_copy_only=False)).all():
            raise UnsoundShardError(f"{statistic} holds values that are not finite")
        present = np.asarray(lists.is_valid())
        if (present & ~has_values).any() or (statistic == "grad_norm" and not present[has_values].all()):
            raise UnsoundShardError(f"{statistic} is present in other rows than their status says")


def _keys(table: pa.Table) -> list[tuple[str, str]]:
    return list(zip(table["prompt_id"].to_pylist(), table["wrong_answer"].to_pylist(), strict=True))
