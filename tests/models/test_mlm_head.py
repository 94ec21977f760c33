"""Heads over the vocabulary in training: labelled rows only, with the same loss and gradients."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from models import model_zoo as zoo
from models.accuracy import assert_as_accurate, assert_gradients_as_accurate
from models.test_parity import run
from torch import Tensor, nn

import fasttx
from fasttx.functional._linear_cross_entropy import _linear_cross_entropy
from fasttx.models.families.family import Family
from fasttx.models.heads.vocabulary import labelled, plain_linear
from fasttx.models.tracing import graph_in_the_making
from fasttx.ops.registry import LAUNCHES

HEADS = zoo.OVER_VOCABULARY
IDS = [cls for _, cls in HEADS]


def logits_of(output: Any) -> Tensor | None:
    return output.get("prediction_logits", output.get("logits"))


def rows_at_decoder(model: nn.Module) -> list[tuple[int, ...]]:
    """Filled by each call with the shapes that the product with the vocabulary gets."""
    shapes: list[tuple[int, ...]] = []
    model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: shapes.append(tuple(inputs[0].shape)))
    return shapes


@pytest.mark.parametrize(("family", "cls"), HEADS, ids=IDS)
@pytest.mark.parametrize("loss", ["correct", "hf"])
def test_same_loss_and_gradients(family: Family, cls: str, loss: str) -> None:
    model, inputs = zoo.tiny_model(family, cls).train(), zoo.inputs_for(family, cls)
    want64, grads64 = run(zoo.double_of(model), zoo.to_double(inputs))
    want, grads = run(model, inputs)
    report = fasttx.patch(model, loss=loss)
    assert "labelled rows only" in [row.after for row in report.rows]
    got, found = run(model, inputs)
    assert type(got) is type(want) and logits_of(got) is None
    assert_as_accurate(got.loss, want.loss, want64.loss, "loss")
    assert_gradients_as_accurate(found, grads, grads64)
    for name in {"seq_relationship_logits", "sop_logits"} & set(want):
        assert_as_accurate(got[name], want[name], want64[name], name)


@pytest.mark.parametrize(("family", "cls"), HEADS, ids=IDS)
def test_only_labelled_rows_reach_the_vocabulary(family: Family, cls: str) -> None:
    model, inputs = zoo.tiny_model(family, cls).train(), zoo.inputs_for(family, cls)
    fasttx.patch(model)
    shapes = rows_at_decoder(model)
    model(**inputs)
    labelled = int((inputs["labels"] != -100).sum())
    assert [shape[0] for shape in shapes] == [labelled] and 0 < labelled < inputs["labels"].numel() / 2


@pytest.mark.parametrize(("family", "cls"), HEADS, ids=IDS)
@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
def test_the_loss_is_taken_without_logits(
    family: Family, cls: str, graph: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph must not depend on how many rows are labelled: all of them are passed on, with their labels."""
    model, inputs = zoo.tiny_model(family, cls).train(), zoo.inputs_for(family, cls)
    want = model(**inputs).loss
    decoder = model.get_output_embeddings()
    seen = []

    def spy(rows: Tensor, weight: Tensor, target: Tensor, bias: Tensor, *, backend: str | None) -> Tensor:
        seen.append((rows.shape[0], weight is decoder.weight, bias is decoder.bias))
        return _linear_cross_entropy(rows, weight, target, bias, backend=backend)

    monkeypatch.setattr("fasttx.models.heads.losses._linear_cross_entropy", spy)
    monkeypatch.setattr("fasttx.models.heads.vocabulary.graph_in_the_making", lambda hidden: graph)
    fasttx.patch(model, backend="torch")
    before = LAUNCHES["linear_cross_entropy_fwd", "torch"]
    torch.testing.assert_close(model(**inputs).loss, want)
    rows = inputs["labels"].numel() if graph else int((inputs["labels"] != -100).sum())
    assert seen == [(rows, True, True)] and LAUNCHES["linear_cross_entropy_fwd", "torch"] == before + 1


def test_a_graph_with_a_decoder_that_must_be_called_has_complete_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """They exist there in any case: all rows go through the decoder."""
    model, inputs = zoo.tiny_model(zoo.BERT, "BertForMaskedLM").train(), zoo.inputs_for(zoo.BERT, "BertForMaskedLM")
    want = model(**inputs).loss
    fasttx.patch(model)
    shapes = rows_at_decoder(model)
    for module in ("heads.patched_head", "heads.vocabulary"):
        monkeypatch.setattr(f"fasttx.models.{module}.graph_in_the_making", lambda x: True)
    got = model(**inputs)
    torch.testing.assert_close(got.loss, want)
    assert got.logits.shape == (*inputs["labels"].shape, zoo.VOCAB) and shapes == [(*inputs["labels"].shape, 32)]


@pytest.mark.parametrize("options", [{"mlm_head": "full"}, {"mlm_head": False}])
def test_complete_logits_on_request(options: dict[str, Any]) -> None:
    model, inputs = zoo.tiny_model(zoo.BERT, "BertForMaskedLM").train(), zoo.inputs_for(zoo.BERT, "BertForMaskedLM")
    want = model(**inputs)
    report = fasttx.patch(model, **options)
    assert "labelled rows only" not in str(report)
    got = model(**inputs)
    torch.testing.assert_close(got.loss, want.loss)
    torch.testing.assert_close(got.logits[zoo.padding_mask() == 1], want.logits[zoo.padding_mask() == 1])


def test_complete_logits_in_eval_mode_and_without_labels() -> None:
    model, inputs = zoo.tiny_model(zoo.BERT, "BertForMaskedLM"), zoo.inputs_for(zoo.BERT, "BertForMaskedLM")
    fasttx.patch(model)
    shape = (*inputs["input_ids"].shape, zoo.VOCAB)
    assert model.eval()(**inputs).logits.shape == shape
    labels = inputs.pop("labels")
    assert model.train()(**inputs).logits.shape == shape
    assert model(**inputs, labels=labels).logits is None


@pytest.mark.parametrize(("family", "cls"), HEADS, ids=IDS)
def test_nothing_labelled(family: Family, cls: str) -> None:
    model, inputs = zoo.tiny_model(family, cls).train(), zoo.inputs_for(family, cls)
    inputs["labels"] = torch.full_like(inputs["labels"], -100)
    want, _ = run(model, inputs)
    fasttx.patch(model, loss="hf")
    assert torch.isnan(want.loss) and torch.isnan(model(**inputs).loss)
    fasttx.patch(model)
    if len(inputs.keys() & {"next_sentence_label", "sentence_order_label"}):
        assert torch.isfinite(model(**inputs).loss)
        return
    got, grads = run(model, inputs)
    assert got.loss.item() == 0.0
    assert grads.keys() == run(model, zoo.inputs_for(family, cls))[1].keys()  # DDP waits for every one of them
    assert all(float(g.abs().max()) == 0.0 for g in grads.values())


def test_tuple_and_positional_arguments() -> None:
    model, inputs = zoo.tiny_model(zoo.BERT, "BertForMaskedLM").train(), zoo.inputs_for(zoo.BERT, "BertForMaskedLM")
    want = model(**inputs).loss
    fasttx.patch(model)
    out = model(inputs["input_ids"], inputs["attention_mask"], labels=inputs["labels"], return_dict=False)
    assert type(out) is tuple and len(out) == 1
    torch.testing.assert_close(out[0], want)
    states = model(**inputs, output_hidden_states=True, output_attentions=True)
    assert len(states.hidden_states) == 3 and len(states.attentions) == 2
    torch.testing.assert_close(states.loss, want)


def test_states_of_pretraining() -> None:
    cls = "BertForPreTraining"
    model, inputs = zoo.tiny_model(zoo.BERT, cls).train(), zoo.inputs_for(zoo.BERT, cls)
    asked = {"output_hidden_states": True, "output_attentions": True}
    plain = zoo.tiny_model(zoo.BERT, cls).train()
    plain.set_attn_implementation("eager")
    want = plain(**inputs, **asked)
    fasttx.patch(model)
    got = model(**inputs, **asked)
    assert len(got.hidden_states) == 3 and len(got.attentions) == 2
    torch.testing.assert_close(got.loss, want.loss)
    torch.testing.assert_close(got.seq_relationship_logits, want.seq_relationship_logits)


def test_num_items_in_batch_scales_the_loss() -> None:
    model, inputs = zoo.tiny_model(zoo.BERT, "BertForMaskedLM").train(), zoo.inputs_for(zoo.BERT, "BertForMaskedLM")
    want = model(**inputs).loss
    fasttx.patch(model)
    labelled = int((inputs["labels"] != -100).sum())
    torch.testing.assert_close(model(**inputs, num_items_in_batch=3 * labelled).loss, want / 3)


@pytest.mark.parametrize("part", ["cls", "cls.predictions"])
@pytest.mark.parametrize("how", ["hook", "subclass", "forward"])
def test_a_head_that_must_be_called_is_called(part: str, how: str) -> None:
    """Nothing that a user hung on a module is passed over."""
    model, inputs = zoo.tiny_model(zoo.BERT, "BertForMaskedLM").train(), zoo.inputs_for(zoo.BERT, "BertForMaskedLM")
    calls = []
    module = model.get_submodule(part)
    if how == "hook":
        module.register_forward_hook(lambda *_: calls.append(1))
    else:
        original = type(module).forward

        def forward(self: Any, x: Tensor) -> Tensor:
            calls.append(1)
            return original(self, x)

        if how == "subclass":
            module.__class__ = type("MyHead", (type(module),), {"forward": forward, "__module__": __name__})
        else:
            module.forward = forward.__get__(module)
    report = fasttx.patch(model)
    assert [row.reason.split(" has ")[0].split(" is ")[0] for row in report.left_alone] == [part]
    assert model(**inputs).logits is not None and calls


@pytest.mark.parametrize("register", ["forward", "forward_pre", "full_backward", "full_backward_pre"])
@pytest.mark.parametrize(
    ("cls", "part"),
    [
        ("BertForMaskedLM", "cls"),
        ("BertForMaskedLM", "cls.predictions"),
        ("BertForMaskedLM", "cls.predictions.decoder"),
        ("RobertaForMaskedLM", "lm_head"),
        ("RobertaForMaskedLM", "lm_head.decoder"),
    ],
)
def test_every_kind_of_hook_is_called(cls: str, part: str, register: str) -> None:
    family = next(family for family, name in HEADS if name == cls)
    model, inputs = zoo.tiny_model(family, cls).train(), zoo.inputs_for(family, cls)
    calls: list[int] = []
    fasttx.patch(model)
    getattr(model.get_submodule(part), f"register_{register}_hook")(lambda *_: calls.append(1))
    model(**inputs).loss.backward()
    assert calls == [1]


@pytest.mark.parametrize("how", ["layers", "forward", "subclass"])
def test_a_decoder_that_is_more_than_its_weight(how: str) -> None:
    model, inputs = zoo.tiny_model(zoo.BERT, "BertForMaskedLM").train(), zoo.inputs_for(zoo.BERT, "BertForMaskedLM")
    predictions = model.cls.predictions
    plain = predictions.decoder
    if how == "layers":
        predictions.decoder = nn.Sequential(plain, nn.Tanh())
    elif how == "forward":
        inner = plain.forward
        plain.forward = lambda rows: inner(rows).tanh()
    else:
        forward = lambda self, rows: nn.Linear.forward(self, rows).tanh()  # noqa: E731
        plain.__class__ = type("Linear", (nn.Linear,), {"forward": forward, "__module__": __name__})
    want, grads = run(model, inputs)
    fasttx.patch(model)
    got, found = run(model, inputs)
    assert got.logits is None and found.keys() == grads.keys()
    torch.testing.assert_close(got.loss, want.loss)
    for name, value in found.items():
        torch.testing.assert_close(value, grads[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("plain", [True, False])
def test_a_wrong_label_beside_right_ones_is_named(plain: bool) -> None:
    """Only -100 says that a row is not labelled."""
    model, inputs = zoo.tiny_model(zoo.BERT, "BertForMaskedLM").train(), zoo.inputs_for(zoo.BERT, "BertForMaskedLM")
    if not plain:
        rows_at_decoder(model)  # by a hook
    fasttx.patch(model)
    inputs["labels"][0, 2:4] = torch.tensor([3, -1])
    with pytest.raises(ValueError, match="^labels: got class indices from -1 "):
        model(**inputs)


def test_nothing_may_depend_on_values_while_a_stream_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    on_gpu, on_cpu = SimpleNamespace(is_cuda=True), torch.zeros(1)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert not graph_in_the_making(on_gpu) and not graph_in_the_making(on_cpu)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert graph_in_the_making(on_gpu) and not graph_in_the_making(on_cpu)


def test_no_rows_at_all() -> None:
    rows, targets, _ = labelled(torch.zeros(0, 11, 8), torch.zeros(0, 11, dtype=torch.long))
    assert rows.shape == (0, 8) and targets.shape == (0,)


@pytest.mark.parametrize(
    ("module", "plain"),
    [
        ("torch.nn.modules.linear", True),
        ("torch.nn.modules", True),
        ("torch.nn.modules_of_mine.linear", False),
        ("mine.torch.nn.modules", False),
    ],
)
def test_whose_class_a_linear_is(module: str, plain: bool) -> None:
    decoder = nn.Linear(2, 3)
    decoder.__class__ = type("Linear", (nn.Linear,), {"__module__": module})
    assert plain_linear(decoder) is plain


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (torch.zeros(3, 10, dtype=torch.long), r"labels: got shape \(3, 10\)"),
        (torch.full((3, 11), zoo.VOCAB), "labels"),
        (torch.full((3, 11), -1), "labels"),
        (torch.zeros(3, 11), "labels"),
    ],
    ids=["shape", "too-high", "negative", "floating"],
)
def test_wrong_labels_are_named(labels: Tensor, words: str) -> None:
    model, inputs = zoo.tiny_model(zoo.BERT, "BertForMaskedLM").train(), zoo.inputs_for(zoo.BERT, "BertForMaskedLM")
    fasttx.patch(model)
    with pytest.raises(ValueError, match=words):
        model(**(inputs | {"labels": labels}))


def test_compiled_in_one_graph() -> None:
    model, inputs = zoo.tiny_model(zoo.BERT, "BertForMaskedLM").train(), zoo.inputs_for(zoo.BERT, "BertForMaskedLM")
    want, grads = run(model, inputs)
    fasttx.patch(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    model.zero_grad()
    loss = compiled(**inputs).loss
    loss.backward()
    torch.testing.assert_close(loss, want.loss)
    for name, parameter in model.named_parameters():
        if name in grads:
            torch.testing.assert_close(parameter.grad, grads[name], rtol=1e-3, atol=1e-5)


def test_bad_option() -> None:
    with pytest.raises(ValueError, match="mlm_head: got 'all'"):
        fasttx.patch(zoo.tiny_model(zoo.BERT, "BertForMaskedLM"), mlm_head="all")
