"""fasttx.verify and fasttx.explain: what they say is true, and the model is as it was."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from models import model_zoo as zoo
from torch import nn

import fasttx
from fasttx.models.attention import interface
from fasttx.models.diagnostics.verify import _rows
from fasttx.models.families.family import Family
from fasttx.models.padding import decision as padding_free
from fasttx.ops.registry import LAUNCHES

HEAD = "BertForMaskedLM"
OTHERS = ("DistilBertForMaskedLM", "AlbertForPreTraining", "ViTForImageClassification", "ViTForMaskedImageModeling")


def patched(cls: str = HEAD, dtype: torch.dtype = torch.float32, family: Family = zoo.BERT, **options: Any) -> Any:
    model = zoo.tiny_model(family, cls, hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.3).to(dtype)
    fasttx.patch(model, **options)
    return model


def state(model: nn.Module) -> list[Any]:
    """All that a step might change."""
    modules = [
        (m.training, getattr(m, "p", None), getattr(m, "attention_dropout", None), type(m)) for m in model.modules()
    ]
    grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    return [modules, grads, [p.detach().clone() for p in model.parameters()], torch.get_rng_state()]


def unchanged(before: list[Any], after: list[Any]) -> None:
    assert before[0] == after[0]
    for x, y in zip((*before[1], *before[2], before[3]), (*after[1], *after[2], after[3]), strict=True):
        assert (x is None and y is None) or torch.equal(x, y)


# -------------------------------------------------------------------------------------------------------------- verify


VERIFIED = [c for c in zoo.CLASSES if c[0] is zoo.BERT or c[1] in OTHERS]


@pytest.mark.parametrize(("family", "cls"), VERIFIED, ids=lambda x: str(x)[:40])
def test_a_patched_model_is_right(family: Family, cls: str) -> None:
    found = fasttx.verify(patched(cls, family=family), zoo.inputs_for(family, cls))
    assert found.ok, str(found)
    kinds = {row.kind for row in found.rows}
    assert kinds == ({"output"} if cls == family.bare else {"output", "loss", "gradient"})
    assert "ok; largest errors against float64" in str(found)
    assert json.loads(json.dumps(found.to_dict()))["ok"] is True


@zoo.needs("ViT")
def test_probabilities_that_modules_hold_as_numbers_are_zero_too() -> None:
    model, inputs = patched("ViTModel", family=zoo.BY_NAME["ViT"]), zoo.inputs_for(zoo.BY_NAME["ViT"], "ViTModel")
    attention, seen = model.layers[0].attention, set()
    zoo.before(attention, lambda args: seen.add((attention.training, attention.attention_dropout)))
    fasttx.verify(model, inputs)
    assert seen == {(False, 0.3), (True, 0.0)} and attention.attention_dropout == 0.3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_in_two_bytes_the_reference_is_float32(dtype: torch.dtype) -> None:
    found = fasttx.verify(patched(dtype=dtype), zoo.inputs_for(zoo.BERT, HEAD))
    assert found.ok and found.reference == "float32", str(found)
    assert any(row.unpatched_error > 1e-4 for row in found.rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_wrong_kernel_is_found(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores 1.3 times as large, and a loss whose gradient alone is wrong."""
    model, inputs = patched(dtype=dtype), zoo.inputs_for(zoo.BERT, HEAD)
    real = interface.attention_packed

    def wrong(*args: Any, scale: float, **kwargs: Any) -> Any:
        return real(*args, scale=1.3 * scale, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(interface, "attention_packed", wrong)
        found = fasttx.verify(model, inputs)
        assert not found.ok and "WRONG" in str(found) and found.to_dict()["ok"] is False
        assert {row.kind for row in found.rows if not row.ok} >= {"output", "gradient"}

    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, dout: torch.Tensor) -> torch.Tensor:
            return dout * 1.5

    query = model.bert.encoder.layer[0].attention.self.query
    monkeypatch.setattr(interface, "attention_packed", lambda q, *a, **kw: real(Doubled.apply(q), *a, **kw))
    found = fasttx.verify(model, inputs)
    wrong_rows = {row.name for row in found.rows if not row.ok}
    assert "bert.encoder.layer.0.attention.self.query.weight" in wrong_rows and query.weight.grad is None
    assert all(row.kind == "gradient" for row in found.rows if not row.ok)


def test_the_model_is_left_as_it_was() -> None:
    model, inputs = patched(), zoo.inputs_for(zoo.BERT, HEAD)
    model.train()
    model(**inputs).loss.backward()
    model.bert.encoder.layer[0].eval()
    before = state(model)
    fasttx.verify(model, inputs)
    unchanged(before, state(model))
    fasttx.explain(model, inputs)
    unchanged(before, state(model))
    bad = inputs | {"labels": inputs["labels"] + 10_000}
    for function in (fasttx.verify, fasttx.explain):
        with pytest.raises(ValueError, match="labels"):
            function(model, bad)
        unchanged(before, state(model))


def test_frozen_parameters_and_no_labels() -> None:
    model, inputs = patched(), zoo.inputs_for(zoo.BERT, HEAD)
    for name, p in model.named_parameters():
        p.requires_grad_("query" in name)
    found = fasttx.verify(model, inputs)
    assert found.ok and {row.name for row in found.rows if row.kind == "gradient"} == {
        name for name, p in model.named_parameters() if p.requires_grad
    }
    del inputs["labels"]
    assert {row.kind for row in fasttx.verify(model, inputs).rows} == {"output"}


def test_a_gradient_that_only_the_patched_model_has() -> None:
    one, none = {("gradient", "w"): torch.ones(2)}, {("gradient", "v"): torch.zeros(2)}
    rows = _rows(one, {}, none)
    assert {(row.name, row.ok) for row in rows} == {("w", False), ("v", True)}


def test_what_cannot_be_verified() -> None:
    model, inputs = zoo.tiny_model(zoo.BERT, HEAD), zoo.inputs_for(zoo.BERT, HEAD)
    with pytest.raises(ValueError, match="^model: got a BertForMaskedLM that is not patched"):
        fasttx.verify(model, inputs)
    fasttx.patch(model)
    for function in (fasttx.verify, fasttx.explain):
        with pytest.raises(TypeError, match="batch: got list; allowed is a mapping"):
            function(model, [inputs])
    with pytest.raises(ValueError, match="model: got int"):
        fasttx.explain(3, inputs)


# ------------------------------------------------------------------------------------------------------------- explain


def test_explain_counts_what_ran() -> None:
    model, inputs = patched().train(), zoo.inputs_for(zoo.BERT, HEAD)
    before = copy.copy(LAUNCHES)
    found = fasttx.explain(model, inputs)
    ran = {key: n - before[key] for key, n in LAUNCHES.items() if n > before[key]}
    counted = {(d.what, d.choice): n for d, n in found.rows if d.what.endswith(("_fwd", "_bwd"))}
    assert counted == ran and ran["attention_bwd", "torch"] == 2
    rows = {d.what: (d.choice, d.reason) for d, _ in found.rows}
    real = int(inputs["attention_mask"].sum())
    assert rows["padded batch"] == ("real tokens only", f"{real} of {inputs['attention_mask'].numel()} tokens")
    assert rows["query, key, value"] == ("one product", "")
    assert "NVIDIA" in rows["attention_fwd"][1]
    assert found.backward and "one step, forward and backward" in str(found)
    named = [row["what"] for row in json.loads(json.dumps(found.to_dict()))["rows"]]
    assert named[:2] == ["embeddings", "embedding_layer_norm"] and "padded batch" in named


def test_explain_says_why() -> None:
    model, inputs = patched(), zoo.inputs_for(zoo.BERT, HEAD)
    with fasttx.backend("triton"):
        rows = dict(fasttx.explain(model, inputs).rows)
    assert any(d.choice == "triton" and d.reason == "asked for 'triton'" for d in rows)
    found = fasttx.explain(model, {"input_ids": inputs["input_ids"]})
    assert not found.backward and "forward alone" in str(found)
    rows = {d.what: (d.choice, d.reason) for d, _ in found.rows}
    assert rows["padded batch"] == ("padded", "there is no mask")
    assert rows["attention"] == ("torch's own", "on a CPU torch's function is as fast for such a call")
    rows = {d.what: (d.choice, d.reason) for d, _ in fasttx.explain(model.double(), inputs).rows}
    reason = "a floating type other than float32, float16 and bfloat16"
    assert rows["padded batch"] == ("padded", reason) and rows["attention"] == ("torch's own", reason)
    assert "nothing of fasttx took part" in str(fasttx.explain(zoo.tiny_model(zoo.BERT, HEAD), inputs))


REASONS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "attentions": ({}, {"output_attentions": True}, "attentions or hidden states are asked for"),
    "left padding": ({}, {"attention_mask": zoo.padding_mask().flip(1)}, "a row begins with padding"),
    "no padding": ({}, {"attention_mask": torch.ones_like(zoo.padding_mask())}, "there is no padding"),
    "four dims": ({}, {"attention_mask": torch.ones(3, 1, 11, 11)}, "the mask has a row for every query"),
}


@pytest.mark.parametrize("name", REASONS)
def test_why_a_batch_stays_padded(name: str) -> None:
    options, arguments, reason = REASONS[name]
    model, inputs = patched("BertModel", **options), zoo.inputs_for(zoo.BERT, "BertModel")
    rows = {d.what: (d.choice, d.reason) for d, _ in fasttx.explain(model, inputs | arguments).rows}
    assert rows["padded batch"][0] == "padded" and reason in rows["padded batch"][1]


def test_why_a_small_batch_stays_padded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(padding_free, "WORTH_IT_ON_CPU", 40_000_000)
    model, inputs = patched("BertModel"), zoo.inputs_for(zoo.BERT, "BertModel")
    assert "too little padding for packing to pay" in str(fasttx.explain(model, inputs))
    hooked = patched("BertModel", unpad=True)
    hooked.encoder.layer[1].register_forward_hook(lambda *_: None)
    assert "a hook in layer.1" in str(fasttx.explain(hooked, inputs))
