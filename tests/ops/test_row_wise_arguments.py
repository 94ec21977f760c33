"""What the operators with row-wise dropout refuse, and how they say it."""

from __future__ import annotations

import math

import pytest
import torch

from fasttx.ops.bias_gelu import op as bias_gelu
from fasttx.ops.dropout_add_layer_norm import op as dropout_add_layer_norm
from fasttx.ops.embedding_layer_norm import op as embedding_layer_norm

OPS = {
    "bias_gelu": bias_gelu.BIAS_GELU,
    "dropout_add_layer_norm": dropout_add_layer_norm.DROPOUT_ADD_LAYER_NORM,
    "embedding_layer_norm": embedding_layer_norm.EMBEDDING_LAYER_NORM,
}
IDS, X, STATE = torch.tensor([1, 0]), torch.ones(2, 3), torch.zeros(2, dtype=torch.int64)
NAN, FP32 = math.nan, torch.float32
GOOD = {
    "bias_gelu": {"x": X, "bias": None, "row_index": None, "rng_state": None, "dropout_p": 0.0, "tanh": False},
    "dropout_add_layer_norm": {
        "x": X,
        "residual": None,
        "weight": None,
        "bias": None,
        "row_index": None,
        "rng_state": None,
        "dropout_p": 0.0,
        "eps": 1e-5,
        "out_dtype": FP32,
    },
    "embedding_layer_norm": {
        "ids": IDS,
        "word": X,
        "position_ids": None,
        "position": None,
        "type_ids": None,
        "token_type": None,
        "weight": None,
        "bias": None,
        "row_index": None,
        "rng_state": None,
        "dropout_p": 0.0,
        "eps": 1e-5,
        "out_dtype": torch.float32,
    },
}
OF_DROPOUT = {
    "index dtype": ({"row_index": X[:, 0]}, "^row_index: .*float32"),
    "index shape": ({"row_index": torch.arange(3)}, r"^row_index: .*\(3,\).*\(2,\)"),
    "p": ({"dropout_p": 1.0, "rng_state": STATE}, r"^dropout_p: .*\[0, 1\)"),
    "no state": ({"dropout_p": 0.5}, "^rng_state: got .*; allowed is a state where dropout_p > 0, else None"),
    "a state too many": ({"rng_state": STATE}, "^rng_state: got .*; allowed is a state where dropout_p > 0, else None"),
    "state dtype": ({"dropout_p": 0.5, "rng_state": X[0, :2]}, "^rng_state: .*int64"),
}
BAD = {
    "bias_gelu": {
        "dims": ({"x": torch.tensor(1.0)}, "^x: .*at least one column"),
        "no column": ({"x": torch.ones(2, 0)}, "^x: .*at least one column"),
        "dtype": ({"x": X.double()}, "^x: .*float64"),
        "bias shape": ({"bias": X[0, :2]}, r"^bias: got torch.float32 \(2,\).*\(3,\)"),
        "bias dtype": ({"bias": X[0].half()}, "^bias: got torch.float16 .*; allowed is torch.float32 or float32"),
        "device": ({"bias": X[0].to("meta")}, "^bias: got a tensor on meta"),
    },
    "dropout_add_layer_norm": {
        "dims": ({"x": torch.tensor(1.0)}, "^x: .*at least one column"),
        "no column": ({"x": torch.ones(2, 0)}, "^x: .*at least one column"),
        "dtype": ({"x": X.double()}, "^x: .*float64"),
        "residual shape": ({"residual": X[0]}, r"^residual: got torch.float32 \(3,\).*\(2, 3\)"),
        "residual dtype": ({"residual": X.double()}, "^residual: .*float64"),
        "weight": ({"weight": X}, r"^weight: .*\(3,\)"),
        "bias": ({"bias": X[0, :2]}, r"^bias: .*\(3,\)"),
        "device": ({"residual": X.to("meta")}, "^residual: got a tensor on meta"),
        "eps": ({"eps": -1.0}, "^eps: .*-1.0"),
        "nan": ({"eps": NAN}, "^eps: .*nan"),
        "out_dtype": ({"out_dtype": torch.float64}, "^out_dtype: .*float64"),
    },
    "embedding_layer_norm": {
        "ids dtype": ({"ids": X[0]}, "^ids: .*float32"),
        "ids dims": ({"ids": IDS[None]}, r"^ids: .*\(1, 2\)"),
        "word dims": ({"word": X[0]}, r"^word: .*\(3,\)"),
        "word dtype": ({"word": X.double()}, "^word: .*float64"),
        "no word": ({"word": X[:0]}, r"^word: .*\(0, 3\)"),
        "position alone": ({"position": X}, "^position_ids: got None; allowed is a tensor where position is one"),
        "types alone": ({"type_ids": IDS}, "^type_ids: got a tensor; .* where token_type is one, else None"),
        "position shape": ({"position": X[:, :2], "position_ids": IDS}, r"^position: .*\(2, 2\).*\(rows, 3\)"),
        "types dtype": ({"token_type": X.double(), "type_ids": IDS}, "^token_type: .*float64"),
        "period": (
            {"position": X, "position_ids": torch.zeros(3, dtype=torch.int64)},
            r"^position_ids: .*\(3,\).*\(2\)",
        ),
        "no position": ({"position": X, "position_ids": IDS[:0]}, r"^position_ids: .*\(0,\)"),
        "types ids": ({"token_type": X, "type_ids": X[:, 0]}, "^type_ids: .*float32"),
        "weight": ({"weight": X}, r"^weight: .*\(3,\)"),
        "bias": ({"bias": X[0, :2]}, r"^bias: .*\(3,\)"),
        "device": ({"word": X.to("meta")}, "^word: got a tensor on meta"),
        "eps": ({"eps": -1.0}, "^eps: .*-1.0"),
        "nan": ({"eps": NAN}, "^eps: .*nan"),
        "out_dtype": ({"out_dtype": torch.float64}, "^out_dtype: .*float64"),
    },
}
CASES = [(op, name) for op in OPS for name in (*OF_DROPOUT, *BAD[op])]


@pytest.mark.parametrize("op, name", CASES)
def test_bad_input_is_named(op, name):
    wrong, message = (OF_DROPOUT | BAD[op])[name]
    arguments = {**GOOD[op], **wrong}.values()
    with pytest.raises(ValueError, match=message):
        OPS[op].fwd.check(*arguments)
    if "device" not in name:  # the dispatcher would pick the implementation of meta tensors
        with pytest.raises(ValueError, match=message):
            getattr(torch.ops.fasttx, f"{op}_fwd").default(*arguments, "auto")


def test_bad_gradients_of_bias_gelu():
    for wrong, message in (
        ((X[0], X), r"^dout: got torch.float32 \(3,\).*\(2, 3\)"),
        ((X.double(), X), "^dout: .*float64"),
        ((X, X.double()), "^x: .*float64"),
        ((X, X), "^needs_dbias: got True; .* without bias"),
    ):
        with pytest.raises(ValueError, match=message):
            OPS["bias_gelu"].bwd.check(*wrong, None, None, None, 0.0, False, True, True)


def test_bad_gradients_of_dropout_add_layer_norm():
    stat = torch.ones(2)
    rest = (None, None, 0.0, True)
    for dout, mean, needs, message in (
        (X.T, stat, (False,) * 3, "^dout: "),
        (X.double(), stat, (False,) * 3, "^dout: .*float64"),
        (X, X, (False,) * 3, "^mean: "),
        (X, stat, (True, False, False), "^needs_dresidual: "),
        (X, stat, (False, True, False), "^needs_dweight: "),
        (X, stat, (False, False, True), "^needs_dbias: "),
    ):
        with pytest.raises(ValueError, match=message):
            torch.ops.fasttx.dropout_add_layer_norm_bwd(dout, X, None, None, None, mean, stat, *rest, *needs, "auto")


def test_bad_gradients_of_embedding_layer_norm():
    stat, many = torch.ones(2), torch.ones(3, 3)
    for dout, types, mean, needs, message in (
        (X.T, X, stat, (False,) * 3, "^dout: "),
        (X.double(), X, stat, (False,) * 3, "^dout: .*float64"),
        (X, X, X, (False,) * 3, "^mean: "),
        (X, None, stat, (True, False, False), "^needs_dtoken_type: got True; allowed is False without token_type"),
        (X, many, stat, (True, False, False), "^needs_dtoken_type: got True for a table of 3 rows; .*at most 2"),
        (X, X, stat, (False, True, False), "^needs_dweight: "),
        (X, X, stat, (False, False, True), "^needs_dbias: "),
    ):
        tables = (IDS, X, None, None, None if types is None else IDS, types, None, None)
        with pytest.raises(ValueError, match=message):
            torch.ops.fasttx.embedding_layer_norm_bwd(dout, *tables, mean, stat, None, None, 0.0, True, *needs, "auto")
