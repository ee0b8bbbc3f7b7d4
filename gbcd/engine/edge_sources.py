"""What nodes write to the residual stream, less what they write in the counterfactual: the sources of edges."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from gbcd.engine.gram import widened
from gbcd.engine.references import aligned
from gbcd.models.decoder import Decoder, Run


def recorded(decoder: Decoder) -> tuple[str, ...]:
    """Values of a run that attribution of edges reads."""
    layers = range(decoder.spec.n_layers)
    return ("x0", *(f"a{layer}.z" for layer in layers), *(f"m{layer}.out" for layer in layers))


class EdgeSources:
    """What every node writes in one run less what it writes in the other; the same for every loss.

    Sources are in the order of edges, so that those before a reader are the first of them. Columns of the batch that
    the other run did not compute are left out: nodes write the same there.

    Attributes:
        first: the first column that is kept.
        everywhere: nodes before the last block, from column `first` on.
        at_answers: all nodes, at the answers.
    """

    def __init__(self, decoder: Decoder, run: Run, other: Run) -> None:
        """Both runs recorded what `recorded` names."""
        self._run, self._decoder, self._other = run, decoder, other
        one_sequence = run.packed.positions.stride(0) == 0
        self.first = run.packed.ids.shape[1] - other.values["x0"].shape[1] if one_sequence else 0
        last = decoder.spec.n_layers - 1
        x0 = self._difference(run.values["x0"], other.values["x0"])
        self.everywhere: Float[Tensor, "source prompt pos d"] = x0.new_empty(self.before(last), *x0.shape)
        self.everywhere[0] = x0
        for layer in range(last):
            self._write(layer, self.everywhere[self.before(layer) : self.before(layer + 1)])
        n_prompts, n_answers = run.packed.answers.shape
        self.at_answers: Float[Tensor, "source prompt seq d"] = x0.new_empty(
            self.before(last + 1), n_prompts, n_answers, x0.shape[2]
        )
        rows = torch.arange(n_prompts, device=x0.device).unsqueeze(1)
        self.at_answers[: self.before(last)] = self.everywhere[:, rows, run.packed.answers - self.first]
        self._write(last, self.at_answers[self.before(last) :])

    def before(self, layer: int) -> int:
        """How many sources stand before `layer`."""
        n_mlps = sum(mlp is not None for mlp in self._decoder.mlps[:layer])
        return 1 + layer * self._decoder.spec.n_heads + n_mlps

    def kept(self, rows: Float[Tensor, "prompt row *d"]) -> Float[Tensor, "prompt kept_row *d"]:
        """Rows from column `first` on, or those at the answers, where they are no more."""
        return rows if rows.shape[1] == self._run.packed.answers.shape[1] else rows[:, self.first :]

    def _write(self, layer: int, place: Float[Tensor, "source prompt row d"]) -> None:
        """What the heads and the MLP of a layer write."""
        decoder, run, other = self._decoder, self._run.values, self._other.values
        name, n_heads = f"a{layer}.z", decoder.spec.n_heads
        here, there = (decoder.head_shares(layer, values[name]) for values in (run, other))
        z = self._difference(here.flatten(2), there.flatten(2)).unflatten(2, (n_heads, -1))
        weight = widened(decoder.head_weights(layer))
        by_head = z.permute(2, 0, 1, 3).reshape(n_heads, -1, z.shape[3])
        torch.bmm(by_head, weight, out=place[:n_heads].flatten(1, 2))
        if decoder.mlps[layer] is not None:
            name = f"m{layer}.out"
            place[n_heads] = self._difference(run[name].squeeze(2), other[name].squeeze(2))

    def _difference(
        self, here: Float[Tensor, "prompt row d"], there: Float[Tensor, "prompt other_row d"]
    ) -> Float[Tensor, "prompt kept_row d"]:
        packed = self._run.packed
        if here.shape[1] == packed.answers.shape[1]:
            return widened(here) - widened(there)
        return widened(self.kept(here)) - widened(aligned(there, packed.positions, at_answers=False))
