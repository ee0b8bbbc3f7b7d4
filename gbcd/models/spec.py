"""The vocabulary in which an architecture's file describes a model: its maps, norms, attention and embeddings.

One decoder (`decoder.py`) runs every model from such a description. A file of `families/` builds it from the library's
configuration and names the modules that hold the weights; everything else (norms of gradients, attributions, ablation,
edges) follows from it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from gbcd.component import Axis

#: Cosines and sines of the rotation for the first so many positions.
Rotary = Callable[[int], tuple[Float[Tensor, "pos d_rotary"], Float[Tensor, "pos d_rotary"]]]


@dataclass(frozen=True, slots=True)
class MapSpec:
    """A linear map `Y = X W + b`.

    Attributes:
        module: dotted path of the module inside the model.
        components: the parts that the map is made of, as equal-width slices in the order in which they lie.
        axis: `out` where slices are taken of the outputs (queries, keys, values, the way into an MLP), `in` where they
            are taken of the inputs (the attention output reads the heads side by side; the way out of an MLP).
    """

    module: str
    components: tuple[str, ...]
    axis: Axis


@dataclass(frozen=True, slots=True)
class NormSpec:
    """A norm: `Y = (offset + w) * normalised(X) + b`.

    Attributes:
        module: dotted path.
        component: name of its weight.
        kind: `layer` takes the mean away and divides by the deviation, `rms` divides by the root of the mean square.
        offset: what the module adds to its weight: 1 in Gemma.
    """

    module: str
    component: str
    kind: Literal["layer", "rms"] = "layer"
    offset: float = 0.0


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """Attention of one block.

    Attributes:
        maps: maps that read the normed residual stream; their slices are `a{L}.h{H}.q` and so on.
        out: the map that reads the heads side by side.
        norm: before it; None for models without norms.
        post_norm: of what it writes (Gemma).
        q_norm, k_norm: of queries and keys, one weight for all heads (Qwen3, Gemma 3).
        n_groups: groups of heads that share keys and values; `n_heads` where every head has its own.
        scale: what scores are multiplied by.
        cap: scores become `cap * tanh(scores / cap)` (Gemma 2).
        window: a token sees so many tokens back, itself included.
        rotary: the rotation of queries and keys; None without one.
    """

    maps: tuple[MapSpec, ...]
    out: MapSpec
    norm: NormSpec | None
    n_groups: int
    scale: float
    post_norm: NormSpec | None = None
    q_norm: NormSpec | None = None
    k_norm: NormSpec | None = None
    cap: float | None = None
    window: int | None = None
    rotary: Rotary | None = None


@dataclass(frozen=True, slots=True)
class MlpSpec:
    """MLP of one block: `out(act(gate) * up)`, or `out(act(in))`.

    Attributes:
        maps: into the hidden layer; their slices are `m{L}.in`, or `m{L}.gate` and `m{L}.up`.
        out: back to the residual stream.
        norm, post_norm: before it, and of what it writes.
        activation: the library's name of the function.
    """

    maps: tuple[MapSpec, ...]
    out: MapSpec
    norm: NormSpec | None
    activation: str
    post_norm: NormSpec | None = None


@dataclass(frozen=True, slots=True)
class EmbeddingSpec:
    """Embedding and unembedding by dotted path; `position` is None for models without a table of positions.

    Attributes:
        token: the token embedding.
        position: the table of positions.
        unembed: the unembedding.
        tied: whether token embedding and unembedding are one matrix, as the configuration says.
        scale: what rows of the token embedding are multiplied by.
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
class ModelSpec:
    """A whole model.

    Attributes:
        attentions: attention of each block.
        mlps: MLP of each block, None where it has none.
        final_norm: before the unembedding.
        n_heads: heads of queries.
        parallel: whether attention and MLP of a block both read the block's input.
        causal: whether a token sees only what stands before it.
        reads_every_token: whether the model answers at every position (compiled programs) or at the last (language).
    """

    attentions: tuple[AttentionSpec, ...]
    mlps: tuple[MlpSpec | None, ...]
    final_norm: NormSpec | None
    embedding: EmbeddingSpec
    n_heads: int
    d_model: int
    parallel: bool = False
    causal: bool = True
    reads_every_token: bool = False

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return len(self.attentions)

    @property
    def maps(self) -> tuple[MapSpec, ...]:
        """Every linear map, in the order of the forward pass."""
        found: list[MapSpec] = []
        for attention, mlp in zip(self.attentions, self.mlps, strict=True):
            found += [*attention.maps, attention.out]
            if mlp is not None:
                found += [*mlp.maps, mlp.out]
        return tuple(found)

    @property
    def norms(self) -> tuple[NormSpec, ...]:
        """Every norm, in the order of the forward pass."""
        found: list[NormSpec | None] = []
        for attention, mlp in zip(self.attentions, self.mlps, strict=True):
            found += [attention.norm, attention.q_norm, attention.k_norm, attention.post_norm]
            if mlp is not None:
                found += [mlp.norm, mlp.post_norm]
        return tuple(norm for norm in [*found, self.final_norm] if norm is not None)


def head_parts(layer: int, part: str, n_heads: int) -> tuple[str, ...]:
    """Names of one part of every head of a layer: `a0.h0.q, a0.h1.q, ...`."""
    return tuple(f"a{layer}.h{head}.{part}" for head in range(n_heads))


def shared_parts(layer: int, part: str, n_groups: int, n_heads: int) -> tuple[str, ...]:
    """Names of keys or values: of the groups, or of the heads where each has its own."""
    if n_groups == n_heads:
        return head_parts(layer, part, n_heads)
    return tuple(f"a{layer}.g{group}.{part}" for group in range(n_groups))
