"""Puts int8 layers in the place of float ones, and float ones back."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from ..nn.int8 import Int8Linear

KEPT = "_fasttx_float"
"""Where an int8 layer keeps the float one: in a tuple, which is no submodule, so that no state dictionary has it."""


def int8_layers(root: nn.Module) -> dict[str, Int8Linear]:
    """The int8 layers in `root`, by name."""
    return {name: module for name, module in root.named_modules() if isinstance(module, Int8Linear)}


def replace_layers(root: nn.Module, layers: Mapping[nn.Module, nn.Module]) -> None:
    """Put the value of each key of `layers` wherever `root` holds that key. Several places may share one."""
    for parent in list(root.modules()):
        for name, child in parent._modules.items():
            if child is not None and child in layers:
                parent._modules[name] = layers[child]


def quantised(linear: nn.Linear, keep_float: bool) -> Int8Linear:
    """The int8 layer of `linear`, which remembers it where that is asked for."""
    made = Int8Linear.from_float(linear)
    if keep_float:
        made.__dict__[KEPT] = (linear,)
    return made


def put_back(root: nn.Module) -> int:
    """Make every int8 layer of `root` a float one, and return how many there were.

    That is the layer it was made of where that was kept, else one of the rounded weights. It is on the device of the
    int8 layer and has its bias.
    """
    found = int8_layers(root)
    floats: dict[nn.Module, nn.Module] = {}
    for layer in found.values():
        (kept,) = layer.__dict__.get(KEPT, (None,))
        if kept is None:
            floats[layer] = layer.dequantize()
        else:
            bias = layer.bias
            kept.to(device=layer.weight.device, dtype=None if bias is None else bias.dtype).train(layer.training)
            kept.register_parameter("bias", bias)
            floats[layer] = kept
    replace_layers(root, floats)
    return len(found)
