"""Product, bias and GELU of a layer's MLP as one call, and where transformers' own forward runs."""

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

import fasttx
from fasttx.functional._gelu import _linear_gelu
from fasttx.models.fusions import fusion, mlp

FUSED: list[tuple[str | None, str]] = []
LAYERS = 2
ON_TRITON = {"attention": False, "norm": False, "loss": None, "backend": "triton"}
"""Options that leave nothing else to the interpreter."""


@pytest.fixture(autouse=True)
def _count(monkeypatch: pytest.MonkeyPatch) -> None:
    """FUSED gets the backend and the form of GELU of each fused call."""
    FUSED.clear()

    def counted(*tensors: Any, approximate: str, backend: str | None, **rest: Any) -> Tensor:
        FUSED.append((backend, approximate))
        return _linear_gelu(*tensors, approximate=approximate, backend=backend, **rest)

    monkeypatch.setattr(mlp, "_linear_gelu", counted)


def run(model: Any, **inputs: Any) -> Any:
    FUSED.clear()
    return model(**(inputs or zoo.inputs_for(zoo.BERT, "BertModel")))


FAMILIES = [*{f: "auto" for f, _ in zoo.CLASSES if f.name != "ModernBERT"}.items(), (zoo.BERT, "triton")]


@pytest.mark.parametrize(("family", "backend"), FAMILIES, ids=[f"{f.name}-{b}" for f, b in FAMILIES])
def test_every_family_fuses_all_its_layers(family: Any, backend: str) -> None:
    plain = zoo.tiny_model(family, family.bare)
    model = copy.deepcopy(plain)
    report = fasttx.patch(model, **(ON_TRITON if backend == "triton" else {}))
    rows = [row for row in report.replaced if row.after == "linear_gelu"]
    assert len(rows) == zoo.DISTINCT.get(family.model_type, LAYERS)
    assert all(row.backend.startswith(("torch", "triton")) for row in rows)
    inputs = zoo.inputs_for(family, family.bare)
    found = hidden_and_gradients(model, inputs)
    form = "tanh" if family.name == "ALBERT" else "none"  # by default
    assert FUSED == [(None if backend == "auto" else backend, form)] * LAYERS
    wanted = hidden_and_gradients(plain, inputs)
    assert_like(found, wanted)


@pytest.mark.parametrize(
    ("activation", "form"),
    [
        ("gelu", "none"),
        ("gelu_python", "none"),
        ("gelu_new", "tanh"),
        ("gelu_pytorch_tanh", "tanh"),
        ("gelu_python_tanh", "tanh"),
        ("gelu_fast", None),
        ("gelu_10", None),
        ("relu", None),
        ("silu", None),
        (torch.tanh, None),
    ],
    ids=lambda x: getattr(x, "__name__", str(x)),
)
def test_every_activation(activation: Any, form: str | None) -> None:
    plain = zoo.tiny_model(zoo.BERT, "BertModel", hidden_act=activation if isinstance(activation, str) else "gelu")
    if callable(activation):  # a config of later versions names its activation
        for layer in plain.encoder.layer:
            del layer.intermediate.intermediate_act_fn
            layer.intermediate.intermediate_act_fn = activation
    model = copy.deepcopy(plain)
    report = fasttx.patch(model, **ON_TRITON)
    left = [row for row in report.left_alone if row.before == mlp.REPORTED_AS]
    assert len(left) == (0 if form else LAYERS) and all("no form of GELU" in row.reason for row in left)
    inputs = zoo.inputs_for(zoo.BERT, "BertModel")
    got, want = run(model, **inputs), plain(**inputs)
    assert FUSED == ([("triton", form)] * LAYERS if form else [])
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(got.last_hidden_state[real], want.last_hidden_state[real], rtol=1e-4, atol=1e-5)


class MyLinear(nn.Linear):
    """A user's layer."""


def _own_linear(intermediate: Any) -> None:
    old = intermediate.dense
    intermediate.dense = MyLinear(old.in_features, old.out_features)
    intermediate.dense.load_state_dict(old.state_dict())


CHANGES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "subclass": (_own_linear, "dense is a .*MyLinear"),
    "product's hook": (lambda i: i.dense.register_forward_hook(lambda *_: None), "dense has hooks"),
    "activation's hook": (
        lambda i: i.intermediate_act_fn.register_forward_hook(lambda *_: None),
        "the activation has hooks",
    ),
    "parametrised": (
        lambda i: nn.utils.parametrize.register_parametrization(i.dense, "weight", nn.Identity()),
        "dense is a .*Parametrized",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_layers_that_are_not_plain_stay_unfused_and_the_report_says_why(change: str) -> None:
    assert_stays_unfused(*CHANGES[change], mlp.REPORTED_AS, "encoder.layer.1.intermediate", FUSED, LAYERS)


def test_where_no_kernel_runs_they_stay_unfused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = zoo.tiny_model(zoo.BERT, "BertModel")
    for options in ({"mlp": False}, {"backend": "torch"}):
        fasttx.patch(model, **options)
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
    text = str(fasttx.explain(model, zoo.inputs_for(zoo.BERT, "BertModel")))
    assert re.search(rf"{mlp.REPORTED_AS} *two calls *\d+\n *on a CPU", text)
    with fasttx.backend("triton"):
        run(model)
    assert len(FUSED) == LAYERS


def test_autocast_keeps_the_dtype() -> None:
    plain = zoo.tiny_model(zoo.BERT, "BertModel")
    model = copy.deepcopy(plain)
    fasttx.patch(model, **ON_TRITON)
    inputs = zoo.inputs_for(zoo.BERT, "BertModel")
    seen: list[torch.dtype] = []
    zoo.after(model.encoder.layer[0].intermediate, lambda out: seen.append(out.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        got, want = run(model, **inputs).last_hidden_state, plain(**inputs).last_hidden_state
    assert got.dtype == want.dtype
    torch.testing.assert_close(got, want, rtol=0.1, atol=0.1)


@pytest.mark.slow
def test_compiled_graphs() -> None:
    model = zoo.tiny_model(zoo.BERT, "BertModel")
    fasttx.patch(model, **ON_TRITON)
    inputs = zoo.inputs_for(zoo.BERT, "BertModel")
    want = run(model, **inputs).last_hidden_state
    got = run(torch.compile(model, backend="aot_eager", fullgraph=True), **inputs).last_hidden_state
    assert FUSED
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    got.sum().backward()
    assert bool(model.encoder.layer[0].intermediate.dense.bias.grad.any())
