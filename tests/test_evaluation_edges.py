"""Edges of every architecture; `test_transformer_lens.py` has GPT-2's against values of another program."""

from collections import defaultdict

import pytest
import torch
from evaluation_cases import context_of
from random_prompts import VOCAB, random_prompts
from tiny_models import random_model, small_tokenizer

from gbcd.analysis.circuits import edge_names
from gbcd.evaluation.measured import edge_config
from gbcd.evaluation.metrics import metric_for
from gbcd.models.load import prepared
from gbcd.prompting.tokens import EncodedPrompt


def loaded_of(family):
    return prepared(family, random_model(family, VOCAB), small_tokenizer())


def norms_read(loaded, prompt):
    """Of each norm: what it reads in the prompt and the counterfactual, and the gradient by what it alone reads."""
    kept = {}

    def apart(name):
        def hook(_module, inputs):
            kept[name] = inputs[0].clone()
            return (kept[name], *inputs[1:])

        return hook

    hooks = [
        loaded.model.get_submodule(norm.module).register_forward_pre_hook(apart(norm.component))
        for norm in loaded.spec.norms
        if norm.component.endswith(".norm")
    ]
    table = loaded.model.get_input_embeddings()
    found = []
    for ids in (prompt.counterfactual_ids, prompt.ids):
        start = table(torch.tensor([ids])).detach().requires_grad_()
        last = loaded.model(inputs_embeds=start, use_cache=False).logits[0, -1]
        found.append(dict(kept))
    for hook in hooks:
        hook.remove()
    metric = last[prompt.answer_ids[0]] - last[prompt.wrong_ids[0]]
    gradients = torch.autograd.grad(metric, list(kept.values()))
    return {name: (found[1][name] - found[0][name], gradient) for name, gradient in zip(kept, gradients, strict=True)}


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gpt_neox", "gpt_neox_serial", "opt"])
def test_edges_into_a_norm_add_up_to_what_it_reads(family):
    loaded = loaded_of(family)
    prompts = [
        EncodedPrompt(p.prompt, p.ids, p.answer_ids[:1], p.wrong_ids, None, p.twin_ids) for p in random_prompts([6, 6])
    ]
    metric = metric_for("logit_difference", prompts, loaded.device)
    edges = context_of(loaded, prompts, metric, with_edges=True).attributed().edges
    found = dict(zip(edge_names(edge_config(loaded)), edges.mean(0).tolist(), strict=True))
    sums = defaultdict(float)
    for edge, score in found.items():
        target = edge.split("->")[1].split(".")[0]
        sums["final.norm" if target == "logits" else f"{target}.norm"] += score
    wanted = defaultdict(float)
    for prompt in prompts:
        for name, (change, gradient) in norms_read(loaded, prompt).items():
            wanted[name] += (change * gradient).sum().item() / len(prompts)
    # the library's RMS norms round to float32
    assert dict(sums) == pytest.approx(dict(wanted), rel=1e-4, abs=1e-5)
    assert max(map(abs, wanted.values())) > 0.1
