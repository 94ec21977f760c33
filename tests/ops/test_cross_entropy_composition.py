"""Cross-entropy as PyTorch's own operators: its two forms agree."""

from __future__ import annotations

import pytest
import torch

from fasttx.ops.checks import FEW, NONE, REDUCTIONS, check_target_values
from fasttx.ops.cross_entropy import composed
from fasttx.ops.cross_entropy.op import CROSS_ENTROPY


def test_small_composition_equals_the_one_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """All three results and the gradient, of every kind of row, contiguous or not, with and without ignored rows."""
    inf = float("inf")
    x = torch.randn(70, 5)  # more rows than are looked at one by one
    x[1], x[2, 0], x[3, 1:], x[4, 2] = -inf, inf, -inf, float("nan")
    target = torch.zeros(70, dtype=torch.int64)
    for rows, ignored in ((70, []), (70, [1, 4, 9]), (9, []), (9, [4, 5]), (1, [])):
        t = target[:rows].clone()
        t[ignored] = -100
        for logits in (
            x[:rows],
            x[:rows].bfloat16(),
            torch.cat([x, x[:, :1]], 1)[:rows, :5],
            x.t().contiguous().t()[:rows],
        ):
            for weight in (None, torch.rand(5)):
                for reduction in REDUCTIONS:
                    args = (logits, t, weight, -100, 0.0, reduction)
                    dloss = torch.ones(()).expand(rows) if reduction == NONE else torch.ones(())
                    found = []
                    for chunk in (composed.CHUNK, 0):
                        with monkeypatch.context() as patch:
                            patch.setattr(composed, "CHUNK", chunk)
                            outs = CROSS_ENTROPY.fwd.torch(*args)
                            back = (dloss, *args[:3], *outs[1:], *args[3:])
                            found.append((*outs, CROSS_ENTROPY.bwd.torch(*back)))
                    for small, chunked in zip(*found, strict=True):
                        torch.testing.assert_close(small, chunked, equal_nan=True)
                        assert small.stride() == chunked.stride()


@pytest.mark.parametrize("count", [FEW, FEW + 1], ids=["one by one", "by torch"])
def test_indices_are_checked_however_many_they_are(count: int) -> None:
    target = torch.arange(count) % 5
    for ignored in (-100, -1, 7):
        target[3] = ignored
        check_target_values(target, 5, ignored)
    for bad in (-1, 5, 2**40):
        target[3], target[count - 1] = -100, bad
        with pytest.raises(IndexError, match=f"Target {bad} is out of bounds."):
            check_target_values(target, 5, -100)
    check_target_values(target[:0], 0, -100)
