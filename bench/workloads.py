"""The named shapes on which ops are measured, with the peers each is measured against.

A workload builds a :class:`Case` in one of three sizes: "full" is timed, "check" has the same rows and sequence lengths
but few of them, so that a float64 reference fits beside it, "tiny" runs anywhere (rehearsals without a GPU).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .peers import (
    Peer,
    Peers,
    attention_peers,
    liger_cross_entropy,
    liger_layer_norm,
    liger_softmax,
    packed_peers,
    vocabulary_losses,
    wide,
    written_out,
)  # fmt: skip

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


@dataclass
class Case:
    """Arguments of ``<op>_fwd`` without ``backend``, and the peers on the same values.

    `step` has forward and backward timed as one besides: a loss whose peers make their gradient in forward.
    """

    args: list[Any]
    peers: Peers
    step: bool = False


@dataclass(frozen=True)
class Workload:
    """One named measurement of one op; `dropout` says that the reference's mask has to be drawn anew for the bound."""

    name: str
    op: str
    build: Callable[[torch.device, str, int], Case]
    dropout: bool = False


def _randn(device: torch.device, dtype: torch.dtype, seed: int, *shape: int) -> Tensor:
    generator = torch.Generator(device=device).manual_seed(seed)
    return torch.randn(*shape, generator=generator, device=device).to(dtype)


# ---------------------------------------------------------------------------------------------------- attention


def _lengths(batch: int, seqlen: int) -> list[int]:
    """Uniform from 1/batch of seqlen to all of it, in an order that is not sorted."""
    return [seqlen * ((i * 7) % batch + 1) // batch for i in range(batch)] if batch > 1 else [seqlen * 3 // 4]


def attention(
    name: str, batch: int, seqlen: int, heads: int, head_dim: int, dtype: torch.dtype = BF16, *,
    dropout_p: float = 0.0, causal: bool = False, ragged: str = "", eager: bool = False,
) -> Workload:  # fmt: skip
    """`ragged`: "" all tokens are real, "mask" padded with per-sequence lengths, "packed" varlen."""

    def build(device: torch.device, size: str, seed: int) -> Case:
        b, s, h = {"full": (batch, seqlen, heads), "check": (2, seqlen, 2), "tiny": (2, min(seqlen, 48), 1)}[size]
        q, k, v = (_randn(device, dtype, seed * 3 + i, b, s, h, head_dim) for i in range(3))
        rng = torch.tensor([seed + 7, 3], device=device) if dropout_p else None
        tail = [s, s, head_dim**-0.5, dropout_p, -1, 0 if causal else -1]
        lengths = torch.tensor(_lengths(b, s), dtype=torch.int32, device=device) if ragged else None
        peers = attention_peers(q, k, v, lengths, dropout_p=dropout_p, causal=causal, eager=eager)
        if ragged == "packed":
            flat = tuple(torch.cat([x[i, :n] for i, n in enumerate(_lengths(b, s))]) for x in (q, k, v))
            cu = F.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
            peers |= packed_peers(flat, cu, s, dropout_p=dropout_p)
            return Case([*flat, None, None, cu, cu, rng, *tail], peers)
        return Case([q, k, v, None, lengths, None, None, rng, *tail], peers)

    return Workload(name, "attention", build, dropout_p > 0)


# ------------------------------------------------------------------------------------------- softmax and the losses


def softmax(name: str, n_rows: int, n_cols: int, dtype: torch.dtype = BF16) -> Workload:
    def build(device: torch.device, size: str, seed: int) -> Case:
        rows, cols = {"full": (n_rows, n_cols), "check": (64, n_cols), "tiny": (4, min(n_cols, 100))}[size]
        x = _randn(device, dtype, seed, rows, cols)
        fn = functools.partial(F.softmax, dim=-1)
        peers = written_out(fn, (x,)) | liger_softmax(x, fn)
        return Case([x, None, None, 1.0, 0.0, False], peers)

    return Workload(name, "softmax", build)


def cross_entropy(name: str, n_rows: int, n_cols: int, dtype: torch.dtype = BF16, smoothing: float = 0.0) -> Workload:
    """Mean loss; one target in seven is ignored."""

    def build(device: torch.device, size: str, seed: int) -> Case:
        rows, cols = {"full": (n_rows, n_cols), "check": (64, n_cols), "tiny": (5, min(n_cols, 100))}[size]
        logits = _randn(device, dtype, seed, rows, cols)
        target = torch.arange(rows, device=device) * 7919 % cols
        target[::7] = -100

        def loss(logits: Tensor) -> Tensor:
            return F.cross_entropy(wide(logits), target, label_smoothing=smoothing)

        peers = written_out(loss, (logits,)) | liger_cross_entropy(logits, target, smoothing, loss)
        return Case([logits, target, None, -100, smoothing, 1], peers, step=True)

    return Workload(name, "cross_entropy", build)


def linear_cross_entropy(
    name: str, n_rows: int, n_cols: int, in_features: int, dtype: torch.dtype = BF16, *, bias: bool = True
) -> Workload:
    """Mean loss of a vocabulary; one target in seven is ignored."""

    def build(device: torch.device, size: str, seed: int) -> Case:
        rows, cols = {"full": (n_rows, n_cols), "check": (64, n_cols), "tiny": (5, min(n_cols, 100))}[size]
        x = _randn(device, dtype, seed, rows, in_features)
        rest = (_randn(device, dtype, seed + 2, cols),) if bias else ()
        weight = _randn(device, dtype, seed + 1, cols, in_features) * in_features**-0.5
        target = torch.arange(rows, device=device) * 7919 % cols
        target[::7] = -100

        def loss(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
            return F.cross_entropy(wide(F.linear(x, weight, bias)), target)

        inputs = (x, weight, *rest)
        peers = written_out(loss, inputs) | vocabulary_losses(inputs, target, loss)
        return Case([x, weight, rest[0] if bias else None, target, None, -100, 0.0, 1], peers, step=True)

    return Workload(name, "linear_cross_entropy", build)


def binary_cross_entropy(name: str, n_rows: int, n_cols: int, dtype: torch.dtype = BF16) -> Workload:
    def build(device: torch.device, size: str, seed: int) -> Case:
        rows, cols = {"full": (n_rows, n_cols), "check": (64, n_cols), "tiny": (5, min(n_cols, 100))}[size]
        x = _randn(device, dtype, seed, rows, cols)
        target = (_randn(device, dtype, seed + 1, rows, cols) > 0).to(dtype)

        def loss(x: Tensor) -> Tensor:
            return F.binary_cross_entropy_with_logits(wide(x), target.to(wide(x).dtype))

        return Case([x, target, None, None, 1], written_out(loss, (x,)))

    return Workload(name, "binary_cross_entropy", build)


def kl_div(name: str, n_rows: int, n_cols: int, dtype: torch.dtype = BF16) -> Workload:
    """Distillation: log-probabilities of a student against those of its teacher."""

    def build(device: torch.device, size: str, seed: int) -> Case:
        rows, cols = {"full": (n_rows, n_cols), "check": (64, n_cols), "tiny": (5, min(n_cols, 100))}[size]
        x, target = (_randn(device, dtype, s, rows, cols).log_softmax(-1) for s in (seed, seed + 1))

        def loss(x: Tensor) -> Tensor:
            return F.kl_div(x.float(), target.float(), reduction="batchmean", log_target=True)

        peers = {"eager": Peer(loss, (x,)), "torch.compile": Peer(loss, (x,), compiled=True)}
        return Case([x, target, 3, True], peers)

    return Workload(name, "kl_div", build)


def dropout_add_layer_norm(
    name: str, n_rows: int, n_cols: int, dtype: torch.dtype = BF16, *, dropout_p: float = 0.0, residual: bool = True
) -> Workload:
    """What ends each half of a BERT layer; without a residual plain layer norm."""

    def build(device: torch.device, size: str, seed: int) -> Case:
        rows, cols = {"full": (n_rows, n_cols), "check": (64, n_cols), "tiny": (5, min(n_cols, 100))}[size]
        x = _randn(device, dtype, seed, rows, cols)
        weight, bias = _randn(device, dtype, seed + 1, cols), _randn(device, dtype, seed + 2, cols)
        rest = (weight, bias, _randn(device, dtype, seed + 3, rows, cols)) if residual else (weight, bias)
        rng = torch.tensor([seed + 7, 3], device=device) if dropout_p else None

        def norm(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None = None) -> Tensor:
            z = F.dropout(x, dropout_p) if dropout_p else x
            return F.layer_norm(z if residual is None else z + residual, (cols,), weight, bias, 1e-12)

        exact = None if dropout_p else norm
        peers = written_out(norm, (x, *rest), judged=not dropout_p)
        peers |= liger_layer_norm((x, *rest), 1e-12, dropout_p, exact)
        added = rest[2] if residual else None
        return Case([x, added, weight, bias, None, rng, dropout_p, 1e-12, dtype], peers)

    return Workload(name, "dropout_add_layer_norm", build, dropout_p > 0)


def bias_gelu(
    name: str, n_rows: int, n_cols: int, dtype: torch.dtype = BF16, *, dropout_p: float = 0.0, tanh: bool = False,
    bias: bool = True,
) -> Workload:  # fmt: skip
    """What follows the first product of a BERT layer's MLP; without a bias plain GELU."""

    def build(device: torch.device, size: str, seed: int) -> Case:
        rows, cols = {"full": (n_rows, n_cols), "check": (64, n_cols), "tiny": (5, min(n_cols, 100))}[size]
        x = _randn(device, dtype, seed, rows, cols)
        rest = (_randn(device, dtype, seed + 1, cols),) if bias else ()
        rng = torch.tensor([seed + 7, 3], device=device) if dropout_p else None

        def gelu(x: Tensor, bias: Tensor | None = None) -> Tensor:
            out = F.gelu(x if bias is None else x + bias, approximate="tanh" if tanh else "none")
            return F.dropout(out, dropout_p) if dropout_p else out

        peers = written_out(gelu, (x, *rest), judged=not dropout_p)
        peers["liger"] = "has GEGLU alone, whose GELU multiplies a second input"
        return Case([x, rest[0] if bias else None, None, rng, dropout_p, tanh], peers)

    return Workload(name, "bias_gelu", build, dropout_p > 0)


def embedding_layer_norm(
    name: str, batch: int, seqlen: int, n_cols: int, vocab: int = 30522, dtype: torch.dtype = BF16, *,
    types: int = 2, dropout_p: float = 0.0,
) -> Workload:  # fmt: skip
    """What a BERT begins with. The peers differentiate what the op does: the sum, the types, weight and bias. Adding up
    the rows of the word and position tables is PyTorch's kernel with the op too, and measured with neither.
    """

    def build(device: torch.device, size: str, seed: int) -> Case:
        b, n, cols, rows = {
            "full": (batch, seqlen, n_cols, vocab), "check": (2, 32, n_cols, 999), "tiny": (2, 5, min(n_cols, 100), 50),
        }[size]  # fmt: skip
        word, position = _randn(device, dtype, seed, rows, cols), _randn(device, dtype, seed + 1, n, cols)
        leaves = tuple(_randn(device, dtype, seed + 2 + i, *s) for i, s in enumerate([(types, cols), (cols,), (cols,)]))
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
        return Case(args, peers)

    return Workload(name, "embedding_layer_norm", build, dropout_p > 0)


def quantize_per_token(name: str, n_rows: int, n_cols: int, dtype: torch.dtype = BF16) -> Workload:
    def build(device: torch.device, size: str, seed: int) -> Case:
        rows, cols = {"full": (n_rows, n_cols), "check": (64, n_cols), "tiny": (5, min(n_cols, 100))}[size]
        x = _randn(device, dtype, seed, rows, cols)

        def quantise(x: Tensor) -> Tensor:
            absmax = x.float().abs().amax(-1, keepdim=True)
            return (x.float() * (127.0 / absmax)).round().to(torch.int8)

        return Case([x, None], written_out(quantise, (x,), judged=False))

    return Workload(name, "quantize_per_token", build)


def quantised_twice(x: Tensor) -> tuple[Tensor, Tensor]:
    """int8 rows and their scales, as users write it."""
    x_scale = x.float().abs().amax(-1, keepdim=True) / 127.0
    return (x.float() / x_scale).round().to(torch.int8), x_scale


def add_layer_norm_quantize(name: str, n_rows: int, n_cols: int, dtype: torch.dtype = BF16) -> Workload:
    """What ends each half of a BERT layer whose products are int8; the peer `two ops` launches our two kernels."""

    def build(device: torch.device, size: str, seed: int) -> Case:
        rows, cols = {"full": (n_rows, n_cols), "check": (64, n_cols), "tiny": (5, min(n_cols, 100))}[size]
        x, residual = _randn(device, dtype, seed, rows, cols), _randn(device, dtype, seed + 3, rows, cols)
        weight, bias = _randn(device, dtype, seed + 1, cols), _randn(device, dtype, seed + 2, cols)

        def norm(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
            out = F.layer_norm(x + residual, (cols,), weight, bias, 1e-12)
            return quantised_twice(out)[0]

        def two_ops(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
            ops, plain = torch.ops.fasttx, (None, None, 0.0)
            out = ops.dropout_add_layer_norm_fwd(x, residual, weight, bias, *plain, 1e-12, dtype, "auto")[0]
            return ops.quantize_per_token_fwd(out, None, "auto")[0]

        inputs = (x, weight, bias, residual)
        peers = written_out(norm, inputs, judged=False) | {"two ops": Peer(two_ops, inputs)}
        return Case([x, residual, weight, bias, None, 1e-12, dtype], peers)

    return Workload(name, "add_layer_norm_quantize", build)


def bias_gelu_quantize(
    name: str, n_rows: int, n_cols: int, dtype: torch.dtype = BF16, *, tanh: bool = False
) -> Workload:  # fmt: skip
    """Between the two int8 products of a BERT layer's MLP; the peer `two ops` launches our two kernels."""

    def build(device: torch.device, size: str, seed: int) -> Case:
        rows, cols = {"full": (n_rows, n_cols), "check": (64, n_cols), "tiny": (5, min(n_cols, 100))}[size]
        x, bias = _randn(device, dtype, seed, rows, cols), _randn(device, dtype, seed + 1, cols)

        def gelu(x: Tensor, bias: Tensor) -> Tensor:
            return quantised_twice(F.gelu(x + bias, approximate="tanh" if tanh else "none"))[0]

        def two_ops(x: Tensor, bias: Tensor) -> Tensor:
            activated = torch.ops.fasttx.bias_gelu_fwd(x, bias, None, None, 0.0, tanh, "auto")
            return torch.ops.fasttx.quantize_per_token_fwd(activated, None, "auto")[0]

        peers = written_out(gelu, (x, bias), judged=False) | {"two ops": Peer(two_ops, (x, bias))}
        return Case([x, bias, None, tanh], peers)

    return Workload(name, "bias_gelu_quantize", build)


def int8_linear(name: str, n_rows: int, n_in: int, n_out: int, activation: str = "none") -> Workload:
    """The product and what follows it, of rows that are quantised already."""

    def build(device: torch.device, size: str, seed: int) -> Case:
        rows, k, cols = {"full": (n_rows, n_in, n_out), "check": (64, n_in, n_out), "tiny": (5, 48, 40)}[size]
        x_q = _randn(device, FP32, seed, rows, k).mul(40).clamp(-127, 127).to(torch.int8)
        w_q = _randn(device, FP32, seed + 1, cols, k).mul(40).clamp(-127, 127).to(torch.int8)
        x_scale = _randn(device, FP32, seed + 2, rows).abs() / 127
        w_scale = _randn(device, FP32, seed + 3, cols).abs() / 127
        bias = _randn(device, BF16, seed + 4, cols)
        x, weight = _randn(device, BF16, seed + 5, rows, k), _randn(device, BF16, seed + 6, cols, k)

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
        return Case([x_q, w_q, x_scale, w_scale, bias, None, activation, BF16], peers)

    return Workload(name, "int8_linear", build)


WORKLOADS: tuple[Workload, ...] = (
    # most telling first: a run that is short of time stops somewhere along this list
    attention("attention-bert-base-s512", 32, 512, 12, 64, eager=True),
    attention("attention-bert-base-s512-dropout", 32, 512, 12, 64, dropout_p=0.1),
    attention("attention-bert-base-s512-ragged-mask", 32, 512, 12, 64, ragged="mask"),
    attention("attention-bert-base-s512-ragged-packed", 32, 512, 12, 64, ragged="packed"),
    cross_entropy("cross_entropy-bert-mlm-4096x30522", 4096, 30522),
    softmax("softmax-16384x1024", 16384, 1024),
    dropout_add_layer_norm("dropout_add_layer_norm-bert-base-16384x768", 16384, 768, dropout_p=0.1),
    dropout_add_layer_norm("dropout_add_layer_norm-16384x1024-inference", 16384, 1024),
    bias_gelu("bias_gelu-bert-base-16384x3072", 16384, 3072),
    embedding_layer_norm("embedding_layer_norm-bert-base-32x512", 32, 512, 768, dropout_p=0.1),
    int8_linear("int8_linear-bert-base-mlp-16384x768x3072-gelu", 16384, 768, 3072, "gelu"),
    int8_linear("int8_linear-bert-base-mlp-16384x3072x768", 16384, 3072, 768),
    quantize_per_token("quantize_per_token-16384x768", 16384, 768),
    add_layer_norm_quantize("add_layer_norm_quantize-16384x1024", 16384, 1024),
    bias_gelu_quantize("bias_gelu_quantize-16384x4096", 16384, 4096),
    linear_cross_entropy("linear_cross_entropy-bert-mlm-4096x30522", 4096, 30522, 768),
    linear_cross_entropy("linear_cross_entropy-no-bias-4096x30522", 4096, 30522, 768, bias=False),
    attention("attention-bert-base-s128", 128, 128, 12, 64, eager=True),
    attention("attention-d64-s256", 64, 256, 32, 64),
    attention("attention-d64-s1024", 16, 1024, 32, 64),
    attention("attention-d64-s4096", 4, 4096, 32, 64),
    attention("attention-minilm-d32-s256", 64, 256, 12, 32),
    binary_cross_entropy("binary_cross_entropy-8192x1024", 8192, 1024),
    kl_div("kl_div-4096x30522", 4096, 30522),
    attention("attention-d128-s2048", 8, 2048, 16, 128),
    attention("attention-d64-s1024-causal", 16, 1024, 32, 64, causal=True),
    softmax("softmax-4096x30522", 4096, 30522),
    cross_entropy("cross_entropy-xlmr-1024x250002", 1024, 250002),
    cross_entropy("cross_entropy-smoothed-4096x30522", 4096, 30522, smoothing=0.1),
    attention("attention-d64-s1024-fp16", 16, 1024, 32, 64, FP16),
    attention("attention-d64-s512-fp32", 8, 512, 12, 64, FP32),
    dropout_add_layer_norm("layer_norm-16384x4096", 16384, 4096, residual=False),
    bias_gelu("gelu-16384x4096", 16384, 4096, bias=False),
    bias_gelu("bias_gelu-tanh-dropout-16384x4096", 16384, 4096, dropout_p=0.1, tanh=True),
    embedding_layer_norm("embedding_layer_norm-xlmr-large-32x512-inference", 32, 512, 1024, 250002, types=1),
    linear_cross_entropy("linear_cross_entropy-xlmr-2048x250002", 2048, 250002, 768),
    softmax("softmax-65536x256-fp32", 65536, 256, FP32),
    softmax("softmax-4096x16384", 4096, 16384),
    softmax("softmax-1024x65536", 1024, 65536),
    softmax("softmax-256x262144", 256, 262144),
    softmax("softmax-4x262144", 4, 262144),
    cross_entropy("cross_entropy-4096x30522-fp32", 4096, 30522, FP32),
)
"""All workloads, by value."""


def select(pattern: str = "") -> list[Workload]:
    """The workloads whose name contains `pattern`.

    Raises:
        ValueError: none does; the message lists the names.
    """
    found = [w for w in WORKLOADS if pattern in w.name]
    if not found:
        raise ValueError(f"workload: nothing matches {pattern!r}; there are {', '.join(w.name for w in WORKLOADS)}")
    return found
