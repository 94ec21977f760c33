"""The ends of a layer's halves, dropout, sum and norm, as one call, and where the three run unfused."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import model_zoo as zoo
from models.unfused import assert_like, assert_stays_unfused, hidden_and_gradients
from torch import Tensor, nn
from torch.nn.modules import module as modules

import fasttx
from fasttx.functional._dropout_add_layer_norm import _dropout_add_layer_norm
from fasttx.models.fusions import fusion, residual_norm

FUSED: list[tuple[str | None, float]] = []
ENDS = 4  # two layers


@pytest.fixture(autouse=True)
def _count(monkeypatch: pytest.MonkeyPatch) -> None:
    """FUSED gets the backend and the dropout probability of each fused call."""
    FUSED.clear()

    def counted(*tensors: Any, dropout_p: float, backend: str | None, **rest: Any) -> Tensor:
        FUSED.append((backend, dropout_p))
        return _dropout_add_layer_norm(*tensors, dropout_p=dropout_p, backend=backend, **rest)

    monkeypatch.setattr(residual_norm, "_dropout_add_layer_norm", counted)


def run(model: Any, **inputs: Any) -> Any:
    FUSED.clear()
    return model(**(inputs or zoo.inputs_for(zoo.BERT, "BertModel")))


ON_TRITON = {"attention": False, "mlp": False, "loss": None, "backend": "triton"}
"""Options that leave nothing else to the interpreter."""

FAMILIES = [*{f: "auto" for f, _ in zoo.TEXT_CLASSES}.items(), (zoo.BERT, "triton")]


@pytest.mark.parametrize(("family", "backend"), FAMILIES, ids=[f"{f.name}-{b}" for f, b in FAMILIES])
def test_every_family_fuses_all_its_ends(family: Any, backend: str) -> None:
    """Layer norms' own parameters included, which only these calls touch, and an eps that is seen in the result."""
    plain = zoo.tiny_model(family, family.bare, layer_norm_eps=0.1).train(backend == "auto")
    model = copy.deepcopy(plain)
    report = fasttx.patch(model, **(ON_TRITON if backend == "triton" else {}))
    rows = [row for row in report.replaced if row.after == "dropout_add_layer_norm"]
    assert len(rows) == zoo.ENDS.get(family.model_type, ENDS)
    assert all(row.backend.startswith(("torch", "triton")) for row in rows)
    inputs = zoo.inputs_for(family, family.bare)
    found = hidden_and_gradients(model, inputs)
    assert FUSED == [(None if backend == "auto" else backend, 0.0)] * (ENDS if rows else 0)
    wanted = hidden_and_gradients(plain, inputs)
    assert_like(found, wanted)


def test_dropout_is_drawn_in_training_alone() -> None:
    model = zoo.tiny_model(zoo.BERT, "BertModel", hidden_dropout_prob=0.5)
    inputs = zoo.inputs_for(zoo.BERT, "BertModel")
    fasttx.patch(model, **ON_TRITON)
    model.embeddings.dropout.p = 0.0
    still = [run(model, **inputs).last_hidden_state for _ in range(2)]
    assert FUSED == [("triton", 0.0)] * ENDS and torch.equal(*still)
    model.train()
    torch.manual_seed(0)
    drawn = [run(model, **inputs).last_hidden_state for _ in range(2)]
    assert FUSED == [("triton", 0.5)] * ENDS and not torch.allclose(*drawn)
    torch.manual_seed(0)
    torch.testing.assert_close(run(model, **inputs).last_hidden_state, drawn[0], rtol=0, atol=0)


def test_dropout_scales_what_it_keeps() -> None:
    """One end alone: its input zero or twice itself, before the sum and the norm."""
    end = zoo.tiny_model(zoo.BERT, "BertModel", hidden_dropout_prob=0.5).train()
    fasttx.patch(end, **ON_TRITON)
    end = end.encoder.layer[0].output
    nn.init.zeros_(end.dense.weight)
    nn.init.ones_(end.dense.bias)
    nn.init.ones_(end.LayerNorm.weight)
    nn.init.zeros_(end.LayerNorm.bias)
    out = end(torch.zeros(50, 37), torch.zeros(50, 32))
    kept = out > 0  # z is 0 or 2: two values a row
    assert 0.4 < kept.float().mean() < 0.6
    for row, keep in zip(out, kept, strict=True):
        share = keep.float().mean()
        torch.testing.assert_close(
            row[keep], ((1 - share) / share).sqrt().expand(int(keep.sum())), rtol=1e-3, atol=1e-3
        )


class MyNorm(nn.LayerNorm):
    """A user's norm."""


def _own_norm(end: Any) -> None:
    old = end.LayerNorm
    end.LayerNorm = MyNorm(32, old.eps)
    end.LayerNorm.load_state_dict(old.state_dict())


CHANGES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "subclass": (_own_norm, "LayerNorm is a .*MyNorm"),
    "norm's hook": (lambda e: e.LayerNorm.register_forward_hook(lambda *_: None), "LayerNorm has hooks"),
    "dropout's hook": (lambda e: e.dropout.register_forward_pre_hook(lambda *_: None), "dropout has hooks"),
    "parametrised": (
        lambda e: nn.utils.parametrize.register_parametrization(e.LayerNorm, "weight", nn.Identity()),
        "LayerNorm is a .*Parametrized",
    ),
    "no dropout": (lambda e: setattr(e, "dropout", nn.Identity()), "dropout is a Identity"),
    "drops everything": (lambda e: setattr(e.dropout, "p", 1.0), "dropout drops everything"),
    "own forward": (lambda e: setattr(e.LayerNorm, "forward", e.LayerNorm.forward), "LayerNorm has a forward"),
    "several dimensions": (
        lambda e: setattr(e, "LayerNorm", nn.LayerNorm((11, 32))),
        "LayerNorm is over several dimensions",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_ends_that_are_not_plain_stay_unfused_and_the_report_says_why(change: str) -> None:
    assert_stays_unfused(*CHANGES[change], residual_norm.REPORTED_AS, "encoder.layer.1.output", FUSED, ENDS)


def test_a_product_of_another_class_is_called() -> None:
    """Adapters on the product are no obstacle: it is called, not passed over."""
    model = zoo.tiny_model(zoo.BERT, "BertModel")
    dense = model.encoder.layer[0].output.dense
    model.encoder.layer[0].output.dense = nn.Sequential(dense, nn.Dropout(0.0))
    fasttx.patch(model)
    run(model)
    assert len(FUSED) == ENDS


@pytest.mark.parametrize(
    "register", [modules.register_module_forward_hook, modules.register_module_full_backward_pre_hook]
)
def test_hooks_on_every_module_see_the_norms(register: Callable[..., Any]) -> None:
    model = zoo.tiny_model(zoo.BERT, "BertModel")
    fasttx.patch(model)
    seen: list[nn.Module] = []
    handle = register(lambda module, *_: seen.append(module))
    try:
        run(model).pooler_output.sum().backward()
    finally:
        handle.remove()
    assert any(module is model.encoder.layer[0].output.LayerNorm for module in seen) and not FUSED


def test_where_no_kernel_runs_the_three_stay_unfused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = zoo.tiny_model(zoo.BERT, "BertModel")
    fasttx.patch(model, norm=False)
    run(model)
    assert not FUSED
    fasttx.patch(model, backend="torch")
    run(model)
    assert not FUSED
    fasttx.patch(model)
    run(model.double())
    assert not FUSED
    model.float()
    monkeypatch.setattr(fusion, "UNFUSED_ON", frozenset(("cpu",)))
    assert "on a CPU separate calls" in str(fasttx.patch(model))
    run(model)
    assert not FUSED
    with fasttx.backend("triton"):
        run(model)
    assert len(FUSED) == ENDS


def test_explain_tells_which() -> None:
    model = zoo.tiny_model(zoo.BERT, "BertModel")
    fasttx.patch(model)
    model.encoder.layer[1].output.dropout.register_forward_hook(lambda *_: None)
    text = str(fasttx.explain(model, zoo.inputs_for(zoo.BERT, "BertModel")))
    assert re.search(rf"{residual_norm.REPORTED_AS}.*one call", text) and "dropout has hooks" in text


@pytest.mark.slow
def test_transforms_of_torch_func_and_compiled_graphs() -> None:
    model = zoo.tiny_model(zoo.BERT, "BertModel")
    fasttx.patch(model, **ON_TRITON)
    inputs = zoo.inputs_for(zoo.BERT, "BertModel")
    want = run(model, **inputs).last_hidden_state
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    got = run(compiled, **inputs).last_hidden_state
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(got[real], want[real], rtol=1e-4, atol=1e-5)
    got[real].sum().backward()
    assert model.encoder.layer[0].output.LayerNorm.weight.grad is not None
    fasttx.patch(model)
    params = dict(model.named_parameters())

    def loss(params: Any) -> Tensor:
        return torch.func.functional_call(model, params, kwargs=inputs).last_hidden_state[real].square().sum()

    FUSED.clear()
    grads = torch.func.grad(loss)(params)
    assert not FUSED and bool(grads["encoder.layer.0.output.LayerNorm.weight"].any())
