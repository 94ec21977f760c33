"""int8_linear in CUDA C++ on any call at all: a property, which needs hypothesis."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("hypothesis", reason="hypothesis is not installed")

from hypothesis import given, settings
from hypothesis import strategies as st
from ops.test_int8_linear_cuda import TILES, integers, runnable

from fasttx.ops.checks import FLOATS as DTYPES
from fasttx.ops.int8_linear import cuda
from fasttx.ops.int8_linear.op import ACTIVATIONS, INT8_LINEAR
from fasttx.testing import assert_as_accurate

__all__ = ["runnable"]  # the fixture, which skips where the kernel cannot run


def strided(shape: tuple[int, int], more: int, make) -> Tensor:
    """Rows at a stride of `more` elements beyond their length, from the (more % 4)-th on."""
    first = more % 4
    return make(shape[0], shape[1] + more + first)[:, first : first + shape[1]]


@settings(max_examples=25, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_call(device, data) -> None:
    """Any shape, stride, dtype and epilogue, by any tile."""
    draw = lambda name, values: data.draw(st.sampled_from(values), label=name)  # noqa: E731
    n_rows, n_out = data.draw(st.integers(1, 90), label="n_rows"), data.draw(st.integers(1, 140), label="n_out")
    n_in = 16 * data.draw(st.integers(1, 24), label="n_in / 16") + draw("n_in % 16", [0, 0, 0, 4, 7])
    x_q = strided((n_rows, n_in), draw("x's stride", [0, 16, 1]), lambda *s: integers(*s, device=device))
    w_q = strided((n_out, n_in), draw("w's stride", [0, 32, 2]), lambda *s: integers(*s, device=device))
    x_scale, w_scale = torch.rand(n_rows, device=device) / 150, torch.rand(n_out, device=device) / 150
    bias_dtype, residual_dtype = draw("bias", [None, *DTYPES]), draw("residual", [None, *DTYPES])
    floats = lambda *s: torch.randn(*s, device=device).to(residual_dtype)  # noqa: E731
    residual = None
    if residual_dtype is not None:
        residual = strided((n_rows, n_out), draw("residual's stride", [0, 8, 3]), floats)
    bias = None if bias_dtype is None else torch.randn(n_out, device=device).to(bias_dtype)
    arguments = x_q, w_q, x_scale, w_scale, bias, residual, draw("activation", ACTIVATIONS), draw("out", DTYPES)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(cuda, "TILE", draw("tile", [cuda.BY_SHAPE, *range(len(TILES))]))
        out = torch.ops.fasttx.int8_linear_fwd(*arguments, "cuda")
    assert_as_accurate(out, INT8_LINEAR.fwd.torch(*arguments), INT8_LINEAR.fwd.reference(*arguments))
