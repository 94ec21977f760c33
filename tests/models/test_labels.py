"""Labels that a patched head cannot use: the argument, what was given, what is allowed; and labels of -100."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import model_zoo as zoo
from torch import Tensor

import fasttx
from fasttx.models.families.family import Family

ELECTRA = next(family for family, cls in zoo.CLASSES if cls == "ElectraForPreTraining")
MULTI_LABEL = {"problem_type": "multi_label_classification"}


def patched(family: Family, cls: str, loss: str = "correct", **changes: Any) -> Any:
    model = zoo.tiny_model(family, cls, **changes)
    fasttx.patch(model, loss=loss)
    return model


OUT_OF_RANGE = [
    ("BertForSequenceClassification", "labels", 3),
    ("BertForTokenClassification", "labels", 3),
    ("BertForMaskedLM", "labels", zoo.VOCAB),
    ("BertLMHeadModel", "labels", zoo.VOCAB),
    ("BertForPreTraining", "labels", zoo.VOCAB),
    ("BertForPreTraining", "next_sentence_label", 2),
    ("BertForNextSentencePrediction", "labels", 2),
    ("BertForMultipleChoice", "labels", zoo.CHOICES),
]


@pytest.mark.parametrize("loss", ["correct", "hf"])
@pytest.mark.parametrize(("cls", "name", "classes"), OUT_OF_RANGE, ids=[f"{c}-{n}" for c, n, _ in OUT_OF_RANGE])
def test_out_of_range(cls: str, name: str, classes: int, loss: str) -> None:
    inputs = zoo.inputs_for(zoo.BERT, cls)
    high = classes + 4
    inputs[name] = inputs[name].clamp(min=0).contiguous()
    inputs[name].view(-1)[1], inputs[name].view(-1)[2] = high, -3
    message = rf"^{name}: got class indices from -3 to {high}; allowed are 0 to {classes - 1} .* and -100 \(ignored\)$"
    with pytest.raises(ValueError, match=message) as caught:
        patched(zoo.BERT, cls, loss)(**inputs)
    assert isinstance(caught.value.__cause__, IndexError)


def test_range_leaves_the_ignored_out() -> None:
    inputs = zoo.inputs_for(zoo.BERT, "BertForTokenClassification")
    inputs["labels"] = torch.where(inputs["labels"] == -100, -100, 7)
    with pytest.raises(ValueError, match="^labels: got class indices from 7 to 7; allowed are 0 to 2 "):
        patched(zoo.BERT, "BertForTokenClassification")(**inputs)


def test_range_under_another_ignore_index() -> None:
    inputs = zoo.inputs_for(zoo.BERT, "BertLMHeadModel")  # has labels of -100, which now are no longer ignored
    with pytest.raises(ValueError, match=rf"^labels: got class indices from -100 .* 0 to {zoo.VOCAB - 1} .* and -1 "):
        patched(zoo.BERT, "BertLMHeadModel")(**inputs, ignore_index=-1)


def test_the_shifted_labels_are_named() -> None:
    inputs = zoo.inputs_for(zoo.BERT, "BertLMHeadModel")
    with pytest.raises(ValueError, match=r"^shift_labels: got class indices from 500 to 500; "):
        patched(zoo.BERT, "BertLMHeadModel")(**inputs, shift_labels=torch.full_like(inputs["labels"], 500))


WRONG_SHAPE = [
    ("BertForSequenceClassification", {}, "labels", lambda t: t[:2], r"shape \(2,\)", r"\(3,\)"),
    ("BertForSequenceClassification", {"num_labels": 1}, "labels", lambda t: t.float()[:2], r"shape \(2,\)", r"\(3,\)"),
    ("BertForSequenceClassification", {}, "labels", lambda t: t.float(), r"shape \(3,\)", r"\(3, 3\)"),
    ("BertForTokenClassification", {}, "labels", lambda t: t[:, :-1], r"shape \(3, 10\)", r"\(3, 11\)"),
    ("BertForMaskedLM", {}, "labels", lambda t: t[0], r"shape \(11,\)", r"\(3, 11\)"),
    ("BertLMHeadModel", {}, "labels", lambda t: t[:, :-1], r"shape \(3, 10\)", r"\(3, 11\)"),
    ("BertLMHeadModel", {}, "labels", lambda t: t[0, 0], r"shape \(\)", r"\(3, 11\)"),
    ("BertLMHeadModel", {}, "labels", lambda t: t[..., None], r"shape \(3, 11, 1\)", r"\(3, 11\)"),
    ("BertForPreTraining", {}, "next_sentence_label", lambda t: t[:2], r"shape \(2,\)", r"\(3,\)"),
    ("BertForMultipleChoice", {}, "labels", lambda t: t[:1], r"shape \(1,\)", r"\(3,\)"),
    ("BertForQuestionAnswering", {}, "end_positions", lambda t: t[:2], r"shape \(2,\)", r"\(3,\)"),
    ("BertForQuestionAnswering", {}, "end_positions", lambda t: t.repeat(2), r"shape \(6,\)", r"\(3,\)"),
    ("BertForQuestionAnswering", {}, "end_positions", lambda t: t[:, None].repeat(1, 2), r"shape \(3, 2\)", r"\(3,\)"),
    ("BertForQuestionAnswering", {}, "start_positions", lambda t: t[0], r"shape \(\)", r"\(3,\)"),
    ("ElectraForPreTraining", {}, "labels", lambda t: t[:1], r"shape \(1, 11\)", r"\(3, 11\)"),
    ("ElectraForPreTraining", {}, "labels", lambda t: t[:, :5], r"shape \(3, 5\)", r"\(3, 11\)"),
]


@pytest.mark.parametrize("loss", ["correct", "hf"])
@pytest.mark.parametrize(("cls", "changes", "name", "change", "given", "allowed"), WRONG_SHAPE)
def test_wrong_shape(
    cls: str,
    changes: dict[str, Any],
    name: str,
    change: Callable[[Tensor], Tensor],
    given: str,
    allowed: str,
    loss: str,
) -> None:
    family = ELECTRA if cls.startswith("Electra") else zoo.BERT
    inputs = zoo.inputs_for(family, cls)
    inputs[name] = change(inputs[name])
    with pytest.raises(ValueError, match=f"^{name}: got {given}; allowed is {allowed}"):
        patched(family, cls, loss, **changes)(**inputs)


WRONG_DTYPE = [
    ("BertForSequenceClassification", {}, "labels", torch.int32, "allowed are torch.int64"),
    ("BertForMaskedLM", {}, "labels", torch.bool, "allowed are torch.int64"),
    ("BertForQuestionAnswering", {}, "start_positions", torch.float32, "allowed are torch.int64"),
    ("BertForSequenceClassification", MULTI_LABEL, "labels", torch.int64, "allowed are floating dtypes"),
]


@pytest.mark.parametrize("loss", ["correct", "hf"])
@pytest.mark.parametrize(("cls", "changes", "name", "dtype", "allowed"), WRONG_DTYPE)
def test_wrong_dtype(cls: str, changes: dict[str, Any], name: str, dtype: torch.dtype, allowed: str, loss: str) -> None:
    inputs = zoo.inputs_for(zoo.BERT, cls)
    if changes:
        inputs[name] = torch.eye(3)[inputs[name]]
    inputs[name] = inputs[name].to(dtype)
    with pytest.raises(ValueError, match=f"^{name}: got {dtype}; {allowed}"):
        patched(zoo.BERT, cls, loss, **changes)(**inputs)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("cls", sorted({cls for cls, _, _ in OUT_OF_RANGE} | {"BertForQuestionAnswering"}))
def test_labels_without_values(cls: str, training: bool) -> None:
    inputs = zoo.inputs_for(zoo.BERT, cls)
    name = next(name for name in inputs if name.startswith(("labels", "start_positions")))
    inputs[name] = inputs[name].to("meta")
    with pytest.raises(ValueError, match=f"^{name}: got a tensor on meta; allowed is one on the model's device"):
        patched(zoo.BERT, cls).train(training)(**inputs)


@pytest.mark.parametrize("cls", ["BertForTokenClassification", "BertLMHeadModel"])
@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ("4", TypeError, "got '4'; allowed is a number"),
        (float("nan"), ValueError, "got nan; allowed is a finite number, not negative"),
        (-1, ValueError, "got -1; allowed is a finite number, not negative"),
        (torch.tensor([4, 4]), ValueError, r"got shape \(2,\) on cpu; allowed is a tensor of one number"),
        (torch.tensor(4, device="meta"), ValueError, r"got shape \(\) on meta; allowed is a tensor of one number"),
    ],
    ids=["str", "nan", "negative", "two", "meta"],
)
def test_wrong_num_items_in_batch(cls: str, given: Any, error: type[Exception], words: str) -> None:
    inputs = zoo.inputs_for(zoo.BERT, cls)
    with pytest.raises(error, match=f"^num_items_in_batch: {words}"):
        patched(zoo.BERT, cls)(**inputs, num_items_in_batch=given)


def test_no_tensor() -> None:
    inputs: dict[str, Any] = zoo.inputs_for(zoo.BERT, "BertForMaskedLM")
    inputs["labels"] = inputs["labels"].tolist()
    with pytest.raises(TypeError, match="^labels: got list; allowed is a torch.Tensor$"):
        patched(zoo.BERT, "BertForMaskedLM")(**inputs)


def test_strided_labels_are_read() -> None:
    inputs = zoo.inputs_for(zoo.BERT, "BertForMaskedLM")
    model = patched(zoo.BERT, "BertForMaskedLM")
    want = model(**inputs).loss
    inputs["labels"] = inputs["labels"].t().contiguous().t()
    torch.testing.assert_close(model(**inputs).loss, want)


def test_another_error_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that the labels did not cause is not blamed on them."""
    model = patched(zoo.BERT, "BertForMaskedLM")

    def broken(*args: Any, **kwargs: Any) -> Tensor:
        raise torch.OutOfMemoryError("no memory left")

    monkeypatch.setattr("fasttx.models.heads.losses._cross_entropy", broken)
    with pytest.raises(torch.OutOfMemoryError, match="no memory left"):
        model(**zoo.inputs_for(zoo.BERT, "BertForMaskedLM"))


# ------------------------------------------------------------------------- -100 where the loss is a binary one


def hidden_tokens() -> tuple[dict[str, Tensor], Tensor]:
    """Inputs of ELECTRA's discriminator with labels of -100 in places, and which tokens count."""
    inputs = zoo.inputs_for(ELECTRA, "ElectraForPreTraining")
    inputs["labels"][0, 2:5], inputs["labels"][1, 0], inputs["labels"][2, 9] = -100, -100, -100
    return inputs, (inputs["attention_mask"] == 1) & (inputs["labels"] != -100)


@pytest.mark.parametrize("masked", [True, False], ids=["mask", "no-mask"])
def test_discriminator_ignores_minus_100(masked: bool) -> None:
    inputs, counted = hidden_tokens()
    if not masked:
        del inputs["attention_mask"]
        counted = inputs["labels"] != -100
    model = patched(ELECTRA, "ElectraForPreTraining")
    output = model(**inputs)
    want = torch.nn.functional.binary_cross_entropy_with_logits(
        output.logits[counted], inputs["labels"][counted].float()
    )
    torch.testing.assert_close(output.loss, want)
    gradient = torch.autograd.grad(model(**inputs).loss, model.discriminator_predictions.dense_prediction.bias)[0]
    want_gradient = (output.logits[counted].sigmoid() - inputs["labels"][counted]).mean()
    torch.testing.assert_close(gradient.squeeze(), want_gradient)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_multi_label_ignores_minus_100(dtype: torch.dtype) -> None:
    model = patched(zoo.BERT, "BertForSequenceClassification", **MULTI_LABEL).to(dtype)
    inputs = zoo.inputs_for(zoo.BERT, "BertForSequenceClassification")
    labels = torch.tensor([[1.0, 0.0, -100.0], [-100.0, -100.0, -100.0], [0.0, 1.0, 1.0]], dtype=dtype)
    output = model(**inputs | {"labels": labels})
    counted = labels != -100
    want = torch.nn.functional.binary_cross_entropy_with_logits(output.logits[counted], labels[counted])
    assert output.loss.dtype == want.dtype
    torch.testing.assert_close(output.loss, want)
    rows = [{name: t[i : i + 1] for name, t in (inputs | {"labels": labels}).items()} for i in range(3)]
    parts = [model(**row, num_items_in_batch=counted.sum()).loss for row in rows]
    assert parts[1] == 0
    torch.testing.assert_close(sum(parts), want, atol=2e-2 if dtype == torch.bfloat16 else 1e-5, rtol=0)


def test_multi_label_with_nothing_labelled() -> None:
    model = patched(zoo.BERT, "BertForSequenceClassification", **MULTI_LABEL)
    inputs = zoo.inputs_for(zoo.BERT, "BertForSequenceClassification") | {"labels": torch.full((3, 3), -100.0)}
    loss = model(**inputs).loss
    loss.backward()
    assert loss == 0 and all((p.grad == 0).all() for p in model.parameters() if p.grad is not None)


def test_hf_keeps_minus_100_as_a_target() -> None:
    for family, cls, changes, inputs in (
        (ELECTRA, "ElectraForPreTraining", {}, hidden_tokens()[0]),
        (
            zoo.BERT,
            "BertForSequenceClassification",
            MULTI_LABEL,
            zoo.inputs_for(zoo.BERT, "BertForSequenceClassification") | {"labels": torch.eye(3) * 101 - 100},
        ),
    ):
        model = zoo.tiny_model(family, cls, **changes)
        want = model(**inputs).loss
        fasttx.patch(model, loss="hf")
        torch.testing.assert_close(model(**inputs).loss, want)


@pytest.mark.parametrize(
    ("family", "cls", "words"),
    [
        (ELECTRA, "ElectraForPreTraining", "0 where no token is both labelled and shown by attention_mask"),
        (zoo.BERT, "BertForSequenceClassification", "0 where nothing is labelled (regression has no such label)"),
    ],
)
def test_report(family: Family, cls: str, words: str) -> None:
    report = fasttx.patch(zoo.tiny_model(family, cls))
    assert any(words in row.reason for row in report.rows)
