"""Every error about an argument reads `name: got X; allowed is Y`, with the name that the user typed.

tests/functional/test_error_names.py asks the same of each argument of each function.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import fasttx
from fasttx import Int8Config, data, nn
from fasttx import functional as F
from fasttx.functional._linear_cross_entropy import _as_torch_2_13
from fasttx.nn.losses import _AsTorch213

PACKAGE = Path(fasttx.__file__).parent
LAYERS = ("functional", "nn", "ops", "quant", "data", "models")
"""Folders of which the source is read."""
NO_ARGUMENT = re.compile("unpatch_transformers: .*|x: x|labels and logits differ in shape")
"""A call out of turn, and what models/heads/labels.py words for its caller."""
WORDS = r"(\w+: )?{name}('s? \w+)?: got .+; allowed (is|are) .+"
TORCH_WORDS = ("Target ", "Expected input batch_size ", "neither fasttx")
"""How the messages begin that PyTorch has in the same words, which its users search for."""

X = torch.randn(6, 8)
IDS = torch.zeros(2, 4, dtype=torch.int64)
INT8 = torch.ones(4, 8, dtype=torch.int8)
LINEAR = torch.nn.Linear(2, 2)


def not_finite() -> torch.nn.Linear:
    linear = torch.nn.Linear(2, 2)
    linear.weight.data[0, 0] = math.inf
    return linear


def wide(n: int) -> torch.Tensor:
    return torch.ones(1, 1).expand(1, n)


CASES: dict[str, tuple[str, type[Exception], Callable[[], Any]]] = {
    "embedding, p": ("p", TypeError, lambda: nn.EmbeddingLayerNorm(3, 4, p="x")),  # type: ignore[arg-type]
    "embedding, p 1": ("p", ValueError, lambda: nn.EmbeddingLayerNorm(3, 4, p=1.0)),
    "embedding, floats": ("input", ValueError, lambda: nn.EmbeddingLayerNorm(3, 4)(X)),
    "embedding, an id": ("input", ValueError, lambda: nn.EmbeddingLayerNorm(3, 4)(IDS + 7)),
    "embedding, a type": ("token_type_ids", ValueError, lambda: nn.EmbeddingLayerNorm(3, 4)(IDS, IDS + 7)),
    "embedding, a position": ("position_ids", ValueError, lambda: nn.EmbeddingLayerNorm(3, 4, 5)(IDS, IDS, IDS + 5)),
    "embedding, too long": ("input", ValueError, lambda: nn.EmbeddingLayerNorm(3, 4, 2)(IDS)),
    "embedding, rows": ("row_index", ValueError, lambda: nn.EmbeddingLayerNorm(3, 4)(IDS, row_index=IDS[0])),
    "linear gelu, p": ("p", TypeError, lambda: nn.LinearGELU(3, 4, p=None)),  # type: ignore[arg-type]
    "linear gelu, p nan": ("p", ValueError, lambda: nn.LinearGELU(3, 4, p=math.nan)),
    "linear gelu, form": ("approximate", ValueError, lambda: nn.LinearGELU(3, 4, approximate="erf")),
    "linear gelu, list": ("approximate", ValueError, lambda: nn.LinearGELU(3, 4, approximate=[1])),  # type: ignore
    "linear gelu, linear": ("linear", TypeError, lambda: nn.LinearGELU.from_linear(nn.LinearGELU(3, 4))),
    "linear gelu, width": ("weight", ValueError, lambda: nn.LinearGELU(3, 4)(X)),
    "norm, shape": ("normalized_shape", ValueError, lambda: nn.DropoutAddLayerNorm((3, 4))),
    "norm, word": ("normalized_shape", TypeError, lambda: nn.DropoutAddLayerNorm("x")),
    "norm, no shape": ("normalized_shape", TypeError, lambda: nn.DropoutAddLayerNorm(None)),  # type: ignore[arg-type]
    "norm, p": ("p", TypeError, lambda: nn.DropoutAddLayerNorm(3, "x")),  # type: ignore[arg-type]
    "norm, p -1": ("p", ValueError, lambda: nn.DropoutAddLayerNorm(3, -1.0)),
    "norm, eps": ("eps", TypeError, lambda: nn.DropoutAddLayerNorm(8, eps="x")(X)),  # type: ignore[arg-type]
    "norm, width": ("weight", ValueError, lambda: nn.DropoutAddLayerNorm(3)(X)),
    "norm, residual": ("residual", ValueError, lambda: nn.DropoutAddLayerNorm(8)(X, X[0])),
    "int8, linear": ("linear", TypeError, lambda: nn.Int8Linear.from_float("x")),  # type: ignore[arg-type]
    "int8, factor": ("input_factor", ValueError, lambda: nn.Int8Linear.from_float(LINEAR, None, X[0])),
    "int8, scale": ("input_scale", ValueError, lambda: nn.Int8Linear.from_float(LINEAR, X[0, :1])),
    "int8, scale 0": ("input_scale", ValueError, lambda: nn.Int8Linear.from_float(LINEAR, torch.zeros(()))),
    "int8, numbers": ("linear", ValueError, lambda: nn.Int8Linear.from_float(not_finite())),
    "int8, dtype": ("weight", ValueError, lambda: nn.Int8Linear.from_float(torch.nn.Linear(2, 2).double())),
    "int8, width": ("input", ValueError, lambda: nn.Int8Linear(3, 4)(X)),
    "int8, no column": ("weight_int8", ValueError, lambda: F.int8_linear(X[:, :0], INT8[:, :0], X[0, :4])),
    "int8, no row": ("weight_int8", ValueError, lambda: F.int8_linear(X, INT8[:0], X[0, :0])),
    "int8, columns": ("weight_int8", ValueError, lambda: F.int8_linear(wide(1 << 18), wide(1 << 18).char(), X[0, :1])),
    "softmax, dim": ("dim", TypeError, lambda: F.softmax(X, "x", scale=2.0)),  # type: ignore[arg-type]
    "softmax, dtype": ("dtype", TypeError, lambda: F.log_softmax(X, 1, dtype="x", scale=2.0)),  # type: ignore[arg-type]
    "torch 2.13's loss, input": ("input", RuntimeError, lambda: _as_torch_2_13(X[None], X, IDS)),
    "torch 2.13's loss, W": ("linear_weight", RuntimeError, lambda: _as_torch_2_13(X, X[0], IDS)),
    "torch 2.13's loss, width": ("linear_weight", RuntimeError, lambda: _as_torch_2_13(X, X[:, :7], IDS)),
    "torch 2.13's loss, b": ("linear_bias", RuntimeError, lambda: _as_torch_2_13(X, X, IDS, linear_bias=X[0])),
    "torch 2.13's loss, K": ("input", RuntimeError, lambda: _as_torch_2_13(X[0], X[None], IDS)),
    "torch 2.13's loss, ignored": ("ignore_index", RuntimeError, lambda: _as_torch_2_13(X, X, X @ X.T, ignore_index=1)),
    "torch 2.13's module, w": ("weight", RuntimeError, lambda: _AsTorch213(3, 4, weight=X[0])),
    "torch 2.13's module, e": ("label_smoothing", RuntimeError, lambda: _AsTorch213(3, 4, label_smoothing=2.0)),
    "config, activation": ("activation", ValueError, lambda: Int8Config(activation="fixed")),
    "config, smooth": ("smooth", ValueError, lambda: Int8Config(smooth=2)),
    "config, smooth nan": ("smooth", ValueError, lambda: Int8Config(smooth=float("nan"))),
    "config, smooth true": ("smooth", TypeError, lambda: Int8Config(smooth=True)),
    "config, skip": ("skip", TypeError, lambda: Int8Config(skip="encoder")),  # type: ignore[arg-type]
    "config, skip 3": ("skip", TypeError, lambda: Int8Config(skip=3)),  # type: ignore[arg-type]
    "config, skip None": ("skip", TypeError, lambda: Int8Config(skip=None)),  # type: ignore[arg-type]
    "config, measure": ("measure", TypeError, lambda: Int8Config(measure="yes")),  # type: ignore[arg-type]
    "config, keep": ("keep_float", TypeError, lambda: Int8Config(keep_float=1)),  # type: ignore[arg-type]
    "backend": ("backend", fasttx.BackendError, lambda: fasttx.backend("gpu").__enter__()),
    "backend, list": ("backend", fasttx.BackendError, lambda: fasttx.backend(["cuda"]).__enter__()),  # type: ignore
    "collator": ("form", ValueError, lambda: data.PackingCollator(form="packed")),
    "sampler": ("lengths", ValueError, lambda: data.LengthBucketSampler([], 4)),
}


@pytest.mark.parametrize("case", CASES)
def test_an_error_names_the_argument_what_was_given_and_what_is_allowed(case: str) -> None:
    name, error, call = CASES[case]
    with pytest.raises(error) as found:
        call()
    assert re.fullmatch(WORDS.format(name=name), str(found.value)), found.value


def test_a_state_dict_of_floats_is_refused_in_the_same_words() -> None:
    with pytest.raises(RuntimeError) as found:
        nn.Int8Linear(3, 4).load_state_dict(torch.nn.Linear(3, 4).state_dict(), strict=False)
    lines = [line.strip() for line in str(found.value).splitlines()[1:]]
    assert len(lines) == 1 and re.fullmatch(WORDS.format(name="weight"), lines[0])


def test_a_generator_of_names_is_read_once() -> None:
    names = ("a", "b")
    assert Int8Config(skip=(name for name in names)).skip == names  # type: ignore[arg-type]


def _texts(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and text of each `raise Error("...")` about a value; what is inserted stands as "x"."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Raise) or not isinstance(node.exc, ast.Call) or not node.exc.args:
            continue
        name, text = getattr(node.exc.func, "id", ""), node.exc.args[0]
        if name not in ("ValueError", "TypeError", "IndexError"):
            continue
        if isinstance(text, ast.Constant):
            yield node.lineno, str(text.value)
        elif isinstance(text, ast.JoinedStr):
            yield (
                node.lineno,
                "".join(str(part.value) if isinstance(part, ast.Constant) else "x" for part in text.values),
            )


@pytest.mark.parametrize("layer", LAYERS)
def test_no_error_is_worded_otherwise(layer: str) -> None:
    """`wrong` words them; what is written out in its place reads as it does."""
    allowed = re.compile(r"[\w, .]+: got .+; allowed (is|are) .+", re.DOTALL)
    found = [
        f"{path.relative_to(PACKAGE)}:{line}: {text}"
        for path in sorted((PACKAGE / layer).rglob("*.py"))
        for line, text in _texts(ast.parse(path.read_text()))
        if not allowed.fullmatch(text) and not text.startswith(TORCH_WORDS) and not NO_ARGUMENT.fullmatch(text)
    ]
    assert not found


def test_the_reader_of_the_source_finds_what_is_worded_otherwise() -> None:
    source = 'raise ValueError("x: must be 1, got 2")\nraise TypeError(f"{name}: got {x}")\nraise ValueError(wrong(1))'
    assert list(_texts(ast.parse(source))) == [(1, "x: must be 1, got 2"), (2, "x: got x")]
