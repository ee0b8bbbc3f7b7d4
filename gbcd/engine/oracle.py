"""The slow judge of the fast path: one prompt at a time, float64, plain autograd through the library's modules.

Nothing is shared with the engine but the definitions of targets and of components: each sequence of a unit is run by
itself, weight gradients are formed by autograd as full matrices, and slices are cut out of those.
"""

from __future__ import annotations

import copy
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from gbcd.models import gain_of
from gbcd.models.load import LoadedModel
from gbcd.models.sites import LinearSite
from gbcd.models.units import Sequences
from gbcd.wrong_answers.losses import Target


class Oracle:
    """A float64 copy of a model with trainable weights and, where they were one, embedding and unembedding apart."""

    def __init__(self, loaded: LoadedModel) -> None:
        """Copy the model of `loaded`."""
        self._sites = loaded.sites
        self.model: Any = copy.deepcopy(loaded.model).double().requires_grad_(True)
        if self._sites.embedding.tied:
            head = self.model.get_submodule(self._sites.embedding.unembed)
            head.weight = nn.Parameter(head.weight.detach().clone())

    def logits(self, sequence: Sequence[int]) -> Float[Tensor, "pos vocab"]:
        """Logits of one sequence at every position, with graph."""
        return self.model(input_ids=torch.tensor([list(sequence)], device=self.model.device)).logits[0]

    def gradients(self, unit: Sequences, target: Target) -> dict[str, Tensor]:
        """Weight gradient of each component of the loss summed over the unit's sequences, `W` as `[in, out]`."""
        self.model.zero_grad(set_to_none=True)
        if self._sites.reads_every_token:
            answers = torch.cat([self.logits(sequence) for sequence in unit])
        else:
            answers = torch.stack([self.logits(sequence)[-1] for sequence in unit])
        target(answers.unsqueeze(0)).sum().backward()
        found: dict[str, Tensor] = {}
        for site in self._sites.linear:
            gradient = _matrix(self.model.get_submodule(site.module), "grad")
            found.update(_slices(site, gradient))
        for gain in self._sites.gains:
            found[gain.component] = self.model.get_submodule(gain.module).weight.grad
        return found | self._embedding_gradients()

    def weights(self) -> dict[str, Tensor]:
        """Weights of each component, in the layout of `gradients`."""
        found: dict[str, Tensor] = {}
        for site in self._sites.linear:
            found.update(_slices(site, _matrix(self.model.get_submodule(site.module), "data")))
        for gain in self._sites.gains:
            found[gain.component] = gain_of(self.model, gain)
        embedding = self._sites.embedding
        for name, module in self._tables().items():
            found[name] = self.model.get_submodule(module).weight.data
        if embedding.tied:
            found["embed.tied"] = found["embed.token"]
        return found

    @contextmanager
    def centered(self, means: Mapping[str, Float[Tensor, "pos d_in"]]) -> Generator[None]:
        """Within this context gradients are those of centred inputs, `(X - Xbar)^T D`; values are as before.

        `means` gives the mean input by position for each input of `ModelSites`, for each gain under its component's
        name, for `unembed`, and under `embed.token` and `embed.position` the frequencies of the rows of the tables.
        """
        embedding = self._sites.embedding
        inputs = {site.module: site.input for site in self._sites.linear}
        inputs |= {gain.module: gain.component for gain in self._sites.gains}
        inputs |= {module: name for name, module in self._tables().items()}
        gains = {gain.module: gain for gain in self._sites.gains}
        with ExitStack() as stack:
            for path, name in inputs.items():
                module, mean = self.model.get_submodule(path), means[name].double()
                if path in gains:
                    hook = partial(_without_mean_gain, mean, gains[path].heads)
                else:
                    scale = embedding.scale if path == embedding.token else 1.0
                    as_stored = path in (embedding.token, embedding.position) or isinstance(module, Conv1D)
                    hook = partial(_without_mean, mean * scale, as_stored)
                stack.callback(module.register_forward_hook(hook).remove)
            yield

    def _tables(self) -> dict[str, str]:
        embedding = self._sites.embedding
        tables = {"embed.token": embedding.token, "unembed": embedding.unembed}
        if embedding.position is not None:
            tables["embed.position"] = embedding.position
        return tables

    def _embedding_gradients(self) -> dict[str, Tensor]:
        found = {name: self.model.get_submodule(module).weight.grad for name, module in self._tables().items()}
        if self._sites.embedding.tied:
            found["embed.tied"] = found["embed.token"] + found["unembed"]
        return found


def _matrix(module: nn.Module, which: str) -> Float[Tensor, "d_in d_out"]:
    weight = cast(nn.Parameter, module.weight)
    values = cast(Tensor, weight.grad if which == "grad" else weight.data)
    return values if isinstance(module, Conv1D) else values.T


def _slices(site: LinearSite, matrix: Float[Tensor, "d_in d_out"]) -> dict[str, Tensor]:
    pieces = matrix.chunk(len(site.components), 1 if site.axis == "out" else 0)
    return dict(zip(site.components, pieces, strict=True))


def _without_mean(
    mean: Float[Tensor, "pos d_in"], as_stored: bool, module: nn.Module, inputs: Any, output: Tensor
) -> Tensor:
    # The value added is zero; its gradient takes Xbar^T D away from the weight's.
    weight = cast(Tensor, module.weight)
    usual = mean[: output.shape[-2]] @ (weight if as_stored else weight.T)
    return output + (usual.detach() - usual)


def _without_mean_gain(
    mean: Float[Tensor, "pos width"], heads: int | None, module: nn.Module, inputs: Any, output: Tensor
) -> Tensor:
    weight = cast(Tensor, module.weight)
    if heads is None:
        usual = mean[: output.shape[-2]] * weight
    else:
        usual = mean[: output.shape[3 - heads]].unflatten(1, (-1, len(weight))) * weight
        usual = usual.transpose(0, 1) if heads == 1 else usual
    return output + (usual.detach() - usual)
