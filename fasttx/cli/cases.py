"""One small call of every op, for `doctor`: the arguments of its forward and of its backward."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import fasttx.ops

from ..ops.registry import OPS, Op


def load_ops() -> dict[str, Op]:
    """Imports every file of fasttx.ops, and gives the table that they fill, by name, whichever was imported first."""
    for module in pkgutil.iter_modules(fasttx.ops.__path__):
        importlib.import_module(f"fasttx.ops.{module.name}")
    return dict(sorted(OPS.items()))


def _randn(*shape: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The same numbers on every device, so that two reports can be compared."""
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator).to(device=device, dtype=dtype)


def _attention(dtype: torch.dtype, device: torch.device) -> list[Any]:
    """Two sequences of 33 and 70 tokens, padded to 70."""
    q, k, v = _randn(2, 70, 2, 3 * 32, dtype=dtype, device=device).split(32, dim=-1)
    lengths = torch.tensor([33, 70], dtype=torch.int32, device=device)
    return [q, k, v, None, lengths, None, None, None, 70, 70, 32**-0.5, 0.0, -1, -1]


def _softmax(dtype: torch.dtype, device: torch.device) -> list[Any]:
    return [_randn(6, 1000, dtype=dtype, device=device), None, None, 0.5, 0.0, False]


def _cross_entropy(dtype: torch.dtype, device: torch.device) -> list[Any]:
    """One ignored row, label smoothing, and more columns than a block has."""
    target = torch.tensor([3, -100, 4999, 0, 17], device=device)
    return [_randn(5, 5000, dtype=dtype, device=device), target, None, -100, 0.1, 1]


def _binary_cross_entropy(dtype: torch.dtype, device: torch.device) -> list[Any]:
    x = _randn(37, 29, dtype=dtype, device=device)
    return [x, (x > 0.3).to(dtype), None, _randn(29, dtype=dtype, device=device).abs(), 1]


def _kl_div(dtype: torch.dtype, device: torch.device) -> list[Any]:
    x, target = (_randn(37, 129, dtype=torch.float32, device=device).log_softmax(-1).to(dtype) for _ in range(2))
    return [x, target.exp(), 3, False]


def _linear_cross_entropy(dtype: torch.dtype, device: torch.device) -> list[Any]:
    """One ignored row, and more classes than a block has columns."""
    target = torch.tensor([3, -100, 4999, 0, 17], device=device)
    x, weight = _randn(5, 32, dtype=dtype, device=device), _randn(5000, 32, dtype=dtype, device=device) / 4
    return [x, weight, _randn(5000, dtype=dtype, device=device), target, None, -100, 0.1, 1]


def _dropout_add_layer_norm(dtype: torch.dtype, device: torch.device) -> list[Any]:
    """Without dropout, whose mask differs between backends."""
    x, residual = _randn(2, 37, 384, dtype=dtype, device=device)
    weight, bias = _randn(2, 384, dtype=dtype, device=device)
    return [x, residual, weight, bias, None, None, 0.0, 1e-12, dtype]


def _bias_gelu(dtype: torch.dtype, device: torch.device) -> list[Any]:
    """Without dropout, whose mask differs between backends."""
    x, bias = _randn(37, 700, dtype=dtype, device=device), _randn(700, dtype=dtype, device=device)
    return [x, bias, None, None, 0.0, False]


def _embedding_layer_norm(dtype: torch.dtype, device: torch.device) -> list[Any]:
    """Without dropout, whose mask differs between backends; the positions of 2 sequences of 37."""
    word, position, token_type = (_randn(rows, 384, dtype=dtype, device=device) for rows in (1000, 64, 2))
    weight, bias = _randn(2, 384, dtype=dtype, device=device)
    ids = (torch.arange(74, device=device) * 37) % 1000
    tables = [ids, word, torch.arange(37, device=device), position, ids % 2, token_type]
    return [*tables, weight, bias, None, None, 0.0, 1e-12, dtype]


def _quantize_per_token(dtype: torch.dtype, device: torch.device) -> list[Any]:
    return [_randn(37, 384, dtype=dtype, device=device), None]


def _add_layer_norm_quantize(dtype: torch.dtype, device: torch.device) -> list[Any]:
    x, residual = _randn(2, 37, 384, dtype=dtype, device=device)
    weight, bias = _randn(2, 384, dtype=dtype, device=device)
    return [x, residual, weight, bias, None, 1e-12, dtype]


def _bias_gelu_quantize(dtype: torch.dtype, device: torch.device) -> list[Any]:
    x, bias = _randn(37, 700, dtype=dtype, device=device), _randn(700, dtype=dtype, device=device)
    return [x, bias, None, False]


def _int8_linear(dtype: torch.dtype, device: torch.device) -> list[Any]:
    """More rows and columns than a block has, and columns of k that are no multiple of one."""
    x_q, w_q = (
        _randn(n, 200, dtype=torch.float32, device=device).mul(40).clamp(-127, 127).to(torch.int8) for n in (70, 130)
    )
    x_scale, w_scale = (_randn(n, dtype=torch.float32, device=device).abs() / 99 for n in (70, 130))
    return [x_q, w_q, x_scale, w_scale, _randn(130, dtype=dtype, device=device), None, "gelu", dtype]


FORWARD: dict[str, Callable[[torch.dtype, torch.device], list[Any]]] = {
    "attention": _attention,
    "softmax": _softmax,
    "cross_entropy": _cross_entropy,
    "binary_cross_entropy": _binary_cross_entropy,
    "linear_cross_entropy": _linear_cross_entropy,
    "kl_div": _kl_div,
    "dropout_add_layer_norm": _dropout_add_layer_norm,
    "bias_gelu": _bias_gelu,
    "embedding_layer_norm": _embedding_layer_norm,
    "int8_linear": _int8_linear,
    "quantize_per_token": _quantize_per_token,
    "add_layer_norm_quantize": _add_layer_norm_quantize,
    "bias_gelu_quantize": _bias_gelu_quantize,
}
"""The arguments of <op>_fwd without the last one, `backend`."""


def backward(name: str, forward: list[Any], outputs: tuple[Tensor, ...]) -> list[Any]:
    """The arguments of <op>_bwd without `backend`, from those of the forward and from what it returned."""
    dout = _randn(*outputs[0].shape, dtype=outputs[0].dtype, device=outputs[0].device)
    if name == "attention":
        return [dout, *forward[:3], *outputs, *forward[3:], False]
    if name == "softmax":
        return [dout, outputs[0], *forward[1:]]
    if name == "cross_entropy":
        logits, target, weight, *rest = forward
        return [dout, logits, target, weight, outputs[1], outputs[2], *rest]
    if name == "linear_cross_entropy":
        return [dout, *forward[:5], *outputs[1:], True, True, forward[2] is not None, *forward[5:]]
    if name == "dropout_add_layer_norm":
        *tensors, row_index, rng_state, dropout_p, _, _ = forward
        return [dout, *tensors, *outputs[1:], row_index, rng_state, dropout_p, *(t is not None for t in tensors)]
    if name == "bias_gelu":
        return [dout, *forward, True, True]
    if name == "embedding_layer_norm":
        return [dout, *forward[:8], *outputs[1:], *forward[8:11], True, True, True, True]
    if name == "kl_div":
        return [dout, *forward[1:], forward[0].dtype]
    return [dout, *forward]
