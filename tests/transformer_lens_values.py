"""Writes what TransformerLens says of a random GPT-2, for `test_transformer_lens.py` to compare with.

    pip install "transformer-lens<4" && python tests/transformer_lens_values.py

TransformerLens has a forward pass of its own and hooks at every step, so agreement with it says that points, gradients
and ablations are the ones of the field. It is no dependency of the tests, since it comes with forty packages: its
values are kept in `transformer_lens_values.json`. Signs are those of gbcd: positive where the component helps.
"""

from __future__ import annotations

import json
import random
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from tiny_models import random_gpt2

from gbcd.prompting.prompt import Prompt
from gbcd.prompting.tokens import EncodedPrompt

VALUES = Path(__file__).with_suffix(".json")
LAYERS, HEADS, D_HEAD, VOCAB, STEPS = 3, 2, 8, 53, 5


def shared_model():
    """The model that both compute with, and its tokenizer."""
    return random_gpt2(LAYERS, HEADS, D_HEAD, VOCAB, seed=0, dtype=torch.float64)


def shared_prompts() -> list[EncodedPrompt]:
    """Prompts with counterfactuals and one answer and wrong answer each."""
    rng = random.Random(0)
    found: list[EncodedPrompt] = []
    for index, length in enumerate((6, 9, 6)):
        ids, counterfactual = (tuple(rng.randrange(VOCAB) for _ in range(length)) for _ in range(2))
        answer, wrong = rng.sample(range(VOCAB), 2)
        record = Prompt(f"p{index}", "ioi", "t", "", ())
        found.append(EncodedPrompt(record, ids, (answer,), (wrong,), None, counterfactual))
    return found


class _Lens:
    """One prompt in TransformerLens."""

    def __init__(self, model: Any, prompt: EncodedPrompt) -> None:
        self.model, self.prompt = model, prompt
        self.clean, self.other = (torch.tensor([ids]) for ids in (prompt.ids, prompt.counterfactual_ids))
        self.here, self.away = model.run_with_cache(self.clean)[1], model.run_with_cache(self.other)[1]
        self.points = {f"a{layer}.h{head}": (f"blocks.{layer}.attn.hook_z", head)
                       for layer in range(LAYERS) for head in range(HEADS)}  # fmt: skip
        self.points |= {f"m{layer}": (f"blocks.{layer}.hook_mlp_out", None) for layer in range(LAYERS)}

    def difference(self, logits: torch.Tensor) -> torch.Tensor:
        last = logits[0, -1]
        return last[self.prompt.answer_ids[0]] - last[self.prompt.wrong_ids[0]]

    def gradients(self, share: float) -> dict[str, torch.Tensor]:
        """By every hook point, with the embeddings that share of the way from the counterfactual to the prompt."""
        kept: dict[str, torch.Tensor] = {}
        embeddings = torch.lerp(self.away["hook_embed"], self.here["hook_embed"], share)
        self.model.reset_hooks()
        self.model.add_hook("hook_embed", lambda value, hook: embeddings.clone().requires_grad_())
        for name in self.here:
            self.model.add_hook(name, lambda value, hook: kept.update({hook.name: value.clone()}), dir="bwd")
        self.difference(self.model(self.clean)).backward()
        self.model.reset_hooks()
        return kept

    def node_scores(self, gradients: dict[str, torch.Tensor]) -> dict[str, float]:
        return {
            name: ((self.here[hook] - self.away[hook]) * gradients[hook])[_of_head(head)].sum().item()
            for name, (hook, head) in self.points.items()
        }

    def resampled(self) -> dict[str, float]:
        clean = self.difference(self.model(self.clean))
        found: dict[str, float] = {}
        for name, (hook, head) in self.points.items():

            def replace(value: torch.Tensor, hook: Any, head: int | None = head) -> torch.Tensor:
                value = value.clone()
                value[_of_head(head)] = self.away[hook.name][_of_head(head)]
                return value

            logits = self.model.run_with_hooks(self.clean, fwd_hooks=[(hook, replace)])
            found[name] = (clean - self.difference(logits)).item()
        return found

    def edge_scores(self, gradients: dict[str, torch.Tensor]) -> dict[str, float]:
        sources = {"input": ("hook_embed", None)} | {
            name: (hook.replace("hook_z", "hook_result"), head) for name, (hook, head) in self.points.items()
        }
        changes = {name: (self.here[hook] - self.away[hook])[_of_head(head)] for name, (hook, head) in sources.items()}
        order = ["input", *(name for layer in range(LAYERS) for name in [*_heads(layer), f"m{layer}"])]
        found: dict[str, float] = {}
        for layer in range(LAYERS):
            for head in _heads(layer):
                for part in "qkv":
                    read = gradients[f"blocks.{layer}.hook_{part}_input"][_of_head(int(head[-1]))]
                    for source in order[: order.index(f"a{layer}.h0")]:
                        found[f"{source}->{head}<{part}>"] = (changes[source] * read).sum().item()
            read = gradients[f"blocks.{layer}.hook_mlp_in"]
            for source in order[: order.index(f"m{layer}")]:
                found[f"{source}->m{layer}"] = (changes[source] * read).sum().item()
        last = gradients[f"blocks.{LAYERS - 1}.hook_resid_post"]
        return found | {f"{source}->logits": (changes[source] * last).sum().item() for source in order}


def _of_head(head: int | None) -> Any:
    return slice(None) if head is None else (slice(None), slice(None), head)


def _heads(layer: int) -> list[str]:
    return [f"a{layer}.h{head}" for head in range(HEADS)]


def _lens_model() -> Any:
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions.gpt2 import convert_gpt2_weights

    config = HookedTransformerConfig(
        n_layers=LAYERS, d_model=HEADS * D_HEAD, n_ctx=64, d_head=D_HEAD, n_heads=HEADS, d_vocab=VOCAB,
        act_fn="gelu_new", dtype=torch.float64, device="cpu", use_attn_result=True, use_split_qkv_input=True,
        use_hook_mlp_in=True,
    )  # fmt: skip
    model = HookedTransformer(config)
    model.load_state_dict(convert_gpt2_weights(shared_model()[0], config), strict=False)
    return model


def main() -> None:
    model = _lens_model()
    prompts: list[dict[str, Any]] = []
    for prompt in shared_prompts():
        lens = _Lens(model, prompt)
        steps = [lens.gradients((step + 1) / STEPS) for step in range(STEPS)]
        mean = {name: torch.stack([step[name] for step in steps]).mean(0) for name in steps[0]}
        prompts.append(
            {
                "metric": lens.difference(model(lens.clean)).item(),
                "attribution_patching": lens.node_scores(steps[-1]),
                "attribution_patching_ig": lens.node_scores(mean),
                "resample": lens.resampled(),
                "edges": lens.edge_scores(steps[-1]),
            }
        )
    VALUES.write_text(json.dumps({"transformer_lens": version("transformer-lens"), "prompts": prompts}, indent=1))


if __name__ == "__main__":
    main()
