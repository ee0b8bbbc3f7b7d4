"""Which prompts the centring statistics of a study cover, and what prompts are centred by, known when it is planned.

A position has a mean input only if enough prompts of the calibration sample reach it (`MIN_PROMPTS`), and with the
centring `template` only prompts of the same template count. Prompts beyond that are named here, not guessed at later.
Means by template find the circuit better (docs/findings.md), but a small study has too few prompts of each, so `auto`
takes them where nearly all prompts have them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal

from gbcd.engine.calibration import MIN_PROMPTS, Centering
from gbcd.errors import listed
from gbcd.printing import counted
from gbcd.prompting.tokens import EncodedPrompt

#: Share of prompts without a centred norm above which `auto` does not centre by template.
MAX_MISSED = 0.05


def settled(given: Centering | Literal["auto"], missed: Mapping[Centering, int], n_prompts: int) -> Centering:
    """What prompts are centred by, given how many would have no centred norm under each."""
    if given != "auto":
        return given
    return "template" if missed["template"] <= MAX_MISSED * n_prompts else "position"


class CentringCoverage:
    """Counts the prompts of one task by template and length, in the order in which they are stored."""

    def __init__(self, task: str, sample_size: int, centering: Centering) -> None:
        """The first `sample_size` prompts are the calibration sample."""
        self._task, self._sample_size, self._centering = task, sample_size, centering
        self._seen: Counter[tuple[str, int]] = Counter()
        self._n_seen = 0
        self._sample: dict[str, list[int]] = {}

    def add(self, prompts: Sequence[EncodedPrompt]) -> None:
        """Take in the next prompts."""
        for one in prompts:
            group = one.prompt.template if self._centering == "template" else ""
            if self._n_seen < self._sample_size:
                self._sample.setdefault(group, []).append(len(one.ids))
            self._seen[group, max(len(one.ids), len(one.twin_ids or ()))] += 1
            self._n_seen += 1

    def sample_sizes(self) -> dict[str, int]:
        """How many prompts of the calibration sample each group has."""
        return {group: len(lengths) for group, lengths in self._sample.items()}

    def missed(self) -> int:
        """How many prompts will have no centred norm."""
        return sum(self._missed(self._reach()).values())

    def shortfall(self) -> str | None:
        """What a person should know, or None where every prompt will have a centred norm."""
        reach = self._reach()
        missed = self._missed(reach)
        if not missed:
            return None
        n_sample = min(self._sample_size, self._n_seen)
        why = sorted(_reason(group, length, reach.get(group, 0), count) for (group, length), count in missed.items())
        alike = "length and template" if self._centering == "template" else "length"
        return (
            f"{self._task}: {sum(missed.values()):,} of {counted(self._n_seen, 'prompt')} will have no centred norm. "
            f"It takes {MIN_PROMPTS} prompts of their {alike}, or longer, among the {n_sample:,} calibration prompts:\n"
            f"{listed(why)}"
        )

    def _reach(self) -> dict[str, int]:
        return {group: _reach(lengths) for group, lengths in self._sample.items()}

    def _missed(self, reach: Mapping[str, int]) -> dict[tuple[str, int], int]:
        return {key: count for key, count in self._seen.items() if reach.get(key[0], 0) < key[1]}


def _reach(lengths: Sequence[int]) -> int:
    """The longest prefix that `MIN_PROMPTS` prompts have."""
    longest = sorted(lengths, reverse=True)
    return longest[MIN_PROMPTS - 1] if len(longest) >= MIN_PROMPTS else 0


def _reason(template: str, length: int, reach: int, count: int) -> str:
    whose = f"template {template!r}, " if template else ""
    limit = f"enough up to {reach} tokens" if reach else "too few of any length"
    return f"{whose}{length} tokens: {counted(count, 'prompt')} ({limit})"
