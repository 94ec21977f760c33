"""patch, unpatch, patched, is_patched, supported and the report: what changes, what stays, what is undone."""

from __future__ import annotations

import functools
import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from models import model_zoo as zoo
from models.model_zoo import attention_of, stranger
from torch import nn
from transformers.models.bert import modeling_bert

import fasttx
from fasttx.models.attention.role import InterfaceAttention
from fasttx.models.families.family import Family
from fasttx.models.fusions import fusion

A_LAYER = 5
"""Rows of the report: attention; query, key and value; two ends with dropout, sum and norm; the MLP."""
ROWS = {
    "distilbert": 2 * 4 + 2, "albert": A_LAYER + 2, "mpnet": 2 * 4 + 4, "deberta": 2 * 3 + 1, "deberta-v2": 2 * 3 + 1,
    "modernbert": 3, "vit": 2 * 3, "deit": 2 * 3,
}  # fmt: skip
"""Of a bare model, where they are not two layers', the embeddings' and the encoder's."""
LEFT = {"deberta": 2 + 2, "deberta-v2": 2 + 2, "modernbert": 2}
"""Of a bare model: what stays transformers' own, and why."""


def fingerprint(model: nn.Module) -> list[Any]:
    """Everything that unpatch must restore, by identity."""
    found: list[Any] = []
    for name, module in model.named_modules():
        found.append((name, id(module), type(module), id(module.__dict__.get("config")), sorted(module.__dict__)))
    return found


@pytest.mark.parametrize(("family", "cls"), zoo.CLASSES, ids=zoo.IDS)
def test_unpatch_restores_the_same_objects(family: Family, cls: str) -> None:
    model = zoo.tiny_model(family, cls)
    before, state, config, attention = fingerprint(model), model.state_dict(), model.config, attention_of(model)
    assert attention == ("sdpa" if family.roles(InterfaceAttention) else "eager")
    report = fasttx.patch(model)
    assert fasttx.is_patched(model)
    assert attention_of(model) == ("fasttx" if family.replaces_attention else "eager")
    assert type(model).__name__ == cls
    assert list(model.state_dict()) == list(state)
    decoder = family.heads.get(cls) == "causal_lm"
    rows = ROWS.get(family.model_type, 2 * A_LAYER + 2) - decoder
    assert len(report.replaced) == rows + (cls in family.heads) + ((family, cls) in zoo.OVER_VOCABULARY)
    left = LEFT.get(family.model_type, 0) + decoder + (family.other_heads.get(cls) is not None)
    assert len(report.left_alone) == left
    fasttx.unpatch(model)
    assert not fasttx.is_patched(model)
    assert fingerprint(model) == before
    assert model.config is config and attention_of(model) == attention


def test_only_an_old_transformers_has_families_that_are_left_out() -> None:
    modelling = importlib.import_module("transformers.models.modernbert.modeling_modernbert")
    assert zoo.FAMILIES == zoo.EVERY_FAMILY or not hasattr(modelling, "ALL_ATTENTION_FUNCTIONS")


@zoo.needs("ModernBERT", "ViT", "DeiT")
def test_every_class_that_supported_lists_exists() -> None:
    rows = fasttx.supported()
    of_torch = [row["class"] for row in rows if row["family"] == "torch.nn"]
    assert of_torch == ["MultiheadAttention", "TransformerEncoderLayer", "TransformerEncoder"]
    assert len(rows) == len(zoo.CLASSES) + len(of_torch)
    assert {row["class"] for row in rows} == {*zoo.IDS, *of_torch}
    losses = {row["class"]: row["loss"] for row in rows}
    assert losses["ViTForMaskedImageModeling"] == "transformers' own"
    attention = {row["family"]: row["attention"] for row in rows}
    assert attention["MPNet"] == attention["ModernBERT"] == "fasttx" and attention["DeBERTa"] == "transformers' own"
    assert losses["ViTModel"] == losses["DeiTForImageClassificationWithTeacher"] == ""
    for row in rows:
        assert hasattr(torch.nn if row["family"] == "torch.nn" else transformers, row["class"])
    json.dumps(rows)


def test_every_head_of_transformers_is_known() -> None:
    """A head that a later transformers adds shows up here."""
    for family in {family for family, _ in zoo.CLASSES}:
        module = sys.modules.get(family.source) or __import__(family.source, fromlist=["x"])
        heads = {name for name in module.__all__ if "For" in name or name.endswith("LMHeadModel")}
        assert heads == {*family.heads, *family.other_heads}


def test_a_shared_config_stays_as_it_was() -> None:
    config = zoo.tiny_config(zoo.BERT)
    one, other = transformers.BertModel(config), transformers.BertModel(config)
    fasttx.patch(one)
    assert attention_of(other) == "sdpa" and other.config is config
    assert attention_of(one) == "fasttx"
    one.config.problem_type = "regression"
    one.config.id2label = {0: "yes"}
    fasttx.unpatch(one)
    assert one.config is config
    assert config.problem_type == "regression" and config.id2label == {0: "yes"}
    assert attention_of(one) == "sdpa"


def test_attention_alone_and_losses_alone() -> None:
    model = zoo.tiny_model(zoo.BERT, "BertForMaskedLM")
    report = fasttx.patch(model, loss=None)
    assert type(model) is transformers.BertForMaskedLM and attention_of(model) == "fasttx"
    assert {row.after for row in report.rows} == {
        "attention: fasttx", "real tokens only", "one product", "dropout_add_layer_norm", "linear_gelu",
        "embedding_layer_norm",
    }  # fmt: skip
    report = fasttx.patch(model, attention=False, norm=False, mlp=False)
    assert type(model) is not transformers.BertForMaskedLM and attention_of(model) == "sdpa"
    assert [row.after for row in report.rows] == ["cross_entropy", "labelled rows only"]
    report = fasttx.patch(model, attention=False, mlp=False, loss=None)
    assert type(model) is transformers.BertForMaskedLM and attention_of(model) == "sdpa"
    assert [row.after for row in report.rows] == ["embedding_layer_norm", *["dropout_add_layer_norm"] * 4]
    fasttx.unpatch(model)
    assert type(model.bert.encoder.layer[0].output) is modeling_bert.BertOutput


def test_patching_twice_and_unpatching_twice() -> None:
    model = zoo.tiny_model(zoo.BERT, "BertForMaskedLM")
    before = fingerprint(model)
    first, second = fasttx.patch(model), fasttx.patch(model)
    assert first.to_dict() == second.to_dict()
    cls = type(model)
    fasttx.patch(model, loss="hf")
    assert type(model) is cls
    fasttx.unpatch(model)
    assert fingerprint(model) == before
    with pytest.raises(ValueError, match="not patched"):
        fasttx.unpatch(model)


def test_context_manager() -> None:
    model = zoo.tiny_model(zoo.BERT, "BertForMaskedLM")
    before = fingerprint(model)
    with fasttx.patched(model, loss="hf") as report:
        assert fasttx.is_patched(model) and len(report.replaced) == 2 * A_LAYER + 4
    assert fingerprint(model) == before
    with pytest.raises(RuntimeError), fasttx.patched(model):
        raise RuntimeError
    assert fingerprint(model) == before
    fasttx.patch(model, loss=None)
    inside = [row[:3] for row in fingerprint(model)]
    with fasttx.patched(model, attention=False):
        assert attention_of(model) == "sdpa"
    assert [row[:3] for row in fingerprint(model)] == inside and attention_of(model) == "fasttx"


def test_report_prints_and_serialises() -> None:
    model = zoo.tiny_model(zoo.BERT, "BertForMaskedLM")
    report = fasttx.patch(model)
    text = str(report)
    assert "bert.encoder.layer.*.attention.self (2x)" in text and "num_items_in_batch" in text
    assert repr(report) == text
    assert all(len(line) < 200 for line in text.splitlines())
    data = json.loads(json.dumps(report.to_dict()))
    assert set(data["rows"][0]) == {"module", "from", "to", "backend", "reason", "here"}
    expected = "torch" if model.device.type == "cpu" else "triton"
    kernels = [row for row in report.replaced if "only" not in row.after and "product" not in row.after]
    assert {row.backend for row in kernels} == {expected}


def test_report_counts_what_changes_on_this_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU transformers' own forward of the fusions runs, and is counted apart; a forced kernel runs everywhere."""
    monkeypatch.setattr(fusion, "UNFUSED_ON", frozenset(("cpu",)))  # which the other tests take away
    model = zoo.tiny_model(zoo.BERT, "BertForMaskedLM").cpu()
    report = fasttx.patch(model)
    waits = {row.before for row in report.replaced if not row.here}
    assert "three products for q, k, v" in waits and not any("attention: " in before for before in waits)
    here = sum(row.here for row in report.replaced)
    assert 0 < here < len(report.replaced)
    left = len(report.left_alone)
    wait = len(report.replaced) - here
    assert f": {here} replaced, {wait} that change on a GPU only, {left} left alone" in " ".join(str(report).split())
    assert [row["here"] for row in report.to_dict()["rows"]] == [row.replaced and row.here for row in report.rows]
    fasttx.unpatch(model)
    forced = fasttx.patch(model, backend="triton")
    assert {row.before for row in forced.replaced if not row.here} == {"three products for q, k, v"}


class MyBert(transformers.BertForMaskedLM):
    """A user's subclass: may compute anything."""


def test_what_is_left_alone_says_why() -> None:
    model = MyBert(zoo.tiny_config(zoo.BERT))
    report = fasttx.patch(model)
    assert type(model) is MyBert
    assert [row.reason for row in report.left_alone] == [
        "is a subclass of BertForMaskedLM; only transformers' own class is matched"
    ]
    fasttx.unpatch(model)
    model = zoo.tiny_model(zoo.BERT, "BertForMaskedLM")
    model.forward = functools.partial(model.forward)  # accelerate's is one too
    report = fasttx.patch(model)
    assert "instance" in report.left_alone[0].reason and len(report.replaced) == 2 * A_LAYER + 2


def test_nothing_replaced() -> None:
    model = stranger()
    before = fingerprint(model)
    with pytest.warns(UserWarning, match="replaced nothing.*layoutlm"):
        report = fasttx.patch(model)
    assert not report.replaced and len(report.left_alone) == 1
    with pytest.raises(ValueError, match="replaced nothing.*layoutlm"):
        fasttx.patch(model, strict=True)
    assert fingerprint(model) == before and not fasttx.is_patched(model)


def test_mixed_container() -> None:
    both = nn.ModuleList([zoo.tiny_model(zoo.BERT, "BertModel"), stranger()])
    report = fasttx.patch(both)
    assert len(report.replaced) == 2 * A_LAYER + 2
    assert [row.module for row in report.left_alone] == ["1"]


def test_encoder_decoder() -> None:
    encoder = zoo.tiny_model(zoo.BERT, "BertModel")
    decoder = zoo.tiny_model(zoo.BERT, "BertLMHeadModel", add_cross_attention=True)
    model = transformers.EncoderDecoderModel(encoder=encoder, decoder=decoder)
    model.config.decoder_start_token_id, model.config.pad_token_id = 2, 1
    inputs = zoo.inputs_for(zoo.BERT, "BertModel")
    labels = inputs["input_ids"][:, :5].clone()
    want = model(**inputs, labels=labels)
    report = fasttx.patch(model)
    assert (
        len(report.replaced) == 2 * A_LAYER + 2 * (A_LAYER + 2) + 2 + 1 + 1
    )  # cross attention; embeddings; loss; padding
    got = model(**inputs, labels=labels)
    torch.testing.assert_close(got.logits, want.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(got.loss, want.loss)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"embeddings": True}, TypeError, "embeddings"),
        ({"norm": 1}, TypeError, "norm"),
        ({"mlp": None}, TypeError, "mlp"),
        ({"unpad": 1}, ValueError, "unpad"),
        ({"unpad": True, "attention": False}, ValueError, "unpad"),
        ({"loss": "mean"}, ValueError, "loss: got 'mean'; allowed are 'correct', 'hf'"),
        ({"backend": "rocm"}, ValueError, "backend: got 'rocm'; allowed"),
        ({"attention": "yes"}, TypeError, "attention"),
        ({"strict": 1}, TypeError, "strict"),
        ({"deterministic": "no"}, TypeError, "deterministic"),
        (
            {"attention": False, "norm": False, "mlp": False, "loss": None},
            ValueError,
            "^attention, norm, mlp: got False for all, .*; allowed is",
        ),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type, message: str) -> None:
    model = zoo.tiny_model(zoo.BERT, "BertModel")
    before = fingerprint(model)
    with pytest.raises(error, match=message):
        fasttx.patch(model, **arguments)
    assert fingerprint(model) == before


@pytest.mark.parametrize(
    "model", [nn.Linear(2, 2), None, "bert-base-uncased", torch.zeros(3)], ids=lambda m: type(m).__name__
)
def test_no_transformers_model(model: Any) -> None:
    with pytest.raises(ValueError, match="model: .*allowed are"):
        fasttx.patch(model)


def test_an_error_half_way_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.ModuleList([zoo.tiny_model(zoo.BERT, "BertForMaskedLM"), zoo.tiny_model(zoo.BERT, "BertForMaskedLM")])
    before = fingerprint(model)
    engine = sys.modules["fasttx.models.patch"]
    plan = engine.make_plan

    def spoiled(*args: Any) -> Any:
        made = plan(*args)
        made.classes[1] = (made.classes[1][0], int)  # a class that __class__ cannot be set to
        return made

    monkeypatch.setattr(engine, "make_plan", spoiled)
    with pytest.raises(TypeError):
        fasttx.patch(model)
    assert fingerprint(model) == before


def test_set_attn_implementation_works_on_patched_and_unpatched() -> None:
    model = zoo.tiny_model(zoo.BERT, "BertForMaskedLM")
    fasttx.patch(model)
    model.set_attn_implementation("eager")
    assert attention_of(model) == "eager"
    fasttx.unpatch(model)
    assert attention_of(model) == "sdpa"
    model.set_attn_implementation("fasttx")
    model(**zoo.inputs_for(zoo.BERT, "BertForMaskedLM"))


def test_unpatching_a_part() -> None:
    model = zoo.tiny_model(zoo.BERT, "BertForMaskedLM")
    config = model.config
    fasttx.patch(model)
    fasttx.unpatch(model.bert)
    assert model.bert.config is config and not fasttx.is_patched(model.bert)
    assert fasttx.is_patched(model)
    fasttx.unpatch(model)
    assert model.config is config


def test_import_is_lazy() -> None:
    code = "import sys, fasttx; dir(fasttx); assert not {'transformers', 'triton'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(fasttx.__file__).parents[1])
    with pytest.raises(AttributeError, match="no attribute 'pach'"):
        fasttx.pach  # noqa: B018
