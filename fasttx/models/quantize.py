"""``fasttx.quantize``: the linear layers of encoders as int8."""

from __future__ import annotations

import contextlib
import warnings
from typing import Any

import torch
from torch import nn

from ..nn.bypass import bypass_reason
from ..nn.int8 import Int8Linear
from ..ops.checks import FLOATS
from ..quant import Int8Config, put_back, replace_layers
from ..quant.layers import quantised
from ..quant.measured import times_of
from ..quant.seen import forget, seen_by
from .all_or_nothing import all_or_nothing
from .checked import are_checked_later, check_kernels, measured_choices
from .folded import fold_factors
from .linears import candidates
from .patch import _root
from .report import Report, Row, expected_backend
from .saved_int8 import mark

INT8_OPS = ("int8_linear", "quantize_per_token")
"""What a quantised layer calls, and what rounds its weight."""


def _float_reason(linear: Any) -> str | None:
    """Why this layer of an encoder must stay float, or None."""
    reason = bypass_reason(linear, "it", cls="Linear")
    if reason is not None:
        return reason
    weight = linear.weight
    if type(weight) is not nn.Parameter or weight.is_meta or weight.dtype not in FLOATS:
        return f"its weight is a {weight.dtype} {type(weight).__name__} on {weight.device}"
    if not bool(weight.isfinite().all()):
        return "its weight holds a NaN or an infinity"
    return None


def quantize(model: Any, config: Int8Config | None = None) -> Report:
    """Make the linear layers of a model's encoder int8, in place, for inference. :func:`dequantize` undoes it.

    Weights are rounded to 8 bits by output channel, activations by token when a layer is called, or as `config` says.
    Embeddings, poolers, heads and whatever is not exactly a ``torch.nn.Linear`` (LoRA, hooks, parametrisations) stay as
    they are; the report says why. It works before and after :func:`fasttx.patch`. A quantised model has no gradients:
    backward raises. Its ``state_dict()`` holds int8 weights and scales, and loads into a model whose same layers are
    int8. ``save_pretrained`` saves them with `config`, and ``from_pretrained`` reads them where fasttx.models was
    imported before; without it the load ends in an error.

    Args:
        model: a transformers model, or anything that holds some (PEFT, sentence-transformers, a pipeline).
        config: a :class:`fasttx.Int8Config`; None for the default one.

    Returns:
        A report, as :func:`fasttx.patch` gives it, with one row for each linear layer.

    Raises:
        ValueError: `model` holds no encoder layer of a known family; a pattern of ``skip`` matches no layer; `config`
            needs :func:`fasttx.calibrate`, and that has not seen a layer. The model is then as it was.
        TypeError: config is something else.
    """
    if config is None:
        config = Int8Config()
    if not isinstance(config, Int8Config):
        raise TypeError(f"config: got {type(config).__name__}; allowed are fasttx.Int8Config and None")
    root = _root(model)
    found = candidates(root, config.skip)
    checks = check_kernels(root, INT8_OPS, "auto")
    later = are_checked_later(checks, "auto")
    report = Report(type(root).__name__, call="fasttx.quantize", checks=checks, checks_later=later)
    report.tuned = measured_choices(root, INT8_OPS, "auto")
    reasons: dict[str, str | None] = {}
    for each in found:
        if isinstance(each.layer, Int8Linear):
            reasons[each.name] = "is int8 already"
        else:
            reasons[each.name] = each.asked_reason or each.foreign_reason or _float_reason(each.layer)
    chosen = {each.name: each.layer for each in found if reasons[each.name] is None}
    if config.calibrated:
        _refuse_unseen(chosen, config)
    made = quantised(list(chosen.values()), config)
    if config.measure and not torch.are_deterministic_algorithms_enabled():
        times = times_of(made)
        reasons |= {name: times[linear].float_reason for name, linear in chosen.items()}
        made = {linear: layer for linear, layer in made.items() if times[linear].float_reason is None}
    for each in found:
        reason = reasons[each.name]
        if reason is None:
            backend = expected_backend("int8_linear", "auto", each.layer)
            report.rows.append(Row(each.name, each.before, "Int8Linear", backend, how_rounded(made[each.layer])))
        else:
            report.rows.append(Row(each.name, each.before, None, "", reason))
    if not made:
        warnings.warn(f"fasttx.quantize replaced nothing: {'; '.join(report.reasons())}", stacklevel=2)

    def change() -> Report:
        for each in found:
            forget(each.layer)
        with contextlib.ExitStack() as undo:
            if config.smooth is not None and not config.keep_float:
                fold_factors(root, made, undo)  # a float layer that comes back would want its norm as it was
            replace_layers(root, dict(made))
            mark(root, config)
            undo.pop_all()
        return report

    return all_or_nothing(root, change)


def _refuse_unseen(chosen: dict[str, nn.Module], config: Int8Config) -> None:
    """ValueError where a calibration has not seen the inputs of a layer."""
    unseen = [name for name, linear in chosen.items() if seen_by(linear) is None]
    if not unseen:
        return
    name, value = ("smooth", config.smooth) if config.smooth is not None else ("activation", config.activation)
    more = f" and {len(unseen) - 1} more" if len(unseen) > 1 else ""
    raise ValueError(
        f"{name}: got {value!r} for {unseen[0]}{more}, whose inputs were never seen; allowed is a model that ran "
        "within fasttx.calibrate(model) before"
    )


def how_rounded(layer: Int8Linear) -> str:
    """How an int8 layer rounds its inputs, in words."""
    how = "activations by token" if layer.input_scale is None else "activations by one scale"
    return how if layer.input_factor is None else f"{how}, smoothed"


def dequantize(model: Any) -> None:
    """Make every int8 layer of a model a ``torch.nn.Linear`` again.

    The weights are the rounded ones, in the dtype of the layer's bias (float32 where there is none). The bias is the
    same parameter as before. After ``Int8Config(keep_float=True)`` the layers are the very objects that were there.

    Raises:
        ValueError: nothing in `model` is int8.
    """
    root = _root(model)

    def change() -> None:
        if not put_back(root):
            raise ValueError(
                f"model: got a {type(root).__name__} without an int8 layer; allowed is one that fasttx.quantize changed"
            )
        mark(root)

    all_or_nothing(root, change)
