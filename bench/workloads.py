"""The named shapes on which ops are measured, with the peers each is measured against.

A workload builds a :class:`Case` in one of three sizes: "full" is timed, "check" has the same rows and sequence lengths
but few of them, so that a float64 reference fits beside it, "tiny" runs anywhere (rehearsals without a GPU).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

SDPA = {
    "sdpa[cudnn]": SDPBackend.CUDNN_ATTENTION,
    "sdpa[flash]": SDPBackend.FLASH_ATTENTION,
    "sdpa[efficient]": SDPBackend.EFFICIENT_ATTENTION,
    "sdpa[math]": SDPBackend.MATH,
}

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


@dataclass
class Peer:
    """`fn(*inputs)` gives what the op gives, in PyTorch's own operators; every input is differentiated."""

    fn: Callable[..., Tensor]
    inputs: tuple[Tensor, ...]
    compiled: bool = False


@dataclass
class Case:
    """Arguments of ``<op>_fwd`` without ``backend``, and the peers on the same values."""

    args: list[Any]
    peers: dict[str, Peer]


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


def _sdpa(backend: SDPBackend, mask: Tensor | None, dropout_p: float, causal: bool) -> Callable[..., Tensor]:
    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        with sdpa_kernel(backend):
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout_p, is_causal=causal)
        return out.transpose(1, 2)

    return call


def _written_out(mask: Tensor | None, dropout_p: float, causal: bool) -> Callable[..., Tensor]:
    """Attention as transformers' eager path writes it."""

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        if causal:
            rows, cols = (torch.arange(n, device=q.device) for n in scores.shape[-2:])
            scores = scores.masked_fill(cols > rows[:, None], float("-inf"))
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        p = F.dropout(torch.softmax(scores, -1, dtype=torch.float32).to(q.dtype), dropout_p)
        return (p @ v).transpose(1, 2)

    return call


def _lengths(batch: int, seqlen: int) -> list[int]:
    """Uniform from 1/batch of seqlen to all of it, in an order that is not sorted."""
    return [seqlen * ((i * 7) % batch + 1) // batch for i in range(batch)] if batch > 1 else [seqlen * 3 // 4]


def attention(
    name: str, batch: int, seqlen: int, heads: int, head_dim: int, dtype: torch.dtype = BF16, *,
    dropout_p: float = 0.0, causal: bool = False, ragged: str = "", written_out: bool = False,
) -> Workload:  # fmt: skip
    """`ragged`: "" all tokens are real, "mask" padded with per-sequence lengths, "packed" varlen."""

    def build(device: torch.device, size: str, seed: int) -> Case:
        b, s, h = {"full": (batch, seqlen, heads), "check": (2, seqlen, 2), "tiny": (2, min(seqlen, 48), 1)}[size]
        q, k, v = (_randn(device, dtype, seed * 3 + i, b, s, h, head_dim) for i in range(3))
        rng = torch.tensor([seed + 7, 3], device=device) if dropout_p else None
        tail = [s, s, head_dim**-0.5, dropout_p, -1, 0 if causal else -1]
        lengths = torch.tensor(_lengths(b, s), dtype=torch.int32, device=device)
        mask = None
        if ragged:
            mask = (torch.arange(s, device=device) < lengths[:, None])[:, None, None, :]
        peers = {n: Peer(_sdpa(kind, mask, dropout_p, causal), (q, k, v)) for n, kind in SDPA.items()}
        if written_out:
            peers["eager"] = Peer(_written_out(mask, dropout_p, causal), (q, k, v))
            peers["torch.compile"] = Peer(_written_out(mask, dropout_p, causal), (q, k, v), compiled=True)
        if ragged == "packed":
            flat = tuple(torch.cat([x[i, :n] for i, n in enumerate(lengths.tolist())]) for x in (q, k, v))
            cu = F.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
            return Case([*flat, None, None, cu, cu, rng, *tail], peers)
        return Case([q, k, v, None, lengths if ragged else None, None, None, rng, *tail], peers)

    return Workload(name, "attention", build, dropout_p > 0)


# ------------------------------------------------------------------------------------------- softmax and the losses


def softmax(name: str, n_rows: int, n_cols: int, dtype: torch.dtype = BF16) -> Workload:
    def build(device: torch.device, size: str, seed: int) -> Case:
        rows, cols = {"full": (n_rows, n_cols), "check": (64, n_cols), "tiny": (4, min(n_cols, 100))}[size]
        x = _randn(device, dtype, seed, rows, cols)
        peers = {
            "eager": Peer(lambda x: F.softmax(x, -1), (x,)),
            "torch.compile": Peer(lambda x: F.softmax(x, -1), (x,), compiled=True),
        }
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
            return F.cross_entropy(logits.float(), target, label_smoothing=smoothing)

        peers = {"eager": Peer(loss, (logits,)), "torch.compile": Peer(loss, (logits,), compiled=True)}
        return Case([logits, target, None, -100, smoothing, 1], peers)

    return Workload(name, "cross_entropy", build)


def linear_cross_entropy(name: str, n_rows: int, n_cols: int, in_features: int, dtype: torch.dtype = BF16) -> Workload:
    """Mean loss of a vocabulary with a bias; one target in seven is ignored."""

    def build(device: torch.device, size: str, seed: int) -> Case:
        rows, cols = {"full": (n_rows, n_cols), "check": (64, n_cols), "tiny": (5, min(n_cols, 100))}[size]
        x, bias = _randn(device, dtype, seed, rows, in_features), _randn(device, dtype, seed + 2, cols)
        weight = _randn(device, dtype, seed + 1, cols, in_features) * in_features**-0.5
        target = torch.arange(rows, device=device) * 7919 % cols
        target[::7] = -100

        def loss(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            return F.cross_entropy(F.linear(x, weight, bias).float(), target)

        inputs = (x, weight, bias)
        peers = {"eager": Peer(loss, inputs), "torch.compile": Peer(loss, inputs, compiled=True)}
        return Case([x, weight, bias, target, None, -100, 0.0, 1], peers)

    return Workload(name, "linear_cross_entropy", build)


def binary_cross_entropy(name: str, n_rows: int, n_cols: int, dtype: torch.dtype = BF16) -> Workload:
    def build(device: torch.device, size: str, seed: int) -> Case:
        rows, cols = {"full": (n_rows, n_cols), "check": (64, n_cols), "tiny": (5, min(n_cols, 100))}[size]
        x = _randn(device, dtype, seed, rows, cols)
        target = (_randn(device, dtype, seed + 1, rows, cols) > 0).to(dtype)

        def loss(x: Tensor) -> Tensor:
            return F.binary_cross_entropy_with_logits(x.float(), target.float())

        peers = {"eager": Peer(loss, (x,)), "torch.compile": Peer(loss, (x,), compiled=True)}
        return Case([x, target, None, None, 1], peers)

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

        peers = {"eager": Peer(norm, (x, *rest)), "torch.compile": Peer(norm, (x, *rest), compiled=True)}
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

        peers = {"eager": Peer(gelu, (x, *rest)), "torch.compile": Peer(gelu, (x, *rest), compiled=True)}
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

        peers = {"eager": Peer(embeddings, leaves), "torch.compile": Peer(embeddings, leaves, compiled=True)}
        token_type, weight, bias = leaves
        args = [ids, word, places, position, kinds, token_type, weight, bias, None, rng, dropout_p, 1e-12, dtype]
        return Case(args, peers)

    return Workload(name, "embedding_layer_norm", build, dropout_p > 0)


def quantize_per_token(name: str, n_rows: int, n_cols: int, dtype: torch.dtype = BF16) -> Workload:
    def build(device: torch.device, size: str, seed: int) -> Case:
        rows, cols = {"full": (n_rows, n_cols), "check": (64, n_cols), "tiny": (5, min(n_cols, 100))}[size]
        x = _randn(device, dtype, seed, rows, cols)

        def written_out(x: Tensor) -> Tensor:
            absmax = x.float().abs().amax(-1, keepdim=True)
            return (x.float() * (127.0 / absmax)).round().to(torch.int8)

        peers = {"eager": Peer(written_out, (x,)), "torch.compile": Peer(written_out, (x,), compiled=True)}
        return Case([x, None], peers)

    return Workload(name, "quantize_per_token", build)


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
        peers = {
            "bf16 eager": Peer(half_precision, eager),
            "bf16 torch.compile": Peer(half_precision, eager, compiled=True),
            "_int_mm eager": Peer(unfused, compiled),
            "_int_mm torch.compile": Peer(unfused, compiled, compiled=True),
        }
        return Case([x_q, w_q, x_scale, w_scale, bias, None, activation, BF16], peers)

    return Workload(name, "int8_linear", build)


WORKLOADS: tuple[Workload, ...] = (
    # most telling first: a run that is short of time stops somewhere along this list
    attention("attention-bert-base-s512", 32, 512, 12, 64, written_out=True),
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
    linear_cross_entropy("linear_cross_entropy-bert-mlm-4096x30522", 4096, 30522, 768),
    attention("attention-bert-base-s128", 128, 128, 12, 64, written_out=True),
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
