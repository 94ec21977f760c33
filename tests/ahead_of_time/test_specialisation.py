"""Another number of rows is no new kernel: in padding-free training it differs from step to step."""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor

if os.environ.get("FASTTX_AOT") != "1":
    pytest.skip("a process of its own without Triton's interpreter: make aot", allow_module_level=True)
pytest.importorskip("triton", reason="triton is not installed")

from ahead_of_time.dry_device import compiled, dry_device

from fasttx.kernels.add_layer_norm_quantize import add_layer_norm_quantize_fwd
from fasttx.kernels.bias_gelu import bias_gelu_bwd, bias_gelu_fwd
from fasttx.kernels.bias_gelu_quantize import bias_gelu_quantize_fwd
from fasttx.kernels.binary_cross_entropy import binary_cross_entropy_bwd, binary_cross_entropy_fwd
from fasttx.kernels.cross_entropy import cross_entropy_fwd
from fasttx.kernels.cross_entropy_bwd import cross_entropy_bwd
from fasttx.kernels.dropout_add_layer_norm import dropout_add_layer_norm_bwd, dropout_add_layer_norm_fwd
from fasttx.kernels.embedding_layer_norm import embedding_layer_norm_bwd, embedding_layer_norm_fwd
from fasttx.kernels.int8_linear import int8_linear_fwd
from fasttx.kernels.kl_div import kl_div_bwd, kl_div_fwd
from fasttx.kernels.linear_cross_entropy import linear_cross_entropy_fwd
from fasttx.kernels.quantize_per_token import quantize_per_token_fwd
from fasttx.kernels.reduce import MEAN, NONE
from fasttx.kernels.softmax import softmax_bwd, softmax_fwd

FP32, BF16, INT8, INT64 = torch.float32, torch.bfloat16, torch.int8, torch.int64
N = 256
ARCH = 89  # no other test here compiles for it: kernels of an arch are compiled once in a process


def meta(*shape: int, dtype: torch.dtype = BF16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


ROW, STATE, ONE = meta(N), meta(2, dtype=INT64), meta(dtype=FP32)


def layer_norm(n: int) -> None:
    x, stat, mask = meta(n, N), meta(n, dtype=FP32), (None, STATE, 0.1)
    dropout_add_layer_norm_fwd(x, stat, stat, x, x, ROW, ROW, *mask, 1e-12, BF16)
    dropout_add_layer_norm_bwd(x, x, ROW, ROW, x, x, x, ROW, ROW, stat, stat, *mask, True, True, True, True)


def gelu(n: int) -> None:
    x, mask = meta(n, N), (None, STATE, 0.1)
    bias_gelu_fwd(x, x, ROW, *mask, False)
    bias_gelu_bwd(x, ROW, x, x, ROW, *mask, False, True, True)


def embedding(n: int) -> None:
    x, stat, ids, table = meta(n, N), meta(n, dtype=FP32), meta(n, dtype=INT64), meta(2, N)
    tables, mask = (ids, meta(1000, N), ids, meta(512, N), ids, table), (None, STATE, 0.1)
    embedding_layer_norm_fwd(x, stat, stat, *tables, ROW, ROW, *mask, 1e-12, BF16)
    embedding_layer_norm_bwd(x, table, ROW, ROW, x, *tables, ROW, ROW, stat, stat, *mask, True, True, True, True)


def softmax(n: int) -> None:
    x = meta(n, N)
    softmax_fwd(x, x, None, STATE, 1.0, 0.1, False)
    softmax_bwd(x, x, x, None, STATE, 1.0, 0.1, False)
    softmax_bwd(x, x, x, None, None, 1.0, 0.0, False)


def cross_entropy(n: int) -> None:
    stat, target = meta(n, dtype=FP32), meta(n, dtype=INT64)
    for n_cols in (9, 1000):  # several rows a program, and one
        x = meta(n, n_cols)
        cross_entropy_fwd(ONE, stat, ONE, x, target, None, -100, 0.0, MEAN)
        cross_entropy_bwd(x, ONE, x, target, None, stat, ONE, -100, 0.0, MEAN)


def linear_cross_entropy(n: int) -> None:
    stat, target = meta(n, dtype=FP32), meta(n, dtype=INT64)
    linear_cross_entropy_fwd(ONE, stat, ONE, meta(n, N), meta(1000, N), None, target, None, -100, 0.0, MEAN)


def elementwise_losses(n: int) -> None:
    x, each = meta(n, 7), meta(n, 7, dtype=FP32)
    for loss, reduction in ((ONE, MEAN), (each, NONE)):
        kl_div_fwd(loss, x, x, reduction, False)
        kl_div_bwd(x, loss, x, reduction, False, BF16)
        binary_cross_entropy_fwd(loss, x, x, x, None, reduction)
        binary_cross_entropy_bwd(x, loss, x, x, x, None, reduction)


def quantisers(n: int) -> None:
    x, x_q, scale = meta(n, N), meta(n, N, dtype=INT8), meta(n, dtype=FP32)
    quantize_per_token_fwd(x_q, scale, x, None)
    bias_gelu_quantize_fwd(x_q, scale, x, ROW, None, False)
    add_layer_norm_quantize_fwd(x, x_q, scale, x, x, ROW, ROW, None, 1e-12, BF16)


@pytest.mark.parametrize(
    "launch",
    [layer_norm, gelu, embedding, softmax, cross_entropy, linear_cross_entropy, elementwise_losses, quantisers],
    ids=lambda launch: launch.__name__,
)
def test_rows_of_another_number(launch) -> None:
    with dry_device(ARCH) as records, compiled() as launched:
        launch(4096)
        assert launched
        before = len(records)
        for n in (4097, 4104, 1):
            launch(n)
        assert [str(record) for record in records[before:]] == []


def test_another_number_of_tokens_for_int8_linear() -> None:
    """Of the same tile; the smallest batches have one of their own."""
    compilations = []
    with dry_device(ARCH, "fasttx.kernels.int8_linear.arch_of") as records:
        for n in (16384, 16385):
            x, stat, w = meta(n, N, dtype=INT8), meta(n, dtype=FP32), meta(3072, N, dtype=INT8)
            bias = meta(3072)
            int8_linear_fwd(meta(n, 3072), x, w, stat, bias.float(), bias, None, "gelu", BF16)
            compilations.append(len(records))
    assert compilations[0] == compilations[1]
