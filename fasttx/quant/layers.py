"""Puts int8 layers in the place of float ones, and float ones back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from ..nn.int8 import Int8Linear
from .config import Int8Config
from .seen import seen_by

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


def quantised(linears: Sequence[nn.Linear], config: Int8Config) -> dict[nn.Module, Int8Linear]:
    """The int8 layer of each of `linears`, which remembers it where that is asked for.

    Layers that read the same tensor share scale and factor, so that it may be rounded once for all of them. Where
    `config` needs a calibration, each layer has one.
    """
    groups: dict[int, list[nn.Linear]] = {}
    for linear in linears:
        seen = seen_by(linear) if config.calibrated else None
        groups.setdefault(id(linear) if seen is None else id(seen), []).append(linear)
    made: dict[nn.Module, Int8Linear] = {}
    for group in groups.values():
        scale = factor = None
        seen = seen_by(group[0]) if config.calibrated else None
        if seen is not None:
            if config.smooth is not None:
                factor = seen.factor([linear.weight for linear in group], config.smooth)
            if config.activation == "static":
                scale = seen.scale(factor)
        for linear in group:
            made[linear] = Int8Linear.from_float(linear, scale, factor)
            if config.keep_float:
                made[linear].__dict__[KEPT] = (linear,)
    return made


def is_kept(layer: Int8Linear) -> bool:
    """Whether an int8 layer remembers the one that it was made of."""
    return KEPT in layer.__dict__


def float_layer(layer: Int8Linear) -> nn.Linear:
    """The layer that an int8 layer was made of where that was kept, else one of the rounded weights.

    It is on the device of the int8 layer and has its bias.
    """
    if not is_kept(layer):
        return layer.dequantize()
    kept: nn.Linear = layer.__dict__[KEPT][0]
    bias = layer.bias
    kept.to(device=layer.weight.device, dtype=None if bias is None else bias.dtype).train(layer.training)
    kept.register_parameter("bias", bias)
    return kept


def put_back(root: nn.Module) -> int:
    """Make every int8 layer of `root` its :func:`float_layer`, and return how many there were."""
    found = int8_layers(root)
    replace_layers(root, {layer: float_layer(layer) for layer in found.values()})
    return len(found)
