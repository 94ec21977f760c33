"""Norms, GELU, embeddings and int8 at given shapes, and their peers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .op_case import BF16, FP32, OpCase, Workload, randn
from .peers import (
    Peer,
    Peers,
    liger_layer_norm,
    written_out,
)


def dropout_add_layer_norm(
    name: str, n_rows: int, n_cols: int, dtype: torch.dtype = BF16, *, dropout_p: float = 0.0, residual: bool = True
) -> Workload:
    """What ends each half of a BERT layer; without a residual plain layer norm."""

    def build(device: torch.device, size: str, seed: int) -> OpCase:
        rows, cols = {"full": (n_rows, n_cols), "check": (64, n_cols), "tiny": (5, min(n_cols, 100))}[size]
        x = randn(device, dtype, seed, rows, cols)
        weight, bias = randn(device, dtype, seed + 1, cols), randn(device, dtype, seed + 2, cols)
        rest = (weight, bias, randn(device, dtype, seed + 3, rows, cols)) if residual else (weight, bias)
        rng = torch.tensor([seed + 7, 3], device=device) if dropout_p else None

        def norm(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None = None) -> Tensor:
            z = F.dropout(x, dropout_p) if dropout_p else x
            return F.layer_norm(z if residual is None else z + residual, (cols,), weight, bias, 1e-12)

        exact = None if dropout_p else norm
        peers = written_out(norm, (x, *rest), judged=not dropout_p)
        peers |= liger_layer_norm((x, *rest), 1e-12, dropout_p, exact)
        added = rest[2] if residual else None
        # without dropout x and residual have one gradient, which is written once, as autograd asks for it
        given = {} if dropout_p else {"needs_dresidual": False}
        return OpCase([x, added, weight, bias, None, rng, dropout_p, 1e-12, dtype], peers, given=given)

    return Workload(name, "dropout_add_layer_norm", build, dropout_p > 0)


def bias_gelu(
    name: str, n_rows: int, n_cols: int, dtype: torch.dtype = BF16, *, dropout_p: float = 0.0, tanh: bool = False,
    bias: bool = True,
) -> Workload:  # fmt: skip
    """What follows the first product of a BERT layer's MLP; without a bias plain GELU."""

    def build(device: torch.device, size: str, seed: int) -> OpCase:
        rows, cols = {"full": (n_rows, n_cols), "check": (64, n_cols), "tiny": (5, min(n_cols, 100))}[size]
        x = randn(device, dtype, seed, rows, cols)
        rest = (randn(device, dtype, seed + 1, cols),) if bias else ()
        rng = torch.tensor([seed + 7, 3], device=device) if dropout_p else None

        def gelu(x: Tensor, bias: Tensor | None = None) -> Tensor:
            out = F.gelu(x if bias is None else x + bias, approximate="tanh" if tanh else "none")
            return F.dropout(out, dropout_p) if dropout_p else out

        peers = written_out(gelu, (x, *rest), judged=not dropout_p)
        peers["liger"] = "has GEGLU alone, whose GELU multiplies a second input"
        return OpCase([x, rest[0] if bias else None, None, rng, dropout_p, tanh], peers)

    return Workload(name, "bias_gelu", build, dropout_p > 0)


def embedding_layer_norm(
    name: str, batch: int, seqlen: int, n_cols: int, vocab: int = 30522, dtype: torch.dtype = BF16, *,
    types: int = 2, dropout_p: float = 0.0,
) -> Workload:  # fmt: skip
    """What a BERT begins with. The peers differentiate what the op does: the sum, the types, weight and bias. Adding up
    the rows of the word and position tables is PyTorch's kernel with the op too, and measured with neither.
    """

    def build(device: torch.device, size: str, seed: int) -> OpCase:
        b, n, cols, rows = {
            "full": (batch, seqlen, n_cols, vocab), "check": (2, 32, n_cols, 999), "tiny": (2, 5, min(n_cols, 100), 50),
        }[size]  # fmt: skip
        word, position = randn(device, dtype, seed, rows, cols), randn(device, dtype, seed + 1, n, cols)
        leaves = tuple(randn(device, dtype, seed + 2 + i, *s) for i, s in enumerate([(types, cols), (cols,), (cols,)]))
        generator = torch.Generator(device=device).manual_seed(seed)
        ids = torch.randint(0, rows, (b * n,), generator=generator, device=device)
        kinds, places = ids % types, torch.arange(n, device=device)
        rng = torch.tensor([seed + 7, 3], device=device) if dropout_p else None

        def embeddings(token_type: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            z = F.embedding(ids.view(b, n), word) + F.embedding(kinds.view(b, n), token_type)
            out = F.layer_norm(z + F.embedding(places, position), (cols,), weight, bias, 1e-12)
            return (F.dropout(out, dropout_p) if dropout_p else out).view(b * n, cols)

        peers = written_out(embeddings, leaves, judged=False)  # the tables, which stay as they are, are no inputs
        token_type, weight, bias = leaves
        args = [ids, word, places, position, kinds, token_type, weight, bias, None, rng, dropout_p, 1e-12, dtype]
        return OpCase(args, peers)

    return Workload(name, "embedding_layer_norm", build, dropout_p > 0)


def quantize_per_token(name: str, n_rows: int, n_cols: int, dtype: torch.dtype = BF16) -> Workload:
    def build(device: torch.device, size: str, seed: int) -> OpCase:
        rows, cols = {"full": (n_rows, n_cols), "check": (64, n_cols), "tiny": (5, min(n_cols, 100))}[size]
        x = randn(device, dtype, seed, rows, cols)

        def quantise(x: Tensor) -> Tensor:
            absmax = x.float().abs().amax(-1, keepdim=True)
            return (x.float() * (127.0 / absmax)).round().to(torch.int8)

        return OpCase([x, None], written_out(quantise, (x,), judged=False))

    return Workload(name, "quantize_per_token", build)


def quantised_twice(x: Tensor) -> tuple[Tensor, Tensor]:
    """int8 rows and their scales, as users write it."""
    x_scale = x.float().abs().amax(-1, keepdim=True) / 127.0
    return (x.float() / x_scale).round().to(torch.int8), x_scale


def add_layer_norm_quantize(name: str, n_rows: int, n_cols: int, dtype: torch.dtype = BF16) -> Workload:
    """What ends each half of a BERT layer whose products are int8; the peer `two ops` launches our two kernels."""

    def build(device: torch.device, size: str, seed: int) -> OpCase:
        rows, cols = {"full": (n_rows, n_cols), "check": (64, n_cols), "tiny": (5, min(n_cols, 100))}[size]
        x, residual = randn(device, dtype, seed, rows, cols), randn(device, dtype, seed + 3, rows, cols)
        weight, bias = randn(device, dtype, seed + 1, cols), randn(device, dtype, seed + 2, cols)

        def norm(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
            out = F.layer_norm(x + residual, (cols,), weight, bias, 1e-12)
            return quantised_twice(out)[0]

        def two_ops(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
            ops, plain = torch.ops.fasttx, (None, None, 0.0)
            out = ops.dropout_add_layer_norm_fwd(x, residual, weight, bias, *plain, 1e-12, dtype, "auto")[0]
            return ops.quantize_per_token_fwd(out, None, "auto")[0]

        inputs = (x, weight, bias, residual)
        peers = written_out(norm, inputs, judged=False) | {"two ops": Peer(two_ops, inputs)}
        return OpCase([x, residual, weight, bias, None, 1e-12, dtype], peers)

    return Workload(name, "add_layer_norm_quantize", build)


def bias_gelu_quantize(
    name: str, n_rows: int, n_cols: int, dtype: torch.dtype = BF16, *, tanh: bool = False
) -> Workload:  # fmt: skip
    """Between the two int8 products of a BERT layer's MLP; the peer `two ops` launches our two kernels."""

    def build(device: torch.device, size: str, seed: int) -> OpCase:
        rows, cols = {"full": (n_rows, n_cols), "check": (64, n_cols), "tiny": (5, min(n_cols, 100))}[size]
        x, bias = randn(device, dtype, seed, rows, cols), randn(device, dtype, seed + 1, cols)

        def gelu(x: Tensor, bias: Tensor) -> Tensor:
            return quantised_twice(F.gelu(x + bias, approximate="tanh" if tanh else "none"))[0]

        def two_ops(x: Tensor, bias: Tensor) -> Tensor:
            activated = torch.ops.fasttx.bias_gelu_fwd(x, bias, None, None, 0.0, tanh, "auto")
            return torch.ops.fasttx.quantize_per_token_fwd(activated, None, "auto")[0]

        peers = written_out(gelu, (x, bias), judged=False) | {"two ops": Peer(two_ops, (x, bias))}
        return OpCase([x, bias, None, tanh], peers)

    return Workload(name, "bias_gelu_quantize", build)


def int8_linear(name: str, n_rows: int, n_in: int, n_out: int, activation: str = "none") -> Workload:
    """The product and what follows it, of rows that are quantised already."""

    def build(device: torch.device, size: str, seed: int) -> OpCase:
        rows, k, cols = {"full": (n_rows, n_in, n_out), "check": (64, n_in, n_out), "tiny": (5, 48, 40)}[size]
        x_q = randn(device, FP32, seed, rows, k).mul(40).clamp(-127, 127).to(torch.int8)
        w_q = randn(device, FP32, seed + 1, cols, k).mul(40).clamp(-127, 127).to(torch.int8)
        x_scale = randn(device, FP32, seed + 2, rows).abs() / 127
        w_scale = randn(device, FP32, seed + 3, cols).abs() / 127
        bias = randn(device, BF16, seed + 4, cols)
        x, weight = randn(device, BF16, seed + 5, rows, k), randn(device, BF16, seed + 6, cols, k)

        def half_precision(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            y = F.linear(x, weight, bias)
            return F.gelu(y) if activation == "gelu" else y

        def unfused(x_q: Tensor, w_q: Tensor, x_scale: Tensor, w_scale: Tensor, bias: Tensor) -> Tensor:
            y = torch._int_mm(x_q, w_q.t()) * x_scale[:, None] * w_scale + bias
            return (F.gelu(y) if activation == "gelu" else y).to(BF16)

        eager, compiled = (x, weight, bias), (x_q, w_q, x_scale, w_scale, bias)
        peers: Peers = {
            "bf16 eager": Peer(half_precision, eager),
            "bf16 torch.compile": Peer(half_precision, eager, compiled=True),
            "_int_mm eager": Peer(unfused, compiled),
            "_int_mm torch.compile": Peer(unfused, compiled, compiled=True),
        }
        return OpCase([x_q, w_q, x_scale, w_scale, bias, None, activation, BF16], peers)

    return Workload(name, "int8_linear", build)
