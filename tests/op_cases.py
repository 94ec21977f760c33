"""Small calls of every op, for the tests that go through the whole table: an op without cases here fails them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from fasttx.ops.registry import Op

Cases = Iterator[tuple[str, tuple[Any, ...]]]


def _state(device: torch.device) -> Tensor:
    return torch.tensor([1234, 5], device=device)


def softmax(device: torch.device, dtype: torch.dtype) -> Cases:
    x = torch.randn(2, 3, 5, 37, device=device, dtype=dtype)
    keys = (torch.arange(37, device=device) < torch.tensor([37, 11], device=device)[:, None])[:, None, None, :]
    bias = torch.randn(1, 3, 5, 1, device=device, dtype=dtype)
    yield "plain", (x, None, None, 1.0, 0.0, False)
    yield "log-mask", (x, keys, None, 1.0, 0.0, True)
    yield "bias-dropout", (x, bias, _state(device), 2.0, 0.25, False)
    yield "strided", (x.transpose(1, 3), None, None, 0.5, 0.0, False)
    yield "empty", (x[:0], None, None, 1.0, 0.0, False)


def attention(device: torch.device, dtype: torch.dtype) -> Cases:
    q, k, v = torch.randn(2, 19, 2, 96, device=device, dtype=dtype).split(32, dim=-1)
    lengths = torch.tensor([19, 7], dtype=torch.int32, device=device)
    bias = torch.randn(1, 2, 19, 19, device=device, dtype=dtype)
    yield "plain", (q, k, v, None, None, None, None, None, 19, 19, 32**-0.5, 0.0, -1, -1)
    yield "lengths-dropout", (q, k, v, None, lengths, None, None, _state(device), 19, 19, 0.2, 0.25, -1, -1)
    yield "bias-causal", (q, k, v, bias, None, None, None, None, 19, 19, 0.2, 0.0, -1, 0)
    one_head = k[:, :, :1], v[:, :, :1]
    yield "one_head_of_keys", (q, *one_head, None, None, None, None, None, 19, 19, 0.2, 0.0, 3, 3)
    cu_seqlens = torch.tensor([0, 12, 38], dtype=torch.int32, device=device)
    packed = (x.reshape(38, 2, 32) for x in (q, k, v))
    yield "packed", (*packed, None, None, cu_seqlens, cu_seqlens, None, 26, 26, 0.2, 0.0, -1, -1)
    empty = q.new_empty(0, 19, 2, 32)  # not q[:0]: opcheck cannot copy an empty view with strides of its own
    yield "empty", (empty, empty, empty, None, None, None, None, None, 19, 19, 0.2, 0.0, -1, -1)


def cross_entropy(device: torch.device, dtype: torch.dtype) -> Cases:
    logits = torch.randn(5, 37, device=device, dtype=dtype)
    target = torch.tensor([3, -100, 36, 0, 17], device=device)
    weight = torch.rand(37, device=device) + 0.5
    yield "mean", (logits, target, None, -100, 0.0, 1)
    yield "none-weight-smoothing", (logits, target, weight, -100, 0.1, 0)
    yield "probabilities", (logits, torch.rand(5, 37, device=device).softmax(-1).to(dtype), None, -100, 0.1, 2)
    yield "strided", (torch.randn(5, 50, device=device, dtype=dtype)[:, 3:40], target.clamp(0), None, 36, 0.0, 1)
    yield "empty", (logits[:0], target[:0], None, -100, 0.0, 2)


def linear_cross_entropy(device: torch.device, dtype: torch.dtype) -> Cases:
    x, weight = torch.randn(5, 16, device=device, dtype=dtype), torch.randn(37, 16, device=device, dtype=dtype) / 4
    bias, class_weight = torch.randn(37, device=device, dtype=dtype), torch.rand(37, device=device) + 0.5
    target = torch.tensor([3, -100, 36, 0, 17], device=device)
    yield "mean", (x, weight, bias, target, None, -100, 0.0, 1)
    yield "none-weight-smoothing", (x, weight, None, target, class_weight, -100, 0.1, 0)
    yield "sum-strided", (x[:, 3:], weight[:, :13], bias, target.clamp(0), None, 36, 0.0, 2)
    yield "empty", (x[:0], weight, bias, target[:0], None, -100, 0.0, 1)


def binary_cross_entropy(device: torch.device, dtype: torch.dtype) -> Cases:
    x, target = torch.randn(5, 37, device=device, dtype=dtype), torch.rand(5, 37, device=device).to(dtype)
    weight, pos_weight = torch.rand(5, 1, device=device).to(dtype), torch.rand(37, device=device).to(dtype)
    yield "mean", (x, target, None, None, 1)
    yield "none-weights", (x, target, weight, pos_weight, 0)
    yield "sum-strided", (x.T, target.T, None, None, 2)
    yield "empty", (x[:0], target[:0], None, None, 2)


def kl_div(device: torch.device, dtype: torch.dtype) -> Cases:
    x, target = torch.randn(2, 5, 37, device=device).log_softmax(-1).to(dtype)
    yield "batchmean", (x, target.exp(), 3, False)
    yield "mean-logarithms", (x, target, 1, True)
    yield "none-mixed", (x, torch.eye(5, 37, device=device), 0, False)
    yield "sum-strided", (x.T, target.T, 2, True)
    yield "empty", (x[:0], target[:0], 2, False)


def dropout_add_layer_norm(device: torch.device, dtype: torch.dtype) -> Cases:
    x, residual = torch.randn(2, 2, 5, 37, device=device, dtype=dtype)
    weight, bias = torch.randn(2, 37, device=device, dtype=dtype)
    numbers = torch.tensor([3, 1, 70, 2, 9] * 2, dtype=torch.int32, device=device)
    yield "plain", (x, None, weight, bias, None, None, 0.0, 1e-5, dtype)
    yield "residual-dropout", (x, residual, weight, bias, None, _state(device), 0.25, 1e-5, dtype)
    yield "residual", (x, residual.float(), weight.float(), None, None, None, 0.0, 1e-12, torch.float32)
    yield "numbered", (x, None, None, bias, numbers, _state(device), 0.1, 1e-5, dtype)
    wide = torch.randn(2, 5, 41, device=device, dtype=dtype)[..., 3:40]
    across = residual.transpose(0, 1).contiguous().transpose(0, 1)
    yield "strided", (wide, across, None, None, None, None, 0.0, 0.1, dtype)
    yield "empty", (x[:0], residual[:0], weight, bias, None, None, 0.0, 1e-5, dtype)


def bias_gelu(device: torch.device, dtype: torch.dtype) -> Cases:
    x, bias = torch.randn(2, 5, 37, device=device, dtype=dtype), torch.randn(37, device=device, dtype=dtype)
    numbers = torch.tensor([3, 1, 70, 2, 9] * 2, dtype=torch.int32, device=device)
    yield "plain", (x, None, None, None, 0.0, False)
    yield "bias-dropout", (x, bias, None, _state(device), 0.25, True)
    yield "numbered", (x, bias.float(), numbers, _state(device), 0.1, False)
    yield "strided", (torch.randn(2, 5, 41, device=device, dtype=dtype)[..., 3:40], bias, None, None, 0.0, True)
    yield "empty", (x[:0], bias, None, None, 0.0, False)


def embedding_layer_norm(device: torch.device, dtype: torch.dtype) -> Cases:
    ids, positions = torch.tensor([3, 0, 10, 3, 7, 5], device=device), torch.arange(3, device=device)
    types = torch.tensor([0, 1, 1, 0, 0, 1], dtype=torch.int32, device=device)
    word, position = torch.randn(11, 37, device=device, dtype=dtype), torch.randn(5, 37, device=device, dtype=dtype)
    token_type, (weight, bias) = position[:2].clone(), torch.randn(2, 37, device=device, dtype=dtype)
    tables = ids, word, positions, position, types, token_type
    yield "plain", (*tables, weight, bias, None, None, 0.0, 1e-5, dtype)
    yield "dropout", (*tables, weight, bias, None, _state(device), 0.25, 1e-12, dtype)
    numbers = torch.tensor([3, 1, 70, 2, 9, 4], device=device)
    wide = ids.int(), word.float(), ids % 5, position, None, None
    yield "numbered", (*wide, weight.float(), None, numbers, _state(device), 0.1, 1e-5, torch.float32)
    yield "word", (ids, word, None, None, types, position, None, bias, None, None, 0.0, 1e-5, dtype)
    one = ids, word.T.contiguous().T, None, None, types[:1] * 0, token_type[:1]
    yield "strided", (*one, None, None, None, None, 0.0, 0.1, dtype)
    yield (
        "empty",
        (ids[:0], word, positions[:0], position, types[:0], token_type, weight, bias, *(None,) * 2, 0.0, 0.1, dtype),
    )


def quantize_per_token(device: torch.device, dtype: torch.dtype) -> Cases:
    x = torch.randn(2, 5, 37, device=device, dtype=dtype)
    x[0, 1] = 0.0  # NaN, which opcheck cannot compare: tests/ops/test_quantize_per_token.py
    x[1, 3] = torch.arange(-18, 19, device=device) / 2  # ties, with the 127 below
    x[1, 3, 0] = 127.0
    yield "plain", (x, None)
    yield "static", (x, torch.tensor(0.02, device=device))
    yield "strided", (x.transpose(0, 2), None)
    yield "empty", (x[:0], None)


def add_layer_norm_quantize(device: torch.device, dtype: torch.dtype) -> Cases:
    x, residual = torch.randn(2, 2, 5, 37, device=device, dtype=dtype)
    weight, bias = torch.randn(2, 37, device=device, dtype=dtype)
    yield "plain", (x, None, weight, bias, None, 1e-5, dtype)
    yield "residual-static", (x, residual, weight, bias, torch.tensor(0.02, device=device), 1e-5, dtype)
    yield "mixed", (x, residual.float(), weight.float(), None, None, 1e-12, torch.float32)
    wide = torch.randn(2, 5, 41, device=device, dtype=dtype)[..., 3:40]
    across = residual.transpose(0, 1).contiguous().transpose(0, 1)
    yield "strided", (wide, across, None, None, None, 0.1, dtype)
    yield "empty", (x[:0], residual[:0], weight, bias, None, 1e-5, dtype)


def bias_gelu_quantize(device: torch.device, dtype: torch.dtype) -> Cases:
    x, bias = torch.randn(2, 5, 37, device=device, dtype=dtype), torch.randn(37, device=device, dtype=dtype)
    yield "plain", (x, None, None, False)
    yield "bias-static", (x, bias, torch.tensor(0.02, device=device), True)
    yield "float-bias", (x, bias.float(), None, False)
    yield "strided", (torch.randn(2, 5, 41, device=device, dtype=dtype)[..., 3:40], bias, None, True)
    yield "empty", (x[:0], bias, None, False)


def int8_linear(device: torch.device, dtype: torch.dtype) -> Cases:
    x_q, w_q = (torch.randint(-128, 128, (n, 70), device=device, dtype=torch.int8) for n in (19, 37))
    x_scale, w_scale = torch.rand(19, device=device) / 99, torch.rand(37, device=device) / 99
    bias, residual = torch.randn(37, device=device, dtype=dtype), torch.randn(19, 37, device=device, dtype=dtype)
    yield "plain", (x_q, w_q, x_scale, w_scale, None, None, "none", dtype)
    yield "gelu", (x_q, w_q, x_scale, w_scale, bias, None, "gelu", dtype)
    yield "gelu_tanh-residual", (x_q, w_q, x_scale, w_scale, bias.float(), residual, "gelu_tanh", dtype)
    wide = torch.randint(-128, 128, (19, 99), device=device, dtype=torch.int8)[:, 3:67]
    yield "strided", (wide, w_q[:, 6:], x_scale, w_scale, None, residual.t().contiguous().t(), "none", dtype)
    yield "empty", (x_q[:0], w_q, x_scale[:0], w_scale, bias, None, "gelu", dtype)


FORWARD: dict[str, Callable[[torch.device, torch.dtype], Cases]] = {
    "softmax": softmax,
    "dropout_add_layer_norm": dropout_add_layer_norm,
    "bias_gelu": bias_gelu,
    "embedding_layer_norm": embedding_layer_norm,
    "int8_linear": int8_linear,
    "quantize_per_token": quantize_per_token,
    "add_layer_norm_quantize": add_layer_norm_quantize,
    "bias_gelu_quantize": bias_gelu_quantize,
    "attention": attention,
    "cross_entropy": cross_entropy,
    "binary_cross_entropy": binary_cross_entropy,
    "linear_cross_entropy": linear_cross_entropy,
    "kl_div": kl_div,
}
"""op -> (id, arguments of its forward without `backend`)."""


def backward(op: Op, arguments: tuple[Any, ...], outputs: tuple[Tensor, ...]) -> tuple[Any, ...]:
    """Arguments of the op's backward without `backend`, by name from those of its forward and what that returned."""
    known = dict(zip(op.fwd.argument_names(), arguments))
    returned = op.fwd.schema.rsplit("->", 1)[1].strip(" ()").split(", ")
    known |= {r.split()[-1]: value for r, value in zip(returned, outputs) if " " in r}
    known["deterministic"] = True
    if op.name == "kl_div":
        known["dtype"] = known["x"].dtype
    if op.name == "linear_cross_entropy":
        known |= {"needs_dx": True, "needs_dweight": True, "needs_dbias": known["bias"] is not None}
    if op.name == "dropout_add_layer_norm":
        owners = {"dx": "x", "dresidual": "residual", "dweight": "weight", "dbias": "bias"}
        known |= {f"needs_{gradient}": known[owner] is not None for gradient, owner in owners.items()}
    if op.name == "bias_gelu":
        known |= {"needs_dx": True, "needs_dbias": known["bias"] is not None}
    if op.name == "embedding_layer_norm":
        few = known["token_type"] is not None and known["token_type"].shape[0] <= 2
        known |= {"needs_dz": True, "needs_dtoken_type": few}
        known |= {f"needs_d{owner}": known[owner] is not None for owner in ("weight", "bias")}
    if op.name == "softmax":
        known["saved"] = outputs[0] if known["rng_state"] is None else known["x"]
    dout, *names = op.bwd.argument_names()[:-1]
    return torch.randn_like(outputs[0]), *(known[name] for name in names)
