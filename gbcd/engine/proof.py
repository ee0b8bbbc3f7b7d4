"""How far a decoder is from the library, as plans record it; apart from `self_check`, which needs torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SelfCheck:
    """How far the decoder is from the library.

    Attributes:
        logits: largest difference of logits, as a share of their standard deviation.
        norms: largest relative error of the norm of a part.
        worst: that part.
        n_blocks: blocks whose norms were compared.
    """

    logits: float
    norms: float
    worst: str
    n_blocks: int
