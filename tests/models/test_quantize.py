"""fasttx.quantize: which layers become int8, that it can be undone and saved, and what it costs real embeddings."""

from __future__ import annotations

import copy
import importlib.util
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from models import model_zoo as zoo
from models.test_pretrained import directory, embeddings
from torch import Tensor, nn

import fasttx
from fasttx.models.families.family import Family
from fasttx.models.plan import FAMILIES
from fasttx.nn import Int8Linear
from fasttx.ops.registry import LAUNCHES

LINEAR = {"modernbert": 4}
"""Linear layers of a layer, where these are not six."""
CALLS = {"modernbert": 2 * 4, "deberta-v2": 2 * 8}
"""Calls of them: DeBERTa's attention computes queries and keys of positions too, by the same layers."""
BARE = [pytest.param(family, id=family.name) for family in FAMILIES]


def tiny(cls: str = "BertModel", **changes: Any) -> Any:
    return zoo.tiny_model(zoo.BERT, cls, **changes)


def run(model: Any, cls: str = "BertModel") -> Tensor:
    with torch.no_grad():
        out = model(**zoo.inputs_for(zoo.BERT, cls, labels=False))[0]
    return out[zoo.padding_mask().bool()] if out.dim() == 3 else out


def int8_names(model: nn.Module) -> set[str]:
    return {name for name, module in model.named_modules() if isinstance(module, Int8Linear)}


@pytest.mark.parametrize("family", BARE)
def test_the_linear_layers_of_encoders(family) -> None:
    """Exactly those, in every family; and the result is that of the rounded weights and activations, roughly."""
    kinds = ("sequence_classification", "inferred_classification", "image_classification")
    cls = next(name for name, kind in family.heads.items() if kind in kinds)
    model = zoo.tiny_model(family, cls)
    wanted = {n for n, m in model.named_modules() if isinstance(m, nn.Linear) and re.search(r"layers?\.\d\.", n)}
    others = {n for n, m in model.named_modules() if isinstance(m, nn.Linear)} - wanted
    inputs = zoo.inputs_for(family, cls, labels=False)
    before = model(**inputs)[0]
    report = fasttx.quantize(model)
    count = LINEAR.get(family.model_type, 6) * zoo.DISTINCT.get(family.model_type, 2)
    assert int8_names(model) == wanted == {row.module for row in report.replaced} and len(wanted) == count
    assert {row.module for row in report.left_alone} == others and others
    assert all("poolers and heads" in row.reason for row in report.left_alone)
    assert str(report).startswith(f"fasttx.quantize({cls}): {count} replaced")
    LAUNCHES.clear()
    after = model(**inputs)[0]
    ran = sum(times for (op, _), times in LAUNCHES.items() if op == "int8_linear_fwd")
    assert ran == CALLS.get(family.model_type, 12)
    assert 0 < (after - before).abs().max() < 0.3 * before.abs().max()


@pytest.mark.parametrize(
    "family",
    [f for f in zoo.FAMILIES if f.name in ("BERT", "DistilBERT", "ALBERT", "MPNet", "DeBERTa", "ViT")],
    ids=lambda family: family.name,
)
@pytest.mark.parametrize("patch_first", [False, True])
def test_before_and_after_the_patch(patch_first: bool, family: Family) -> None:
    inputs = zoo.inputs_for(family, family.bare)
    model, alone = (zoo.tiny_model(family, family.bare) for _ in range(2))

    def run(model: Any) -> Tensor:
        with torch.no_grad():
            hidden = model(**inputs).last_hidden_state
        return hidden[inputs["attention_mask"].bool()] if "attention_mask" in inputs else hidden

    fasttx.quantize(alone)
    want = run(alone)
    steps = (fasttx.patch, fasttx.quantize) if patch_first else (fasttx.quantize, fasttx.patch)
    reports = [step(model) for step in steps]
    assert int8_names(model) == int8_names(alone)
    torch.testing.assert_close(run(model), want, rtol=1e-3, atol=2e-2)  # attention's last bits move a rounding
    if family.name == "DeBERTa":  # its products are transformers' own
        assert not any("query" in row.before for row in reports[not patch_first].rows)
    elif patch_first:  # the patched self-attention notices; patched afterwards, it is not replaced at all
        with torch.no_grad():
            found = {d for d, _ in fasttx.explain(model, inputs).rows if d.what == "query, key, value"}
        assert {d.choice for d in found} == {"q, k, v computed separately"}
        assert all("Int8Linear" in d.reason for d in found)
    else:
        rows = [row for row in reports[1].rows if row.before == "three products for q, k, v"]
        assert len(rows) == (0 if family.name == "MPNet" else zoo.DISTINCT.get(family.model_type, 2))
        assert all(not row.replaced and "Int8Linear" in row.reason for row in rows)
    fasttx.unpatch(model)
    assert torch.equal(run(model), want)
    fasttx.dequantize(model)
    assert not int8_names(model)


@pytest.mark.parametrize("patch_first", [False, True])
def test_gelu_is_the_end_of_the_int8_product(patch_first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU too; where the layer has a hook, or PyTorch's operators are asked for, it is called as ever."""
    inputs = zoo.inputs_for(zoo.BERT, zoo.BERT.bare)
    steps = (fasttx.patch, fasttx.quantize) if patch_first else (fasttx.quantize, fasttx.patch)
    model = zoo.tiny_model(zoo.BERT, zoo.BERT.bare)
    for step in steps:
        step(model)

    def taken() -> set[tuple[str, bool]]:
        with torch.no_grad():
            rows = fasttx.explain(model, inputs).rows
        return {(d.choice, "hook" in d.reason) for d, _ in rows if d.what == "product, bias, GELU"}

    assert taken() == {("one call", False)}
    calls = []
    monkeypatch.setattr(torch.nn.functional, "gelu", lambda *args, **kwargs: calls.append(args))
    with torch.no_grad():
        model(**inputs)
    monkeypatch.undo()
    assert not calls
    seen = []
    for layer in model.encoder.layer:
        layer.intermediate.dense.register_forward_hook(lambda module, args, out: seen.append(out.shape))
    assert taken() == {("two calls", True)} and len(seen) == 2
    with fasttx.backend("torch"):
        assert taken() == {("two calls", False)}


def test_undone_with_rounded_weights() -> None:
    model = tiny()
    exact = {name: t.clone() for name, t in model.state_dict().items()}
    size = sum(t.numel() * t.element_size() for t in (*model.encoder.parameters(), *model.encoder.buffers()))
    fasttx.quantize(model)
    tensors = (*model.encoder.parameters(), *model.encoder.buffers())
    assert sum(t.numel() * t.element_size() for t in tensors) < 0.4 * size  # biases, norms and scales stay
    scales = {name: layer.weight_scale for name, layer in fasttx.quant.int8_layers(model).items()}
    fasttx.dequantize(model)
    found = model.state_dict()
    assert found.keys() == exact.keys() and not int8_names(model)
    for name, t in exact.items():
        scale = scales.get(name.removesuffix(".weight"))
        if name.endswith(".weight") and scale is not None:
            assert type(model.get_submodule(name.removesuffix(".weight"))) is nn.Linear
            assert bool(((found[name] - t).abs() <= scale[:, None] * 0.5001).all()) and not torch.equal(found[name], t)
        else:
            assert torch.equal(found[name], t)
    with pytest.raises(
        ValueError, match="^model: got a BertModel without an int8 layer; allowed is one that fasttx.quantize changed"
    ):
        fasttx.dequantize(model)


def test_undone_with_the_very_same_layers() -> None:
    model = tiny()
    before, want = dict(model.named_modules()), run(model)
    fasttx.quantize(model, fasttx.Int8Config(keep_float=True))
    assert "encoder.layer.0.output.dense.weight_scale" in model.state_dict() and len(model.state_dict()) == 39 + 12
    twin = copy.deepcopy(model)
    fasttx.dequantize(model)
    assert dict(model.named_modules()) == before and torch.equal(run(model), want)
    fasttx.dequantize(twin)
    assert torch.equal(run(twin), want)


def test_skip_and_layers_that_are_not_plain() -> None:
    model = tiny()
    layer = model.encoder.layer[0]
    layer.output.dense.register_forward_hook(lambda *_: None)
    nn.utils.parametrizations.weight_norm(layer.intermediate.dense)
    layer.attention.self.key = type("Own", (nn.Linear,), {})(32, 32)
    layer.attention.self.value.weight.data[0, 0] = float("inf")
    report = fasttx.quantize(model, fasttx.Int8Config(skip=["*.query", "encoder.layer.1.*"]))
    assert int8_names(model) == {"encoder.layer.0.attention.output.dense"}
    reasons = {row.module: row.reason for row in report.left_alone}
    inside = "encoder.layer.0."
    assert reasons[f"{inside}output.dense"] == "it has hooks"
    assert "Parametrized" in reasons[f"{inside}intermediate.dense"] and "Own" in reasons[f"{inside}attention.self.key"]
    assert reasons[f"{inside}attention.self.value"] == "its weight holds a NaN or an infinity"
    assert reasons[f"{inside}attention.self.query"] == "skip names it: '*.query'"
    assert reasons["encoder.layer.1.output.dense"] == "skip names it: 'encoder.layer.1.*'"
    with pytest.warns(UserWarning, match="fasttx.quantize replaced nothing.*is int8 already"):
        again = fasttx.quantize(model, fasttx.Int8Config(skip=["*.query", "encoder.layer.1.*"]))
    assert {row.reason for row in again.left_alone if row.module in int8_names(model)} == {"is int8 already"}


def test_lora_is_left_alone() -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    config = peft.LoraConfig(target_modules=["query"], r=2, init_lora_weights=False)
    model = peft.get_peft_model(tiny(), config)
    report = fasttx.quantize(model)
    reasons = {row.module: row.reason for row in report.left_alone}
    assert len(int8_names(model)) == 10
    assert all(type(m) is not Int8Linear for n, m in model.named_modules() if ".query" in n)
    assert sum("query.base_layer" in name and "is part of a peft." in reason for name, reason in reasons.items()) == 2


def test_backward_says_that_there_is_none() -> None:
    cls = "BertForSequenceClassification"
    model = tiny(cls).train()
    fasttx.quantize(model)
    loss = model(**zoo.inputs_for(zoo.BERT, cls)).loss
    with pytest.raises(RuntimeError, match="int8_linear: has no gradient"):
        loss.backward()


def test_saved_and_loaded(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    model = tiny()
    fasttx.quantize(model)
    want = run(model)
    assert torch.equal(run(copy.deepcopy(model)), want) and torch.equal(run(pickle.loads(pickle.dumps(model))), want)
    torch.save(model.state_dict(), tmp_path / "int8.pt")
    safetensors.save_file(model.state_dict(), tmp_path / "int8.safetensors")
    for saved in (torch.load(tmp_path / "int8.pt"), safetensors.load_file(tmp_path / "int8.safetensors")):
        fresh = tiny(seed=1)
        fasttx.quantize(fresh)
        fresh.load_state_dict(saved)
        assert torch.equal(run(fresh), want)
    with pytest.raises(RuntimeError, match="load float weights into the float model"):
        model.load_state_dict(tiny().state_dict(), strict=False)
    fasttx.dequantize(model)
    model.save_pretrained(tmp_path / "hf")
    again = transformers.BertModel.from_pretrained(tmp_path / "hf")
    assert torch.equal(run(again.eval()), run(model))


def test_cast_after_quantising() -> None:
    model = tiny()
    fasttx.quantize(model, fasttx.Int8Config(keep_float=True))
    want, scale = run(model), model.encoder.layer[0].output.dense.weight_scale.clone()
    model.to(torch.bfloat16)
    found = run(model)
    assert found.dtype == torch.bfloat16 and torch.equal(model.encoder.layer[0].output.dense.weight_scale, scale)
    torch.testing.assert_close(found.float(), want, rtol=0.1, atol=0.3)
    fasttx.dequantize(model)
    assert model.encoder.layer[0].output.dense.weight.dtype == torch.bfloat16


@pytest.mark.parametrize(
    "config, error, message",
    [
        ("int8", TypeError, "config: got str; allowed are fasttx.Int8Config and None"),
        (dict(activation="fixed"), ValueError, "activation: got 'fixed'; allowed are 'dynamic' and 'static'"),
        (dict(activation="static"), ValueError, "activation: got 'static' for encoder.layer.0.*and 11 more"),
        (dict(smooth=0.5), ValueError, r"smooth: got 0.5 for .*; allowed is a model that ran within fasttx"),
        (dict(smooth=1.5), ValueError, "smooth: got 1.5; allowed are None and numbers from 0 to 1"),
        (dict(smooth="0.5"), TypeError, "smooth: got '0.5'; allowed are None and numbers"),
        (dict(skip="*.query"), TypeError, "skip: got '\\*.query'; allowed is a sequence"),
        (
            dict(skip=("*.nothing", "*.query")),
            ValueError,
            r"skip: got \['\*.nothing'\]; allowed are patterns that match a linear layer",
        ),
        (dict(keep_float=1), TypeError, "keep_float: got 1"),
    ],
    ids=str,
)
def test_refusals(config: Any, error: type[Exception], message: str) -> None:
    model = tiny()
    with pytest.raises(error, match=message):
        fasttx.quantize(model, fasttx.Int8Config(**config) if isinstance(config, dict) else config)
    assert not int8_names(model)


def test_models_of_other_families_are_refused() -> None:
    with pytest.raises(
        ValueError, match="^model: got LayoutLMModel, without an encoder layer; allowed are those of BERT, RoBERTa"
    ):
        fasttx.quantize(zoo.stranger())
    with pytest.raises(ValueError, match="model: got int"):
        fasttx.quantize(3)


@pytest.mark.skipif(importlib.util.find_spec("sentence_transformers") is None, reason="no sentence-transformers")
def test_real_embeddings() -> None:
    """all-MiniLM-L6-v2 on real sentences, unpatched, patched, and inside sentence-transformers: directions stay."""
    from sentence_transformers import SentenceTransformer

    path = Path(fasttx.__file__).resolve().parents[1] / "bench" / "texts" / "dev.txt"
    text = [line.split("\t", 1)[1] for line in path.read_text(encoding="utf-8").splitlines() if line.strip()][:32]
    words = (directory() / "vocab.txt").read_text(encoding="utf-8").splitlines()
    tokenizer = transformers.BertTokenizerFast(vocab={word: i for i, word in enumerate(words)}, do_lower_case=True)
    batch = dict(tokenizer(text, padding=True, truncation=True, max_length=96, return_tensors="pt"))
    model = transformers.BertModel.from_pretrained(directory()).eval()
    with torch.no_grad():
        want = embeddings(model, batch)
        fasttx.quantize(model)
        found = embeddings(model, batch)
        fasttx.patch(model)
        patched = embeddings(model, batch)
    for name, got in (("unpatched", found), ("patched", patched)):
        cosines = (got * want).sum(-1)
        assert 0.995 <= cosines.mean() < 1 - 1e-5, f"{name}: {cosines.tolist()}"
    encoder = SentenceTransformer(str(directory()), device="cpu")
    text = text[:8]
    plain = torch.from_numpy(encoder.encode(text, normalize_embeddings=True))
    assert len(fasttx.quantize(encoder).replaced) == 36
    quantised = torch.from_numpy(encoder.encode(text, normalize_embeddings=True))
    assert 0.995 <= float((plain * quantised).sum(-1).mean()) < 1 - 1e-6
