"""The reference of the softmax op is its own gradient; bad input is named."""

from __future__ import annotations

import math

import pytest
import torch

from fasttx.ops.softmax import op

fwd, bwd = torch.ops.fasttx.softmax_fwd.default, torch.ops.fasttx.softmax_bwd.default
INF = math.inf


def test_the_reference_is_its_own_gradient():
    x = torch.randn(3, 7, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(1, 7) < 0.7
    mask[0, 0] = True
    state = torch.tensor([1, 2])
    dout = torch.randn(3, 7, dtype=torch.float64)
    for m, rng_state, p in ((None, None, 0.0), (mask, None, 0.0), (mask, state, 0.3), (mask.double(), state, 0.3)):
        out = op.SOFTMAX.fwd.reference(x, m, rng_state, 0.7, p, False)
        (dx,) = torch.autograd.grad(out, x, dout)
        saved = out.detach() if rng_state is None else x.detach()
        torch.testing.assert_close(op.SOFTMAX.bwd.reference(dout, saved, m, rng_state, 0.7, p, False), dx)
    out = op.SOFTMAX.fwd.reference(x, None, None, 0.7, 0.0, True)
    (dx,) = torch.autograd.grad(out, x, dout)
    torch.testing.assert_close(op.SOFTMAX.bwd.reference(dout, out.detach(), None, None, 0.7, 0.0, True), dx)


BAD = {
    "dims": ((torch.tensor(1.0), None, None, 1.0, 0.0, False), "at least one dim"),
    "dtype": ((torch.ones(3, dtype=torch.float64), None, None, 1.0, 0.0, False), "float64"),
    "scale": ((torch.ones(3), None, None, INF, 0.0, False), "scale"),
    "dropout_p": ((torch.ones(3), None, torch.zeros(2, dtype=torch.int64), 1.0, 1.5, False), "dropout_p"),
    "log and dropout": ((torch.ones(3), None, torch.zeros(2, dtype=torch.int64), 1.0, 0.5, True), "log: got True"),
    "mask dtype": ((torch.ones(3), torch.ones(3, dtype=torch.int64), None, 1.0, 0.0, False), "mask: got .* bool"),
    "mask shape": ((torch.ones(2, 3), torch.ones(2, 2), None, 1.0, 0.0, False), r"\(2, 2\)"),
    "mask dims": ((torch.ones(2, 3), torch.ones(3), None, 1.0, 0.0, False), r"\(3,\)"),
    "too many dims": ((torch.ones([1] * 6), torch.ones([1] * 6), None, 1.0, 0.0, False), "at most 5"),
    "no state": ((torch.ones(3), None, None, 1.0, 0.5, False), "rng_state"),
    "a state too many": ((torch.ones(3), None, torch.zeros(2, dtype=torch.int64), 1.0, 0.0, False), "rng_state"),
    "state dtype": ((torch.ones(3), None, torch.zeros(2), 1.0, 0.5, False), "int64"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name):
    arguments, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        fwd(*arguments, "auto")


def test_bad_gradient_is_named():
    x = torch.ones(2, 3)
    for dout in (torch.ones(3, 2), torch.ones(2, 3, dtype=torch.float16)):
        with pytest.raises(ValueError, match="dout: got .*as saved"):
            bwd(dout, x, None, None, 1.0, 0.0, False, "auto")
