"""The prompts of a study while it is planned: drawn, checked and tokenised, task by task.

They go to a temporary file, because what follows (partners, batches, shards) needs to know all of them: how long the
longest is, which others share a template. What stays in memory does not grow with their number. While one chunk is
checked and written, the next is tokenised.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa

from gbcd import wrong_answers
from gbcd.errors import BadInput
from gbcd.models.load import LoadedModel
from gbcd.printing import counted
from gbcd.prompting.notes import Notes
from gbcd.prompting.outputs import space_of
from gbcd.prompting.prompt import Prompt
from gbcd.prompting.tokens import EncodedPrompt, Tokenised
from gbcd.run.batches import ahead, groups, in_tables_of, lengths
from gbcd.run.compared import CentringCoverage, PartnerPool
from gbcd.run.inputs import InputsWriter, rows_of, table_of
from gbcd.run.trial import solved, try_definitions
from gbcd.study import Study

#: Prompts that are tokenised and written together.
CHUNK = 4096

#: New objects after which Python looks for cycles while prompts are drafted.
COLLECTED = 500_000

#: Prompts that definitions of one's own are tried on.
TRIED = 2

#: Prompts that a note names.
NAMED = 3


@dataclass
class Named:
    """A number of prompts, with the names of the first in order."""

    n: int = 0
    first: list[str] = field(default_factory=list[str])

    def add(self, rows: pa.Table, details: Sequence[str] | None = None) -> None:
        """Count `rows` too; a name has its detail in brackets."""
        self.n += rows.num_rows
        names = rows["id"].to_pylist()
        said = names if details is None else [f"{name} ({one})" for name, one in zip(names, details, strict=True)]
        self.first = sorted(self.first + said)[:NAMED]

    def __str__(self) -> str:
        """`ioi/000001, ioi/000007, ...`."""
        return ", ".join(self.first) + (", ..." if self.n > NAMED else "")


class TaskDraft:
    """The prompts of one task, in their shuffled order.

    Attributes:
        task: its name.
        n_prompts: those that are kept.
        longest: tokens of the longest prompt and its twin together.
        has_wrong_answers: whether each prompt has a wrong answer of its own.
        coverage: which prompts centring statistics cover.
    """

    def __init__(
        self,
        task: str,
        prompts: Iterable[Prompt],
        study: Study,
        loaded: LoadedModel,
        file: InputsWriter,
        on_progress: Callable[[int], None] = lambda done: None,
    ) -> None:
        """Take in `prompts`, and write them to `file`; `on_progress` is told how many are.

        Raises:
            BadInput: a prompt cannot be used, with the reason, or none is left.
        """
        self.task, self.n_prompts, self.longest, self.has_wrong_answers = task, 0, 1, True
        self.coverage = CentringCoverage(task, study.calibration_prompts)
        self._study, self._loaded, self._file = study, loaded, file
        self._partners = PartnerPool(study.seed)
        self._unusual = Notes(loaded.tokenizer)
        self._unsolved, self._unequal, self._without, self._alone = Named(), Named(), Named(), Named()
        with _seldom_collected():
            for chunk in ahead(groups(prompts, CHUNK), lambda chunk: loaded.tokenised(chunk, study.bos)):
                self._add(chunk)
                on_progress(self.n_prompts + self._unsolved.n)
        self._refuse()

    def tables(self) -> Iterator[pa.Table]:
        """All of them, as rows; those without a counterfactual of their length have a partner where there is one."""
        self._alone = Named()
        return map(self._with_partners, self._file.written())

    def first(self, n: int) -> list[EncodedPrompt]:
        """The first `n` of them, or all where there are fewer."""
        return [one for _, one in rows_of(next(in_tables_of(self.tables(), n)))]

    def notes(self) -> list[str]:
        """What a reader should know, in sentences; complete when `tables` has ended."""
        total = counted(self._unsolved.n + self.n_prompts, "prompt")
        said = [
            (self._unsolved, f"of {total} left out, because the model does not solve them"),
            (self._unequal, "counterfactuals not used, because their length is not that of their prompt"),
            (self._alone, "prompts have neither counterfactual nor partner, so no attribution"),
        ]
        counts = [f"{named.n:,} {text}: {named}" for named, text in said if named.n]
        return [f"{self.task}: {note}" for note in counts + self._unusual.sentences()]

    def _with_partners(self, table: pa.Table) -> pa.Table:
        lacking = lengths(table["counterfactual_ids"]) != lengths(table["ids"])
        if not lacking.any():
            return table
        found = [self._partners.with_partner(one) for _, one in rows_of(table.filter(pa.array(lacking)))]
        for name in ("partner_ids", "partner_id"):
            drawn = iter(getattr(one, name) for one in found)
            values = pa.array([next(drawn) if lacks else None for lacks in lacking], table.schema.field(name).type)
            table = table.set_column(table.schema.get_field_index(name), table.schema.field(name), values)
        self._alone.add(table.filter(pa.array(lacking & (lengths(table["partner_ids"]) < 0))))
        return table

    def _add(self, chunk: Tokenised) -> None:
        names, encoded = self._study.wrong_answers, chunk.encoded()
        for name in names:
            wrong_answers.refuse_undefined(wrong_answers.get(name), encoded, space_of(self._loaded.tokenizer))
        if not self.n_prompts:
            try_definitions(names, encoded[:TRIED], self._loaded)
        if self._study.reference == "partner":
            encoded = [replace(one, counterfactual_ids=None) for one in encoded]
        good = solved(encoded, self._loaded) if self._study.only_solved else [True] * len(encoded)
        kept = [one for one, is_good in zip(encoded, good, strict=True) if is_good]
        rows = table_of(encoded, (np.cumsum(good) - 1 + self.n_prompts).tolist())
        self._unsolved.add(rows.filter(pa.array(~np.array(good))))
        self._keep(rows.filter(pa.array(good)), kept)

    def _keep(self, rows: pa.Table, prompts: list[EncodedPrompt]) -> None:
        if not prompts:
            return
        self._unusual.add(prompts)
        self._partners.add(prompts)
        self.coverage.add(rows)
        own, other = lengths(rows["ids"]), lengths(rows["counterfactual_ids"])
        unequal = (other >= 0) & (other != own)
        sizes = [f"{its} tokens, prompt {the}" for its, the in zip(other[unequal], own[unequal], strict=True)]
        self._unequal.add(rows.filter(pa.array(unequal)), sizes)
        self._without.add(rows.filter(pa.array(other != own)))
        self.longest = max(self.longest, int((own + np.maximum(lengths(rows["twin_ids"]), 0)).max()))
        wrong = np.maximum(lengths(rows["wrong_ids"]), lengths(rows["wrong_outputs"]))
        self.has_wrong_answers &= bool((wrong > 0).all())
        self._file.add(rows)
        self.n_prompts += rows.num_rows

    def _refuse(self) -> None:
        if not self.n_prompts:
            raise BadInput(f"{self.task}: the model solves none of {counted(self._unsolved.n, 'prompt')}")
        if self._study.reference == "counterfactual" and self._without.n:
            raise BadInput(
                f"{self.task}: {counted(self._without.n, 'prompt')} without a counterfactual of equal length, which "
                f'reference = "counterfactual" asks for: {self._without}. With reference = "auto" another prompt of '
                "the same template and length takes its place"
            )


@contextmanager
def _seldom_collected() -> Generator[None]:
    """Prompts form no cycles, and to look for them in every chunk takes a fifth of the time of planning."""
    before = gc.get_threshold()
    gc.set_threshold(COLLECTED, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
