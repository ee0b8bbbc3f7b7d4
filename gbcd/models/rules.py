"""Backward rules: what a backward pass does differently from the true gradient, each a local change.

`plain` is the gradient. The others keep the forward pass and change what is passed back through nonlinear places, since
the gradient of a saturated or normalised place says little about what replacing its input would do:

    relp        the statistics of norms are constants, an activation is multiplication by the constant `act(x) / x`, and
                each factor of a gated product gets half (Jafari et al. 2025, arXiv 2508.21258)
    gim         the statistics of norms are constants, softmax is passed back at twice its temperature, queries and keys
                get a quarter and values half, as factors of products (Edin et al. 2025, arXiv 2505.17630)
    combined    those of relp, softmax as in gim, and half for queries, keys and values too: what serves best where
                nothing is compared with a counterfactual (docs/scores.md)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

RulesName = Literal["plain", "relp", "gim", "combined"]


@dataclass(frozen=True, slots=True)
class Rules:
    """One set of backward rules; without any, the gradient.

    Attributes:
        fixed_norms: the statistics of norms are constants.
        fixed_activations: `act(x)` is `x` times the constant `act(x) / x`.
        split_gates: each factor of `act(gate) * up` is passed half.
        softmax_temperature: softmax is passed back as if scores had been divided by it.
        query_key_share, value_share: what queries and keys, and values, are passed of their gradient.
    """

    name: RulesName
    fixed_norms: bool = False
    fixed_activations: bool = False
    split_gates: bool = False
    softmax_temperature: float = 1.0
    query_key_share: float = 1.0
    value_share: float = 1.0


PLAIN = Rules("plain")

RULES: dict[RulesName, Rules] = {
    "plain": PLAIN,
    "relp": Rules("relp", fixed_norms=True, fixed_activations=True, split_gates=True),
    "gim": Rules("gim", fixed_norms=True, softmax_temperature=2.0, query_key_share=0.25, value_share=0.5),
    "combined": Rules(
        "combined",
        fixed_norms=True,
        fixed_activations=True,
        split_gates=True,
        softmax_temperature=2.0,
        query_key_share=0.5,
        value_share=0.5,
    ),
}
