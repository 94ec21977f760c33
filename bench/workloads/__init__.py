"""The named shapes on which ops are measured, with the peers each is measured against.

A workload builds a :class:`bench.op_case.OpCase` in one of three sizes: "full" is timed, "check" has the same rows and
sequence lengths but few of them, so that a float64 reference fits beside it, "tiny" runs anywhere (rehearsals without a
GPU).
"""

from __future__ import annotations

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


def select(pattern: str = "") -> list[Workload]:
    """The workloads whose name contains `pattern`.

    Raises:
        ValueError: none does; the message lists the names.
    """
    found = [w for w in WORKLOADS if pattern in w.name]
    if not found:
        raise ValueError(f"workload: got {pattern!r}; allowed is a part of {', '.join(w.name for w in WORKLOADS)}")
    return found
