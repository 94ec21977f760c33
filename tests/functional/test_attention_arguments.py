"""Arguments of a wrong type or value: each error names the argument, what was given and what is allowed."""

from __future__ import annotations

import re
from typing import Any

import numpy
import pytest
import torch
import torch.nn.functional as torch_functional
from torch import Tensor

import fasttx
import fasttx.nn.functional as F
from fasttx.functional import attention_varlen
from fasttx.functional.attention.layouts import attention_padded
from fasttx.ops.attention import checks as op

NAN, INF = float("nan"), float("inf")


def call(**changes: Any) -> Any:
    cu = torch.tensor([0, 5, 14], dtype=torch.int32)
    arguments = dict(
        query=torch.randn(14, 3, 16),
        key=torch.randn(14, 3, 16),
        value=torch.randn(14, 3, 16),
        cu_seqlens_q=cu,
        cu_seqlens_k=cu,
        max_seqlen_q=9,
        max_seqlen_k=9,
    )
    return attention_varlen(**(arguments | changes))


WRONG: list[tuple[type[Exception], str, Any, str]] = [
    (TypeError, "query", [1.0], ": got a list; allowed is a Tensor"),
    (TypeError, "key", None, ": got None; allowed is a Tensor"),
    (TypeError, "value", numpy.zeros((14, 3, 16)), ": got a ndarray; allowed is a Tensor"),
    (TypeError, "cu_seqlens_q", None, ": got None; allowed is a Tensor"),
    (TypeError, "cu_seqlens_k", None, ": got None; allowed is a Tensor"),
    (TypeError, "cu_seqlens_k", [0, 5, 14], ": got a list; allowed is a Tensor"),
    (TypeError, "attn_bias", [[1.0]], ": got a list; allowed is a Tensor"),
    (TypeError, "rng_state", (1, 2), ": got a tuple; allowed is a Tensor"),
    (TypeError, "max_seqlen_q", 9.0, ": got 9.0; allowed is an int"),
    (TypeError, "max_seqlen_q", True, ": got True; allowed is an int"),
    (TypeError, "max_seqlen_k", torch.tensor(9), ": got tensor(9); allowed is an int"),
    (TypeError, "max_seqlen_k", None, ": got None; allowed is an int"),
    (ValueError, "max_seqlen_q", -1, ": got -1; allowed is an int, not negative"),
    (TypeError, "dropout_p", "0.1", ": got '0.1'; allowed is a number"),
    (TypeError, "dropout_p", None, ": got None; allowed is a number"),
    (ValueError, "dropout_p", NAN, ": got nan; allowed is a number"),
    (ValueError, "dropout_p", 1.0, ": got 1.0; allowed is a number"),
    (ValueError, "dropout_p", -0.1, ": got -0.1; allowed is a number"),
    (TypeError, "scale", "x", ": got 'x'; allowed is a finite number"),
    (ValueError, "scale", NAN, ": got nan; allowed is a finite number"),
    (ValueError, "scale", -INF, ": got -inf; allowed is a finite number"),
    (TypeError, "window_size", 3, ": got 3; allowed is (left, right)"),
    (TypeError, "window_size", (1.5, 0), ": got (1.5, 0); allowed is (left, right)"),
    (TypeError, "window_size", (None, 0), ": got (None, 0); allowed is (left, right)"),
    (ValueError, "window_size", (1,), ": got (1,); allowed is (left, right)"),
    (ValueError, "window_size", (-3, 0), ": got (-3, 0); allowed is (left, right)"),
    (TypeError, "is_causal", "no", ": got 'no'; allowed is True or False"),
    (TypeError, "is_causal", None, ": got None; allowed is True or False"),
    (TypeError, "return_lse", 2, ": got 2; allowed is True or False"),
    (ValueError, "query", torch.tensor(1.0), "'s shape: got (); allowed is (total_q, heads, head_dim)"),
    (ValueError, "cu_seqlens_q", torch.zeros(3, dtype=torch.int32, device="meta"), "'s device: got meta; allowed is"),
    (ValueError, "key", torch.zeros(14, 3, 16, device="meta"), "'s device: got meta; allowed is query's, cpu"),
]


@pytest.mark.parametrize("error, name, given, message", WRONG, ids=lambda x: x if isinstance(x, str) else "")
def test_wrong_arguments_of_attention_varlen(error: type[Exception], name: str, given: Any, message: str) -> None:
    with pytest.raises(error, match=re.escape(f"attention_varlen: {name}{message}")):
        call(**{name: given})


def test_a_meta_query_is_refused_beside_other_tensors_and_has_a_shape_alone() -> None:
    query = torch.zeros(14, 3, 16, device="meta")
    with pytest.raises(ValueError, match="attention_varlen: key's device: got cpu; allowed is query's, meta"):
        call(query=query)
    cu = torch.zeros(3, dtype=torch.int32, device="meta")
    assert attention_varlen(query, query, query, cu, cu, 9, 9).shape == query.shape


def test_numbers_of_numpy_and_lists_are_allowed() -> None:
    torch.manual_seed(0)
    want = call(window_size=(2, 1), scale=0.5)
    torch.manual_seed(0)
    got = call(
        max_seqlen_q=numpy.int64(9),
        max_seqlen_k=numpy.int32(9),
        window_size=[numpy.int64(2), 1],
        scale=numpy.float64(0.5),
        dropout_p=0,
    )
    assert torch.equal(got, want)


@pytest.mark.parametrize("values", [[0, 5, 15], [1, 5, 14], [0, 15, 14]], ids=str)
@pytest.mark.parametrize("name", ["cu_seqlens_q", "cu_seqlens_k"])
def test_values_of_cu_seqlens_are_checked_on_a_cpu(name: str, values: list[int]) -> None:
    allowed = "ascending from 0 to at most the number of tokens, 14"
    with pytest.raises(ValueError, match=f"attention_varlen: {name}: got .*; allowed is {allowed}"):
        call(**{name: torch.tensor(values, dtype=torch.int32)})


@pytest.mark.parametrize("asked", [None, "0", "1"])
def test_and_elsewhere_when_asked_for(asked: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """No other device is needed to see whether values would be read: they are tensors on "meta" here."""
    if asked is None:
        monkeypatch.delenv("FASTTX_CHECK", raising=False)
    else:
        monkeypatch.setenv("FASTTX_CHECK", asked)
    read: list[str] = []
    monkeypatch.setattr(op, "_check_cu_seqlens", lambda name, *rest: read.append(name))
    q, cu = torch.empty(14, 3, 16, device="meta"), torch.empty(3, dtype=torch.int32, device="meta")
    op.check_fwd(q, q, q, None, None, cu, cu, None, 9, 9, 0.25, 0.0, -1, -1)
    assert read == (["q", "k"] if asked == "1" else [])


# ----------------------------------------------------------------------------------------- torch's own errors

x = torch.randn(2, 3, 5, 8)
WRONG_FOR_TORCH: dict[str, tuple[str, tuple[Any, ...], dict[str, Any]]] = {
    "softmax, list": ("softmax", ([1.0, 2.0],), {"dim": 0}),
    "softmax, none": ("softmax", (None,), {"dim": 0}),
    "softmax, no dim": ("softmax", ([1.0],), {}),
    "log_softmax, array": ("log_softmax", (numpy.zeros(3),), {"dim": 0}),
    "bce, list": ("binary_cross_entropy_with_logits", ([1.0], x), {}),
    "bce, target": ("binary_cross_entropy_with_logits", (x, None), {}),
    "bce, weight": ("binary_cross_entropy_with_logits", (x, x.sigmoid(), 0.5), {}),
    "ce, list": ("cross_entropy", ([1.0], x), {}),
    "sdpa, mask": ("scaled_dot_product_attention", (x, x, x, [1.0]), {}),
    "sdpa, dropout": ("scaled_dot_product_attention", (x, x, x), {"dropout_p": "0.1"}),
    "sdpa, scale": ("scaled_dot_product_attention", (x, x, x), {"scale": "0.1"}),
    "sdpa, causal": ("scaled_dot_product_attention", (x, x, x), {"is_causal": 1}),
    "sdpa, gqa": ("scaled_dot_product_attention", (x, x, x), {"enable_gqa": "yes"}),
}


@pytest.mark.parametrize("case", WRONG_FOR_TORCH)
def test_a_drop_in_gives_the_error_of_torch(case: str) -> None:
    name, args, kwargs = WRONG_FOR_TORCH[case]
    with pytest.raises(Exception) as wanted:
        getattr(torch_functional, name)(*args, **kwargs)
    for backend in ("auto", "torch"):
        with fasttx.backend(backend), pytest.raises(type(wanted.value)) as found:
            getattr(F, name)(*args, **kwargs)
        assert str(found.value) == str(wanted.value)


def test_softmax_with_a_mask_names_input() -> None:
    with pytest.raises(TypeError, match="^input: got a list; allowed is a Tensor$"):
        F.softmax([1.0], 0, mask=torch.ones(1).bool())  # type: ignore[arg-type]


@pytest.mark.parametrize("position", range(3))
def test_the_model_layers_call_gives_the_error_of_torch_too(position: int) -> None:
    for wrong in (None, [1.0]):
        tensors: list[Any] = [x, x, x]
        tensors[position] = wrong
        with pytest.raises(TypeError, match="scaled_dot_product_attention.*must be Tensor"):
            attention_padded(*tensors)
    with pytest.raises(TypeError, match="argument 'attn_mask'"):
        attention_padded(x, x, x, attn_bias=[1.0])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="attention: seqused_k: got a list; allowed is a Tensor"):
        attention_padded(x, x, x, seqused_k=[1, 2])  # type: ignore[arg-type]


def test_checks_are_traced() -> None:
    torch._dynamo.reset()
    cu = torch.tensor([0, 5, 14], dtype=torch.int32)

    def step(q: Tensor, cu: Tensor, longest: int, scale: float, p: float) -> Tensor:
        packed = attention_varlen(q, q, q, cu, cu, longest, longest, scale=scale, dropout_p=p, window_size=(longest, 0))
        return packed + F.scaled_dot_product_attention(q, q, q, scale=scale, dropout_p=p)

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for n, scale in ((9, 0.5), (10, 0.25)):
        q = torch.randn(14, 3, 16)
        torch.testing.assert_close(compiled(q, cu, n, scale, 0.0), step(q, cu, n, scale, 0.0))
