"""loss="correct" and loss="hf": num_items_in_batch, nothing labelled, and what Trainer makes of them."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from models import model_zoo as zoo
from transformers.utils import find_labels

import fasttx
from fasttx.models.families.family import Family
from fasttx.models.heads.kinds import KINDS

HEADS = [(family, cls) for family, cls in zoo.CLASSES if cls in family.heads]
HEAD_IDS = [cls for _, cls in HEADS]


@pytest.mark.parametrize(("family", "cls"), HEADS, ids=HEAD_IDS)
def test_micro_batches_add_up(family: Family, cls: str) -> None:
    """The sum over micro-batches of the losses with the common item count is the mean over all labels."""
    model = zoo.tiny_model(family, cls)
    inputs = zoo.inputs_for(family, cls)
    kind = KINDS[family.heads[cls]]
    fasttx.patch(model)
    if family.heads[cls] == "replaced_token_detection":
        inputs["labels"][inputs["attention_mask"] == 0] = -100  # as a collator pads them
    if len(kind.labels) == 2 and kind.per_token:
        inputs["labels"][:, :4] = 3  # so that every sequence has labels of both kinds
    whole = model(**inputs).loss
    rows = [{name: t[i : i + 1] for name, t in inputs.items()} for i in range(len(zoo.LENGTHS))]
    if family.heads[cls] == "counted_question_answering":  # a mean of two losses, each with items of its own
        for row in rows:
            torch.testing.assert_close(model(**row, num_items_in_batch=4).loss * 4, model(**row).loss)
        return
    if kind.counted is None and family.heads[cls] != "causal_lm":
        for row in rows:  # Trainer does not count these labels: the number is ignored, as in transformers
            assert torch.equal(model(**row, num_items_in_batch=1000).loss, model(**row).loss)
        return
    labels = inputs["labels"][:, 1:] if family.heads[cls] == "causal_lm" else inputs["labels"]
    count = (labels != -100).sum()
    parts = [model(**row, num_items_in_batch=count).loss for row in rows]
    if len(kind.labels) == 2 and kind.per_token:
        expected = sum(model(**row).loss * (row["labels"] != -100).sum() / count for row in rows)
        torch.testing.assert_close(sum(parts), expected)
    else:
        torch.testing.assert_close(sum(parts), whole)
    as_int = model(**rows[0], num_items_in_batch=int(count)).loss
    torch.testing.assert_close(as_int, parts[0])


@pytest.mark.parametrize(("family", "cls"), HEADS, ids=HEAD_IDS)
def test_hf_is_transformers(family: Family, cls: str) -> None:
    model = zoo.tiny_model(family, cls)
    inputs = zoo.inputs_for(family, cls)
    want = [model(**inputs).loss, model(**inputs, num_items_in_batch=torch.tensor(17)).loss]
    fasttx.patch(model, loss="hf")
    got = [model(**inputs).loss, model(**inputs, num_items_in_batch=torch.tensor(17)).loss]
    torch.testing.assert_close(got, want)


def unlabelled(inputs: dict[str, Any]) -> dict[str, Any]:
    inputs = dict(inputs)
    for name in ("labels", "next_sentence_label", "sentence_order_label"):
        if name in inputs:
            inputs[name] = torch.full_like(inputs[name], -100)
    for name in ("start_positions", "end_positions"):
        if name in inputs:
            inputs[name] = torch.full_like(inputs[name], 10_000)
    return inputs


@pytest.mark.parametrize("count", [None, torch.tensor(17), 17], ids=["mean", "tensor", "int"])
@pytest.mark.parametrize(
    ("problem", "num_labels", "labels"),
    [
        ("regression", 1, torch.tensor([0.5, -1.0, 2.0])),
        ("multi_label_classification", 3, torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [1.0, 1.0, 0.0]])),
        ("single_label_classification", 3, torch.tensor([2, -100, 1])),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_losses_of_images(problem: str, num_labels: int, labels: torch.Tensor, count: Any) -> None:
    """transformers honours the number of items for class indices alone; "correct" does for all."""
    family, cls = zoo.BY_NAME["ViT"], "ViTForImageClassification"
    model = zoo.tiny_model(family, cls, problem_type=problem, num_labels=num_labels)
    inputs = zoo.inputs_for(family, cls) | {"labels": labels}
    more = {} if count is None else {"num_items_in_batch": count}
    want, mean = model(**inputs, **more).loss, model(**inputs).loss
    fasttx.patch(model, loss="hf")
    torch.testing.assert_close(model(**inputs, **more).loss, want)
    fasttx.patch(model)
    share = 1.0 if count is None else float((labels != -100).sum()) / 17
    torch.testing.assert_close(model(**inputs, **more).loss, mean * share)
    assert count is None or (problem == "single_label_classification") == torch.allclose(mean * share, want)


@pytest.mark.parametrize(("family", "cls"), HEADS, ids=HEAD_IDS)
def test_nothing_labelled(family: Family, cls: str) -> None:
    kind = family.heads[cls]
    model = zoo.tiny_model(family, cls)
    inputs = unlabelled(zoo.inputs_for(family, cls))
    if kind == "replaced_token_detection":
        inputs["attention_mask"] = torch.zeros_like(inputs["attention_mask"])
    want = model(**inputs).loss
    assert want.isnan() or (kind == "inferred_classification" and want == 0)
    fasttx.patch(model, loss="hf")
    torch.testing.assert_close(model(**inputs).loss, want, equal_nan=True)
    fasttx.patch(model, loss="correct")
    for more in ({}, {"num_items_in_batch": torch.tensor(5)}):
        loss = model(**inputs, **more).loss
        assert loss == 0
        model.zero_grad()
        loss.backward()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        assert grads and all((grad == 0).all() for grad in grads)


def test_pretraining_head_with_one_of_its_two_labels() -> None:
    model = zoo.tiny_model(zoo.BERT, "BertForPreTraining")
    inputs = zoo.inputs_for(zoo.BERT, "BertForPreTraining")
    fasttx.patch(model)
    del inputs["next_sentence_label"]
    assert model(**inputs).loss is None


@pytest.mark.parametrize(("name", "cls"), [("BERT", "BertLMHeadModel"), ("ViT", "ViTForImageClassification")])
def test_a_users_own_loss_function_is_respected(name: str, cls: str) -> None:
    model = zoo.tiny_model(zoo.BY_NAME[name], cls)
    model.loss_function = lambda *args, **kwargs: torch.tensor(42.0)
    fasttx.patch(model)
    assert model(**zoo.inputs_for(zoo.BY_NAME[name], cls)).loss == 42.0


@pytest.mark.parametrize("more", [{"shift_labels": True}, {"ignore_index": 5}], ids=["shift_labels", "ignore_index"])
def test_causal_loss_arguments(more: dict[str, Any]) -> None:
    model = zoo.tiny_model(zoo.BERT, "BertLMHeadModel")
    inputs = zoo.inputs_for(zoo.BERT, "BertLMHeadModel")
    inputs["labels"] = inputs["labels"].clamp(min=0)
    inputs["labels"][:, 3] = 5
    if "shift_labels" in more:
        more = {"shift_labels": inputs["labels"].roll(-1, 1)}
    want = model(**inputs, **more).loss
    fasttx.patch(model)
    torch.testing.assert_close(model(**inputs, **more).loss, want)


@pytest.mark.parametrize(("family", "cls"), HEADS, ids=HEAD_IDS)
def test_trainer_finds_labels_and_item_count(family: Family, cls: str) -> None:
    model = zoo.tiny_model(family, cls)
    labels, signature = find_labels(type(model)), inspect.signature(model.forward)
    fasttx.patch(model)
    assert find_labels(type(model)) == labels
    assert inspect.signature(model.forward) == signature


def test_unknown_problem_type() -> None:
    model = zoo.tiny_model(zoo.BERT, "BertForSequenceClassification")
    fasttx.patch(model)
    model.config.__dict__["problem_type"] = "ranking"  # past transformers' own check of the assignment
    with pytest.raises(ValueError, match="problem_type.*'ranking'.*single_label"):
        model(**zoo.inputs_for(zoo.BERT, "BertForSequenceClassification"))


@pytest.mark.parametrize("cls", ["BertForMaskedLM", "BertLMHeadModel"])
@pytest.mark.parametrize("count", [0, torch.tensor(0)], ids=["int", "tensor"])
def test_no_items_at_all(cls: str, count: int | torch.Tensor) -> None:
    """Trainer passes 0 where no micro-batch of a step has a label."""
    model = zoo.tiny_model(zoo.BERT, cls)
    fasttx.patch(model)
    loss = model(**unlabelled(zoo.inputs_for(zoo.BERT, cls)), num_items_in_batch=count).loss
    assert float(loss) == 0.0


@pytest.mark.parametrize("loss", ["correct", "hf"])
def test_replaced_tokens_are_those_that_the_mask_numbers_one(loss: str) -> None:
    """As in transformers, whose attention takes every number but 0 for a token."""
    family = next(family for family, cls in HEADS if cls == "ElectraForPreTraining")
    model, inputs = zoo.tiny_model(family, "ElectraForPreTraining"), zoo.inputs_for(family, "ElectraForPreTraining")
    inputs["attention_mask"][:, 1:3] = 2
    want = model(**inputs).loss
    fasttx.patch(model, loss=loss)
    torch.testing.assert_close(model(**inputs).loss, want)
