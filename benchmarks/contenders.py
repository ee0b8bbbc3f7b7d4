"""What `engine.py` times: this engine, and the other ways to gradients."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GPT2LMHeadModel, PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from gbcd.engine import gram
from gbcd.engine.engine import Engine, loss_gradient
from gbcd.engine.scores import STATISTICS, ScoreTable
from gbcd.engine.tables import CENTERED, COMPARED
from gbcd.models.captured import Gradient, MapGradient
from gbcd.models.decoder import Options
from gbcd.models.load import DTYPES, LoadedModel, load, prepared
from gbcd.models.spec import MapSpec
from gbcd.prompting.prompt import Prompt
from gbcd.prompting.tokens import EncodedPrompt
from gbcd.wrong_answers.losses import SquaredLogitDifference
from training.tokenizer import build_tokenizer

#: Share of a prompt's tokens that its counterfactual has, too: 0.69 in the task `ioi` with SmolLM2's tokenizer.
SHARED = 0.7

#: The slow loop is timed on so many prompts and scaled to the batch.
LOOP_PROMPTS = 4

PLAIN = "plain pass, answer only"


@dataclass
class Contender:
    name: str
    run: Callable[[], object]
    share: float = 1.0  # part of the batch that one run covers


@dataclass
class Setting:
    """A model and a batch: `ids [batch, T]`, an answer, a wrong token and a counterfactual for each prompt."""

    loaded: LoadedModel
    trainable: PreTrainedModel
    ids: Tensor
    prompts: list[EncodedPrompt]

    @property
    def looped(self) -> list[EncodedPrompt]:
        return self.prompts[:LOOP_PROMPTS]

    @property
    def target(self) -> SquaredLogitDifference:
        answers, wrong = [p.answer_ids for p in self.prompts], [p.wrong_ids for p in self.prompts]
        return SquaredLogitDifference(answers, wrong, reads_all=False)

    def loss(self, logits: Tensor) -> Tensor:
        return self.target(logits.unsqueeze(1)).sum()


def model_of(name: str, device: str, dtype: str) -> LoadedModel:
    """A folder's model, or random weights of a type of the library."""
    if Path(name).is_dir() or name == "reference":
        return load(name, device, dtype)
    model = AutoModelForCausalLM.from_config(config_of(name)).to(device, DTYPES[dtype]).eval()
    tokenizer = build_tokenizer(1024)
    # rows of the vocabulary that stand for no token are left out of the unembedding
    tokenizer.add_tokens([f"<{number}>" for number in range(model.config.vocab_size - len(tokenizer))])
    return prepared(name, model, tokenizer)


def config_of(model_type: str) -> PreTrainedConfig:
    """12 layers of width 768, as GPT-2 small has, of a type of the library."""
    shape: dict[str, Any] = {
        "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "vocab_size": 50257,
        "max_position_embeddings": 1024, "pad_token_id": None,
    }  # fmt: skip
    if model_type == "gpt2":
        shape = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    elif model_type not in ("gpt_neox", "opt"):
        shape |= {"num_key_value_heads": 4, "head_dim": 64, "intermediate_size": 2048}
    return AutoConfig.for_model(model_type, **shape)


def setting(loaded: LoadedModel, length: int, batch: int) -> Setting:
    generator = torch.Generator().manual_seed(0)
    ids, others = torch.randint(min(loaded.vocabulary_size, 50_000), (2, batch, length), generator=generator)
    n_shared = int(SHARED * length)
    others[:, :n_shared] = ids[:, :n_shared]
    record, n = Prompt("p", "p", "t", "", ("",)), loaded.vocabulary_size
    prompts = [
        EncodedPrompt(replace(record, id=str(row)), tuple(own), (own[0],), ((own[0] + 1) % n,), None, tuple(other))
        for row, (own, other) in enumerate(zip(ids.tolist(), others.tolist(), strict=True))
    ]
    trainable = copy.deepcopy(loaded.model).requires_grad_(True)
    return Setting(loaded, trainable, ids.to(loaded.device), prompts)


def contenders(s: Setting) -> list[Contender]:
    """All of them; Opacus for GPT-2, where it is installed."""
    calibration = Engine(s.loaded, []).calibrate(s.prompts, batch_size=len(s.prompts))
    definition = ["margin"]
    study = Engine(s.loaded, definition, calibration)
    with_edges = Engine(s.loaded, definition, calibration, edges=True)
    found = [
        Contender("proposal's loop", lambda: proposals_loop(s), len(s.looped) / len(s.prompts)),
        Contender(PLAIN, lambda: plain_answer_only(s)),
        Contender("activation-only pass", lambda: activation_only(s)),
        Contender("one forward pass", lambda: s.loaded.decoder.run(study.pack([(p.ids,) for p in s.prompts]))),
        Contender("norms of maps by hooks", lambda: hooked_norms(s)),
        Contender("norms only", lambda: norms_only(s, study)),
        *(
            Contender(f"study of {' '.join(names)}", partial(engine.compute, s.prompts))
            for names in (("grad_norm",), ("grad_norm", "taylor"), ("grad_norm", *CENTERED), ("grad_norm", *COMPARED))
            for engine in [Engine(s.loaded, definition, calibration, statistics=names)]
        ),
        Contender("default study", lambda: study.compute(s.prompts)),
        Contender("default study with edges", lambda: with_edges.compute(s.prompts)),
        Contender("bare products", bare_products(s)),
    ]
    if isinstance(s.loaded.model, GPT2LMHeadModel):
        try:
            found.append(Contender("Opacus ghost norms", opacus_ghost(s)))
        except ImportError as missing:
            print(f"left out: opacus ({missing})", file=sys.stderr)
    return found


def proposals_loop(s: Setting) -> None:
    """One forward and backward pass per prompt, then the norm of every slice of every weight gradient."""
    for index, prompt in enumerate(s.looped):
        s.trainable.zero_grad(set_to_none=True)
        logits = s.trainable(input_ids=s.ids[index : index + 1]).logits[0, -1]
        (logits[prompt.answer_ids[0]] - logits[prompt.wrong_ids[0]]).square().backward()
        for one in s.loaded.spec.maps:
            module: Any = s.trainable.get_submodule(one.module)
            columns = (one.axis == "out") == isinstance(module, Conv1D)
            for piece in module.weight.grad.chunk(len(one.components), 1 if columns else 0):
                piece.norm()


def plain_answer_only(s: Setting) -> None:
    """A batched forward and backward pass to all weights, logits at the answer alone: no norm of a prompt."""
    s.trainable.zero_grad(set_to_none=True)
    s.loss(s.trainable(input_ids=s.ids, logits_to_keep=1).logits[:, -1]).backward()


def activation_only(s: Setting) -> None:
    """The same to the embeddings' output alone, through frozen weights."""
    embedded = s.loaded.model.get_input_embeddings()(s.ids).detach().requires_grad_()
    s.loss(s.loaded.model(inputs_embeds=embedded, logits_to_keep=1).logits[:, -1]).backward()


def hooked_norms(s: Setting) -> dict[tuple[str, ...], Tensor]:
    """Norms of every map, by its components, from hooks on the library's own modules.

    A hook sees a map's input and the gradient of its output; the rest of the pass is the library's, and is what it is.
    """
    found: dict[tuple[str, ...], Tensor] = {}
    grams: dict[int, Tensor] = {}

    def receive(x: Tensor, d: Tensor, one: MapSpec) -> None:
        n = len(one.components)
        if one.axis == "in" and n > 1:
            squares = gram.slice_squares(gram.gram(d), x, n)
        else:
            # maps that read one tensor share its Gram
            if x.data_ptr() not in grams:
                grams[x.data_ptr()] = gram.gram(x)
            squares = gram.slice_squares(grams[x.data_ptr()], d, n)
        found[one.components] = squares.clamp(min=0).sqrt()

    def watch(one: MapSpec) -> Callable[..., None]:
        def forward(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            x = inputs[0].detach()
            output.register_hook(lambda d: receive(x, d, one))

        return forward

    model = s.loaded.model
    hooks = [model.get_submodule(one.module).register_forward_hook(watch(one)) for one in s.loaded.spec.maps]
    activation_only(s)
    for hook in hooks:
        hook.remove()
    return found


def norms_only(s: Setting, engine: Engine) -> Tensor:
    """Exact norms of every part of every head and MLP, of norms and embeddings, nothing else."""
    run = s.loaded.decoder.run(engine.pack([(prompt.ids,) for prompt in s.prompts]), Options(graph=True))
    table = ScoreTable(s.loaded.components, len(s.prompts), {}, STATISTICS[:1])
    run.backward(loss_gradient(s.target, run.logits)[1], table)
    return table.values()["grad_norm"]


def bare_products(s: Setting) -> Callable[[], None]:
    """The products of matrices that a forward and an activation-only backward pass cannot do without.

    They are those of a real pass: `X W` and `D W^T` of every map for the tokens that it reads, and of attention as many
    as it takes.
    """
    spec, batch, length = s.loaded.spec, len(s.prompts), s.ids.shape[1]
    pairs: list[tuple[Tensor, Tensor]] = []

    def receive(gradient: Gradient) -> None:
        if isinstance(gradient, MapGradient):
            pairs.append((gradient.input.x.detach().flatten(0, 1), gradient.weight))
            pairs.append((gradient.d_output.flatten(0, 1), gradient.weight.T))

    run = s.loaded.decoder.run(Engine(s.loaded, []).pack([(p.ids,) for p in s.prompts]), Options(graph=True))
    d_logits = loss_gradient(s.target, run.logits)[1]
    run.backward(d_logits, receive)
    pairs.append((run.hidden().x.flatten(0, 1), s.loaded.decoder.unembedding.T))
    d_head = s.loaded.model.config.hidden_size // s.loaded.model.config.num_attention_heads
    heads = batch * s.loaded.model.config.num_attention_heads
    square = torch.randn(heads, length, length, device=s.ids.device, dtype=s.loaded.dtype)
    part = torch.randn(heads, length, d_head, device=s.ids.device, dtype=s.loaded.dtype)

    @torch.no_grad()
    def products() -> None:
        for x, weight in pairs:
            _ = x @ weight
        for _ in range(spec.n_layers - 1):
            for _ in range(3):
                _ = torch.bmm(part, part.transpose(1, 2)), torch.bmm(square, part)

    return products


def opacus_ghost(s: Setting) -> Callable[[], None]:
    """Opacus: per-sample norm of every parameter by ghost norms, on the same model with nn.Linear for Conv1D."""
    from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import GradSampleModuleFastGradientClipping

    model: Any = copy.deepcopy(s.trainable)
    for name, module in list(model.named_modules()):
        if isinstance(module, Conv1D):
            linear = nn.Linear(*module.weight.shape)
            linear.weight.data, linear.bias.data = module.weight.data.T.contiguous(), module.bias.data
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, linear)
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone(), requires_grad=False)
    model.transformer.wpe.requires_grad_(False)  # its input has no batch axis, which Opacus cannot follow
    wrapped: Any = GradSampleModuleFastGradientClipping(
        model.train(), use_ghost_clipping=True, max_grad_norm=1.0, strict=False, loss_reduction="sum"
    )

    def run() -> None:
        wrapped.zero_grad(set_to_none=True)
        hidden = wrapped._module.transformer(input_ids=s.ids).last_hidden_state[:, -1]
        s.loss(wrapped._module.lm_head(hidden)).backward()
        _ = [parameter._norm_sample for parameter in wrapped.parameters() if hasattr(parameter, "_norm_sample")]

    return run
