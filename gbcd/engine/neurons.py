"""Attribution of neurons: `(x - x') . g` of every hidden activation of an MLP, summed over positions.

x is what the MLP's last map reads, x' the same in the counterfactual, and g the gradient by it. The map's attribution
is the sum of those of its neurons: `<W, (X - X')^T D> = sum_n (X - X')_n . (D W^T)_n`.
"""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from gbcd.engine.gram import widened
from gbcd.engine.references import Reference, last
from gbcd.models.captured import Gradient, MapGradient


class NeuronScores:
    """Receives the gradients of one backward pass (`Run.backward`)."""

    def __init__(self, nodes: Sequence[str], reference: Reference) -> None:
        """`nodes` are MLPs: `m18`."""
        self._nodes, self._reference = nodes, reference
        self.values: dict[str, Float[Tensor, "prompt neuron"]] = {}

    def __call__(self, gradient: Gradient) -> None:
        """Take in one gradient."""
        if isinstance(gradient, MapGradient) and gradient.axis == "in":
            node = gradient.components[0].split(".")[0]
            if node in self._nodes:
                change = widened(self._reference.difference(gradient.input))
                self.values[node] = (change * widened(last(gradient.d_input, change.shape[1]))).sum(1)
