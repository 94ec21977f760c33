"""What fasttx.verify and fasttx.explain meet besides a plain call: threads, graphs, lengths, sentence-transformers."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from models import model_zoo as zoo
from torch import Tensor, nn

import fasttx
from fasttx.ops import decisions as kept
from fasttx.ops.decisions import note, recorded

HEAD = "BertForMaskedLM"


def patched(cls: str = HEAD, **options: Any) -> Any:
    model = zoo.tiny_model(zoo.BERT, cls)
    fasttx.patch(model, unpad=True, **options)
    return model


def test_records_that_overlap_in_two_threads() -> None:
    """Whoever begins or ends first, each gets all of its time, and nothing is recorded afterwards."""
    entered, left, found = threading.Event(), threading.Event(), []

    def other() -> None:
        with recorded() as decisions:
            entered.set()
            assert left.wait(60)
            note("late", "x")
        found.extend(decision.what for decision in decisions)

    thread = threading.Thread(target=other)
    with recorded() as decisions:
        thread.start()
        assert entered.wait(60)
        note("both", "x")
    left.set()
    thread.join(60)
    assert [decision.what for decision in decisions] == ["both"] and found == ["both", "late"]
    assert not kept.records


@pytest.mark.slow
def test_a_compiled_step_shows_its_ops_and_its_decisions_each_time() -> None:
    model, inputs = patched().train(), zoo.inputs_for(zoo.BERT, HEAD)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    compiled(**inputs)
    for _ in range(2):
        times = {d.what: n for d, n in fasttx.explain(compiled, inputs).rows}
        assert times["attention_fwd"] == times["attention_bwd"] == times["query, key, value"] == 2
        assert times["linear_cross_entropy_fwd"] == times["padded batch"] == 1


def test_lengths_without_a_mask_are_verified() -> None:
    model, inputs = patched(), zoo.inputs_for(zoo.BERT, HEAD)
    lengths = inputs.pop("attention_mask").sum(-1).tolist()
    real = torch.arange(inputs["input_ids"].shape[1]) < torch.tensor(lengths)[:, None]
    inputs["labels"] = inputs["labels"].masked_fill(~real, -100)
    found = fasttx.verify(model, inputs | {"seq_lens": lengths})
    assert found.ok, str(found)
    with pytest.raises(ValueError, match="seq_lens: got 2 of them"):
        fasttx.verify(model, inputs | {"seq_lens": lengths[:2]})


def test_a_batch_that_the_caller_packed_has_no_reference() -> None:
    model, inputs = patched(), zoo.inputs_for(zoo.BERT, HEAD)
    starts = torch.tensor([0, 5, 11], dtype=torch.int32)
    packed: dict[str, Any] = {"input_ids": inputs["input_ids"][:1], "max_length_q": 6, "max_length_k": 6}
    with pytest.raises(ValueError, match="batch: got cu_seq_lens_q"):
        fasttx.verify(model, packed | {"cu_seq_lens_q": starts, "cu_seq_lens_k": starts})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("patch", [False, True])
def test_layers_on_int8(patch: bool, dtype: torch.dtype) -> None:
    """Outputs beside a model in float, labels or not; a layer that is far off is named, and its output is wrong."""
    model, inputs = zoo.tiny_model(zoo.BERT, HEAD).to(dtype), zoo.inputs_for(zoo.BERT, HEAD)
    fasttx.quantize(model, fasttx.Int8Config(keep_float=True, skip=["*.0.*"]))
    names = [name for name, module in model.named_modules() if isinstance(module, fasttx.nn.Int8Linear)]
    if patch:
        fasttx.patch(model)
    found = fasttx.verify(model, inputs)
    assert found.ok and {row.kind for row in found.rows} == {"output"} and len(names) == 6
    (row,) = found.rows
    assert 0 < row.unpatched_error and row.error < 2 * row.unpatched_error
    assert sorted(layer.name for layer in found.int8) == sorted(names)
    assert all(0.001 < layer.error < 0.03 and layer.kept for layer in found.int8), found
    errors = [layer.error for layer in found.int8]
    assert errors == sorted(errors, reverse=True) and f"{errors[0]:8.2%}" in str(found)
    assert found.to_dict()["int8"][0] == vars(found.int8[0])
    assert [name for name, m in model.named_modules() if isinstance(m, fasttx.nn.Int8Linear)] == names
    model.bert.encoder.layer[1].output.dense.weight_scale.mul_(1.5)
    worst = fasttx.verify(model, inputs).int8[0]
    assert worst.name == "bert.encoder.layer.1.output.dense" and 0.2 < worst.error < 0.6


def test_int8_layers_whose_floats_are_gone() -> None:
    model, inputs = zoo.tiny_model(zoo.BERT, "BertModel"), zoo.inputs_for(zoo.BERT, "BertModel")
    fasttx.quantize(model)
    found = fasttx.verify(model, inputs)
    assert found.ok and all(0 < layer.error < 0.03 and not layer.kept for layer in found.int8)
    assert "rounding inputs (keep_float=True" in str(found) and "and 4 more layers" in str(found)
    fasttx.dequantize(model)
    fasttx.patch(model)
    assert fasttx.verify(model, inputs).int8 == []


@pytest.mark.parametrize("cls", [HEAD, "BertLMHeadModel"])
def test_nothing_labelled(cls: str) -> None:
    """All gradients are 0, or all are NaN: no tensor is worse than another."""
    model, inputs = patched(cls), zoo.inputs_for(zoo.BERT, cls)
    inputs |= {"labels": torch.full_like(inputs["input_ids"], -100), "num_items_in_batch": torch.tensor(3)}
    assert f"fasttx.verify({cls})" in str(fasttx.verify(model, inputs))


class Sentences(nn.Sequential):
    """As SentenceTransformer calls its parts: with one dictionary, which they add to."""

    def forward(self, input: dict[str, Tensor]) -> dict[str, Tensor]:
        names = ("input_ids", "attention_mask")
        hidden = self[0](**{name: input[name] for name in names}).last_hidden_state
        input["sentence_embedding"] = hidden[:, 0]
        return input


def test_a_model_that_takes_one_dictionary() -> None:
    inputs = zoo.inputs_for(zoo.BERT, "BertModel")
    names, sentences = set(inputs), Sentences(patched("BertModel"))
    found = fasttx.verify(sentences, inputs)
    assert found.ok and [row.name for row in found.rows] == ["sentence_embedding"]
    assert any(d.what == "attention_fwd" for d, _ in fasttx.explain(sentences, inputs).rows)
    assert set(inputs) == names
