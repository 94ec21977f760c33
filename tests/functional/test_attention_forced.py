"""Attention that the kernels do not cover: torch's function, or the reason where a backend is forced."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fasttx import BackendError, backend
from fasttx.functional.attention.layouts import attention_padded
from fasttx.nn.functional import scaled_dot_product_attention as sdpa
from fasttx.ops.registry import LAUNCHES


def _models(x: Tensor) -> Tensor:
    q = x.transpose(1, 2)
    return attention_padded(q, q, q)


CASES: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "float64": ("floating type", lambda x: sdpa(x.double(), x.double(), x.double())),
    "transform": ("torch.func", lambda x: torch.func.grad(lambda y: sdpa(y, y, y).sum())(x)),
    "broadcast batch": ("shapes", lambda x: sdpa(x, x[:1], x[:1])),
    "models, float64": ("floating type", lambda x: _models(x.double())),
}


@pytest.mark.parametrize("case", CASES)
def test_what_the_kernels_do_not_cover_is_refused_where_a_backend_is_forced(case: str, device: torch.device) -> None:
    reason, call = CASES[case]
    x = torch.randn(2, 3, 5, 16, device=device)
    LAUNCHES.clear()
    for name in ("triton", "cuda"):
        with backend(name), pytest.raises(BackendError, match=f"attention: backend '{name}' cannot run.*{reason}"):
            call(x)
    results = []
    for name in ("auto", "torch"):
        with backend(name):
            results.append(call(x))
    torch.testing.assert_close(*results)
    assert not LAUNCHES


def test_a_wrong_call_gets_the_error_of_torch_and_an_empty_one_runs(device: torch.device) -> None:
    x = torch.randn(2, 3, 5, 16, device=device)
    with pytest.raises(RuntimeError) as expected:
        torch.nn.functional.scaled_dot_product_attention(x, x[..., :8], x)
    with backend("triton"):
        with pytest.raises(RuntimeError) as found:
            sdpa(x, x[..., :8], x)
        assert sdpa(x[:0], x[:0], x[:0]).shape == (0, 3, 5, 16)
    assert str(found.value) == str(expected.value)
