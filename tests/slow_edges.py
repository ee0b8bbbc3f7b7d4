"""One edge at a time, on the library's modules: the loss when one reader reads one node from another run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from gbcd.engine.oracle import Oracle, _matrix
from gbcd.models.load import LoadedModel
from gbcd.models.spec import MapSpec


class SlowEdges:
    """A model whose heads all have keys and values of their own, so that each is a reader."""

    def __init__(self, loaded: LoadedModel) -> None:
        self.oracle, self.spec = Oracle(loaded), loaded.spec
        self.model: Any = self.oracle.model.requires_grad_(False)
        for attention in self.spec.attentions:
            if attention.n_groups != self.spec.n_heads:
                _ungroup(self.model, attention.maps, self.spec.n_heads // attention.n_groups)

    def loss(self, ids: tuple[int, ...], target: Any) -> float:
        return float(target(self.oracle.logits(ids)[-1].view(1, 1, -1)))

    def written(self, ids: tuple[int, ...]) -> dict[str, Tensor]:
        """What every node writes to the residual stream, `[pos, d]`."""
        kept: dict[str, Tensor] = {}
        first = self.spec.attentions[0].norm
        assert first is not None
        paths = {first.module: True, **{one.out.module: True for one in self.spec.attentions}}
        for attention, mlp in zip(self.spec.attentions, self.spec.mlps, strict=True):
            assert mlp is not None
            paths |= {mlp.out.module: False} | {one.module: False for one in (mlp.post_norm,) if one is not None}
            paths |= {one.module: True for one in (attention.post_norm,) if one is not None}
        hooks = [self._module(path).register_forward_hook(_keep(kept, path, reads)) for path, reads in paths.items()]
        self.oracle.logits(ids)
        for hook in hooks:
            hook.remove()
        found = {"input": kept[first.module]}
        for layer, (attention, mlp) in enumerate(zip(self.spec.attentions, self.spec.mlps, strict=True)):
            assert mlp is not None
            weight = _matrix(self._module(attention.out.module), "data")
            pieces = zip(
                kept[attention.out.module].chunk(self.spec.n_heads, 1), weight.chunk(self.spec.n_heads), strict=True
            )
            for head, (z, rows) in enumerate(pieces):
                found[f"a{layer}.h{head}"] = z @ rows
                if attention.post_norm is not None:
                    norm = self._module(attention.post_norm.module)
                    total = kept[attention.post_norm.module]
                    share = (total.square().mean(1, keepdim=True) + norm.eps).rsqrt() * (1 + norm.weight)
                    found[f"a{layer}.h{head}"] = z @ rows * share
            found[f"m{layer}"] = kept[(mlp.post_norm or mlp.out).module]
        return found

    def patched(self, ids: tuple[int, ...], target: Any, reader: str, change: Tensor) -> float:
        """The loss where `reader` alone reads the residual stream with `change` added."""
        hooks = self._hooks(reader, change)
        found = self.loss(ids, target)
        for hook in hooks:
            hook.remove()
        return found

    def _hooks(self, reader: str, change: Tensor) -> list[Any]:
        if not reader.startswith("a"):
            layer = int(reader[1:]) if reader != "logits" else None
            mlp = None if layer is None else self.spec.mlps[layer]
            norm = self.spec.final_norm if mlp is None else mlp.norm
            assert norm is not None
            return [self._module(norm.module).register_forward_pre_hook(lambda _m, inputs: (inputs[0] + change,))]
        layer, part = int(reader[1 : reader.index(".")]), reader.split(".h")[1].replace("<", ".").rstrip(">")
        attention = self.spec.attentions[layer]
        assert attention.norm is not None
        norm = self._module(attention.norm.module)
        read: list[Tensor] = []

        def replace(one: MapSpec, module: nn.Module, output: Tensor) -> Tensor:
            names = self._own(one)
            name = f"a{layer}.h{part}"
            if name not in names:
                return output
            width, at = output.shape[-1] // len(names), names.index(name)
            other = module.forward(norm.forward(read[0] + change))
            output = output.clone()
            output[..., at * width : (at + 1) * width] = other[..., at * width : (at + 1) * width]
            return output

        hooks = [norm.register_forward_pre_hook(lambda _m, inputs: read.append(inputs[0]))]
        for one in attention.maps:
            hooks.append(
                self._module(one.module).register_forward_hook(lambda m, _i, output, one=one: replace(one, m, output))
            )
        return hooks

    def _own(self, one: MapSpec) -> list[str]:
        """Names of a map's slices where every head has its own."""
        repeats = self.spec.n_heads // len(one.components) if ".g" in one.components[0] else 1
        names = [name for name in one.components for _ in range(repeats)]
        return [f"{n.split('.')[0]}.h{i}.{n.split('.')[2]}" if repeats > 1 else n for i, n in enumerate(names)]

    def _module(self, path: str) -> Any:
        return self.model.get_submodule(path)


def _keep(kept: dict[str, Tensor], path: str, reads: bool) -> Callable[..., None]:
    def hook(_module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        whole = inputs[0] if reads else output
        kept[path] = whole.reshape(-1, whole.shape[-1])

    return hook


def _ungroup(model: nn.Module, maps: tuple[MapSpec, ...], repeats: int) -> None:
    for one in maps:
        if ".g" in one.components[0]:
            module: Any = model.get_submodule(one.module)
            n_groups = len(one.components)
            for name in ("weight", "bias"):
                values = getattr(module, name)
                if values is not None:
                    pieces = values.unflatten(0, (n_groups, -1)).repeat_interleave(repeats, 0).flatten(0, 1)
                    setattr(module, name, nn.Parameter(pieces, requires_grad=False))
