"""``fasttx.quantize``: the linear layers of encoders as int8, chosen by what is known of the families.

The layers of an encoder hold most of the weights and nearly all of the products, and their errors average out over
tokens and layers. What stands outside (embeddings, poolers, heads) stays as it is: few rows, or errors that go straight
into the result.
"""

from __future__ import annotations

import fnmatch
import warnings
from typing import Any

from torch import nn

from ..nn.bypass import bypass_reason
from ..ops.checks import FLOATS
from ..quant import Int8Config, int8_layers, put_back, replace_layers
from ..quant.layers import quantised
from .checked import are_checked_later, check_kernels, measured_choices
from .patch import _root
from .plan import FAMILIES
from .report import Report, Row, expected_backend
from .saved_int8 import mark
from .subclass import key_of, original_of, without_fsdp

LAYERS = frozenset((family.source, family.layer) for family in FAMILIES)
"""Classes of the layers of encoders."""
OWN = ("transformers.", "torch.nn.modules.")
"""Where classes come from that call their linear layers as they are."""
INT8_OPS = ("int8_linear", "quantize_per_token")
"""What a quantised layer calls, and what rounds its weight."""


def _class(module: nn.Module) -> type:
    """transformers' class of a module that may be patched or wrapped."""
    return original_of(without_fsdp(type(module)))


def _float_reason(name: str, linear: Any, inside: list[nn.Module]) -> str | None:
    """Why this layer of an encoder must stay float, or None.

    Args:
        inside: the modules around it, from the layer of the encoder inwards.
    """
    for module in inside:
        if not _class(module).__module__.startswith(OWN):
            return f"is part of a {type(module).__module__}.{type(module).__name__}"
    reason = bypass_reason(linear, "it", cls="Linear")
    if reason is not None:
        return reason
    weight = linear.weight
    if type(weight) is not nn.Parameter or weight.is_meta or weight.dtype not in FLOATS:
        return f"its weight is a {weight.dtype} {type(weight).__name__} on {weight.device}"
    if not bool(weight.isfinite().all()):
        return "its weight holds a NaN or an infinity"
    return None


def _around(root: nn.Module, name: str) -> list[nn.Module]:
    """The modules that hold the one of that name, from the innermost layer of an encoder inwards; [] outside of any."""
    parts = name.split(".")
    above = [root.get_submodule(".".join(parts[:i])) for i in range(len(parts))]
    starts = [i for i, module in enumerate(above) if key_of(_class(module)) in LAYERS]
    return above[starts[-1] :] if starts else []


def quantize(model: Any, config: Int8Config | None = None) -> Report:
    """Make the linear layers of a model's encoder int8, in place, for inference. :func:`dequantize` undoes it.

    Weights are rounded to 8 bits by output channel, activations by token when a layer is called. Embeddings, poolers,
    heads and whatever is not exactly a ``torch.nn.Linear`` (LoRA, hooks, parametrisations) stay as they are; the report
    says why. It works before and after :func:`fasttx.patch`. A quantised model has no gradients: backward raises. Its
    ``state_dict()`` holds int8 weights and scales, and loads into a model that was quantised in the same way.
    ``save_pretrained`` saves them, and ``from_pretrained`` reads them where fasttx.models was imported before; without
    it the load ends in an error.

    Args:
        model: a transformers model, or anything that holds some (PEFT, sentence-transformers, a pipeline).
        config: a :class:`fasttx.Int8Config`; None for the default one.

    Returns:
        A report, as :func:`fasttx.patch` gives it, with one row for each linear layer.

    Raises:
        ValueError: `model` holds no encoder layer of a known family, or a pattern of ``skip`` matches no layer.
        TypeError: config is something else.
    """
    if config is None:
        config = Int8Config()
    if not isinstance(config, Int8Config):
        raise TypeError(f"config: got {type(config).__name__}; allowed are fasttx.Int8Config and None")
    root = _root(model)
    if not any(key_of(_class(module)) in LAYERS for module in root.modules()):
        names = ", ".join(family.name for family in FAMILIES)
        raise ValueError(f"model: got {type(root).__name__}, without an encoder layer; allowed are those of {names}")
    checks = check_kernels(root, INT8_OPS, "auto")
    later = are_checked_later(checks, "auto")
    report = Report(type(root).__name__, call="fasttx.quantize", checks=checks, checks_later=later)
    report.tuned = measured_choices(root, INT8_OPS, "auto")
    chosen: dict[nn.Module, nn.Module] = {}
    unused, already = set(config.skip), int8_layers(root)
    for name, module in root.named_modules():
        is_int8 = name in already
        if not isinstance(module, nn.Linear) and not is_int8:
            continue
        layer: Any = module
        before = f"{type(module).__name__}({layer.in_features}, {layer.out_features})"
        inside = _around(root, name)
        skipped = {pattern for pattern in config.skip if fnmatch.fnmatchcase(name, pattern)}
        unused -= skipped
        reason: str | None
        if is_int8:
            reason = "is int8 already"
        elif not inside:
            reason = "is outside of encoder layers: poolers and heads have few rows, and their errors reach the result"
        elif skipped:
            reason = f"skip names it: {min(skipped)!r}"
        else:
            reason = _float_reason(name, module, inside)
        if reason is None:
            chosen[module] = quantised(layer, config.keep_float)
            backend = expected_backend("int8_linear", "auto", module)
            report.rows.append(Row(name, before, "Int8Linear", backend, "activations by token"))
        else:
            report.rows.append(Row(name, before, None, "", reason))
    if unused:
        raise ValueError(
            f"skip: got {sorted(unused)}; allowed are patterns that match a linear layer of {type(root).__name__}"
        )
    replace_layers(root, chosen)
    mark(root)
    if not chosen:
        warnings.warn(f"fasttx.quantize replaced nothing: {'; '.join(report.reasons())}", stacklevel=2)
    return report


def dequantize(model: Any) -> None:
    """Make every int8 layer of a model a ``torch.nn.Linear`` again.

    The weights are the rounded ones, in the dtype of the layer's bias (float32 where there is none). The bias is the
    same parameter as before. After ``Int8Config(keep_float=True)`` the layers are the very objects that were there.

    Raises:
        ValueError: nothing in `model` is int8.
    """
    root = _root(model)
    if not put_back(root):
        raise ValueError(
            f"model: got a {type(root).__name__} without an int8 layer; allowed is one that fasttx.quantize changed"
        )
    mark(root)
