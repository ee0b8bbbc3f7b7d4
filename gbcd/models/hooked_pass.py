"""Taps on the modules of any model that an architecture file describes: the general pass.

The model's own code runs, with frozen weights and hooks on the tapped modules; autograd is asked for the gradients of
the tapped outputs alone. Each sequence of a unit is a row of its own, and the rows of a unit are laid end to end
afterwards, so that a gradient summed over the unit's sequences is again one product `X^T D`.

The answer is read at one token of each row, so the last block needs its attention output and its MLP there alone. Hooks
cut the inputs of those modules to that token; what they write is added to the whole residual stream by broadcasting,
wrong at every other token, and those are cut away before the unembedding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from gbcd.models import gain_of, parameter
from gbcd.models.sites import GainSite, LinearSite, ModelSites
from gbcd.models.taps import EmbeddingTap, GainTap, InputRows, LinearTap, Tap
from gbcd.models.units import Sequences


class HookedPass:
    """Runs a model of the library on batches of units."""

    def __init__(self, model: PreTrainedModel, sites: ModelSites) -> None:
        """`model` is frozen; `sites` says where it is tapped."""
        self.model, self.sites = model, sites

    def forward(self, units: Sequence[Sequences], every_token: bool = False) -> HookedForward:
        """Forward pass; see `gbcd.models.taps.ModelPass`."""
        return HookedForward(self, units, every_token)

    def module(self, path: str) -> nn.Module:
        """The module at a dotted path."""
        return self.model.get_submodule(path)


class HookedForward:
    """The graph of a batch; see `gbcd.models.taps.ForwardPass`."""

    def __init__(self, owner: HookedPass, units: Sequence[Sequences], every_token: bool) -> None:
        """Run the model and keep inputs and outputs of the tapped modules."""
        self._owner, self._n_units, self._n_sequences = owner, len(units), len(units[0])
        rows = [sequence for unit in units for sequence in unit]
        device = owner.model.device
        self._length = max(map(len, rows))
        self._ids = torch.tensor([[*row, *[0] * (self._length - len(row))] for row in rows], device=device)
        read = range(self._length) if owner.sites.reads_every_token else None
        self._read = torch.tensor([read or [len(row) - 1] for row in rows], device=device)
        self._cut = _cut_modules(owner.sites) if not (every_token or read) else []
        self._inputs: dict[str, Tensor] = {}
        self._outputs: dict[str, Tensor] = {}
        with ExitStack() as stack, torch.enable_grad():
            self._hook(stack)
            output: Any = owner.model(input_ids=self._ids, use_cache=False)
        self._graph_logits = cast(Tensor, output.logits)
        self.logits: Float[Tensor, "unit seq vocab"] = self._at_units(self._graph_logits.detach())

    def inputs(self) -> Iterator[InputRows]:
        """See `gbcd.models.taps.ForwardPass`."""
        seen: set[str] = set()
        for site in self._owner.sites.linear:
            if site.input not in seen:
                seen.add(site.input)
                yield self._rows(site.input, self._inputs[site.module])
        for gain in self._owner.sites.gains:
            yield self._rows(gain.component, self._normalised(gain))
        yield self._hidden()

    def backward(self, d_logits: Float[Tensor, "unit seq vocab"]) -> Iterator[Tap]:
        """See `gbcd.models.taps.ForwardPass`; sequences that `d_logits` leaves out get gradients of zero."""
        sites = self._owner.sites
        left_out = self.logits.shape[1] - d_logits.shape[1]
        d_logits = functional.pad(d_logits, (0, 0, 0, left_out)).view(self._graph_logits.shape)
        wanted = list(self._outputs)
        found = torch.autograd.grad(
            self._graph_logits, [self._outputs[path] for path in wanted], d_logits, retain_graph=True
        )
        gradients = {path: gradient.detach() for path, gradient in zip(wanted, found, strict=True)}
        inputs: dict[str, InputRows] = {}
        for site in sites.linear:
            rows = inputs.setdefault(site.input, self._rows(site.input, self._inputs[site.module]))
            yield self._linear_tap(site, rows, gradients[site.module])
        for gain in sites.gains:
            rows = self._rows(gain.component, self._normalised(gain))
            d = self._unit_rows(_features(gain, gradients[gain.module]))
            yield GainTap(gain.component, rows, d, gain_of(self._owner.model, gain))
        yield self._embedding_tap(gradients)

    def _linear_tap(self, site: LinearSite, rows: InputRows, gradient: Float[Tensor, "*row_pos d_out"]) -> LinearTap:
        module = self._owner.module(site.module)
        d = self._unit_rows(gradient)

        def taylor_pair() -> tuple[Tensor, Tensor]:
            if site.axis == "in":
                return rows.x, d @ _matrix(module).T
            bias = cast(Tensor | None, module.bias)
            output = self._unit_rows(self._outputs[site.module].detach())
            return (output if bias is None else output - bias), d

        return LinearTap(site.components, site.axis, rows, d, taylor_pair)

    def _embedding_tap(self, gradients: dict[str, Tensor]) -> EmbeddingTap:
        embedding = self._owner.sites.embedding
        ids, positions = self._ids.view(self._n_units, -1), self._positions()
        position_rows = None
        if embedding.position is not None:
            table = parameter(self._owner.model, embedding.position).detach()
            position_rows = table[positions + embedding.first_position]
        token_table = parameter(self._owner.model, embedding.token).detach()
        d_unembed = self._at_units(gradients[embedding.unembed])
        return EmbeddingTap(
            ids,
            positions,
            token_table[ids],
            position_rows,
            # the gradient by the table's rows, not by what the module makes of them
            self._unit_rows(gradients[embedding.token]) * embedding.scale,
            self._hidden(),
            d_unembed @ _matrix(self._owner.module(embedding.unembed)).T,
            d_unembed,
            embedding.tied,
        )

    def _hook(self, stack: ExitStack) -> None:
        sites = self._owner.sites
        token, unembed = self._owner.module(sites.embedding.token), self._owner.module(sites.embedding.unembed)
        stack.callback(token.register_forward_hook(self._leaf(sites.embedding.token)).remove)
        for path in self._cut:
            stack.callback(self._owner.module(path).register_forward_pre_hook(self._at_answers).remove)
        stack.callback(unembed.register_forward_pre_hook(self._at_answers).remove)
        paths = [*(site.module for site in sites.linear), *(gain.module for gain in sites.gains)]
        for path in [*paths, sites.embedding.unembed]:
            stack.callback(self._owner.module(path).register_forward_hook(self._keep(path)).remove)

    def _leaf(self, path: str) -> Callable[..., Tensor]:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            self._outputs[path] = output.detach().requires_grad_()
            return self._outputs[path]

        return hook

    def _keep(self, path: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            self._inputs[path], self._outputs[path] = inputs[0].detach(), output

        return hook

    def _at_answers(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        hidden = inputs[0]
        return (hidden.gather(1, self._read.unsqueeze(2).expand(-1, -1, hidden.shape[2])),)

    def _normalised(self, gain: GainSite) -> Float[Tensor, "*row_pos width"]:
        return _features(gain, normalised(self._owner.module(gain.module), gain, self._inputs[gain.module]))

    def _hidden(self) -> InputRows:
        hidden = self._at_units(self._inputs[self._owner.sites.embedding.unembed])
        return InputRows("unembed", hidden, self._read.view(self._n_units, -1))

    def _at_units(self, x: Float[Tensor, "row read d"]) -> Float[Tensor, "unit seq d"]:
        return x.reshape(self._n_units, -1, x.shape[2])

    def _rows(self, name: str, x: Float[Tensor, "*row_pos d"]) -> InputRows:
        rows = self._unit_rows(x)
        everything = rows.shape[1] == self._length * self._n_sequences
        return InputRows(name, rows, self._positions() if everything else self._read.view(self._n_units, -1))

    def _unit_rows(self, x: Float[Tensor, "*row_pos d"]) -> Float[Tensor, "unit unit_pos d"]:
        return x.reshape(self._n_units, -1, x.shape[-1])

    def _positions(self) -> Int[Tensor, "unit unit_pos"]:
        return torch.arange(self._length, device=self._ids.device).repeat(self._n_units, self._n_sequences)


def normalised(module: nn.Module, gain: GainSite, x: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows d"]:
    """What the gain of a norm multiplies."""
    if gain.kind == "layer":
        return functional.layer_norm(x, cast(nn.LayerNorm, module).normalized_shape, eps=epsilon(module))
    x = x if x.dtype == torch.float64 else x.float()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon(module))


def epsilon(module: nn.Module) -> float:
    """What a norm adds to the mean square before it takes the root; the library has two names for it."""
    return float(getattr(module, "variance_epsilon", None) or cast(Any, module).eps)


def _features(gain: GainSite, x: Tensor) -> Float[Tensor, "*row_pos width"]:
    """Heads side by side on the last axis, for the norms of queries and keys."""
    if gain.heads is None:
        return x
    return (x.transpose(1, 2) if gain.heads == 1 else x).flatten(2)


def _cut_modules(sites: ModelSites) -> list[str]:
    """Modules of the last block whose inputs are cut to the answers."""
    last = sites.n_layers - 1
    outputs = [site.module for site in sites.linear if site.input == f"a{last}.o"]
    norms = [gain.module for gain in sites.gains if gain.component == f"m{last}.norm"]
    return [*outputs, *norms] if sites.keeps_positions else []


def _matrix(module: nn.Module) -> Float[Tensor, "d_in d_out"]:
    weight = cast(Tensor, module.weight).detach()
    return weight if isinstance(module, Conv1D) else weight.T
