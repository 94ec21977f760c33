"""The named shapes on which ops are measured, with the peers each is measured against.

A workload builds a :class:`bench.op_case.OpCase` in one of three sizes: "full" is timed, "check" has the same rows and
sequence lengths but few of them, so that a float64 reference fits beside it, "tiny" runs anywhere (rehearsals without a
GPU).
"""

from __future__ import annotations

import torch

from ..op_case import FP16, FP32, Workload
from ._add_layer_norm_quantize import add_layer_norm_quantize
from ._attention import attention
from ._bias_gelu import bias_gelu
from ._bias_gelu_quantize import bias_gelu_quantize
from ._binary_cross_entropy import binary_cross_entropy
from ._cross_entropy import cross_entropy
from ._dropout_add_layer_norm import dropout_add_layer_norm
from ._embedding_layer_norm import embedding_layer_norm
from ._int8_linear import int8_linear
from ._kl_div import kl_div
from ._linear_cross_entropy import linear_cross_entropy
from ._quantize_per_token import quantize_per_token
from ._softmax import softmax

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


EXPECTED = {
    ("softmax-16384x1024", "fwd"): "0.9 of the copy rate",
    ("softmax-4096x30522", "fwd"): "0.85 of the copy rate",
    ("cross_entropy-bert-mlm-4096x30522", "fwd"): "0.85 to 0.9 of the copy rate",
    ("cross_entropy-bert-mlm-4096x30522", "bwd"): "0.85 to 0.9 of the copy rate",
    ("dropout_add_layer_norm-bert-base-16384x768", "fwd"): "0.8 to 0.85 of the copy rate",
    ("dropout_add_layer_norm-bert-base-16384x768", "bwd"): "0.45 to 0.6 of the copy rate",
    ("dropout_add_layer_norm-16384x1024-inference", "fwd"): "0.85 to 0.95 of the copy rate",
    ("bias_gelu-bert-base-16384x3072", "fwd"): "0.9 of the copy rate",
    ("bias_gelu-bert-base-16384x3072", "bwd"): "0.8 to 0.88 of the copy rate",
    ("bias_gelu-tanh-dropout-16384x4096", "fwd"): "0.9 of the copy rate",
    ("embedding_layer_norm-bert-base-32x512", "fwd"): "0.7 to 0.9 of the copy rate",
    ("int8_linear-bert-base-mlp-16384x768x3072-gelu", "fwd"): "90 to 120 us",
    ("quantize_per_token-16384x768", "fwd"): "13 to 16 us",
    ("add_layer_norm_quantize-16384x1024", "fwd"): "28 to 32 us",
    ("bias_gelu_quantize-16384x4096", "fwd"): "50 to 60 us",
    ("linear_cross_entropy-bert-mlm-4096x30522", "fwd"): "0.4 ms",
    ("linear_cross_entropy-bert-mlm-4096x30522", "bwd"): "1.0 ms",
    ("kl_div-4096x30522", "fwd"): "0.95 of the copy rate",
    ("binary_cross_entropy-8192x1024", "fwd"): "even with torch.compile",
}
"""What a GPU is predicted to show, by workload and direction: a figure that the run prints beside its own."""


def around_boundaries(short: str, dtype: torch.dtype) -> list[Workload]:
    """Each op in one dtype around its block boundaries; `short` is the dtype's name in theirs."""
    found = []
    for seqlen in (1, 63, 129, 257):
        found.append(attention(f"attention-s{seqlen}-{short}", 3, seqlen, 2, 64, dtype))
    found += [
        attention(f"attention-d128-dropout-{short}", 2, 200, 2, 128, dtype, dropout_p=0.25),
        attention(f"attention-d32-packed-{short}", 4, 130, 3, 32, dtype, ragged="packed"),
        attention(f"attention-d80-mask-{short}", 4, 130, 3, 80, dtype, ragged="mask"),
        attention(f"attention-d256-causal-{short}", 1, 150, 2, 256, dtype, causal=True),
        softmax(f"softmax-odd-{short}", 37, 1025, dtype),
        softmax(f"softmax-one-{short}", 5, 1, dtype),
        softmax(f"softmax-long-{short}", 3, 100_003, dtype),
        dropout_add_layer_norm(f"layer_norm-odd-{short}", 37, 1025, dtype, residual=False),
        dropout_add_layer_norm(f"layer_norm-many-{short}", 5003, 384, dtype),
        dropout_add_layer_norm(f"layer_norm-dropout-{short}", 37, 8192, dtype, dropout_p=0.25),
        bias_gelu(f"bias_gelu-odd-{short}", 37, 1025, dtype, tanh=True),
        bias_gelu(f"bias_gelu-many-{short}", 5003, 1536, dtype),
        bias_gelu(f"bias_gelu-dropout-{short}", 37, 4096, dtype, dropout_p=0.25),
        embedding_layer_norm(f"embedding_layer_norm-{short}", 7, 31, 384, 1000, dtype, dropout_p=0.25),
        embedding_layer_norm(f"embedding_layer_norm-one-type-{short}", 3, 7, 1025, 1000, dtype, types=1),
        cross_entropy(f"cross_entropy-odd-{short}", 37, 1025, dtype),
        cross_entropy(f"cross_entropy-smoothed-{short}", 37, 30_522, dtype, smoothing=0.1),
        linear_cross_entropy(f"linear_cross_entropy-odd-{short}", 37, 30_522, 61, dtype),
        binary_cross_entropy(f"binary_cross_entropy-odd-{short}", 37, 1025, dtype),
        kl_div(f"kl_div-odd-{short}", 37, 1025, dtype),
        quantize_per_token(f"quantize_per_token-odd-{short}", 37, 1025, dtype),
        quantize_per_token(f"quantize_per_token-long-{short}", 5, 16_384, dtype),
        add_layer_norm_quantize(f"add_layer_norm_quantize-odd-{short}", 37, 1025, dtype),
        add_layer_norm_quantize(f"add_layer_norm_quantize-long-{short}", 5, 8192, dtype),
        bias_gelu_quantize(f"bias_gelu_quantize-odd-{short}", 37, 1025, dtype, tanh=True),
        bias_gelu_quantize(f"bias_gelu_quantize-long-{short}", 5, 16_384, dtype),
    ]
    return found


def int8_around_boundaries() -> list[Workload]:
    """The product of int8 at sizes around its blocks, with each activation."""
    found = []
    for n_rows, n_in, n_out in ((1, 768, 768), (63, 700, 130), (300, 33, 65), (400, 720, 3072), (3000, 1040, 999)):
        for activation in ("none", "gelu", "gelu_tanh"):
            found.append(
                int8_linear(f"int8_linear-{n_rows}x{n_in}x{n_out}-{activation}", n_rows, n_in, n_out, activation)
            )
    return found


def select(pattern: str = "") -> list[Workload]:
    """The workloads whose name contains `pattern`.

    Raises:
        ValueError: none does; the message lists the names.
    """
    found = [w for w in WORKLOADS if pattern in w.name]
    if not found:
        raise ValueError(f"workload: got {pattern!r}; allowed is a part of {', '.join(w.name for w in WORKLOADS)}")
    return found
