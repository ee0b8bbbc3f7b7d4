"""Names of the components of a model, and the one order in which all tables list them.

A *part* is a weight matrix or a slice of one: `a3.h5.q`, `m3.in`. A *node* is what the circuits literature draws as one
vertex, a head or an MLP: `a3.h5`, `m3`; its squared norm is the sum of the squares of its parts. Parts that belong to
no node (layer norms, embeddings) are nodes of their own. Names follow EAP-IG and MIB.

    a{L}.h{H}.q .k .v .o    heads            a{L}.norm  m{L}.norm  final.norm    gains of the layer norms
    m{L}.in .out            MLPs             embed.token  embed.position  unembed  embed.tied

`embed.tied` is the gradient of the matrix that embedding and unembedding share (their sum, cross term included).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: Which side of a linear map its slices (heads) cut: the features that come in, or those that go out.
Axis = Literal["in", "out"]


@dataclass(frozen=True, slots=True)
class Component:
    """One part of the model.

    Attributes:
        name: for example `a3.h5.q`.
        node: the vertex it belongs to, for example `a3.h5`.
        layer: block index from 0; -1 for the embeddings, `n_layers` for the final norm and the unembedding.
        head: head index; None for anything that is not a head.
        part: last piece of the name: `q`, `k`, `v`, `o`, `in`, `out`, `norm`, `token`, ...
        n_params: number of weights (biases are apart).
    """

    name: str
    node: str
    layer: int
    head: int | None
    part: str
    n_params: int

    @property
    def is_circuit_part(self) -> bool:
        """True for parts of heads and MLPs, which are what a circuit is made of."""
        return self.head is not None or self.node == f"m{self.layer}"
