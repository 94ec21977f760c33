"""The row-wise kernels of csrc/ with a hook at each access: no race, no access outside, one result in every order.

tests/ops/ holds their results, built plainly; tests/emulator/test_kernels.py has the same for softmax.
"""

from __future__ import annotations

import host_build
import host_module
import pytest
import torch

from fasttx.ops.add_layer_norm_quantize import op as add_layer_norm_quantize
from fasttx.ops.bias_gelu import cuda as bias_gelu_cuda
from fasttx.ops.bias_gelu import op as bias_gelu
from fasttx.ops.bias_gelu_quantize import op as bias_gelu_quantize
from fasttx.ops.dropout_add_layer_norm import cuda as dropout_add_layer_norm_cuda
from fasttx.ops.dropout_add_layer_norm import op as dropout_add_layer_norm
from fasttx.ops.embedding_layer_norm import cuda as embedding_layer_norm_cuda
from fasttx.ops.embedding_layer_norm import op as embedding_layer_norm
from fasttx.ops.quantize_per_token import op as quantize_per_token
from fasttx.testing import assert_as_accurate

pytestmark = pytest.mark.skipif(host_build.lacks() is not None, reason=str(host_build.lacks()))
FP32, BF16 = torch.float32, torch.bfloat16
STATE = torch.tensor([3, 4])
SEEDS = (1, 2, 3)  # odd ones run a warp as far as it gets, even ones switch at random


def in_every_order(race, op, direction, *arguments):
    """The outputs of an operator in the race build, the same bits at every seed."""
    name = f"{op.name}_{direction}"
    outputs = None
    for seed in SEEDS:
        race.configure(seed)
        found = getattr(torch.ops.fasttx, name)(*arguments, "cuda")
        found = found if isinstance(found, tuple) else (found,)
        outputs = found if outputs is None else outputs
        assert all(torch.equal(a, b) for a, b in zip(found, outputs)), "the order of threads is in the result"
    return outputs


def run(race, op, direction, *arguments):
    """The same, held to the float64 reference."""
    half = op.directions[direction]
    outputs = in_every_order(race, op, direction, *arguments)
    references = half.reference(*arguments)
    for x, reference in zip(outputs, references if isinstance(references, tuple) else (references,)):
        assert_as_accurate(x, reference.to(x.dtype), reference)
    return outputs


# a warp a row, with 16 columns a thread and with 32; 128 threads and 512; whole runs of 8 columns and not
SHAPES = [(5, 37), (3, 520), (2, 1030), (1, 2056)]


@pytest.mark.parametrize("n_rows, n_cols", SHAPES)
@pytest.mark.parametrize("p", [0.0, 0.25])
def test_dropout_add_layer_norm(race, monkeypatch, n_rows, n_cols, p):
    monkeypatch.setattr(dropout_add_layer_norm_cuda, "PROGRAMS", 2)
    x, residual, dout = torch.randn(3, n_rows, n_cols).to(BF16)
    weight, bias = torch.randn(2, n_cols)
    mask = (None, STATE, p) if p else (None, None, 0.0)
    op = dropout_add_layer_norm.DROPOUT_ADD_LAYER_NORM
    _, mean, rstd = run(race, op, "fwd", x, residual, weight, bias, *mask, 1e-5, BF16)
    run(race, op, "bwd", dout, x, residual, weight, bias, mean, rstd, *mask, *(True,) * 4)


# of 8 columns for a thread: two rows a warp and more; two tiles of columns, whole and not
@pytest.mark.parametrize("n_rows, n_cols", [(67, 24), (19, 37), (7, 512), (3, 300)])
@pytest.mark.parametrize("p, tanh", [(0.0, False), (0.25, True)])
def test_bias_gelu(race, monkeypatch, n_rows, n_cols, p, tanh):
    monkeypatch.setattr(bias_gelu_cuda, "PROGRAMS", 4)
    x, dout = torch.randn(2, n_rows, n_cols).to(BF16)
    bias = torch.randn(n_cols)
    mask = (None, STATE, p) if p else (None, None, 0.0)
    run(race, bias_gelu.BIAS_GELU, "fwd", x, bias, *mask, tanh)
    run(race, bias_gelu.BIAS_GELU, "bwd", dout, x, bias, *mask, tanh, True, True)


# a warp a row, 128 threads and 512 in backward; whole runs of 8 columns and not
@pytest.mark.parametrize("n_rows, n_cols", [(6, 37), (4, 600), (2, 1032)])
@pytest.mark.parametrize("p", [0.0, 0.25])
def test_embedding_layer_norm(race, monkeypatch, n_rows, n_cols, p):
    monkeypatch.setattr(embedding_layer_norm_cuda, "PROGRAMS", 2)
    ids, types = torch.randint(0, 5, (n_rows,)), torch.tensor([0, 1], dtype=torch.int32)
    word, position, token_type = torch.randn(7, n_cols).to(BF16).split([4 + 1, 1, 1])
    tables = ids, word, ids[:2] * 0, position, types, torch.cat([token_type, position])
    weight, bias = torch.randn(2, n_cols)
    mask = (None, STATE, p) if p else (None, None, 0.0)
    op, dout = embedding_layer_norm.EMBEDDING_LAYER_NORM, torch.randn(n_rows, n_cols).to(BF16)
    _, mean, rstd = run(race, op, "fwd", *tables, weight, bias, *mask, 1e-5, BF16)
    run(race, op, "bwd", dout, *tables, weight, bias, mean, rstd, *mask, *(True,) * 4)


def test_ids_outside_of_their_tables_are_not_followed(race, monkeypatch):
    monkeypatch.setattr(embedding_layer_norm, "check_index_values", lambda *_: None)
    ids = torch.tensor([0, -1, 2, 5, 10**12, 4])
    out = torch.ops.fasttx.embedding_layer_norm_fwd(ids, torch.randn(5, 40), *(None,) * 8, 0.0, 1e-5, FP32, "cuda")[0]
    assert out.isnan().all(1).tolist() == [False, True, False, True, True, False]


# a warp a row, 16 and 32 columns a thread; 128 threads and 512; whole runs of 8 columns and not
@pytest.mark.parametrize("n_rows, n_cols", [(5, 37), (3, 520), (2, 1030), (1, 4104)])
@pytest.mark.parametrize("scale", [None, torch.tensor(0.02)], ids=["own", "given"])
def test_quantize_per_token(race, n_rows, n_cols, scale):
    run(race, quantize_per_token.QUANTIZE_PER_TOKEN, "fwd", torch.randn(n_rows, n_cols).to(BF16), scale)


@pytest.mark.parametrize("n_rows, n_cols", SHAPES)
@pytest.mark.parametrize("scale", [None, torch.tensor(0.02)], ids=["own", "given"])
def test_add_layer_norm_quantize(race, n_rows, n_cols, scale):
    x, residual = torch.randn(2, n_rows, n_cols).to(BF16)
    weight, bias = torch.randn(2, n_cols)
    op = add_layer_norm_quantize.ADD_LAYER_NORM_QUANTIZE
    out, *found = in_every_order(race, op, "fwd", x, residual, weight, bias, scale, 1e-5, BF16)
    norm = torch.ops.fasttx.dropout_add_layer_norm_fwd
    assert torch.equal(out, norm(x, residual, weight, bias, None, None, 0.0, 1e-5, BF16, "cuda")[0])
    for actual, expected in zip(found, quantize_per_token.QUANTIZE_PER_TOKEN.fwd.torch(out, scale)):
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("n_rows, n_cols", [(5, 37), (3, 520), (2, 1030), (1, 4104)])
@pytest.mark.parametrize("scale, tanh", [(None, False), (torch.tensor(0.02), True)], ids=["own", "given"])
def test_bias_gelu_quantize(race, n_rows, n_cols, scale, tanh):
    x, bias = torch.randn(n_rows, n_cols).to(BF16), torch.randn(n_cols)
    found = in_every_order(race, bias_gelu_quantize.BIAS_GELU_QUANTIZE, "fwd", x, bias, scale, tanh)
    activated = torch.ops.fasttx.bias_gelu_fwd(x, bias, None, None, 0.0, tanh, "cuda")
    for actual, expected in zip(found, quantize_per_token.QUANTIZE_PER_TOKEN.fwd.torch(activated, scale)):
        assert torch.equal(actual, expected)


# ------------------------------------------------------------------------------------------------------- boundary

ROWS = {"n_rows": ({"n_rows": 0}, "n_rows must lie in"), "rows": ({"n_rows": 2**31}, "n_rows must lie in")}
NORM = ROWS | {
    "n_cols": ({"n_cols": 0}, "n_cols must be positive"),
    "too long": ({"n_cols": 8193}, "rows of at most 8192 columns"),
    "threshold": ({"dropout.threshold": 257}, "threshold must lie in"),
    "mean": ({"mean": None}, "must be given"),
    "x dtype": ({"x": (16, 3)}, "float32, float16 or bfloat16"),
    "residual dtype": ({"residual": (16, 4)}, "float32, float16 or bfloat16"),
    "weight dtype": ({"weight": (16, 3)}, "float32, float16 or bfloat16"),
}
GELU = ROWS | {
    "n_cols": ({"n_cols": 0}, "n_cols must lie in"),
    "too long": ({"n_cols": 2**31 - 2048}, "n_cols must lie in"),
    "threshold": ({"dropout.threshold": -1}, "threshold must lie in"),
    "x": ({"x": None}, "x must be given"),
    "dtype": ({"dtype": 3}, "float32, float16 or bfloat16"),
    "bias dtype": ({"bias": (16, 4)}, "float32, float16 or bfloat16"),
}
EMBEDDING = ROWS | {
    "n_cols": ({"n_cols": 0}, "n_cols must be positive"),
    "too long": ({"n_cols": 4097}, "rows of at most 4096 columns"),
    "threshold": ({"dropout.threshold": 257}, "threshold must lie in"),
    "word": ({"word.rows": None}, "must be given"),
    "ids": ({"token_type.ids": None}, "each table needs its ids"),
    "period": ({"position.period": 0}, "at least one id"),
    "table": ({"word.n_rows": 2**31}, "tables have 1 .. "),
    "table dtype": ({"position.rows": (16, 3)}, "float32, float16 or bfloat16"),
    "weight dtype": ({"weight": (16, 4)}, "float32, float16 or bfloat16"),
}
OF_SUMS = {
    "programs": ({"programs": 0}, "partial and programs"),
    "partial": ({"partial": None}, "partial and programs"),
    "bias dtype": ({"dbias": (16, 4)}, "float32, float16 or bfloat16"),
}
REFUSED = {
    "dropout_add_layer_norm_fwd": NORM
    | {"out": ({"out": None}, "out must be given"), "bias dtype": ({"bias": (16, 4)}, "float32, float16 or bfloat16")},
    "bias_gelu_fwd": GELU | {"out": ({"out": None}, "out must be given")},
    "bias_gelu_bwd": GELU
    | OF_SUMS
    | {
        "programs": ({"row_programs": 0}, "partial and programs"),
        "dout": ({"dout": None}, "dout must be given"),
        "dout dtype": ({"dout": (16, 3)}, "float32, float16 or bfloat16"),
        "grid": ({"row_programs": 2**30, "n_cols": 2**20}, "more tiles than a grid has blocks"),
    },
    "quantize_per_token_fwd": ROWS
    | {
        "n_cols": ({"n_cols": 0}, "n_cols must be positive"),
        "too long": ({"n_cols": 16385}, "rows of at most 16384 columns"),
        "x_q": ({"x_q": None}, "must be given"),
        "dtype": ({"dtype": 4}, "float32, float16 or bfloat16"),
    },
    "add_layer_norm_quantize_fwd": {key: value for key, value in NORM.items() if key not in ("threshold", "mean")}
    | {
        "out": ({"out": None}, "must be given"),
        "x_q": ({"x_q": None}, "must be given"),
        "x_scale": ({"x_scale": None}, "must be given"),
        "out dtype": ({"out": (16, 3)}, "float32, float16 or bfloat16"),
        "bias dtype": ({"bias": (16, 4)}, "float32, float16 or bfloat16"),
    },
    "bias_gelu_quantize_fwd": ROWS
    | {
        "n_cols": ({"n_cols": 0}, "n_cols must be positive"),
        "too long": ({"n_cols": 16385}, "rows of at most 16384 columns"),
        "x_q": ({"x_q": None}, "must be given"),
        "x": ({"x": None}, "must be given"),
        "dtype": ({"dtype": 3}, "float32, float16 or bfloat16"),
        "bias dtype": ({"bias": (16, 4)}, "float32, float16 or bfloat16"),
    },
    "embedding_layer_norm_fwd": EMBEDDING | {"out": ({"out": None}, "out must be given")},
    "embedding_layer_norm_bwd": EMBEDDING
    | OF_SUMS
    | {
        "dout": ({"dout": None}, "dout must be given"),
        "types": ({"token_type.n_rows": 3}, "tables of at most 2 rows"),
        "no types": ({"token_type.rows": None}, "tables of at most 2 rows"),
    },
    "dropout_add_layer_norm_bwd": NORM | OF_SUMS | {"dout": ({"dout": None}, "dout must be given")},
}


@pytest.mark.parametrize("name, what", [(name, what) for name in REFUSED for what in REFUSED[name]])
def test_what_would_corrupt_memory_is_refused_again(name, what):
    """All tensors at address 16, every number 1: a launcher refuses before it launches."""
    changed, message = REFUSED[name][what]
    module, _ = host_module.load("plain")
    given = host_module.altered(host_module.harmless(module, module.SIGNATURES[name]), changed)
    with pytest.raises(ValueError, match=f"{name}: .*{message}"):
        getattr(module, name)(0, **given)
