"""Circuits of edges: against a model written out node by node, and at their two ends on every architecture."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from random_prompts import VOCAB
from tiny_models import FAMILIES, random_gpt2, random_model, small_tokenizer

from gbcd.analysis.circuits import edge_names
from gbcd.engine.edge_sources import EdgeSources, recorded
from gbcd.engine.edges import EdgeScores
from gbcd.engine.engine import packed_for
from gbcd.evaluation.measured import edge_config
from gbcd.models.edge_runs import CircuitRuns
from gbcd.models.forward import Forward, Options
from gbcd.models.load import LoadedModel, prepared

LENGTHS = (6, 4, 6)


def drawn(seed: int) -> list[tuple[int, ...]]:
    rng = np.random.default_rng(seed)
    return [tuple(int(token) for token in rng.integers(0, VOCAB, length)) for length in LENGTHS]


def sharing(prompts: list[tuple[int, ...]], shared: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Counterfactuals with so many first tokens in common with the prompts, and none after."""
    drawn_anew = ([(token + 1) % VOCAB for token in ids] for ids in prompts)
    return [(*ids[:n], *other[n:]) for ids, other, n in zip(prompts, drawn_anew, shared, strict=True)]


def logits(loaded: LoadedModel, prompts, others, circuits):
    packed = [packed_for(loaded, [(ids,) for ids in some]) for some in (prompts, others)]
    runs = CircuitRuns(loaded.decoder, *packed)
    return runs.logits(torch.tensor(circuits))[:, :, 0].transpose(0, 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_all_edges_are_the_model_and_none_the_counterfactual(family: str) -> None:
    loaded = prepared(family, random_model(family, VOCAB, 3), small_tokenizer())
    prompts = drawn(0)
    others = sharing(prompts, (2, 0, 4))
    n_edges = len(edge_names(edge_config(loaded)))
    found = logits(loaded, prompts, others, [[True] * n_edges, [False] * n_edges])
    for row, (ids, other) in enumerate(zip(prompts, others, strict=True)):
        for column, sequence in enumerate((ids, other)):
            wanted = loaded.model(torch.tensor([sequence])).logits[0, -1]
            torch.testing.assert_close(found[row, column], wanted, rtol=1e-4, atol=1e-4)
    alone = logits(loaded, prompts, others, [[False] * n_edges])
    torch.testing.assert_close(alone[:, 0], found[:, 1], rtol=1e-4, atol=1e-4)


def written_out(loaded: LoadedModel, ids, other, inside: set[str]):
    """Logits of a circuit of a GPT-2, every node with an input of its own, by the library's modules."""
    body, config = loaded.model.transformer, loaded.model.config
    width = config.n_embd // config.n_head

    def run(sequence, theirs):
        position = torch.arange(len(sequence))
        mine = {"input": body.wte.weight[list(sequence)] + body.wpe.weight[position]}
        biases = torch.zeros(config.n_embd, dtype=torch.float64)

        def read(target):
            chosen = [mine[s] if theirs is None or f"{s}->{target}" in inside else theirs[s] for s in mine]
            return sum(chosen) + biases

        for layer, block in enumerate(body.h):
            heads, weight = {}, block.attn.c_proj.weight
            for head in range(config.n_head):
                q, k, v = (
                    block.attn.c_attn(block.ln_1(read(f"a{layer}.h{head}<{part}>")))[
                        :, at * config.n_embd + head * width : at * config.n_embd + (head + 1) * width
                    ]
                    for at, part in enumerate("qkv")
                )
                scores = q @ k.T / width**0.5
                hidden = torch.ones_like(scores, dtype=torch.bool).triu(1)
                pattern = scores.masked_fill(hidden, -torch.inf).softmax(-1)
                heads[f"a{layer}.h{head}"] = pattern @ v @ weight[head * width : (head + 1) * width]
            mine |= heads
            biases = biases + block.attn.c_proj.bias
            mine[f"m{layer}"] = block.mlp(block.ln_2(read(f"m{layer}")))
        return loaded.model.lm_head(body.ln_f(read("logits")))[-1], mine

    _, theirs = run(other, None)
    return run(ids, theirs)[0]


@pytest.mark.parametrize("shared", [(0, 0, 0), (2, 0, 3), (3, 3, 5), (6, 4, 6)])
def test_circuits_drawn_at_random_are_those_written_out(shared: tuple[int, ...]) -> None:
    loaded = prepared("random", *random_gpt2(3, 2, 4, VOCAB, seed=0, dtype=torch.float64))
    names, prompts = edge_names(edge_config(loaded)), drawn(0)
    others = sharing(prompts, shared)
    circuits = np.random.default_rng(2).random((4, len(names))) < np.array([[0.2], [0.5], [0.8], [0.95]])
    found = logits(loaded, prompts, others, circuits)
    for row, (ids, other) in enumerate(zip(prompts, others, strict=True)):
        for column, chosen in enumerate(circuits):
            inside = {name for name, is_inside in zip(names, chosen, strict=True) if is_inside}
            torch.testing.assert_close(found[row, column], written_out(loaded, ids, other, inside))


def test_only_what_can_differ_from_the_counterfactual_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = prepared("random", *random_gpt2(3, 2, 4, VOCAB, seed=0))
    prompts, names, ran = drawn(0), edge_names(edge_config(loaded)), list[tuple[str, int]]()
    packed = [packed_for(loaded, [(ids,) for ids in some]) for some in (prompts, sharing(prompts, (4, 1, 5)))]
    runs = CircuitRuns(loaded.decoder, *packed)
    attention, mlp = Forward.mixed, Forward.mlp
    monkeypatch.setattr(Forward, "mixed", lambda run, layer, block, q, *rest: (
        ran.append((f"a{layer}", q.shape[1])), attention(run, layer, block, q, *rest))[1])  # fmt: skip
    monkeypatch.setattr(Forward, "mlp", lambda run, layer, block, x, rows: (
        ran.append((f"m{layer}", x.shape[1])), mlp(run, layer, block, x, rows))[1])  # fmt: skip
    inside = {"input->a0.h1<v>", "a0.h1->m1", "m1->logits", "input->logits", "input->m2", "a2.h0->logits"}
    runs.logits(torch.tensor([[name in inside for name in names], [name in {"input->logits"} for name in names]]))
    # nobody reads the last MLP, and the last head with an edge inside reads nobody;
    # of six, four and six tokens, two, three and one are behind the first difference
    assert ran == [("a0", 3), ("m1", 3)]


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gpt_neox", "opt"])
def test_where_the_counterfactual_is_near_one_edge_does_what_its_attribution_says(family: str) -> None:
    model = random_model(family, VOCAB, 3)
    table = model.get_input_embeddings().weight
    with torch.no_grad():
        table[1::2] = table[: VOCAB - 1 : 2] + 1e-4 * table[1::2]
    loaded = prepared(family, model, small_tokenizer())
    prompts = [tuple(token % (VOCAB - 1) // 2 * 2 for token in ids) for ids in drawn(0)]
    packed, others = (packed_for(loaded, [(tuple(token + odd for token in ids),) for ids in prompts]) for odd in (0, 1))
    names = recorded(loaded.decoder)
    run = loaded.decoder.run(packed, Options(graph=True, record=names, edges=True))
    other = loaded.decoder.run(others, Options(record=names))
    scores = EdgeScores(loaded.decoder, run, EdgeSources(loaded.decoder, run, other))
    direction = torch.zeros_like(run.logits)
    direction[..., 3], direction[..., 5] = 1.0, -1.0
    run.backward(direction, scores)
    wanted = scores.values()
    runs = CircuitRuns(loaded.decoder, packed, others)
    found = runs.logits(~torch.eye(wanted.shape[1], dtype=torch.bool))[:, :, 0].transpose(0, 1)
    drops = (run.logits - found)[..., 3] - (run.logits - found)[..., 5]
    assert drops.abs().max() > 1e-5
    # the second order is about 1e-4 of the first
    torch.testing.assert_close(drops, wanted.to(drops), rtol=0.02, atol=0.005 * float(drops.abs().max()))
