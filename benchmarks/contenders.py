"""What `engine.py` times: the engine, and the ways that there are to have gradients without it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from gbcd.engine.mean_inputs import MeanInputs
from gbcd.engine.part_norms import BatchMeans, all_statistics, circuit_norms
from gbcd.models.gpt2_pass import Gpt2Pass
from gbcd.models.hooked_pass import HookedPass
from gbcd.models.taps import ModelPass
from torch import Tensor, nn
from transformers import AutoConfig, GPT2LMHeadModel, PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from gbcd.engine.calibration import Calibration
from gbcd.engine.engine import Engine, loss_gradient
from gbcd.models.load import LoadedModel, prepared
from gbcd.prompting.prompt import Prompt
from gbcd.prompting.tokens import EncodedPrompt
from gbcd.wrong_answers.losses import SquaredLogitDifference
from training.tokenizer import build_tokenizer

#: The slow loops are timed on so many prompts and scaled to the batch.
LOOP_PROMPTS = 4


@dataclass
class Contender:
    name: str
    run: Callable[[], object]
    share: float = 1.0  # part of the batch that one run covers


@dataclass
class Setting:
    """A model and a batch: `ids [batch, T]`, an answer and a wrong token for each prompt."""

    model: PreTrainedModel
    trainable: PreTrainedModel
    loaded: LoadedModel
    ids: Tensor
    answers: list[tuple[int, ...]]
    wrong: list[tuple[int, ...]]

    @property
    def target(self) -> SquaredLogitDifference:
        return SquaredLogitDifference(self.answers, self.wrong, reads_all=False)

    def loss(self, logits: Tensor) -> Tensor:
        return self.target(logits.unsqueeze(1)).sum()


def configuration(architecture: str) -> PreTrainedConfig:
    """Of the size of GPT-2 small: 12 layers of width 768, 12 heads that share keys in threes where the family can."""
    if architecture == "gpt2":
        return AutoConfig.for_model("gpt2", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    gated = architecture not in ("gpt_neox", "opt")
    shape: dict[str, Any] = {
        "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "vocab_size": 50257,
        "intermediate_size": 2048 if gated else 3072, "max_position_embeddings": 1024, "pad_token_id": None,
    }  # fmt: skip
    if gated:
        shape |= {"num_key_value_heads": 4, "head_dim": 64, "query_pre_attn_scalar": 64}
    if architecture == "opt":
        shape |= {"ffn_dim": 3072, "word_embed_proj_dim": 768, "dropout": 0.0}
    return AutoConfig.for_model(architecture, **shape)


def setting(model: PreTrainedModel, trainable: PreTrainedModel, length: int, batch: int) -> Setting:
    generator = torch.Generator().manual_seed(0)
    vocab = model.config.vocab_size
    ids = torch.randint(vocab, (batch, length), generator=generator).to(model.device)
    answers = [(int(token),) for token in torch.randint(vocab, (batch,), generator=generator)]
    wrong = [((token + 1) % vocab,) for (token,) in answers]
    loaded = prepared("random", model, build_tokenizer(model.config.max_position_embeddings))
    return Setting(model, trainable, loaded, ids, answers, wrong)


def deck_loop(s: Setting) -> None:
    """(a) One forward and backward pass per prompt, then the norm of every slice of every weight gradient."""
    for index in range(LOOP_PROMPTS):
        s.trainable.zero_grad(set_to_none=True)
        logits = s.trainable(input_ids=s.ids[index : index + 1]).logits[:, -1]
        (logits[0, s.answers[index][0]] - logits[0, s.wrong[index][0]]).square().backward()
        for site in s.loaded.sites.linear:
            module = s.trainable.get_submodule(site.module)
            columns = (site.axis == "out") == isinstance(module, Conv1D)
            for piece in module.weight.grad.chunk(len(site.components), 1 if columns else 0):
                piece.norm()


def plain_full(s: Setting) -> None:
    """(b) Plain batched forward and backward, logits everywhere."""
    s.trainable.zero_grad(set_to_none=True)
    s.loss(s.trainable(input_ids=s.ids).logits[:, -1]).backward()


def plain_answer_only(s: Setting) -> None:
    """(c) The same with logits at the answer alone."""
    s.trainable.zero_grad(set_to_none=True)
    s.loss(s.trainable(input_ids=s.ids, logits_to_keep=1).logits[:, -1]).backward()


def compiled_answer_only(s: Setting) -> Callable[[], None]:
    """(c) with the model through `torch.compile`, for shapes that do not change."""
    model = torch.compile(s.trainable, dynamic=False)

    def run() -> None:
        s.trainable.zero_grad(set_to_none=True)
        s.loss(model(input_ids=s.ids, logits_to_keep=1).logits[:, -1]).backward()

    return run


def opacus_ghost(s: Setting) -> Callable[[], None]:
    """(d) Opacus: per-sample norm of every parameter by ghost norms, on the same model with nn.Linear for Conv1D."""
    from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import GradSampleModuleFastGradientClipping

    model = GPT2LMHeadModel(s.model.config)
    for name, module in list(model.named_modules()):
        if isinstance(module, Conv1D):
            linear = nn.Linear(*module.weight.shape)
            linear.weight.data, linear.bias.data = module.weight.data.T.contiguous(), module.bias.data
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, linear)
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    model.lm_head.requires_grad_(False)
    model.transformer.wpe.requires_grad_(False)  # its input has no batch axis, which Opacus cannot follow
    wrapped = GradSampleModuleFastGradientClipping(
        model.train(), use_ghost_clipping=True, max_grad_norm=1.0, strict=False, loss_reduction="sum"
    )

    def run() -> None:
        wrapped.zero_grad(set_to_none=True)
        hidden = wrapped._module.transformer(input_ids=s.ids).last_hidden_state[:, -1]
        s.loss(wrapped._module.lm_head(hidden)).backward()
        _ = [parameter._norm_sample for parameter in wrapped.parameters() if hasattr(parameter, "_norm_sample")]

    return run


def norms_only(s: Setting, model_pass: ModelPass) -> None:
    """(f) Exact norms of every part of every head and MLP, nothing else."""
    units = [(tuple(row),) for row in s.ids.tolist()]
    forward = model_pass.forward(units)
    _, d_logits = loss_gradient(s.target, forward.logits)
    circuit_norms(forward.backward(d_logits), s.loaded.components, len(units)).clamp(min=0).sqrt()


def everything(s: Setting, model_pass: ModelPass, calibration: Calibration, means: MeanInputs) -> None:
    """(g) All statistics of all components: raw and centred norms, Taylor, coherence, norms' gains, embeddings."""
    units = [(tuple(row),) for row in s.ids.tolist()]
    forward = model_pass.forward(units)
    _, d_logits = loss_gradient(s.target, forward.logits)
    batch_means = BatchMeans(means, torch.zeros(len(units), dtype=torch.int64, device=s.ids.device))
    all_statistics(forward.backward(d_logits), s.loaded.components, len(units), batch_means)


def floor(s: Setting) -> Callable[[], None]:
    """(h) The matrix products of a forward and an activation-only backward pass alone, last block at the answer."""
    config, (batch, length) = s.model.config, s.ids.shape
    d, heads, rows = config.n_embd, config.n_head, batch * length
    blocks = s.model.transformer.h
    x = {n: torch.randn(n, d, device=s.ids.device, dtype=s.model.dtype) for n in (rows, batch)}
    wide = {(n, k): torch.randn(n, k * d, device=s.ids.device, dtype=s.model.dtype) for n in x for k in (1, 2, 3, 4)}
    square = torch.randn(batch * heads, length, length, device=s.ids.device, dtype=s.model.dtype)
    part = torch.randn(batch * heads, length, d // heads, device=s.ids.device, dtype=s.model.dtype)
    unembedding = s.model.lm_head.weight
    d_logits = torch.randn(batch, len(unembedding), device=s.ids.device, dtype=s.model.dtype)

    @torch.no_grad()
    def run() -> None:
        for index, block in enumerate(blocks):
            qkv, out = block.attn.c_attn.weight, block.attn.c_proj.weight
            mlp_in, mlp_out = block.mlp.c_fc.weight, block.mlp.c_proj.weight
            n = rows
            if index < len(blocks) - 1:
                _ = torch.matmul(x[rows], qkv), torch.matmul(wide[rows, 3], qkv.T)
                for _ in range(3):
                    _ = torch.bmm(part, part.transpose(1, 2)), torch.bmm(square, part)
            else:
                n = batch
                _ = torch.matmul(x[n], qkv[:, :d]), torch.matmul(x[rows], qkv[:, d:])
                _ = torch.matmul(x[n], qkv[:, :d].T), torch.matmul(wide[rows, 2], qkv[:, d:].T)
            _ = torch.matmul(x[n], out), torch.matmul(x[n], mlp_in), torch.matmul(wide[n, 4], mlp_out)
            _ = torch.matmul(x[n], out.T), torch.matmul(wide[n, 4], mlp_in.T), torch.matmul(x[n], mlp_out.T)
        _ = torch.matmul(x[batch], unembedding.T), torch.matmul(d_logits, unembedding)

    return run


def contenders(s: Setting) -> list[Contender]:
    hooked = HookedPass(s.model, s.loaded.sites)
    record = Prompt("p", "p", "t", "", ("",))
    prompts = [EncodedPrompt(record, tuple(row), (0,), (1,), None, None) for row in s.ids.tolist()]
    calibration = Engine(s.loaded, [], len(prompts)).calibrate(prompts)
    means = MeanInputs(calibration.tasks["p"], s.model.config.vocab_size, s.ids.device, torch.float32)
    found = [
        Contender("a deck's loop", lambda: deck_loop(s), LOOP_PROMPTS / len(s.ids)),
        Contender("b plain, logits everywhere", lambda: plain_full(s)),
        Contender("c plain, answer only", lambda: plain_answer_only(s)),
        Contender("c plain, answer only, compiled", compiled_answer_only(s)),
        Contender("f norms only, hooks", lambda: norms_only(s, hooked)),
        Contender("g everything, hooks", lambda: everything(s, hooked, calibration, means)),
    ]
    if not isinstance(s.model, GPT2LMHeadModel):
        return found
    own = Gpt2Pass(s.model)
    try:
        found.append(Contender("d opacus ghost norms", opacus_ghost(s)))
    except ImportError as missing:
        print(f"left out: opacus ({missing})", file=sys.stderr)
    return [
        *found,
        Contender("f norms only, own pass", lambda: norms_only(s, own)),
        Contender("g everything, own pass", lambda: everything(s, own, calibration, means)),
        Contender("h floor", floor(s)),
    ]
