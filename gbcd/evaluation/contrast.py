"""Contrast: how far the weight gradient of a prompt is from that of its counterfactual.

What any prompt of this form gives is in both gradients and cancels; what the counterfactual changes is left. Per pair
and part the score is the norm of the difference, exact and without forming a gradient. For one linear map with
inputs X and output gradients D of the prompt (1) and of the counterfactual (2),

    ||G_1 - G_2||^2 = || [X_1; X_2]^T [D_1; -D_2] ||^2

so the pair is one unit (`gbcd.models.units`) whose second sequence enters the loss with a minus. Both sequences
have the prompt's own answers; a target that depends on the prediction is each sequence's own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gbcd import wrong_answers as registry
from gbcd.analysis.nodes import NodeMap
from gbcd.component import Component
from gbcd.engine.engine import loss_gradient, pass_for, scene_of, target_of
from gbcd.engine.part_norms import circuit_norms
from gbcd.evaluation.pairs import Pairs
from gbcd.models.load import LoadedModel
from gbcd.prompting.tokens import EncodedPrompt
from gbcd.wrong_answers import WrongAnswer

#: Forward passes per prompt, a backward pass counted as one: both for the prompt and for its counterfactual.
COST = 4.0


def contrast_norms(
    loaded: LoadedModel, pairs: Pairs, components: Sequence[Component], wrong_answers: Sequence[str]
) -> dict[str, Float[np.ndarray, "prompts components"]]:
    """Norms of differences of gradients, by wrong answer, of `components` (parts or nodes) on every pair.

    Raises:
        BadInput: a wrong answer is not defined for a prompt.
    """
    nodes, model_pass = NodeMap.of(loaded.components), pass_for(loaded)
    names = [part.name for part in loaded.components] + [node.name for node in nodes.nodes]
    chosen = [names.index(component.name) for component in components]
    found = {name: np.zeros((len(pairs.encoded), len(components))) for name in wrong_answers}
    for name in wrong_answers:
        registry.refuse_undefined(registry.get(name), pairs.encoded)
    for batch in pairs.batches:
        prompts = [pairs.encoded[row] for row in batch.rows]
        forward = model_pass.forward([(prompt.ids, prompt.counterfactual_ids or ()) for prompt in prompts])
        for name in wrong_answers:
            d_logits = _contrasted(registry.get(name), prompts, forward.logits, loaded)
            squares = circuit_norms(forward.backward(d_logits), loaded.components, len(prompts))
            parts = squares.double().clamp(min=0).sqrt().T.cpu().numpy()
            found[name][batch.rows] = np.concatenate([parts, nodes.norms(parts)])[chosen].T
    return found


def _contrasted(
    definition: WrongAnswer,
    prompts: Sequence[EncodedPrompt],
    logits: Float[Tensor, "prompt two vocab"],
    loaded: LoadedModel,
) -> Float[Tensor, "prompt two vocab"]:
    """Gradient by the logits of the prompt's loss less the counterfactual's."""
    signed: list[Tensor] = []
    for sequence, sign in ((0, 1), (1, -1)):
        target = target_of(definition, scene_of(prompts, logits[:, sequence], loaded))
        signed.append(sign * loss_gradient(target, logits[:, sequence : sequence + 1])[1])
    return torch.cat(signed, 1)
