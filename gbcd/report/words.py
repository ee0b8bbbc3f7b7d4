"""What the report calls things, and what its words mean."""

from __future__ import annotations

from collections.abc import Iterable

from gbcd.analysis.ranking import CIRCUIT_SHARE
from gbcd.evaluation.recovery import MEMBER_SHARE
from gbcd.report.charts import Section, Table

#: Scores by the name that tables give them; others are shown by that name.
METHODS = {
    "writing_norm": "score: writing norm",
    "centered_grad_norm": "centred norm",
    "grad_norm": "gradient norm",
    "taylor": "Taylor, absolute",
    "taylor_signed": "Taylor, signed",
    "contrast_norm": "contrast norm",
    "direct_effect": "direct effect",
    "attribution_patching": "attribution patching",
    "attribution_patching_ig": "attribution patching, IG",
    "hisp": "head importance",
    "weight_norm": "norm of the weights",
    "layer_index": "index of the layer",
    "parameter_count": "number of parameters",
    "random": "random order",
}

_WORDS = {
    "a3.h5, m3": "Head 5 of layer 3 and the MLP of layer 3; both count from 0, the input's side first. Heads have the "
    "parts q, k, v and o, MLPs in and out (gate, up and down where they are gated); g1 is a group of heads that share "
    "keys and values.",
    "wrong answer": "What the loss pulls the model towards. Gradients are of that loss, by the weights, one prompt at "
    "a time.",
    "gradient norm": "Frobenius norm of the gradient of a component's weights: how strongly the loss pulls at them.",
    "centred norm": "The same with the inputs of the weights less their mean over prompts of the same template (or at "
    "the same position, in small studies): what the wording alone gives is taken out.",
    "score: writing norm": "The centred norm of the part by which a component writes to the residual stream: o of a "
    "head, out (or down) of an MLP. Components are ranked by its mean over prompts.",
    "Taylor": "Inner product of weights and gradient: to first order, what removing the component would change.",
    "contrast norm": "Norm of the difference between the gradients of a prompt and of its counterfactual.",
    "direct effect": "What a component adds to the metric on its own way to the logits, past all later components.",
    "attribution patching": "First-order estimate of the effect of resampling; IG averages the gradient over five "
    "steps from counterfactual to prompt.",
    "head importance": "Activation times gradient, absolute (HISP).",
    "95 %": "Interval of a mean if other templates of the same kind had been drawn; templates are clusters. With "
    "one template it is over its prompts alone. Intervals of an evaluation are over prompts, not over templates or "
    "components.",
    "effect": "Drop of the task's metric when a component is replaced by its value on a counterfactual prompt "
    "(resampling), by its mean, or by zero; in per cent of the gap.",
    "gap": "The metric on the prompts less that on their counterfactuals.",
    "measured circuit": f"Components whose effect is at least {MEMBER_SHARE:.0%} of the gap, in either direction.",
    "Spearman": "Rank correlation of scores and sizes of effects: 1 is the same order, 0 no relation.",
    "AUROC, AUPRC": "How well a score tells the measured circuit from the rest: the area under true against false "
    "positives, and under precision against recall. 1 is best; the first is 0.5 by chance.",
    "faithfulness": "Share of the gap that is left when everything outside a circuit is replaced as for an effect.",
    "CPR, CMD": "Area under the curve of faithfulness over the size of the circuit, and area between it and 1: the "
    "first should be large, the second small.",
    "stability": f"Mean overlap (Jaccard) of the best {CIRCUIT_SHARE:.0%} when prompts are drawn anew; 1 is always the "
    "same.",
    "passes": "Forward passes over each prompt that a method takes, a backward pass counted as one.",
}


def method(name: str) -> str:
    """What people call the score that tables call `name`."""
    return METHODS.get(name, name.replace("_", " "))


def by_method(names: Iterable[str]) -> dict[str, str]:
    """The same of several, by name."""
    return {name: method(name) for name in names}


def section() -> Section:
    """The last section."""
    return Section("words", "Words", "", tables=(Table("", ("", ""), list(_WORDS.items())),))
