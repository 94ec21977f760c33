"""The row of cross-entropy: its reference, what it refuses, and what it counts."""

from __future__ import annotations

import pytest
import torch
from ops.test_cross_entropy import fwd, make

from fasttx.ops.checks import MEAN
from fasttx.ops.cross_entropy.op import CROSS_ENTROPY


def test_gradient_of_the_reference() -> None:
    """The backward formula is the derivative of the forward one."""
    for probs in (False, True):
        for smoothing in (0.0, 0.2):
            logits, target, weight = make(3, 6, torch.float32, probs, True, torch.device("cpu"))
            x = logits.double().requires_grad_()
            loss, lse, total = CROSS_ENTROPY.fwd.reference(x, target, weight, -100, smoothing, MEAN)
            (expected,) = torch.autograd.grad(loss, x)
            args = (torch.ones(()), logits, target, weight, lse, total, -100, smoothing, MEAN)
            torch.testing.assert_close(CROSS_ENTROPY.bwd.reference(*args), expected)


def _bad_calls() -> dict[str, tuple[tuple, type[Exception], str]]:
    x, t = torch.randn(3, 5), torch.tensor([0, 1, 2])
    return {
        "float64": ((x.double(), t, None, -100, 0.0, 1), ValueError, "logits"),
        "3-d": ((x[None], t, None, -100, 0.0, 1), ValueError, "logits"),
        "int32": ((x, t.int(), None, -100, 0.0, 1), ValueError, "target"),
        "batch": ((x, t[:2], None, -100, 0.0, 1), ValueError, "batch_size"),
        "probabilities": ((x, x[:, :4], None, -100, 0.0, 1), ValueError, "target"),
        "weight": ((x, t, torch.ones(4), -100, 0.0, 1), ValueError, "weight"),
        "smoothing": ((x, t, None, -100, 1.5, 1), ValueError, "label_smoothing"),
        "not finite": ((x, t, None, -100, float("nan"), 1), ValueError, "label_smoothing"),
        "reduction": ((x, t, None, -100, 0.0, 3), ValueError, "reduction"),
        "range": ((x, t + 3, None, -100, 0.0, 1), IndexError, "Target 5 is out of bounds"),
    }


@pytest.mark.parametrize("name", _bad_calls())
def test_wrong_input_is_named(name: str) -> None:
    args, kind, message = _bad_calls()[name]
    with pytest.raises(kind, match=message):
        fwd(*args, "auto")


def test_one_device() -> None:
    with pytest.raises(ValueError, match="weight: got a tensor on meta; allowed is cpu, where logits is"):
        CROSS_ENTROPY.fwd.check(
            torch.randn(3, 5), torch.tensor([0, 1, 2]), torch.ones(5, device="meta"), -100, 0.0, MEAN
        )


def test_cost_counts_the_bytes() -> None:
    logits, target = torch.empty(4, 100, dtype=torch.bfloat16), torch.empty(4, dtype=torch.int64)
    assert CROSS_ENTROPY.fwd.cost(logits, target, None, -100, 0.0, MEAN)[1] == 4 * 100 * 2 + 4 * 8 + 4 * 8
    assert CROSS_ENTROPY.bwd.cost(torch.ones(()), logits, target)[1] == 2 * 4 * 100 * 2 + 4 * 8 + 4 * 8
