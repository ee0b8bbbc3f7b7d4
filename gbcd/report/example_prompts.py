"""Section: the prompts that respond most and least, as tokens."""

from __future__ import annotations

from typing import Any

import polars as pl
from transformers import PreTrainedTokenizerBase

from gbcd.analysis.shard_values import Key
from gbcd.errors import BadInput
from gbcd.models.load import load_tokenizer
from gbcd.report.charts import Section, Table, Tokens, answers, key, plain
from gbcd.report.findings import Findings
from gbcd.run.results import prompts

_HELP = (
    "The response of a prompt is the norm of its scores over all heads and MLPs together. Boxes are tokens. Prompts at "
    "either end often share a template, a rare word, or a prediction that the model gets wrong."
)


def section(findings: Findings) -> Section:
    """The section; its tables are one per group and shown with it."""
    try:
        tokenizer, unread = load_tokenizer(findings.plan.study.model), ""
    except BadInput:
        tokenizer, unread = None, " The model's tokenizer is not to be had here, so prompts are shown as plain text."
    rows = _rows(findings)
    tables = {key(index): _table(findings, group, rows, tokenizer) for index, group in enumerate(findings.groups)}
    return Section("examples", "Prompts that respond most and least", _HELP + unread, tables_by_group=tables)


def _rows(findings: Findings) -> dict[tuple[str, str], dict[str, Any]]:
    wanted = {prompt for found in findings.prompts.values() for _, prompt in (*found.most, *found.least)}
    chosen = prompts(findings.store.location).filter(pl.col("prompt_id").is_in(list(wanted))).collect()
    return {(row["prompt_id"], row["wrong_answer"]): row for row in chosen.iter_rows(named=True)}


def _table(
    findings: Findings,
    group: Key,
    rows: dict[tuple[str, str], dict[str, Any]],
    tokenizer: PreTrainedTokenizerBase | None,
) -> Table:
    found = findings.prompts[group]
    ends = (("most", sorted(found.most, reverse=True)), ("least", sorted(found.least, reverse=True)))
    lines = [
        _line(end, abs(response), rows[prompt, group.wrong_answer], tokenizer)
        for end, kept in ends
        for response, prompt in kept
    ]
    header = ("", "response", "prompt", "answer", "template", "model is right")
    return Table(f"{group.task}, {group.wrong_answer}", header, lines, (1,))


def _line(
    end: str, response: float, row: dict[str, Any], tokenizer: PreTrainedTokenizerBase | None
) -> list[str | Tokens]:
    text = row["prompt"] if tokenizer is None else _tokens(row["prompt"], tokenizer)
    return [end, plain(response), text, answers(row["answer"]), row["template"], "yes" if row["correct"] else "no"]


def _tokens(text: str, tokenizer: PreTrainedTokenizerBase) -> Tokens:
    return Tokens(tuple(str(tokenizer.decode([token])) for token in tokenizer(text)["input_ids"]))  # pyright: ignore
