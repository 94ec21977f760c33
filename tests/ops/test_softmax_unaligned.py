"""The softmax op on long rows that begin between vectors of 16 bytes, for which there are kernels of their own."""

from __future__ import annotations

import math

import pytest
import torch
from ops.test_softmax import fwd, hold

# numpy's, about -inf - -inf in rows that are to be NaN
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")


def strided_rows(n_rows, n_cols, stride, dtype, device):
    return torch.randn(n_rows, stride, device=device).to(dtype)[:, :n_cols]


# rows of more than a block and of less, whose first 16-byte boundary is everywhere; a stride of their own, with which
# the other operands' boundaries agree (1041 = 1033 + 8) or not
@pytest.mark.parametrize("n_cols, stride", [(1025, 1025), (1033, 1041), (1027, 1040), (1032, 1035), (33003, 33003)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("log", [False, True])
def test_rows_that_begin_between_vectors(device, n_cols, stride, dtype, log):
    n_rows = 9 if n_cols < 2000 else 3
    x = strided_rows(n_rows, n_cols, stride, dtype, device)
    hold("triton", x, log=log, dout=torch.randn(n_rows, n_cols, device=device).to(dtype))
    keys = torch.rand(1, n_cols, device=device) < 0.7
    hold("triton", x, keys, scale=0.5, log=log)
    hold("triton", x, torch.randn(n_rows, n_cols, device=device).to(dtype), log=log)


def test_a_hidden_row_between_vectors(device):
    """Zeros, and no gradient, in the vectors and at both ends."""
    x = torch.randn(5, 1029, device=device)
    keep = torch.ones(5, 1029, dtype=torch.bool, device=device)
    keep[2] = False
    keep[3, 1:] = False  # the only one that is seen is before the first vector
    hold("triton", x, keep)
    out = fwd(x, keep, None, 1.0, 0.0, False, "triton")
    assert torch.equal(out[2], torch.zeros_like(x[2])) and out[3, 0] == 1.0 and (out[3, 1:] == 0.0).all()


@pytest.mark.parametrize("log", [False, True])
def test_nothing_but_minus_infinity_between_vectors(device, log):
    """NaN without a mask, as in aligned rows."""
    x = torch.full((2, 1027), -math.inf, device=device)
    assert fwd(x, None, None, 1.0, 0.0, log, "triton").isnan().all()
