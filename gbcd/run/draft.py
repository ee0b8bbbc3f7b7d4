"""The prompts of a study while it is planned: drawn, checked and tokenised, task by task.

They go to a temporary file, because what follows (partners, batches, shards) needs to know all of them: how long the
longest is, which others share a template. What stays in memory does not grow with their number.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

from gbcd import wrong_answers
from gbcd.engine.calibration import Centering
from gbcd.errors import BadInput
from gbcd.models.load import LoadedModel
from gbcd.printing import counted
from gbcd.prompting.notes import Notes
from gbcd.prompting.outputs import space_of
from gbcd.prompting.prompt import Prompt
from gbcd.prompting.tokens import EncodedPrompt
from gbcd.run.answer_logits import solved
from gbcd.run.batches import groups
from gbcd.run.centring_coverage import CentringCoverage
from gbcd.run.inputs import InputsWriter
from gbcd.run.partners import PartnerPool
from gbcd.run.trial import try_definitions
from gbcd.study import Study

#: Prompts that are tokenised and written together.
CHUNK = 1024

#: Prompts that definitions of one's own are tried on.
TRIED = 2

#: Prompts that a note names.
NAMED = 3


@dataclass
class Named:
    """A number of prompts, with the names of the first."""

    n: int = 0
    first: list[str] = field(default_factory=list[str])

    def add(self, prompts: Iterable[EncodedPrompt]) -> None:
        """Count `prompts` too."""
        for one in prompts:
            self.n += 1
            self.first += [one.prompt.id] if self.n <= NAMED else []

    def __str__(self) -> str:
        """`ioi/000001, ioi/000007, ...`."""
        return ", ".join(self.first) + (", ..." if self.n > NAMED else "")


class TaskDraft:
    """The prompts of one task, in their shuffled order. `close` removes the temporary file.

    Attributes:
        task: its name.
        n_prompts: those that are kept.
        longest: tokens of the longest prompt and its twin together.
        has_wrong_answers: whether each prompt has a wrong answer of its own.
        coverage: which prompts centring statistics cover, by what they are centred by.
    """

    def __init__(self, task: str, prompts: Iterable[Prompt], study: Study, loaded: LoadedModel) -> None:
        """Take in `prompts`.

        Raises:
            BadInput: a prompt cannot be used, with the reason, or none is left.
        """
        self.task, self.n_prompts, self.longest, self.has_wrong_answers = task, 0, 1, True
        self.coverage: dict[Centering, CentringCoverage] = {
            "template": CentringCoverage(task, study.calibration_prompts, "template"),
            "position": CentringCoverage(task, study.calibration_prompts, "position"),
        }
        self._study, self._loaded = study, loaded
        self._partners = PartnerPool(study.seed)
        self._unusual = Notes(loaded.tokenizer)
        self._unsolved, self._unequal, self._without, self._alone = Named(), Named(), Named(), Named()
        self._file = InputsWriter()
        with ExitStack() as undo:
            undo.enter_context(self._file)
            for chunk in groups(prompts, CHUNK):
                self._add(chunk)
            self._refuse()
            self._temporary = undo.pop_all()

    def close(self) -> None:
        """Remove the temporary file."""
        self._temporary.close()

    def prompts(self) -> Iterator[EncodedPrompt]:
        """All of them; those without a counterfactual of their length have a partner where there is one."""
        self._alone = Named()
        for chunk in self._file.written():
            for one in chunk:
                found = one if one.reference == "counterfactual" else self._partners.with_partner(one)
                self._alone.add([found] if found.reference == "none" else [])
                yield found

    def notes(self) -> list[str]:
        """What a reader should know, in sentences; complete when `prompts` has ended."""
        total = counted(self._unsolved.n + self.n_prompts, "prompt")
        said = [
            (self._unsolved, f"of {total} left out, because the model does not solve them"),
            (self._unequal, "counterfactuals not used, because their length is not that of their prompt"),
            (self._alone, "prompts have neither counterfactual nor partner, so no attribution"),
        ]
        counts = [f"{named.n:,} {text}: {named}" for named, text in said if named.n]
        return [f"{self.task}: {note}" for note in counts + self._unusual.sentences()]

    def _add(self, chunk: list[Prompt]) -> None:
        encoded = self._encoded(chunk)
        if self._study.only_solved:
            good = solved(encoded, self._loaded)
            self._unsolved.add(one for one, is_good in zip(encoded, good, strict=True) if not is_good)
            encoded = [one for one, is_good in zip(encoded, good, strict=True) if is_good]
        self._unusual.add(encoded)
        if self._study.reference == "partner":
            encoded = [replace(one, counterfactual_ids=None) for one in encoded]
        self._unequal.add(one for one in encoded if one.counterfactual_ids and one.reference == "none")
        self._without.add(one for one in encoded if one.reference == "none")
        self._partners.add(encoded)
        for coverage in self.coverage.values():
            coverage.add(encoded)
        for one in encoded:
            self.longest = max(self.longest, len(one.ids) + len(one.twin_ids or ()))
            self.has_wrong_answers &= bool(one.wrong_ids or (one.outputs and one.outputs.wrong))
        if encoded:
            self._file.add(encoded, range(self.n_prompts, self.n_prompts + len(encoded)))
        self.n_prompts += len(encoded)

    def _encoded(self, chunk: list[Prompt]) -> list[EncodedPrompt]:
        names = self._study.wrong_answers
        encoded = self._loaded.encode(chunk, self._study.bos)
        for name in names:
            wrong_answers.refuse_undefined(wrong_answers.get(name), encoded, space_of(self._loaded.tokenizer))
        if not self.n_prompts:
            try_definitions(names, encoded[:TRIED], self._loaded)
        return encoded

    def _refuse(self) -> None:
        if not self.n_prompts:
            raise BadInput(f"{self.task}: the model solves none of {counted(self._unsolved.n, 'prompt')}")
        if self._study.reference == "counterfactual" and self._without.n:
            raise BadInput(
                f"{self.task}: {counted(self._without.n, 'prompt')} without a counterfactual of equal length, which "
                f'reference = "counterfactual" asks for: {self._without}. With reference = "auto" another prompt of '
                "the same template and length takes its place"
            )
