"""Heads over the vocabulary compute no logits in training, and say so."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from models import model_zoo as zoo

import fasttx
from fasttx.models.families.family import Family

SAYS = 'logits are not computed in training; a loss of your own on them needs mlm_head="full"'
HEADS = zoo.OVER_VOCABULARY


def said(given: Any) -> list[str]:
    return [str(w.message) for w in given if "logits" in str(w.message)]


@pytest.mark.parametrize(("family", "cls"), HEADS, ids=[cls for _, cls in HEADS])
def test_one_warning_at_the_first_training_call(family: Family, cls: str) -> None:
    model, inputs = zoo.tiny_model(family, cls), zoo.inputs_for(family, cls)
    report = fasttx.patch(model)
    assert [SAYS in row.reason for row in report.rows if row.before == "logits of all rows"] == [True]
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        model(**inputs)
        model.train()(**zoo.inputs_for(family, cls, labels=False))
        assert not said(given)  # neither in eval mode nor without labels
        out = model(**inputs)
        model(**inputs)
    assert said(given) == [f"fasttx.patch: {SAYS}"]
    assert out.get("logits") is None and out.get("prediction_logits") is None


def test_none_where_logits_are_complete() -> None:
    model, inputs = zoo.tiny_model(zoo.BERT, "BertForMaskedLM").train(), zoo.inputs_for(zoo.BERT, "BertForMaskedLM")
    report = fasttx.patch(model, mlm_head="full")
    assert not [row for row in report.rows if SAYS in row.reason]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert model(**inputs).logits.shape == (3, 11, zoo.VOCAB)


def test_no_warning_breaks_a_graph() -> None:
    model, inputs = zoo.tiny_model(zoo.BERT, "BertForMaskedLM").train(), zoo.inputs_for(zoo.BERT, "BertForMaskedLM")
    fasttx.patch(model)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    found = compiled(**inputs).loss
    torch.testing.assert_close(found, model(**inputs).loss)
