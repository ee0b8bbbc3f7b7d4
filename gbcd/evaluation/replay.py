"""Run a batch once, then again from any block on, with some values replaced.

The first pass keeps the arguments of every block. A change in block l leaves everything before it as it was, so
`rerun` starts there, with the kept input: on average half of the blocks are saved. It relies on what all
decoder-only models of transformers share (a chain of blocks that hand on the residual stream, mostly a final norm, an
unembedding, perhaps a cap on the logits) and on nothing else about them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from gbcd.evaluation.points import Point, Tensors, block_of, recorded, replaced
from gbcd.models.load import LoadedModel
from gbcd.models.sites import ModelSites


class Replay:
    """One batch through a model.

    Attributes:
        logits: at the last position; at every position for models that answer there.
        values: the tensors that were asked for.
        n_layers_run: blocks run so far, the first pass included.
    """

    @torch.no_grad()
    def __init__(self, loaded: LoadedModel, ids: Int[Tensor, "batch pos"], tensors: Collection[Tensors] = ()) -> None:
        """Run the batch, recording `tensors`."""
        self._model: Any = loaded.model
        self._blocks = [self._model.get_submodule(path) for path in block_paths(loaded.sites)]
        has_norm = bool(loaded.sites.gains)
        self._norm = self._model.get_submodule(final_norm(loaded.sites)) if has_norm else nn.Identity()
        self._reads_all = loaded.sites.reads_every_token
        self._unembed = self._model.get_submodule(loaded.sites.embedding.unembed)
        self._cap = loaded.sites.embedding.logit_cap
        self._arguments: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        with recorded(self._model, tensors) as values, ExitStack() as hooks:
            for block in self._blocks:
                hooks.callback(block.register_forward_pre_hook(self._keep, with_kwargs=True).remove)
            kept = {} if self._reads_all else {"logits_to_keep": 1}
            logits = self._model(ids.to(loaded.device), use_cache=False, **kept).logits
        self.logits: Float[Tensor, "batch *pos vocab"] = logits if self._reads_all else logits[:, -1]
        self.values: dict[Tensors, Tensor] = values
        self.n_layers_run = len(self._blocks)

    @torch.no_grad()
    def rerun(self, patches: Mapping[Point, Float[Tensor, "batch pos slice"]]) -> Float[Tensor, "batch *read vocab"]:
        """`logits` with `patches` in place."""
        if not patches:
            return self.logits
        first = min(point.layer for point in patches)
        hidden: Tensor = self._arguments[first][0][0]
        with replaced(self._model, patches):
            for block, (arguments, named) in zip(self._blocks[first:], self._arguments[first:], strict=True):
                output = block(hidden, *arguments[1:], **named)
                hidden = output[0] if isinstance(output, tuple) else output
        self.n_layers_run += len(self._blocks) - first
        logits = self._unembed(self._norm(hidden if self._reads_all else hidden[:, -1]))
        return logits if self._cap is None else self._cap * torch.tanh(logits / self._cap)

    def _keep(self, _block: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        self._arguments.append((arguments, named))


def block_paths(sites: ModelSites) -> list[str]:
    """Dotted paths of the blocks, in order."""
    return list(dict.fromkeys(path for site in sites.linear if (path := block_of(site.module)) is not None))


def final_norm(sites: ModelSites) -> str:
    """Dotted path of the norm before the unembedding."""
    return next(gain.module for gain in sites.gains if gain.component == "final.norm")
