"""A model proves itself: the decoder against the library, on the weights that will be used.

Tests hold every family's decoder against the library on small random models. What a checkpoint's own configuration does
(a scaling of positions, a width of heads) is proven here, when a study is planned and by `gbcd doctor`:

    logits   of the whole model, for a few tokens, against the library's
    norms    of every part, of one short prompt, against the float64 oracle: in float32, of the first blocks and of few
             tokens of the vocabulary, so that the check takes seconds and little memory for a model of any size
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from gbcd.engine.engine import loss_gradient, packed_for
from gbcd.engine.oracle import Oracle
from gbcd.engine.proof import SelfCheck
from gbcd.engine.scores import STATISTICS, ScoreTable
from gbcd.errors import BadInput
from gbcd.models.forward import Options
from gbcd.models.load import LoadedModel
from gbcd.models.spec import ModelSpec

#: Tokens of the prompt, and rows of the vocabulary that the check of norms keeps.
LENGTH, VOCABULARY = 8, 512
#: Blocks are added while their weights are no more than this.
MOST_WEIGHTS = 20_000_000

#: Largest difference of logits, as a share of their standard deviation, that rounding explains.
LOGITS = {torch.float64: 1e-4, torch.float32: 1e-3, torch.bfloat16: 0.5}
#: Largest relative error of a norm, likewise.
NORMS = 1e-3


@dataclass(frozen=True)
class _Squares:
    """Half the sum of `(logit + 1)^2`: a loss whose gradient is not zero, whatever the model answers."""

    tokens: None = None
    reads_all: bool = True

    def __call__(self, logits: Float[Tensor, "prompt seq vocab"]) -> Float[Tensor, " prompt"]:
        return (logits + 1).square().sum((1, 2)) / 2


def self_check(loaded: LoadedModel) -> SelfCheck:
    """Compare the decoder with the library.

    Raises:
        BadInput: they differ by more than rounding, so results of this model would be wrong.
    """
    ids = random_tokens(loaded, min(LENGTH, loaded.context))
    logits = _logits_error(loaded, ids)
    part = first_blocks(loaded)
    worst, norms = _norms_error(part, ids)
    if not logits <= LOGITS[loaded.dtype]:
        raise BadInput(_refusal(loaded, f"logits differ by {logits:.2g} of their standard deviation"))
    if not norms <= NORMS:
        raise BadInput(_refusal(loaded, f"the norm of {worst} differs by {norms:.2g} of itself from float64 autograd"))
    return SelfCheck(logits, norms, worst, part.spec.n_layers)


def _refusal(loaded: LoadedModel, found: str) -> str:
    return (
        f"the decoder of gbcd does not run {loaded.name!r} as the library does: {found}. Results would be wrong; "
        f"something in this {loaded.model.config.model_type}'s configuration is not known to gbcd/models/families"
    )


def _logits_error(loaded: LoadedModel, ids: tuple[int, ...]) -> float:
    found = loaded.decoder.run(packed_for(loaded, [(ids,)])).logits[0]
    with torch.no_grad():
        wanted = loaded.model(input_ids=torch.tensor([ids], device=loaded.device)).logits[0, :, : found.shape[1]]
    wanted = wanted if loaded.spec.reads_every_token else wanted[-1:]
    spread = float(wanted.double().std(correction=0)) or 1.0
    return float((found.double() - wanted.double()).abs().max()) / spread


def _norms_error(loaded: LoadedModel, ids: tuple[int, ...]) -> tuple[str, float]:
    """The part with the largest error, and the error."""
    gradients = Oracle(loaded).gradients((ids,), _Squares())
    wanted = torch.stack([gradients[component.name].norm() for component in loaded.components])
    error = _relative(_norms(loaded, [ids])[0], wanted)
    index = int(error.nan_to_num(torch.inf).argmax())
    return loaded.components[index].name, float(error[index])


def dependence_on_batches(loaded: LoadedModel) -> float:
    """By what share of itself the norm of a part changes, at most, when a prompt shares a batch with others."""
    lengths = [min(length, loaded.context) for length in (LENGTH, 2 * LENGTH, 3 * LENGTH, 3 * LENGTH)]
    prompts = [random_tokens(loaded, length, seed) for seed, length in enumerate(lengths)]
    together = _norms(loaded, prompts)
    changes = [_relative(together[row], _norms(loaded, [one])[0]) for row, one in enumerate(prompts)]
    return float(torch.stack(changes).max())


def random_tokens(loaded: LoadedModel, length: int, seed: int = 0) -> tuple[int, ...]:
    """Tokens from the beginning of the vocabulary, the first of them (padding, often) left out."""
    generator, most = torch.Generator().manual_seed(seed), min(loaded.n_tokens or loaded.vocabulary_size, VOCABULARY)
    return tuple(torch.randint(1, most, (length,), generator=generator).tolist())


def _norms(loaded: LoadedModel, prompts: Sequence[tuple[int, ...]]) -> Float[Tensor, "prompt component"]:
    run = loaded.decoder.run(packed_for(loaded, [(ids,) for ids in prompts]), Options(graph=True))
    table = ScoreTable(loaded.components, len(prompts), {}, STATISTICS[:1])
    run.backward(loss_gradient(_Squares(), run.logits)[1], table)
    return table.values()["grad_norm"].double().cpu()


def _relative(found: Float[Tensor, " component"], wanted: Float[Tensor, " component"]) -> Float[Tensor, " component"]:
    """Errors; of a norm that cancels (that of a key, of tokens all alike) as a share of the largest."""
    return (found - wanted).abs() / wanted.clamp(min=max(1e-4 * float(wanted.max()), torch.finfo(wanted.dtype).tiny))


def first_blocks(loaded: LoadedModel) -> LoadedModel:
    """The first blocks of `loaded` with few rows of its vocabulary, in float32 on the processor.

    As many blocks as have every kind of attention, and more while their weights are few.
    """
    spec = loaded.spec
    n_blocks = _n_blocks(loaded.model, spec)
    kept = replace(spec, attentions=spec.attentions[:n_blocks], mlps=spec.mlps[:n_blocks])
    blocks = spec.attentions[0].out.module.split(".0.")[0]
    model = _with(loaded.model, blocks, cast(nn.ModuleList, loaded.model.get_submodule(blocks))[:n_blocks])
    paths = [spec.embedding.token] if spec.reads_every_token else [spec.embedding.token, spec.embedding.unembed]
    for path in paths:
        model = _with(model, path, _rows(loaded.model.get_submodule(path)))
    dtype = torch.promote_types(loaded.dtype, torch.float32)
    small = cast(PreTrainedModel, cast(Any, copy.deepcopy(model)).to("cpu", dtype))
    return LoadedModel(loaded.name, small, loaded.tokenizer, kept)


def _n_blocks(model: nn.Module, spec: ModelSpec) -> int:
    kinds = [(one.window, one.cap, one.rotary) for one in spec.attentions]
    least = 1 + max(kinds.index(kind) for kind in set(kinds))
    found, weights = 0, 0
    for attention, mlp in zip(spec.attentions, spec.mlps, strict=True):
        maps = [*attention.maps, attention.out] + ([*mlp.maps, mlp.out] if mlp is not None else [])
        weights += sum(model.get_parameter(f"{one.module}.weight").numel() for one in maps)
        if found >= least and weights > MOST_WEIGHTS:
            break
        found += 1
    return found


def _with(model: nn.Module, path: str, module: nn.Module) -> nn.Module:
    """`model` with `module` at `path`; everything else is shared with it."""
    first, _, rest = path.partition(".")
    found = copy.copy(model)
    inner = _with(cast(nn.Module, getattr(model, first)), rest, module) if rest else module
    found._modules = {**model._modules, first: inner}  # pyright: ignore[reportPrivateUsage]
    return found


def _rows(table: nn.Module) -> nn.Module:
    """An embedding or unembedding with the first rows of its matrix."""
    found: Any = copy.copy(table)
    weight: Float[Tensor, "vocab d"] = cast(Tensor, table.weight)
    found._parameters = {**table._parameters, "weight": nn.Parameter(weight[:VOCABULARY], requires_grad=False)}  # pyright: ignore[reportPrivateUsage]
    if getattr(found, "padding_idx", None) is not None:
        found.padding_idx = None
    return found
