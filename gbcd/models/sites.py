"""Where a model is tapped: the vocabulary in which an architecture describes itself.

An architecture lists the linear maps of its model and says how equal-width slices of their inputs or outputs map to
components. Everything else (norms, Taylor scores, calibration, ablation, patching) is derived from this list.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class LinearSite:
    """A linear map `Y = X W + b`.

    Attributes:
        module: dotted path of the module inside the model.
        input: name of the tensor that it reads; maps that read the same tensor share its Gram matrix and its mean.
        components: the parts that the map is made of, as equal-width slices in the order in which they lie.
        axis: `out` where slices are taken of the outputs (queries, keys, values), `in` where they are taken of the
            inputs (the attention output reads the heads side by side). One component: no slicing; `in` for a map that
            writes to the residual stream, `out` for any other.
    """

    module: str
    input: str
    components: tuple[str, ...]
    axis: Literal["in", "out"]


@dataclass(frozen=True, slots=True)
class GainSite:
    """The gain of a norm: `Y = (offset + w) * normalised(X) + b`.

    Attributes:
        module: as above.
        component: the gain's name.
        kind: `layer` takes the mean away and divides by the deviation, `rms` divides by the root of the mean square.
        offset: what the module adds to its weight: 1 in Gemma.
        heads: for norms of queries and keys, whose input has four dimensions, the one that counts heads.
    """

    module: str
    component: str
    kind: Literal["layer", "rms"] = "layer"
    offset: float = 0.0
    heads: Literal[1, 2] | None = None


@dataclass(frozen=True, slots=True)
class EmbeddingSites:
    """Embedding and unembedding by dotted path; `position` is None for models without a table of positions.

    Attributes:
        token: the token embedding.
        position: the table of positions.
        unembed: the unembedding.
        tied: whether token embedding and unembedding are one matrix.
        scale: what rows of the token embedding are multiplied by; only models without a table of positions do.
        first_position: row of the table that position 0 reads.
        logit_cap: logits are `cap * tanh(unembedded / cap)` (Gemma 2), or are not capped.
    """

    token: str
    position: str | None
    unembed: str
    tied: bool
    scale: float = 1.0
    first_position: int = 0
    logit_cap: float | None = None


@dataclass(frozen=True, slots=True)
class ModelSites:
    """All sites of a model, in the order of the forward pass.

    Attributes:
        linear, gains, embedding: where parts lie.
        n_layers, n_heads, d_model: shape; `n_heads` counts queries.
        reads_every_token: whether the model answers at every position (compiled programs) or at the last (language).
        parallel: whether attention and MLP of a block both read the block's input.
        keeps_positions: whether every module sees tokens on the second axis, so that the last block can be cut to the
            answers; False for a model that lays rows of a batch end to end.
    """

    linear: tuple[LinearSite, ...]
    gains: tuple[GainSite, ...]
    embedding: EmbeddingSites
    n_layers: int
    n_heads: int
    d_model: int
    reads_every_token: bool = False
    parallel: bool = False
    keeps_positions: bool = True


def head_parts(layer: int, part: str, n_heads: int) -> tuple[str, ...]:
    """Names of one part of every head of a layer: `a0.h0.q, a0.h1.q, ...`."""
    return tuple(f"a{layer}.h{head}.{part}" for head in range(n_heads))


def shared_parts(layer: int, part: str, n_groups: int, n_heads: int) -> tuple[str, ...]:
    """Names of keys or values: of the groups, or of the heads where each has its own."""
    if n_groups == n_heads:
        return head_parts(layer, part, n_heads)
    return tuple(f"a{layer}.g{group}.{part}" for group in range(n_groups))


def mlp_sites(layer: int, module_in: str, module_out: str) -> tuple[LinearSite, LinearSite]:
    """The two maps of an MLP without a gate, by their dotted paths: into its hidden layer, and back."""
    return (
        LinearSite(module_in, f"m{layer}.in", (f"m{layer}.in",), "out"),
        LinearSite(module_out, f"m{layer}.out", (f"m{layer}.out",), "in"),
    )
