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
            inputs (the attention output reads the heads side by side). One component: no slicing, either word will do.
    """

    module: str
    input: str
    components: tuple[str, ...]
    axis: Literal["in", "out"]


@dataclass(frozen=True, slots=True)
class GainSite:
    """The gain of a layer norm: `Y = g * normalised(X) + b`; `module` as above, `component` the gain's name."""

    module: str
    component: str


@dataclass(frozen=True, slots=True)
class EmbeddingSites:
    """Embedding and unembedding by dotted path; `position` is None for models without a table of positions.

    `tied` says whether token embedding and unembedding are one matrix.
    """

    token: str
    position: str | None
    unembed: str
    tied: bool


@dataclass(frozen=True, slots=True)
class ModelSites:
    """All sites of a model, in the order of the forward pass.

    `reads_every_token` says whether the model answers at every position (compiled programs) or at the last (language).
    """

    linear: tuple[LinearSite, ...]
    gains: tuple[GainSite, ...]
    embedding: EmbeddingSites
    n_layers: int
    n_heads: int
    d_model: int
    reads_every_token: bool = False
