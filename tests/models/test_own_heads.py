"""DeBERTa's and ModernBERT's losses and heads where they are not BERT's; DeBERTa's layer norm."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from models import model_zoo as zoo
from models.accuracy import assert_as_accurate, assert_gradients_as_accurate, gradients_of
from torch import Tensor

import fasttx

DEBERTAS = [zoo.BY_NAME["DeBERTa"], zoo.BY_NAME["DeBERTa-v2"]]
MODERNBERT = zoo.BY_NAME["ModernBERT"]
every_deberta = pytest.mark.parametrize("family", DEBERTAS, ids=lambda family: family.name)


def head_of(family: Any, kind: str) -> str:
    return next(cls for cls, found in family.heads.items() if found == kind)


@pytest.mark.parametrize(
    ("num_labels", "labels", "problem"),
    [
        (1, torch.tensor([0.5, -1.0, 2.0]), None),
        (3, torch.tensor([2, 0, 1]), None),
        (3, torch.tensor([2, -1, 1]), None),
        (3, torch.tensor([-1, -100, -1]), None),
        (3, torch.tensor([[0.2, 0.5, 0.3], [1.0, 0.0, 0.0], [0.0, 0.9, 0.4]]), None),
        (3, torch.tensor([[1, 0, 1], [0, 0, 0], [0, 1, 1]]), None),
        (3, torch.tensor([2, -100, 1]), "single_label_classification"),
        (3, torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [1.0, 1.0, 0.0]]), "multi_label_classification"),
        (3, torch.randn(3, 3, generator=torch.Generator().manual_seed(1)), "regression"),
    ],
    ids=str,
)
@pytest.mark.parametrize("loss", ["correct", "hf"])
def test_debertas_classification(num_labels: int, labels: Tensor, problem: str | None, loss: str) -> None:
    """Without a problem_type the labels of each call decide; DeBERTa keeps nothing of it in its config."""
    family = DEBERTAS[0]
    cls = head_of(family, "inferred_classification")
    model = zoo.tiny_model(family, cls, num_labels=num_labels, problem_type=problem)
    inputs = zoo.inputs_for(family, cls, labels=False) | {"labels": labels}
    want = model(**inputs).loss
    grads = None
    if want.requires_grad:
        want.backward()
        grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        model.zero_grad()
    fasttx.patch(model, loss=loss)
    got = model(**inputs).loss
    torch.testing.assert_close(got.float(), want)
    assert model.config.problem_type == problem
    if grads is not None:
        got.backward()
        for name, grad in grads.items():
            torch.testing.assert_close(model.get_parameter(name).grad, grad, rtol=1e-4, atol=1e-5, msg=name)


@every_deberta
def test_a_head_that_multiplies_by_the_word_embeddings(family: Any) -> None:
    """``legacy=False``: the product is no module; its gradient reaches the embeddings from the labelled rows."""
    cls = head_of(family, "masked_lm")
    plain = zoo.tiny_model(family, cls, legacy=False).train()
    inputs = zoo.inputs_for(family, cls)
    exact = zoo.double_of(plain)
    model = copy.deepcopy(plain)
    report = fasttx.patch(model)
    assert "labelled rows only" in {row.after for row in report.replaced}
    outputs = [m(**inputs) for m in (model, plain, exact)]
    assert outputs[0].logits is None
    for output in outputs:
        output.loss.backward()
    assert_as_accurate(*(output.loss for output in outputs), "loss")
    assert_gradients_as_accurate(*map(gradients_of, (model, plain, exact)))
    model.eval()
    torch.testing.assert_close(model(**inputs).logits, plain.eval()(**inputs).logits, rtol=1e-4, atol=1e-4)
    model.lm_predictions.lm_head.register_forward_hook(lambda *_: None)
    report = fasttx.patch(model)
    assert [row.reason for row in report.left_alone if row.before == "logits of all rows"] == [
        "lm_predictions.lm_head has hooks"
    ]


@pytest.mark.parametrize(("family", "how"), [(DEBERTAS[0], "bf16"), (DEBERTAS[1], "bf16"), (DEBERTAS[1], "autocast")])
def test_debertas_norm_in_half_precision(family: Any, how: str) -> None:
    """Under autocast the first version's attention fails in transformers by itself."""
    model = zoo.tiny_model(family, family.bare, initializer_range=0.05)
    inputs = zoo.inputs_for(family, family.bare)
    real = inputs["attention_mask"].bool()
    want64 = zoo.double_of(model)(**inputs).last_hidden_state[real]
    model = model.to(torch.bfloat16) if how == "bf16" else model
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        want = model(**inputs).last_hidden_state[real]
        fasttx.patch(model)
        got = model(**inputs).last_hidden_state[real]
        ran = {row.what: row.choice for row, _ in fasttx.explain(model, inputs).rows}
    assert ran["dropout, sum, layer norm"] == "one call"
    assert got.dtype == want.dtype
    assert_as_accurate(got, want, want64, "hidden states")


def test_what_the_report_says_of_disentangled_attention() -> None:
    report = fasttx.patch(zoo.tiny_model(DEBERTAS[1], DEBERTAS[1].bare))
    assert {(row.before, row.reason) for row in report.left_alone} == {
        ("attention", "disentangled attention stays transformers' own"),
        ("padded batch", "disentangled attention is made for padded rows"),
        ("embeddings, norm, dropout", "they are multiplied by the mask between norm and dropout"),
    }
    model = zoo.tiny_model(DEBERTAS[1], DEBERTAS[1].bare)
    asked = fasttx.patch(model, attention=False, unpad=False, norm=False, mlp=True, loss=None)
    assert not asked.left_alone and len(asked.replaced) == 2


# ----------------------------------------------------------------------------------------------------------- ModernBERT
@pytest.mark.parametrize("loss", ["correct", "hf"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_modernbert_honours_the_item_count(dtype: torch.dtype, training: bool, loss: str) -> None:
    """Its loss is in fp32, and honours the number by itself; so under "hf" too."""
    cls = "ModernBertForMaskedLM"
    plain = zoo.tiny_model(MODERNBERT, cls, initializer_range=0.05).to(dtype).train(training)
    model, inputs = copy.deepcopy(plain), zoo.inputs_for(MODERNBERT, cls)
    exact = zoo.double_of(plain)
    fasttx.patch(model, loss=loss)
    for more in ({}, {"num_items_in_batch": 29}, {"num_items_in_batch": torch.tensor(29)}):
        got, want, want64 = (m(**inputs, **more) for m in (model, plain, exact))
        assert (got.logits is None) == training
        assert got.loss.dtype == want.loss.dtype == torch.float32
        assert_as_accurate(got.loss, want.loss, want64.loss, str(more))
    nothing = inputs | {"labels": torch.full_like(inputs["labels"], -100), "num_items_in_batch": 5}
    assert plain(**nothing).loss == 0 and model(**nothing).loss == 0


def test_modernberts_sparse_prediction_is_its_own() -> None:
    """It computes labelled rows by itself, and returns their logits."""
    cls = "ModernBertForMaskedLM"
    model, inputs = zoo.tiny_model(MODERNBERT, cls, sparse_prediction=True), zoo.inputs_for(MODERNBERT, cls)
    want = model(**inputs)
    report = fasttx.patch(model)
    (row,) = [row for row in report.rows if row.before == f"loss of {cls}"]
    assert not row.replaced and "by itself" in row.reason
    got = model(**inputs)
    assert got.logits.shape == want.logits.shape == (int((inputs["labels"] != -100).sum()), zoo.VOCAB)
    torch.testing.assert_close(got.loss, want.loss)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_modernberts_pooling(pooling: str) -> None:
    cls = "ModernBertForSequenceClassification"
    model, inputs = zoo.tiny_model(MODERNBERT, cls, classifier_pooling=pooling), zoo.inputs_for(MODERNBERT, cls)
    want = model(**inputs)
    fasttx.patch(model)
    torch.testing.assert_close(model(**inputs).logits, want.logits, rtol=1e-4, atol=1e-4)
