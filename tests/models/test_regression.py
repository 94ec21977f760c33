"""Heads that predict a number: labels of every dtype have transformers' loss, or an error that names them."""

from __future__ import annotations

import pytest
import torch
from models import model_zoo as zoo
from torch import Tensor

import fasttx
from fasttx.models.families.family import Family


def numbers_to_predict(family: Family, cls: str, dtype: torch.dtype) -> dict[str, Tensor]:
    inputs = zoo.inputs_for(family, cls)
    return inputs | {"labels": torch.tensor([0, 3, 1]).to(dtype)}


REGRESSION = [
    (family, cls)
    for family, cls in zoo.CLASSES
    if family.heads.get(cls) in ("sequence_classification", "image_classification", "inferred_classification")
]


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.bool, torch.float64, torch.float16], ids=str)
@pytest.mark.parametrize(("family", "cls"), REGRESSION, ids=[cls for _, cls in REGRESSION])
def test_numbers_to_predict(family: Family, cls: str, dtype: torch.dtype) -> None:
    """Of any dtype they have a loss and gradients; DeBERTa makes its logits of their dtype, and takes floating ones."""
    inputs = numbers_to_predict(family, cls, dtype)
    model = zoo.tiny_model(family, cls, num_labels=1)
    fasttx.patch(model)
    if family.heads[cls] == "inferred_classification" and not dtype.is_floating_point:
        with pytest.raises(ValueError, match=f"^labels: got {dtype}; allowed are floating dtypes"):
            model(**inputs)
        return
    out = model(**inputs)
    want = torch.nn.functional.mse_loss(out.logits.view(-1), inputs["labels"].to(out.logits.dtype))
    torch.testing.assert_close(out.loss.float(), want.float(), rtol=1e-2 if dtype == torch.float16 else 1e-5, atol=1e-5)
    plain = zoo.tiny_model(family, cls, num_labels=1)
    expected = plain(**inputs)
    assert out.loss.dtype == expected.loss.dtype
    torch.testing.assert_close(out.loss, expected.loss, rtol=1e-4, atol=1e-5)
    assert out.logits.dtype == expected.logits.dtype and out.logits.shape == expected.logits.shape
    out.loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_numbers_to_predict_under_autocast() -> None:
    """mse_loss is in float32 there, and an integer label is not rounded to bfloat16 before."""
    inputs = numbers_to_predict(zoo.BERT, "BertForSequenceClassification", torch.int64)
    inputs["labels"] = torch.tensor([257, 513, 1])
    plain, model = (zoo.tiny_model(zoo.BERT, "BertForSequenceClassification", num_labels=1) for _ in range(2))
    fasttx.patch(model)
    with torch.autocast("cpu", torch.bfloat16):
        found, want = model(**inputs).loss, plain(**inputs).loss
    assert found.dtype == want.dtype == torch.float32
    torch.testing.assert_close(found, want, rtol=1e-3, atol=0.0)
