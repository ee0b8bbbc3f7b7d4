"""Names of the components of a model, and the one order in which all tables list them.

A *part* is a weight matrix or a slice of one: `a3.h5.q`, `m3.in`. A *node* is what the circuits literature draws as one
vertex, a head or an MLP: `a3.h5`, `m3`; its squared norm is the sum of the squares of its parts. Parts that belong to
no node (gains of norms, embeddings) are nodes of their own. Names follow EAP-IG and MIB.

    a{L}.h{H}.q .k .v .o     heads               a{L}.norm  m{L}.norm  final.norm    gains of the norms
    a{L}.g{G}.k .v           groups of heads     a{L}.q_norm .k_norm                 of queries and keys, all heads'
    m{L}.in .out             MLPs                a{L}.post_norm  m{L}.post_norm      after attention and MLP
    m{L}.gate .up .down      gated MLPs          embed.token  embed.position  unembed  embed.tied

Where several heads share keys and values, these belong to the group, a node of its own beside its heads, whose nodes
are then their `q` and `o`. Nothing is shared out: a weight belongs to one node. Where heads have keys and values of
their own there are no groups.

`embed.tied` is the gradient of the matrix that embedding and unembedding share (their sum, cross term included).
"""

from __future__ import annotations

import re
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
        part: last piece of the name: `q`, `k`, `v`, `o`, `in`, `out`, `norm`, `token`, ...; of a node with several
            parts `head`, `group` or `mlp`.
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
        """True for heads and MLPs, which are what a circuit is made of, and for all their parts.

        Keys and values that heads share are parts; the group of both is no node of a circuit, since what it writes is
        what its heads write.
        """
        return self.head is not None or self.node == f"m{self.layer}" or (self.is_group and self.part != "group")

    @property
    def is_group(self) -> bool:
        """True for a group of heads that share keys and values, and for its parts."""
        return self.node.startswith(f"a{self.layer}.g")


def file_name(kind: str, *names: str, suffix: str) -> str:
    """A file's name made of names of tasks and definitions: `circuit.ioi.margin.json`.

    Different names never give one file, and no name leads out of a folder: every character but letters, digits, `_` and
    `-` becomes `=` and its code.
    """
    escaped = (re.sub(r"[^A-Za-z0-9_-]", lambda found: f"={ord(found[0]):x}=", name) for name in names)
    return ".".join([kind, *escaped, suffix])
