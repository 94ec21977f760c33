"""Every error of a function that is ours reads `argument: got X; allowed is Y`.

The argument has the name that the user gave it, and is no argument of the operator below.
"""

from __future__ import annotations

import inspect
import re
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fasttx
from fasttx import functional

TORCH_WORDS = ("Target ", "Expected input batch_size")
"""How errors begin that torch's function of the same name raises in the same words."""
TORCH_NAMES = {name for name in functional.__all__ if hasattr(torch.nn.functional, name)}
"""Functions that leave a wrong call to torch's of the same name, whatever that raises."""
HERE = str(Path(fasttx.__file__).parent)
X = torch.randn(6, 8)
STARTS = torch.tensor([0, 2, 6], dtype=torch.int32)
STATE = torch.tensor([1, 2])
ROWS = torch.arange(6)
Q = torch.randn(6, 2, 4)
SEQUENCES = torch.randn(2, 3, 8)
MASK = torch.ones(2, 3, dtype=torch.bool)
INT8, SCALES = torch.ones(8, 8, dtype=torch.int8), torch.ones(8)

CALLS: dict[str, dict[str, Any]] = {
    "add_layer_norm_quantize": {
        "input": X,
        "residual": X,
        "weight": X[0],
        "bias": X[0],
        "scale": torch.ones(()),
        "eps": 1e-5,
    },
    "attention_varlen": {
        "query": Q,
        "key": Q,
        "value": Q,
        "cu_seqlens_q": STARTS,
        "cu_seqlens_k": STARTS,
        "max_seqlen_q": 4,
        "max_seqlen_k": 4,
        "dropout_p": 0.5,
        "scale": 0.5,
        "attn_bias": torch.zeros(2, 1, 4, 4),
        "window_size": (4, 4),
        "rng_state": STATE,
    },
    "binary_cross_entropy_with_logits": {
        "input": X,
        "target": X.sigmoid(),
        "weight": X.sigmoid(),
        "pos_weight": X.sigmoid(),
    },
    "cross_entropy": {
        "input": X,
        "target": ROWS,
        "weight": SCALES,
        "ignore_index": -100,
        "label_smoothing": 0.1,
    },
    "distillation_loss": {
        "student_logits": X,
        "teacher_logits": X,
        "target": ROWS,
        "temperature": 2.0,
        "alpha": 0.5,
        "ignore_index": -100,
        "reduction": "mean",
    },
    "dropout_add_layer_norm": {
        "input": X,
        "residual": X,
        "weight": X[0],
        "bias": X[0],
        "dropout_p": 0.5,
        "eps": 1e-5,
        "row_index": ROWS,
        "rng_state": STATE,
    },
    "embedding_layer_norm": {
        "input": ROWS,
        "word_embeddings": torch.randn(9, 8),
        "weight": X[0],
        "bias": X[0],
        "position_embeddings": torch.randn(7, 8),
        "position_ids": ROWS,
        "token_type_embeddings": torch.randn(6, 8),
        "token_type_ids": ROWS,
        "padding_idx": 1,
        "dropout_p": 0.5,
        "eps": 1e-5,
        "row_index": ROWS,
        "rng_state": STATE,
    },
    "gelu": {"input": X, "approximate": "tanh"},
    "gelu_quantize": {"input": X, "bias": X[0], "approximate": "tanh", "scale": 1.0},
    "hidden_state_loss": {
        "student_hidden": SEQUENCES,
        "teacher_hidden": SEQUENCES,
        "attention_mask": MASK,
        "kind": "mse",
    },
    "int8_linear": {
        "input": X,
        "weight_int8": INT8,
        "weight_scale": SCALES,
        "bias": X[0],
        "activation": "none",
        "act_scale": torch.ones(()),
        "residual": X,
        "out_dtype": torch.float32,
    },
    "kl_div": {"input": X, "target": X.sigmoid()},
    "layer_norm": {"input": X, "normalized_shape": (8,), "weight": X[0], "bias": X[0], "eps": 1e-5},
    "linear_cross_entropy": {
        "input": X,
        "linear_weight": torch.randn(9, 8),
        "target": ROWS,
        "linear_bias": torch.randn(9),
        "weight": torch.ones(9),
        "ignore_index": 0,
        "label_smoothing": 0.1,
    },
    "linear_gelu": {
        "input": X,
        "weight": torch.randn(8, 8),
        "bias": X[0],
        "approximate": "tanh",
        "dropout_p": 0.5,
        "row_index": ROWS,
        "rng_state": STATE,
    },
    "log_softmax": {"input": X, "dim": -1, "mask": MASK[0, :1], "scale": 2.0},
    "multi_head_attention_forward": {
        "query": X,
        "key": X,
        "value": X,
        "embed_dim_to_check": 8,
        "num_heads": 2,
        "in_proj_weight": torch.randn(24, 8),
        "in_proj_bias": torch.randn(24),
        "bias_k": None,
        "bias_v": None,
        "add_zero_attn": False,
        "dropout_p": 0.0,
        "out_proj_weight": torch.randn(8, 8),
        "out_proj_bias": X[0],
        "key_padding_mask": torch.zeros(6),
        "attn_mask": torch.zeros(6, 6),
        "need_weights": False,
    },
    "quantize_per_channel": {"weight": X},
    "quantize_per_token": {"input": X},
    "quantize_static": {"input": X, "scale": torch.ones(())},
    "repad": {"packed": X, "indices": ROWS, "batch": 2, "seqlen": 3},
    "scaled_dot_product_attention": {
        "query": SEQUENCES,
        "key": SEQUENCES,
        "value": SEQUENCES,
        "attn_mask": torch.zeros(3, 3),
        "dropout_p": 0.0,
        "is_causal": False,
        "scale": 0.5,
    },
    "softmax": {"input": X, "dim": -1, "mask": MASK[0, :1], "scale": 2.0, "dropout_p": 0.5},
    "unpad": {"hidden": SEQUENCES, "mask": MASK},
}
"""A right call of each function."""


def _wrong(value: Any) -> Iterator[Any]:
    if isinstance(value, Tensor):
        yield from (value.tolist(), None, value.to("meta"), value.to(torch.complex64), value.long() + 100)
        yield from (value.int() - 7, value.half(), value.bool(), value[None], value[..., None])
        if value.dim():
            yield from (value[0], value[:1], value[:0], torch.cat([value, value]), value[..., :-1])
    elif isinstance(value, (int, float)):
        yield from ("word", None, float("nan"), -1, 10**6, torch.ones(2))
    else:
        yield from (3, (1.5,), (-7, 2, 5), "word")


def _by_us(problem: BaseException) -> bool:
    """Raised by a line of ours, and not by torch's functions below it, of which those in C++ leave no line."""
    last = traceback.extract_tb(problem.__traceback__)[-1]
    return last.filename.startswith(HERE) and str(last.line).startswith("raise ")


def test_every_function_is_called() -> None:
    assert set(CALLS) == set(functional.__all__)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("name", CALLS)
def test_errors_of_ours_name_the_users_arguments(name: str, backend: str) -> None:
    function, right = getattr(functional, name), CALLS[name]
    arguments = set(inspect.signature(function).parameters)
    grammar = re.compile(rf"({name}: )?(?P<argument>\w+)('s? \w+)?: got .+; allowed is .+")
    with fasttx.backend(backend):
        function(**right)
        for argument, value in right.items():
            for wrong in _wrong(value):
                try:
                    function(**(right | {argument: wrong}))
                except (ValueError, TypeError, IndexError) as problem:
                    if _by_us(problem) and not str(problem).startswith(TORCH_WORDS):
                        said = grammar.fullmatch(str(problem))
                        assert said and said["argument"] in arguments, f"a wrong {argument}: {problem}"
                except (RuntimeError, AttributeError, AssertionError) as problem:
                    assert name in TORCH_NAMES, f"a wrong {argument}: {problem!r}"
