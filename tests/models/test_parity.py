"""A patched model computes what the unpatched one does: every family, every head, in fp32."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from models import model_zoo as zoo
from models.accuracy import assert_as_accurate, assert_gradients_as_accurate
from torch import Tensor

import fasttx
from fasttx.models.families.family import Family


def run(model: Any, inputs: dict[str, Any]) -> tuple[Any, dict[str, Tensor]]:
    """One forward and backward; what the output says and every parameter's gradient."""
    model.zero_grad(set_to_none=True)
    output = model(**inputs)
    loss = output.loss if output.get("loss") is not None else output[0][..., :1, :].float().square().mean()
    loss.backward()
    return output, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def compare(model: Any, inputs: dict[str, Any], mask: Tensor, gradients: bool = True, backend: str = "auto") -> Any:
    """The accuracy rule on loss, predictions and gradients; returns the patched model's output."""
    want64, grads64 = run(zoo.double_of(model), zoo.to_double(inputs))
    want, grads = run(model, inputs)
    # padding takes part in transformers' loss of question answering, and in ours under loss="hf" only
    report = fasttx.patch(model, backend=backend, loss="hf" if "start_positions" in inputs else "correct")
    assert all(
        row.reason.startswith(("is a decoder", zoo.BUILT_OTHERWISE)) or row.reason in zoo.LEFT
        for row in report.left_alone
    )
    got, found = run(model, inputs)
    assert type(got) is type(want)
    assert list(got.keys()) == list(want.keys())
    if want.get("loss") is not None:
        assert_as_accurate(got.loss, want.loss, want64.loss, "loss")
    named, named64 = zoo.predictions(want, mask), zoo.predictions(want64, mask)
    for name, value in zoo.predictions(got, mask).items():
        assert_as_accurate(value, named[name], named64[name], name)
    if gradients:
        assert_gradients_as_accurate(found, grads, grads64)
    return got


@pytest.mark.parametrize(("family", "cls"), zoo.CLASSES, ids=zoo.IDS)
def test_every_head(family: Family, cls: str) -> None:
    compare(zoo.tiny_model(family, cls), zoo.inputs_for(family, cls), zoo.padding_mask())


@pytest.mark.parametrize("cls", ["BertModel", "BertForPreTraining", "BertLMHeadModel", "BertForSequenceClassification"])
def test_the_operators_own_composition(cls: str) -> None:
    """On a CPU "auto" may give small calls to torch's functions; forced, all of them go through the operators."""
    compare(zoo.tiny_model(zoo.BERT, cls), zoo.inputs_for(zoo.BERT, cls), zoo.padding_mask(), backend="torch")


@pytest.mark.parametrize(("family", "cls"), zoo.CLASSES, ids=zoo.IDS)
def test_tuples_and_no_labels(family: Family, cls: str) -> None:
    model = zoo.tiny_model(family, cls)
    with_labels, without = zoo.inputs_for(family, cls), zoo.inputs_for(family, cls, labels=False)
    with torch.no_grad():
        want = [model(**inputs, return_dict=False) for inputs in (with_labels, without)]
        fasttx.patch(model, loss="hf")
        got = [model(**inputs, return_dict=False) for inputs in (with_labels, without)]
    for a, b in zip(got, want):
        assert type(a) is tuple and len(a) == len(b)
        if torch.is_tensor(a[0]):
            torch.testing.assert_close(a[0].flatten()[0], b[0].flatten()[0])


@pytest.mark.parametrize(
    ("num_labels", "problem_type"),
    [
        (1, None),
        (1, "regression"),
        (3, None),
        (3, "regression"),
        (3, "single_label_classification"),
        (3, "multi_label_classification"),
    ],
)
def test_sequence_classification(num_labels: int, problem_type: str | None) -> None:
    model = zoo.tiny_model(zoo.BERT, "BertForSequenceClassification", num_labels=num_labels, problem_type=problem_type)
    inputs = zoo.inputs_for(zoo.BERT, "BertForSequenceClassification", labels=False)
    if problem_type == "single_label_classification":
        inputs["labels"] = torch.tensor([0, 2, 1])
    elif num_labels == 1:
        inputs["labels"] = torch.tensor([0.5, -1.0, 2.0])
    else:
        inputs["labels"] = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
    compare(model, inputs, zoo.padding_mask())
    inferred = "regression" if num_labels == 1 else "multi_label_classification"
    assert model.config.problem_type == (problem_type or inferred)


@pytest.mark.parametrize("cls", ["BertForMaskedLM", "BertForTokenClassification"])
def test_labels_by_position_and_other_inputs(cls: str) -> None:
    model = zoo.tiny_model(zoo.BERT, cls)
    inputs = zoo.inputs_for(zoo.BERT, cls)
    positions = torch.arange(inputs["input_ids"].shape[1]).flip(0).expand_as(inputs["input_ids"])
    embeds = model.get_input_embeddings()(inputs["input_ids"]).detach()
    labels = inputs.pop("labels")
    types = (positions % 2).contiguous()
    arguments = [None, inputs["attention_mask"], types, positions, embeds]
    arguments += [None, None, labels] if cls == "BertForMaskedLM" else [labels]
    want = model(*arguments)
    fasttx.patch(model)
    got = model(*arguments)
    torch.testing.assert_close(got.loss, want.loss)
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(got.logits[real], want.logits[real])


def test_labels_move_to_the_logits() -> None:
    model = zoo.tiny_model(zoo.BERT, "BertForTokenClassification")
    fasttx.patch(model)
    inputs = zoo.inputs_for(zoo.BERT, "BertForTokenClassification")
    inputs["labels"] = inputs["labels"].to(torch.long)
    assert model(**inputs).loss.device == model.device


@pytest.mark.parametrize("form", ["bool", "float", "float_heads"])
def test_four_dimensional_masks(form: str) -> None:
    model = zoo.tiny_model(zoo.BERT, "BertForMaskedLM")
    inputs = zoo.inputs_for(zoo.BERT, "BertForMaskedLM")
    length = inputs["input_ids"].shape[1]
    band = (torch.arange(length)[:, None] - torch.arange(length)).abs() < 3
    visible = (band & zoo.padding_mask().bool()[:, None, :])[:, None]
    visible |= torch.eye(length, dtype=torch.bool)
    inputs["attention_mask"] = visible
    if form != "bool":
        inputs["attention_mask"] = torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min)
    if form == "float_heads":
        inputs["attention_mask"] = inputs["attention_mask"] + 0.5 * torch.randn(1, 4, length, length)
    model.set_attn_implementation("sdpa")
    want = model(**inputs)
    fasttx.patch(model)
    got = model(**inputs)
    real = zoo.padding_mask().bool()
    torch.testing.assert_close(got.logits[real], want.logits[real], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(got.loss, want.loss)


SEEN = (
    "BertModel",
    "BertForMaskedLM",
    "BertForQuestionAnswering",
    "DistilBertForMaskedLM",
    "AlbertForPreTraining",
    "ViTForImageClassification",
    "DeiTModel",
)


@pytest.mark.parametrize("how", ["call", "config"])
@pytest.mark.parametrize(("family", "cls"), [c for c in zoo.CLASSES if c[1] in SEEN], ids=lambda x: str(x)[:40])
def test_output_attentions_and_hidden_states(family: Family, cls: str, how: str) -> None:
    model = zoo.tiny_model(family, cls)
    model.set_attn_implementation("eager")
    arguments = {"output_hidden_states": True}
    if how == "config":
        model.config.output_attentions = True
    else:
        arguments["output_attentions"] = True
    inputs = zoo.inputs_for(family, cls)
    want = model(**inputs, **arguments)
    mask = zoo.padding_mask().bool()
    if "attention_mask" not in inputs:
        mask = torch.ones(want.hidden_states[0].shape[:2], dtype=torch.bool)
    with warnings.catch_warnings():
        # a bare model whose config demands eager
        warnings.filterwarnings("ignore", message="fasttx.patch replaced nothing")
        fasttx.patch(model)
    got = model(**inputs, **arguments)
    assert len(got.attentions) == 2 and len(got.hidden_states) == 3
    for a, b in zip(got.attentions, want.attentions):
        assert a.shape == b.shape
        torch.testing.assert_close(a.transpose(1, 2)[mask], b.transpose(1, 2)[mask], rtol=1e-4, atol=1e-6)
    for a, b in zip(got.hidden_states, want.hidden_states, strict=True):
        assert a.shape == b.shape
        torch.testing.assert_close(a[mask], b[mask], rtol=1e-4, atol=1e-4)


def test_output_attentions_returns_dropped_weights_in_training() -> None:
    model = zoo.tiny_model(zoo.BERT, "BertModel", attention_probs_dropout_prob=0.5).train()
    fasttx.patch(model)
    weights = model(**zoo.inputs_for(zoo.BERT, "BertModel"), output_attentions=True).attentions[0]
    first = weights[0]  # of the longest sequence: nothing is masked in it
    dropped = (first == 0).float().mean()
    assert 0.3 < dropped < 0.7
    assert first.max() > 1.0 or first.sum(-1).max() > 1.05


def test_a_fully_masked_sequence_gives_finite_numbers() -> None:
    model = zoo.tiny_model(zoo.BERT, "BertModel")
    inputs = zoo.inputs_for(zoo.BERT, "BertModel")
    inputs["attention_mask"][1] = 0
    fasttx.patch(model)
    output, grads = run(model, inputs)
    assert output.last_hidden_state.isfinite().all()
    assert all(grad.isfinite().all() for grad in grads.values())


@pytest.mark.parametrize("unpad", [True, False])
def test_padding_never_influences_a_real_token(unpad: bool) -> None:
    model = zoo.tiny_model(zoo.BERT, "BertModel")
    fasttx.patch(model, unpad=unpad)
    inputs = zoo.inputs_for(zoo.BERT, "BertModel")
    other = copy.deepcopy(inputs)
    padding = inputs["attention_mask"] == 0
    other["input_ids"][padding] = 42
    real = ~padding
    a, b = (model(**x).last_hidden_state[real] for x in (inputs, other))
    assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_half_precision(dtype: torch.dtype) -> None:
    model = zoo.tiny_model(zoo.BERT, "BertForMaskedLM", initializer_range=0.05).to(dtype)
    compare(model, zoo.inputs_for(zoo.BERT, "BertForMaskedLM"), zoo.padding_mask(), gradients=False)


def test_autocast_bf16() -> None:
    model = zoo.tiny_model(zoo.BERT, "BertForSequenceClassification", initializer_range=0.05)
    inputs = zoo.inputs_for(zoo.BERT, "BertForSequenceClassification")
    want64 = zoo.double_of(model)(**inputs)
    with torch.autocast("cpu", torch.bfloat16):
        want = model(**inputs)
        fasttx.patch(model)
        got = model(**inputs)
    assert got.logits.dtype == want.logits.dtype and got.loss.dtype == want.loss.dtype
    assert_as_accurate(got.logits, want.logits, want64.logits, "logits")
    got.loss.backward()
    assert model.bert.embeddings.word_embeddings.weight.grad.isfinite().all()


def test_forced_triton_kernels(device: torch.device) -> None:
    model = zoo.tiny_model(
        zoo.BERT, "BertForSequenceClassification", hidden_size=32, num_attention_heads=2, num_hidden_layers=1
    ).to(device)
    inputs = {name: t[:2].to(device) for name, t in zoo.inputs_for(zoo.BERT, "BertForSequenceClassification").items()}
    want64, grads64 = run(zoo.double_of(model), inputs)
    want, grads = run(model, inputs)
    report = fasttx.patch(model, backend="triton")
    assert {row.backend for row in report.rows if row.after == "attention: fasttx"} == {"triton"}
    from fasttx.ops.registry import LAUNCHES

    before = dict(LAUNCHES)
    got, found = run(model, inputs)
    for op in ("attention_fwd", "attention_bwd", "cross_entropy_fwd", "cross_entropy_bwd"):
        assert LAUNCHES[op, "triton"] > before.get((op, "triton"), 0), op
        assert LAUNCHES[op, "torch"] == before.get((op, "torch"), 0), op
    assert_as_accurate(got.loss, want.loss, want64.loss, "loss")
    assert_as_accurate(got.logits, want.logits, want64.logits, "logits")
    assert_gradients_as_accurate(found, grads, grads64)
