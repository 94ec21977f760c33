"""label_counts: how many tokens have a label, known before the batch leaves the host."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from models import model_zoo as zoo

import fasttx
from fasttx.data import PackingCollator
from fasttx.models.heads import vocabulary


def examples() -> list[dict[str, list[int]]]:
    found = []
    for length, labelled in ((7, 2), (3, 0), (5, 3)):
        ids = list(range(10, 10 + length))
        found.append({"input_ids": ids, "labels": [i if n < labelled else -100 for n, i in enumerate(ids)]})
    return found


def patched(cls: str = "BertForMaskedLM") -> Any:
    model = zoo.tiny_model(zoo.BERT, cls).train()
    fasttx.patch(model)
    return model


def gradients(model: Any, batch: dict[str, Any]) -> list[torch.Tensor]:
    model.zero_grad()
    model(**batch).loss.backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def test_the_collator_counts_labels_at_tokens() -> None:
    batch = PackingCollator()(examples())
    assert batch["label_counts"] == (2, 0, 3) and batch["seq_lens"] == (7, 3, 5)
    flat = PackingCollator(form="flat", position_ids_start=0)(examples())
    assert flat["label_counts"] == (5,)

    def everywhere(features: Any) -> Any:
        made = PackingCollator()(features)
        return {"input_ids": made["input_ids"], "attention_mask": made["attention_mask"], "labels": made["input_ids"]}

    assert PackingCollator(everywhere)(examples())["label_counts"] == (7, 3, 5)


def test_what_is_no_label_for_each_token_is_not_counted() -> None:
    one_each = [{"input_ids": [1, 2, 3], "label": 1}, {"input_ids": [1, 2], "label": 0}]
    assert "label_counts" not in PackingCollator()(one_each)
    assert "label_counts" not in PackingCollator()([{"input_ids": [1, 2, 3]}])


@pytest.mark.parametrize("readable", [True, False], ids=["cpu", "gpu"])
@pytest.mark.parametrize("form", ["padded", "flat"])
def test_known_counts_give_the_same_without_looking(readable: bool, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary, "values_may_be_read", lambda device: readable)
    collator = PackingCollator() if form == "padded" else PackingCollator(form="flat", position_ids_start=0)
    batch, model = collator(examples()), patched()
    expected = gradients(model, {name: value for name, value in batch.items() if name != "label_counts"})
    known, asked = vocabulary._known, []
    monkeypatch.setattr(vocabulary, "_known", lambda n, *rest: (asked.append(n), known(n, *rest))[1])
    found = gradients(model, batch)
    assert asked == [5]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("readable", [True, False], ids=["cpu", "gpu"])
def test_nothing_labelled_is_a_loss_of_zero(readable: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary, "values_may_be_read", lambda device: readable)
    batch = PackingCollator()([{"input_ids": [5, 6, 7], "labels": [-100] * 3}])
    assert batch["label_counts"] == (0,)
    model = patched()
    assert model(**batch).loss.item() == 0.0
    assert all(not grad.any() for grad in gradients(model, batch))


@pytest.mark.parametrize("counts", [(2, 0, 2), (2, 0, 4), (0, 0, 0), (7, 3, 5)])
def test_a_wrong_number_is_an_error_or_nan(counts: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    batch, model = PackingCollator()(examples()) | {"label_counts": counts}, patched()
    with pytest.raises(ValueError, match=rf"label_counts: got {sum(counts)} in all; allowed is 5, as many as labels"):
        model(**batch)
    monkeypatch.setattr(vocabulary, "values_may_be_read", lambda device: False)
    assert math.isnan(model(**batch).loss.item())
    assert all(not grad.any() for grad in gradients(model, batch))


@pytest.mark.parametrize(
    "error, counts, message",
    [
        (TypeError, torch.tensor([2, 0, 3]), "label_counts: got Tensor; allowed are ints, one for each row of labels"),
        (TypeError, (2, 0, 3.0), "label_counts: got (2, 0, 3.0); allowed are ints, one for each row of labels"),
        (ValueError, (2, 3), "label_counts: got 2 of them; allowed is one for each of 3 rows"),
        (ValueError, (6, 0, -1), "label_counts: got (6, 0, -1); allowed are numbers of labels, from 0 to 7"),
        (ValueError, [8, 0, 0], "label_counts: got [8, 0, 0]; allowed are numbers of labels, from 0 to 7"),
    ],
)
def test_what_is_no_count_is_refused(error: type[Exception], counts: Any, message: str) -> None:
    batch = PackingCollator()(examples()) | {"label_counts": counts}
    with pytest.raises(error) as problem:
        patched()(**batch)
    assert str(problem.value) == message


@pytest.mark.parametrize("cls", ["BertForTokenClassification", "BertModel"])
def test_a_model_that_needs_no_count_ignores_it(cls: str) -> None:
    batch = PackingCollator()(examples())
    batch["labels"] = batch["labels"].clamp(max=1)
    if cls == "BertModel":
        del batch["labels"]
    model = patched(cls).eval()
    found = model(**batch)[0]
    del batch["label_counts"]
    assert torch.equal(found, model(**batch)[0])


def test_a_compiled_model_does_not_hang_on_counts() -> None:
    model, graphs = patched(), []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph

    run = torch.compile(model, backend=backend)
    batch = PackingCollator()(examples())
    run(**batch)
    made = len(graphs)
    batch["labels"][0, 4] = 14
    run(**batch | {"label_counts": (3, 0, 3)})
    assert len(graphs) == made
