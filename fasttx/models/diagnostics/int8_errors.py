"""What rounding to int8 costs each layer: its output beside that of the same layer in float, of the same input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...quant import int8_layers
from ...quant.layers import float_layer, is_kept
from .. import layout
from .batch import Arguments, call

SHOWN = 8
"""Layers that print shows: those with the largest errors."""


@dataclass(frozen=True)
class LayerError:
    """One int8 layer.

    Attributes:
        name: of the layer.
        error: norm of the difference of its output from the float layer's, over the norm of that.
        kept: whether the float layer is the one that it was made of (``Int8Config(keep_float=True)``). Otherwise it has
            the rounded weights, and the error is that of rounding inputs alone.
    """

    name: str
    error: float
    kept: bool


def layer_errors(model: nn.Module, batch: Arguments, mask: Any) -> list[LayerError]:
    """The errors of all int8 layers of an unpatched model in one call in eval mode, the largest first.

    Args:
        mask: of real tokens, (batch, seqlen): padding does not count.
    """
    sums: dict[str, list[float]] = {}
    hooks = []
    for name, layer in int8_layers(model).items():
        sums[name] = [0.0, 0.0]
        weight = float_layer(layer).weight.detach().float()
        hooks.append(layer.register_forward_hook(_adds_to(sums[name], weight, mask)))
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.no_grad():
            call(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes:
            module.training = training
    found = [
        LayerError(name, (off / whole) ** 0.5 if whole else 0.0, is_kept(layer))
        for (name, (off, whole)), layer in zip(sums.items(), int8_layers(model).values(), strict=True)
    ]
    return sorted(found, key=lambda each: -each.error)


def _adds_to(sums: list[float], weight: Tensor, mask: Any) -> Any:
    """A hook that adds the squares of the difference, and of the float layer's output."""

    def hook(layer: Any, args: tuple[Any, ...], out: Tensor) -> None:
        bias = None if layer.bias is None else layer.bias.float()
        exact = nn.functional.linear(args[0].float(), weight, bias)
        off = out.float() - exact
        if isinstance(mask, Tensor) and mask.dim() == 2 and exact.shape[:-1] == mask.shape:
            off, exact = off[mask.bool()], exact[mask.bool()]
        sums[0] += float(off.square().sum())
        sums[1] += float(exact.square().sum())

    return hook


def lines_of(layers: list[LayerError]) -> list[str]:
    """Lines to print; none where there is no int8 layer."""
    if not layers:
        return []
    kept = all(each.kept for each in layers)
    what = "rounding weights and inputs" if kept else "rounding inputs (keep_float=True also shows that of weights)"
    head = layout.heading(f"int8, what {what} changes of each layer's output, largest first:")
    rows = [(f"{each.error:8.2%}", each.name) for each in layers[:SHOWN]]
    more = [f"and {len(layers) - SHOWN} more layers with less"] if len(layers) > SHOWN else []
    return [head, *layout.table(["", ""], rows)[2:], *more]
