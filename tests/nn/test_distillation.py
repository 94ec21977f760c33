"""DistillationLoss and HiddenStateLoss against their formulas in float64, what they save, and what they refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as torch_functional
from torch import Tensor

import fasttx.nn as nn
from fasttx.functional import _distillation, distillation_loss, hidden_state_loss
from fasttx.testing import assert_as_accurate

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def formula(s: Tensor, t: Tensor, y: Tensor | None, temperature: float, alpha: float) -> Tensor:
    """Written with torch's functions, by rows that count."""
    flat_s, flat_t = s.reshape(-1, s.shape[-1]), t.reshape(-1, t.shape[-1])
    if y is not None:
        counts = y.reshape(-1) != -100
        flat_s, flat_t = flat_s[counts], flat_t[counts]
    soft = torch_functional.kl_div(
        (flat_s / temperature).log_softmax(-1), (flat_t / temperature).softmax(-1), reduction="none"
    ).sum(-1)
    if y is None:
        return temperature**2 * soft.mean()
    hard = torch_functional.cross_entropy(flat_s, y.reshape(-1)[counts], reduction="none")
    return (alpha * temperature**2 * soft + (1 - alpha) * hard).mean()


def case(dtype: torch.dtype = torch.float32, rows: tuple[int, ...] = (3, 5), n: int = 11) -> Any:
    s, t = (3.0 * torch.randn(*rows, n) for _ in range(2))
    y = torch.randint(n, rows)
    y[..., -1] = -100
    return s.to(dtype), t.to(dtype), y


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("temperature", "alpha"), [(2.0, 0.5), (1.0, 0.0), (4.0, 1.0), (0.5, 0.9)])
@pytest.mark.parametrize("labelled", [True, False])
def test_loss_and_gradient(
    labelled: bool, temperature: float, alpha: float, dtype: torch.dtype, monkeypatch: Any
) -> None:
    monkeypatch.setattr(_distillation, "CHUNK", 2 * 11)  # two rows at a time
    s, t, y = case(dtype)
    target = y if labelled else None
    found = []
    for compute, wide in ((nn.DistillationLoss(temperature, alpha), dtype), (None, dtype), (None, torch.float64)):
        leaf, other = s.detach().clone().to(wide).requires_grad_(), t.to(wide)
        loss = formula(leaf, other, target, temperature, alpha) if compute is None else compute(leaf, other, target)
        loss.backward()
        found.append((loss.detach().to(wide if compute is None else torch.float32), leaf.grad))
    assert found[0][0].dtype == torch.float32 and found[0][1].dtype == dtype
    found[0] = (found[0][0].to(dtype), found[0][1])
    for actual, same, exact in zip(*found, strict=True):
        assert_as_accurate(actual, same, exact)
    if labelled:
        assert not found[0][1][:, -1].any()


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_reductions(reduction: str) -> None:
    s, t, y = case(torch.float64)
    rows = torch.stack(
        [
            formula(a, b, c, 2.0, 0.5) if c != -100 else s.new_zeros(())
            for a, b, c in zip(s.flatten(0, 1)[:, None], t.flatten(0, 1)[:, None], y.flatten())
        ]
    ).view(3, 5)
    wanted = {"none": rows, "sum": rows.sum(), "mean": rows.sum() / 12}[reduction]
    torch.testing.assert_close(distillation_loss(s, t, y, reduction=reduction), wanted)


def test_nothing_of_the_size_of_logits_is_saved() -> None:
    s, t, y = case(rows=(64,), n=1000)
    leaf, saved = s.requires_grad_(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        loss = distillation_loss(leaf, t, y)
    own = {x.untyped_storage().data_ptr() for x in (s, t)}
    assert not [x.shape for x in saved if x.numel() >= s.numel() and x.untyped_storage().data_ptr() not in own]
    loss.backward()


def test_rows_without_a_label_and_no_rows() -> None:
    s, t, y = case()
    leaf = s.requires_grad_()
    loss = distillation_loss(leaf, t, torch.full_like(y, -100))
    loss.backward()
    assert loss == 0.0 and not leaf.grad.any()
    assert distillation_loss(s[:0], t[:0]) == 0.0 and distillation_loss(s[:0], t[:0], y[:0]) == 0.0


def test_a_class_that_the_teacher_excludes_adds_nothing() -> None:
    s, t, y = case(torch.float64)
    t[..., 3] = -torch.inf
    for dtype in (torch.float64, torch.float32):
        leaf = s.detach().clone().to(dtype).requires_grad_()
        loss = distillation_loss(leaf, t.to(dtype), alpha=1.0)
        loss.backward()
        assert loss.isfinite() and leaf.grad.isfinite().all()


def test_a_teacher_gets_no_gradient() -> None:
    s, t, y = case()
    t.requires_grad_()
    distillation_loss(s.requires_grad_(), t, y).backward()
    assert t.grad is None and s.grad is not None


def test_derivatives_of_derivatives_transforms_and_compiled() -> None:
    s, t, y = case(torch.float64, (4,))
    assert torch.autograd.gradcheck(lambda x: distillation_loss(x, t, y), s.requires_grad_())
    x = s.detach().float().requires_grad_()
    (first,) = torch.autograd.grad(distillation_loss(x, t.float()), x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x)
    (first64,) = torch.autograd.grad(distillation_loss(s, t), s, create_graph=True)
    (second64,) = torch.autograd.grad(first64.square().sum(), s)
    torch.testing.assert_close(second.double(), second64, rtol=1e-3, atol=1e-5)
    by_func = torch.func.grad(lambda x: distillation_loss(x, t.float()))(x.detach())
    torch.testing.assert_close(by_func, first.detach())
    compiled = torch.compile(distillation_loss, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, t.float(), y), distillation_loss(x, t.float(), y))


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("kind", ["mse", "cosine"])
def test_hidden_states(kind: str, masked: bool) -> None:
    s, t = torch.randn(3, 4, 8, requires_grad=True), torch.randn(3, 4, 8, requires_grad=True)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]]) if masked else None
    loss = nn.HiddenStateLoss(kind)(s, t, mask)
    a, b = (s, t) if mask is None else (s[mask.bool()], t[mask.bool()])
    wanted = (a - b).square().mean() if kind == "mse" else (1 - torch.cosine_similarity(a, b, dim=-1)).mean()
    torch.testing.assert_close(loss, wanted)
    loss.backward()
    assert t.grad is None and s.grad is not None
    assert hidden_state_loss(s, t, torch.zeros(3, 4), kind) == 0.0


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"student_logits": torch.ones(2, 3, dtype=torch.int64)}, "student_logits: got torch.int64"),
    ({"teacher_logits": torch.ones(2, 4)}, r"teacher_logits: got torch.float32 \(2, 4\)"),
    ({"target": torch.ones(2)}, "target: got torch.float32"),
    ({"target": torch.ones(3, dtype=torch.int64)}, r"target: got torch.int64 \(3,\)"),
    ({"target": torch.tensor([0, 3])}, "target: got labels from 0 to 3; allowed is 0 to 2"),
    ({"target": torch.tensor([0, -1])}, "target: got labels from -1 to 0"),
    ({"temperature": 0.0}, "temperature: got 0.0"),
    ({"alpha": 1.5}, "alpha: got 1.5"),
    ({"reduction": "batchmean"}, "reduction: got 'batchmean'"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG)
def test_wrong_arguments(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        distillation_loss(**{"student_logits": torch.ones(2, 3), "teacher_logits": torch.ones(2, 3)} | changes)


def test_wrong_options_end_at_once() -> None:
    with pytest.raises(ValueError, match="temperature"):
        nn.DistillationLoss(temperature=-1.0)
    with pytest.raises(ValueError, match="kind: got 'l1'"):
        nn.HiddenStateLoss("l1")
    for changed in ({"teacher_hidden": torch.ones(3, 4)}, {"attention_mask": torch.ones(3)}, {"student_hidden": None}):
        arguments: dict[str, Any] = {"student_hidden": torch.ones(2, 4), "teacher_hidden": torch.ones(2, 4)} | changed
        with pytest.raises(ValueError, match=f"{next(iter(changed))}: got"):
            hidden_state_loss(**arguments)
    assert (
        repr(nn.DistillationLoss(3.0))
        == "DistillationLoss(temperature=3.0, alpha=0.5, ignore_index=-100, reduction='mean')"
    )
