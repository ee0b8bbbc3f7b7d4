"""How faithful can a circuit of a given size be? Nodes taken out one by one, each time the one that is missed least.

No ranking says which circuit of k nodes is best, not even that by measured effects, since what a node does alone and
what it does beside others differ. Backward elimination looks at the others: from all nodes on, it tries each that is
left and drops the one without which the metric stays highest. That is a search and no proof, so what it reaches is a
lower bound on what can be reached. It is done on other prompts than those that its circuits are then measured on.
"""

from __future__ import annotations

import numpy as np
from gbcd.evaluation.faithfulness import CircuitRunner
from jaxtyping import Float


def elimination_order(runner: CircuitRunner) -> Float[np.ndarray, " components"]:
    """The round in which each component is dropped, from 0 on: what stays longest has the highest score."""
    left = runner.everything
    rounds = np.zeros(len(left))
    for number in range(len(left)):
        candidates = sorted(left)
        metrics = [found[0] for found in runner.run([left - {candidate} for candidate in candidates])]
        dropped = candidates[int(np.argmax(metrics))]
        rounds[dropped] = number
        left -= {dropped}
    return rounds
