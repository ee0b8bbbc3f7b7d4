"""Attribution patching of nodes and edges by other packages, beside gbcd's: values compared, seconds side by side.

    pip install "transformer-lens<4" gim-explain
    python benchmarks/peers.py --model gpt2 models/smollm2-135m --pairs 8

TransformerLens runs the model from its own weights, edges as EAP does (Syed et al. 2023, arXiv 2310.10348): differences
of what nodes write, against gradients at every reader. `gim-explain` changes the backward pass of that model, and nodes
are compared with the baseline `gim`. All take a whole batch. Every round runs every contender once, in turn; printed
are medians of the processor's seconds, and the largest difference of a value as a share of the largest value. What
does not install or load is named with its error. `gpt2` has random weights.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM

from gbcd import tasks
from gbcd.evaluation.metrics import metric_for
from gbcd.evaluation.places import places_of
from gbcd.evaluation.score_context import ScoreContext
from gbcd.evaluation.work import circuit_components
from gbcd.models.load import LoadedModel, load, prepared
from gbcd.prompting.prompt import Prompt
from gbcd.prompting.tokens import EncodedPrompt
from training.tokenizer import build_tokenizer


class Contender(NamedTuple):
    """A way to values, by prompt; those of `peer` are held against those of `own`."""

    own: str
    peer: str
    run_own: Callable[[], Tensor]
    run_peer: Callable[[], Tensor]


class Lens:
    """Pairs in TransformerLens."""

    def __init__(self, loaded: LoadedModel, prompts: list[EncodedPrompt]) -> None:
        self.model, spec = lens_model(loaded), loaded.spec
        length = max(len(prompt.ids) for prompt in prompts)
        pad = [[0] * (length - len(prompt.ids)) for prompt in prompts]
        self.clean = torch.tensor([[*one.ids, *rest] for one, rest in zip(prompts, pad, strict=True)])
        self.other = torch.tensor([[*(one.reference_ids or ()), *rest] for one, rest in zip(prompts, pad, strict=True)])
        self.rows, self.last = torch.arange(len(prompts)), torch.tensor([len(one.ids) - 1 for one in prompts])
        self.right, self.wrong = (torch.tensor([ids[0] for ids in some]) for some in (
            [one.answer_ids for one in prompts], [one.wrong_ids for one in prompts]))  # fmt: skip
        self.n_layers, self.n_heads = spec.n_layers, spec.n_heads

    def nodes(self, rules: Callable[[Any], AbstractContextManager[Any]] = nullcontext) -> Tensor:
        """`(a - a') . g` by prompt of heads and MLPs, layer by layer."""
        names = [f"blocks.{layer}.{hook}" for layer in range(self.n_layers) for hook in ("attn.hook_z", "hook_mlp_out")]
        self.model.set_use_attn_result(False)
        self.model.set_use_split_qkv_input(False)
        change, found = self._other(names), dict[str, Tensor]()

        def forward(value: Tensor, hook: Any) -> None:
            change[hook.name] = value.detach() - change[hook.name]

        def backward(gradient: Tensor, hook: Any) -> None:
            product = (change[hook.name] * gradient).sum(-1).sum(1)
            found[hook.name] = product if product.ndim == 2 else product.unsqueeze(1)

        with rules(self.model), self.model.hooks([(name, forward) for name in names], [(n, backward) for n in names]):
            self._margin().backward()
        return torch.cat([found[name] for name in names], 1)

    def edges(self) -> Tensor:
        """Of every edge, in gbcd's order."""
        sources = {"hook_embed": slice(0, 1)}
        at = 1
        for layer in range(self.n_layers):
            for hook, width in (("attn.hook_result", self.n_heads), ("hook_mlp_out", 1)):
                sources[f"blocks.{layer}.{hook}"] = slice(at, at + width)
                at += width
        self.model.set_use_attn_result(True)
        self.model.set_use_split_qkv_input(True)
        self.model.set_use_hook_mlp_in(True)
        readers, into = dict(self._readers()), dict[str, Tensor]()
        change = torch.zeros(*self.clean.shape, at, self.model.cfg.d_model)
        for name, value in self._other(list(sources)).items():
            change[:, :, sources[name]] = -value.reshape(*value.shape[:2], -1, value.shape[-1])

        def forward(value: Tensor, hook: Any) -> None:
            change[:, :, sources[hook.name]] += value.detach().reshape(*value.shape[:2], -1, value.shape[-1])

        def backward(gradient: Tensor, hook: Any) -> None:
            gradient = gradient.reshape(*gradient.shape[:2], -1, gradient.shape[-1])
            into[hook.name] = torch.einsum("btsd,btrd->brs", change[:, :, : readers[hook.name]], gradient)

        hooks = [(name, forward) for name in sources], [(name, backward) for name in readers]
        with self.model.hooks(*hooks):
            self._margin().backward()
        found: list[Tensor] = []
        for layer in range(self.n_layers):
            parts = torch.stack([into[f"blocks.{layer}.hook_{part}_input"] for part in "qkv"], 2)
            found += [parts.flatten(1), into[f"blocks.{layer}.hook_mlp_in"].flatten(1)]
        return torch.cat([*found, into[f"blocks.{self.n_layers - 1}.hook_resid_post"].flatten(1)], 1)

    def _readers(self) -> Iterator[tuple[str, int]]:
        """Hooks at which readers read, and how many sources stand before each."""
        for layer in range(self.n_layers):
            before = 1 + layer * (self.n_heads + 1)
            yield from ((f"blocks.{layer}.hook_{part}_input", before) for part in "qkv")
            yield f"blocks.{layer}.hook_mlp_in", before + self.n_heads
        yield f"blocks.{self.n_layers - 1}.hook_resid_post", 1 + self.n_layers * (self.n_heads + 1)

    def _other(self, names: list[str]) -> dict[str, Tensor]:
        with torch.no_grad():
            kept = self.model.run_with_cache(self.other, names_filter=names)[1]
        return {name: kept[name] for name in names}

    def _margin(self) -> Tensor:
        logits = self.model(self.clean)[self.rows, self.last]
        return (logits[self.rows, self.right] - logits[self.rows, self.wrong]).sum()


def lens_model(loaded: LoadedModel) -> Any:
    """The same weights in TransformerLens, from a configuration made by hand, since its own is fetched from the hub."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights, convert_llama_weights

    given, is_llama = loaded.model.config, isinstance(loaded.model, LlamaForCausalLM)
    shared = {"n_ctx": 64, "d_vocab": given.vocab_size, "device": "cpu", "dtype": torch.float32}
    if is_llama:
        config = HookedTransformerConfig(
            n_layers=given.num_hidden_layers, d_model=given.hidden_size, d_head=given.head_dim,
            d_mlp=given.intermediate_size, act_fn=given.hidden_act,
            n_heads=given.num_attention_heads, n_key_value_heads=given.num_key_value_heads,
            ungroup_grouped_query_attention=True, gated_mlp=True, normalization_type="RMS", final_rms=True,
            eps=given.rms_norm_eps, positional_embedding_type="rotary", rotary_dim=given.head_dim,
            rotary_base=int(given.rope_parameters["rope_theta"]), rotary_adjacent_pairs=False, **shared,
        )  # fmt: skip
    else:
        config = HookedTransformerConfig(
            n_layers=given.n_layer, d_model=given.n_embd, d_head=given.n_embd // given.n_head, n_heads=given.n_head,
            act_fn="gelu_new", eps=given.layer_norm_epsilon, **shared,
        )  # fmt: skip
    weights = (convert_llama_weights if is_llama else convert_gpt2_weights)(loaded.model, config)
    if not is_llama:
        weights["pos_embed.W_pos"] = weights["pos_embed.W_pos"][: config.n_ctx]
    model = HookedTransformer(config)
    model.load_state_dict(weights, strict=False)
    return model


def contenders(loaded: LoadedModel, prompts: list[EncodedPrompt]) -> Iterator[Contender | str]:
    """What can be compared, and what cannot, with its error."""
    metric = metric_for("logit_difference", prompts, loaded.device)
    components, places = circuit_components(loaded, "node"), places_of(loaded.components, "node")
    chosen = [index for index, one in enumerate(components) if not one.is_group]

    def own_nodes(rules: Any = "plain") -> Tensor:
        found = ScoreContext(loaded, prompts, components, places, metric).attributed(rules).change
        assert found is not None
        return found[:, chosen]

    def own_edges() -> Tensor:
        found = ScoreContext(loaded, prompts, components, places, metric, with_edges=True).attributed().edges
        assert found is not None
        return found

    try:
        lens = Lens(loaded, prompts)
        name = f"TransformerLens {version('transformer-lens')}"
    except Exception as error:
        yield f"TransformerLens does not load: {type(error).__name__}: {error}"
        return
    yield Contender("gbcd, nodes", f"{name}, nodes", own_nodes, lens.nodes)
    yield Contender("gbcd, edges", f"{name}, edges", own_edges, lens.edges)
    try:
        import gim
    except ImportError as error:
        yield f"gim-explain does not load: {type(error).__name__}: {error}"
        return
    peer = f"gim-explain {version('gim-explain')}, nodes"
    yield Contender("gbcd, nodes by gim", peer, lambda: own_nodes("gim"), lambda: lens.nodes(gim.GIM))


def compared(found: list[Contender], rounds: int) -> Iterator[str]:
    """A row of the table for each."""
    seconds: dict[str, list[float]] = {}
    values: dict[str, np.ndarray] = {}
    for _ in range(rounds + 1):
        for one in found:
            for name, run in ((one.own, one.run_own), (one.peer, one.run_peer)):
                started = time.process_time()
                values[name] = run().double().numpy()
                seconds.setdefault(name, []).append(time.process_time() - started)
    for one in found:
        # the first round warms up
        own, peer = (statistics.median(seconds[name][1:]) for name in (one.own, one.peer))
        off = np.abs(values[one.own] - values[one.peer]).max() / np.abs(values[one.peer]).max()
        yield f"| {one.own} | {own:.3f} | {one.peer} | {peer:.3f} | {peer / own:.1f} | {off:.1e} |"


def random_pairs(n: int, length: int, vocab: int) -> list[EncodedPrompt]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(vocab, (2, n, length), generator=generator).tolist()
    return [
        EncodedPrompt(Prompt(str(i), "ioi", "t", "", (" a",)), tuple(clean), (0,), (1,), None, tuple(other))
        for i, (clean, other) in enumerate(zip(*ids, strict=True))
    ]


def case(name: str, n_pairs: int, n_layers: int) -> tuple[LoadedModel, list[EncodedPrompt]]:
    """A model, and pairs of random tokens, or of IOI."""
    if name == "gpt2":
        torch.manual_seed(0)
        model = GPT2LMHeadModel(GPT2Config(n_layer=n_layers))
        return prepared("gpt2", model, build_tokenizer(1024)), random_pairs(n_pairs, 16, model.config.vocab_size)
    loaded = load(name, device="cpu")
    return loaded, loaded.encode(tasks.draw("ioi", loaded.tokenizer, n_pairs, 0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=["gpt2"], help="gpt2 (random weights), or folders of models")
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--layers", type=int, default=12, help="of gpt2")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    for name in asked.model:
        found = list(contenders(*case(name, asked.pairs, asked.layers)))
        print(f"{Path(name).name}, {asked.pairs} pairs")
        print("| | s | | s | ratio | largest difference |\n|---|---|---|---|---|---|")
        for line in compared([one for one in found if isinstance(one, Contender)], asked.rounds):
            print(line)
        for said in found:
            if isinstance(said, str):
                print(said)


if __name__ == "__main__":
    main()
