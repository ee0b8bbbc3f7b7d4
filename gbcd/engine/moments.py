"""What is too much to be kept for each prompt (edges, neurons) is kept as moments over prompts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class PromptMoments:
    """Sums over prompts, which merge exactly: number of prompts; by value the sum, sum of squares, number of
    positive."""

    n: int
    sum: Float[Tensor, " value"]
    sum_sq: Float[Tensor, " value"]
    n_positive: Float[Tensor, " value"]

    @staticmethod
    def of(values: Float[Tensor, "prompt value"]) -> PromptMoments:
        """Moments of some prompts."""
        wide = values.double()
        return PromptMoments(len(wide), wide.sum(0), wide.square().sum(0), (wide > 0).sum(0).double())

    def added(self, other: PromptMoments) -> PromptMoments:
        """Those of both."""
        return PromptMoments(
            self.n + other.n, self.sum + other.sum, self.sum_sq + other.sum_sq, self.n_positive + other.n_positive
        )

    def columns(self) -> dict[str, Any]:
        """Columns of the table `MOMENTS`."""
        return {name: value.cpu().numpy() for name, value in vars(self).items() if name != "n"} | {"n": self.n}
