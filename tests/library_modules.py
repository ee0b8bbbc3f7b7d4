"""Where the values that a decoder names lie in the library's own models: placed by hand, family by family."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

HEADS = 4


class Place(NamedTuple):
    """A module, whether its input is meant, and the slices of the last dimension by index."""

    module: nn.Module
    is_input: bool
    slices: list[slice]

    def read(self, run: Callable[[], object]) -> Tensor:
        """The whole value, during `run`."""
        kept: list[Tensor] = []
        hook = self._hook(lambda whole: kept.append(whole.detach().clone()))
        run()
        hook.remove()
        return kept[0]

    def cut(self, run: Callable[[], object]) -> Tensor:
        """The same cut into slices, `[pos, slice, width]`."""
        whole = self.read(run).flatten(0, -2)
        return torch.stack([whole[:, one] for one in self.slices], 1)

    def replaced(self, value: Tensor, which: list[int], run: Callable[[], Tensor]) -> Tensor:
        """What `run` returns while slices `which` are those of `value`, `[pos, slice, width]`."""

        def change(whole: Tensor) -> Tensor:
            whole = whole.clone()
            flat = whole.flatten(0, -2)  # OPT flattens the batch
            for index in which:
                flat[:, self.slices[index]] = value[:, index]
            return whole

        hook = self._hook(change)
        found = run()
        hook.remove()
        return found

    def _hook(self, change: Callable[[Tensor], Any]) -> Any:
        if self.is_input:
            return self.module.register_forward_pre_hook(lambda _module, inputs: change(inputs[0]))
        return self.module.register_forward_hook(lambda _module, _inputs, output: change(output))


def block(family: str, model: Any, layer: int) -> Any:
    """A block of the model."""
    if family == "gpt2":
        return model.transformer.h[layer]
    if family.startswith("gpt_neox"):
        return model.gpt_neox.layers[layer]
    return model.model.decoder.layers[layer] if family == "opt" else model.model.layers[layer]


def place(family: str, model: Any, name: str) -> Place:
    """Where `a1.q`, `a1.z`, `m1.in`, `m1.out` and so on are."""
    node, part = name.split(".")
    one = block(family, model, int(node[1:]))
    if node[0] == "m":
        return Place(_mlp(family, one)[part], False, [slice(None)])
    if family == "gpt2":
        width = one.attn.c_proj.weight.shape[0] // HEADS
        if part == "z":
            return Place(one.attn.c_proj, True, _slices(0, width, width))
        return Place(one.attn.c_attn, False, _slices("qkv".index(part) * HEADS * width, width, width))
    if family.startswith("gpt_neox"):
        width = one.attention.dense.weight.shape[1] // HEADS
        if part == "z":
            return Place(one.attention.dense, True, _slices(0, width, width))
        return Place(one.attention.query_key_value, False, _slices("qkv".index(part) * width, 3 * width, width))
    out = one.self_attn.out_proj if family == "opt" else one.self_attn.o_proj
    width = out.weight.shape[1] // HEADS
    if part == "z":
        return Place(out, True, _slices(0, width, width))
    module = getattr(one.self_attn, f"{part}_proj")
    return Place(module, False, _slices(0, width, width, module.weight.shape[0] // width))


def _mlp(family: str, one: Any) -> dict[str, nn.Module]:
    if family == "gpt2":
        return {"in": one.mlp.c_fc, "out": one.mlp}
    if family.startswith("gpt_neox"):
        return {"in": one.mlp.dense_h_to_4h, "out": one.mlp}
    if family == "opt":
        return {"in": one.fc1, "out": one.fc2}
    adds = one.post_feedforward_layernorm if family.startswith("gemma") else one.mlp
    return {"gate": one.mlp.gate_proj, "up": one.mlp.up_proj, "out": adds}


def _slices(start: int, step: int, width: int, n_slices: int = HEADS) -> list[slice]:
    return [slice(start + index * step, start + index * step + width) for index in range(n_slices)]


def parts(family: str) -> tuple[str, ...]:
    """The parts of an MLP that can be patched."""
    return ("in", "out") if family in ("gpt2", "gpt_neox", "gpt_neox_serial", "opt") else ("gate", "up", "out")


def last_logits(model: Any, ids: tuple[int, ...]) -> Tensor:
    """Of one sequence, at its last token."""
    return model(input_ids=torch.tensor([ids])).logits[0, -1].detach()
