"""CUDA graphs: forward and backward are captured with dropout, and every replay draws a mask of its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import fasttx
import fasttx.functional as F


@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
def test_attention(dropout_p: float, device: torch.device, capture: Any) -> None:
    shape = (2, 2, 40, 32)
    q, k, v = (torch.randn(shape, device=device, requires_grad=True) for _ in range(3))
    found: dict[str, torch.Tensor] = {}

    def step() -> None:
        for x in (q, k, v):
            x.grad = None
        out = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout_p)
        out.square().sum().backward()
        found["out"], found["dv"] = out.detach(), v.grad

    with fasttx.backend("triton"):
        graph = capture(step)
        seen = []
        for _ in range(3):
            graph.replay()
            seen.append((found["out"].clone(), found["dv"].clone()))
    for (out, dv), (other, other_dv) in zip(seen, seen[1:], strict=False):
        assert torch.equal(out, other) == (dropout_p == 0.0)
        assert torch.isfinite(dv).all() and torch.isfinite(out).all()
        assert torch.equal(dv, other_dv) or dropout_p > 0.0
    if dropout_p == 0.0:
        expected = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        torch.testing.assert_close(seen[0][0], expected, rtol=1e-3, atol=1e-3)


def test_backward_uses_the_mask_that_forward_drew(device: torch.device, capture: Any) -> None:
    """out is linear in v, so that <out, w> = <v, dv> for dout = w holds if and only if both used the same mask."""
    q, k, v, w = (torch.randn(1, 2, 48, 32, device=device) for _ in range(4))
    v.requires_grad_()
    found: dict[str, torch.Tensor] = {}

    def step() -> None:
        v.grad = None
        out = F.scaled_dot_product_attention(q, k, v, dropout_p=0.4)
        out.backward(w)
        found["left"], found["right"] = (out.detach() * w).sum(), (v.detach() * v.grad).sum()

    with fasttx.backend("triton"):
        graph = capture(step)
        for _ in range(3):
            graph.replay()
            torch.testing.assert_close(found["left"], found["right"], rtol=1e-3, atol=1e-3)


def test_losses(device: torch.device, capture: Any) -> None:
    logits = torch.randn(9, 130, device=device, requires_grad=True)
    target = torch.arange(9, device=device)
    target[3] = -100
    found: dict[str, torch.Tensor] = {}

    def step() -> None:
        logits.grad = None
        loss = F.cross_entropy(logits, target)
        loss.backward()
        found["loss"], found["grad"] = loss.detach(), logits.grad

    with fasttx.backend("triton"):
        graph = capture(step)
        with torch.no_grad():
            logits.copy_(torch.randn(9, 130, device=device))
        graph.replay()
    leaf = logits.detach().requires_grad_()
    expected = torch.nn.functional.cross_entropy(leaf, target)
    torch.testing.assert_close(found["loss"], expected.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found["grad"], torch.autograd.grad(expected, leaf)[0], rtol=1e-5, atol=1e-6)
