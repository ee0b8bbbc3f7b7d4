"""The programs of the two shipped models, whose circuits are published (Conmy et al. 2023, arXiv 2304.14997, app. H).

The models are made by

    cd gbcd/tracr/models
    gbcd compile-tracr gbcd.tracr.programs:xproportion --vocab "w x y z" --max-length 5 --out xproportion
    gbcd compile-tracr gbcd.tracr.programs:reverse --vocab "1 2 3" --max-length 5 --out reverse
"""

# tracr is an optional extra and carries no types
# pyright: reportMissingImports=false

from __future__ import annotations

from tracr.compiler import lib
from tracr.rasp import rasp


def xproportion() -> rasp.SOp:
    """At each position, the fraction of tokens so far that are x."""
    return lib.make_frac_prevs(rasp.tokens == "x")


def reverse() -> rasp.SOp:
    """The tokens in reverse order."""
    return lib.make_reverse(rasp.tokens)
