"""Labelled rows in graphs: a number of rows that is fixed by the shapes, and NaN where it is too small."""

from __future__ import annotations

import math
from typing import Any

import numpy
import pytest
import torch
import torch._dynamo.testing
from models import model_zoo as zoo
from models.test_parity import run
from torch import Tensor

import fasttx
from fasttx.functional._linear_cross_entropy import _linear_cross_entropy
from fasttx.models.heads.vocabulary import labelled
from fasttx.models.options import Options

CLASSES = ["BertForMaskedLM", "BertForPreTraining"]


@pytest.fixture
def in_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("heads.patched_head", "heads.vocabulary"):
        monkeypatch.setattr(f"fasttx.models.{module}.graph_in_the_making", lambda x: True)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each product with the vocabulary gets."""
    counts: list[int] = []

    def spy(rows: Tensor, *rest: Any, backend: str | None) -> Tensor:
        counts.append(rows.shape[0])
        return _linear_cross_entropy(rows, *rest, backend=backend)

    monkeypatch.setattr("fasttx.models.heads.losses._linear_cross_entropy", spy)
    return counts


def train_inputs(cls: str) -> tuple[Any, dict[str, Tensor]]:
    return zoo.tiny_model(zoo.BERT, cls).train(), zoo.inputs_for(zoo.BERT, cls)


def test_labelled_rows_come_first_and_none_twice() -> None:
    hypothesis = pytest.importorskip("hypothesis")
    st = hypothesis.strategies

    @hypothesis.given(
        labels=st.lists(st.sampled_from((-100, 3, 5)), min_size=1, max_size=40), capacity=st.floats(0.01, 1.0)
    )
    def holds(labels: list[int], capacity: float) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("fasttx.models.heads.vocabulary.graph_in_the_making", lambda x: True)
            hidden = torch.arange(float(len(labels))).view(1, -1, 1)
            rows, targets, missing = labelled(hidden, torch.tensor([labels]), Options(mlm_head=capacity).capacity)
        size, count = rows.shape[0], sum(label != -100 for label in labels)
        assert math.ceil(capacity * len(labels)) <= size <= math.ceil((capacity + 1 / 1024) * len(labels))
        assert missing is not None and bool(missing) == (count > size)
        places = rows.view(-1).long().tolist()
        assert len(set(places)) == size and targets.tolist() == [labels[i] for i in places]
        wanted = [i for i, label in enumerate(labels) if label != -100][:size]
        assert places[: len(wanted)] == wanted

    holds()


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.usefixtures("in_a_graph")
def test_same_loss_and_gradients_from_fewer_rows(cls: str, seen: list[int]) -> None:
    model, inputs = train_inputs(cls)
    want, grads = run(model, inputs)
    report = fasttx.patch(model, mlm_head=numpy.float64(0.5))
    assert "in graphs 0.5 of all rows" in str(report)
    got, found = run(model, inputs)
    rows = inputs["labels"].numel()
    assert seen == [math.ceil(rows / 2)] and int((inputs["labels"] != -100).sum()) <= rows / 2
    torch.testing.assert_close(got.loss, want.loss)
    for name, value in found.items():
        torch.testing.assert_close(value, grads[name], rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("loss", ["correct", "hf"])
@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.usefixtures("in_a_graph")
def test_more_labels_than_rows_give_nan_and_no_gradient_of_theirs(cls: str, loss: str) -> None:
    model, inputs = train_inputs(cls)
    fasttx.patch(model, mlm_head=0.02, loss=loss)
    output, grads = run(model, inputs)
    assert bool(output.loss.isnan())
    decoder = grads["cls.predictions.bias"]
    assert not bool(decoder.any()) and all(bool(grad.isfinite().all()) for grad in grads.values())


@pytest.mark.usefixtures("in_a_graph")
def test_nothing_labelled_within_a_capacity() -> None:
    model, inputs = train_inputs("BertForMaskedLM")
    fasttx.patch(model, mlm_head=0.25)
    output, grads = run(model, inputs | {"labels": torch.full_like(inputs["labels"], -100)})
    assert float(output.loss) == 0.0 and not any(bool(grad.any()) for grad in grads.values())


def test_eagerly_a_capacity_changes_nothing(seen: list[int]) -> None:
    model, inputs = train_inputs("BertForMaskedLM")
    want = model(**inputs).loss
    fasttx.patch(model, mlm_head=0.02)
    torch.testing.assert_close(model(**inputs).loss, want)
    assert seen == [int((inputs["labels"] != -100).sum())]


@pytest.mark.parametrize("dynamic", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_compiled_in_one_graph(dynamic: bool) -> None:
    """One graph for any number of labels, with gradients; NaN once there are too many."""
    model, inputs = train_inputs("BertForMaskedLM")
    few, none = inputs["labels"].clone(), torch.full_like(inputs["labels"], -100)
    few[:, 3:] = -100
    many = inputs["input_ids"] % 50
    wanted = [run(model, inputs | {"labels": labels}) for labels in (inputs["labels"], few)]
    fasttx.patch(model, mlm_head=0.5)
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter, dynamic=dynamic)
    for labels, (want, grads) in zip((inputs["labels"], few), wanted, strict=True):
        model.zero_grad()
        loss = compiled(**(inputs | {"labels": labels})).loss
        loss.backward()
        torch.testing.assert_close(loss, want.loss)
        for name, parameter in model.named_parameters():
            if name in grads:
                torch.testing.assert_close(parameter.grad, grads[name], rtol=1e-3, atol=1e-5, msg=name)
    assert float(compiled(**(inputs | {"labels": none})).loss) == 0.0
    assert bool(compiled(**(inputs | {"labels": many})).loss.isnan())
    assert counter.frame_count == 1 or dynamic


@pytest.mark.parametrize("bad", [0.0, -0.5, 1.5, float("nan"), 1, "all"], ids=str)
def test_shares_that_are_none(bad: Any) -> None:
    model = zoo.tiny_model(zoo.BERT, "BertForMaskedLM")
    with pytest.raises(ValueError, match="mlm_head: got .*; allowed are True, False, 'full' and a float above 0"):
        fasttx.patch(model, mlm_head=bad)
    assert not fasttx.is_patched(model)
