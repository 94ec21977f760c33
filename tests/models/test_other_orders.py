"""Patched models where shapes are all there is (fake tensors), and where gradients are differentiated again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models.model_zoo import BY_NAME, TEXT_CLASSES, TEXT_FAMILIES, double_of, inputs_for, needs, tiny_model, to_double
from torch._subclasses import FakeTensorMode

import fasttx

LOSSES = [
    (family, cls)
    for family, cls in TEXT_CLASSES
    if family.heads.get(cls) == "sequence_classification" and family in TEXT_FAMILIES
]


@pytest.mark.parametrize(("family", "cls"), LOSSES, ids=[cls for _, cls in LOSSES])
def test_a_patched_model_reads_nothing_of_fake_tensors(family: Any, cls: str) -> None:
    inputs = inputs_for(family, cls)
    model = tiny_model(family, cls)
    want = model(**inputs).logits.shape
    for training in (False, True):
        patched = tiny_model(family, cls).train(training)
        fasttx.patch(patched)
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            out = patched(**{name: mode.from_tensor(t) for name, t in inputs.items()})
            assert out.logits.shape == want and out.loss.shape == ()
            if training:
                out.loss.backward()


def _orders(model: Any, inputs: dict[str, Any]) -> list[torch.Tensor]:
    """The gradients of a penalty on gradients: what a gradient penalty or a meta-learner asks for."""
    weights = [p for name, p in model.named_parameters() if "query.weight" in name or "q_lin.weight" in name]
    assert weights
    loss = model(**inputs).loss
    first = torch.autograd.grad(loss, weights, create_graph=True)
    return list(torch.autograd.grad(sum(g.square().sum() for g in first), weights))


@needs("BERT", "DistilBERT")
@pytest.mark.parametrize("unpad", ["auto", False], ids=["packed", "padded"])
@pytest.mark.parametrize("whole", [False, True], ids=["padding", "whole"])
@pytest.mark.parametrize("name", ["BERT", "DistilBERT"])
def test_gradients_of_gradients_of_a_patched_model(name: str, whole: bool, unpad: Any) -> None:
    family = BY_NAME[name]
    cls = next(cls for f, cls in LOSSES if f is family)
    inputs = inputs_for(family, cls)
    if whole:
        inputs["attention_mask"] = torch.ones_like(inputs["attention_mask"])
    model = tiny_model(family, cls).train()
    want = _orders(double_of(model).train(), to_double(inputs))
    fasttx.patch(model, unpad=unpad)
    for got, right in zip(_orders(model, inputs), want, strict=True):
        torch.testing.assert_close(got.double(), right, rtol=1e-3, atol=1e-4 * float(right.abs().max()))
