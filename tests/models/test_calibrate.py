"""fasttx.calibrate, and what comes of it: one scale a layer, and smoothed inputs, in every family."""

from __future__ import annotations

import copy
import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from models import model_zoo as zoo
from models.test_capture import FAMILIES as FROZEN
from models.test_capture import bare, batch, hidden
from models.test_quantize import int8_names, tiny
from torch import Tensor, nn

import fasttx
from fasttx.nn import int8
from fasttx.nn.int8 import OF_INPUT
from fasttx.quant import seen
from fasttx.quant.seen import ROWS, Seen, seen_by

BOTH = fasttx.Int8Config(activation="static", smooth=0.5)


def calibrated(family: Any = zoo.BERT, **changes: Any) -> Any:
    """A model with channels of very different size, which ran once."""
    model = zoo.tiny_model(family, family.bare, **changes)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                module.weight[::5] *= 6
    with fasttx.calibrate(model), torch.inference_mode():
        model(**zoo.inputs_for(family, family.bare))
    return model


def last(model: Any, family: Any = zoo.BERT) -> Tensor:
    inputs = zoo.inputs_for(family, family.bare)
    with torch.no_grad():
        found = model(**inputs).last_hidden_state
    return found[inputs["attention_mask"].bool()] if "attention_mask" in inputs else found


@pytest.mark.parametrize("family", zoo.FAMILIES, ids=lambda family: family.name)
def test_smoothing_changes_no_float(family: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With nothing rounded, a smoothed model is the float model: factors are powers of two, and cancel out."""
    model = calibrated(family)
    want = last(model, family)
    monkeypatch.setattr(Seen, "errors", lambda self, weights, factor: (float(factor is None),) * 2)
    monkeypatch.setattr(int8, "quantize_per_channel", lambda weight: (weight.detach(), torch.ones(len(weight))))
    monkeypatch.setattr(int8, "int8_linear", lambda x, w, _, bias, **__: nn.functional.linear(x, w, bias))
    report = fasttx.quantize(model, fasttx.Int8Config(smooth=0.5, keep_float=True))
    factors = [layer.input_factor for layer in fasttx.quant.int8_layers(model).values()]
    assert factors and all(f is not None and torch.equal(f.log2().round().exp2(), f) for f in factors)
    assert max(float(f.max() / f.min()) for f in factors if f is not None) >= 4
    assert {row.reason for row in report.replaced} == {"activations by token, smoothed"}
    torch.testing.assert_close(last(model, family), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["ViT", "DeiT", "ModernBERT", "BERT"])
def test_factors_go_into_norms_that_feed_nothing_else(name: str, tmp_path: Path) -> None:
    """The same bits as with factors in the layers; in post-norm layers, and where a reader stays float, none do."""
    family = zoo.BY_NAME[name]
    if family not in zoo.FAMILIES:
        pytest.skip(zoo.BUILT_OTHERWISE)
    config = fasttx.Int8Config(smooth=0.5)
    model = calibrated(family)
    apart, some = copy.deepcopy(model), copy.deepcopy(model)
    norms = {n: m.weight.clone() for n, m in model.named_modules() if isinstance(m, nn.LayerNorm)}
    fasttx.quantize(apart, fasttx.Int8Config(smooth=0.5, keep_float=True))
    fasttx.quantize(model, config)
    want, found = last(apart, family), last(model, family)
    assert torch.equal(found, want)
    changed = {n for n, m in model.named_modules() if n in norms and not torch.equal(m.weight, norms[n])}
    left = sum(layer.input_factor is not None for layer in fasttx.quant.int8_layers(model).values())
    factors = sum(layer.input_factor is not None for layer in fasttx.quant.int8_layers(apart).values())
    assert (len(changed) >= 2 and left < factors) if name != "BERT" else (not changed and left == factors > 0)
    model.save_pretrained(tmp_path)
    assert torch.equal(last(type(model).from_pretrained(tmp_path), family), found)
    fasttx.dequantize(model)
    fasttx.dequantize(apart)
    assert (last(model, family) - last(apart, family)).norm() < 0.1 * want.norm()
    if name in ("ViT", "DeiT"):
        fasttx.quantize(some, fasttx.Int8Config(smooth=0.5, skip=["*.v_proj"]))
        assert all(torch.equal(m.weight, norms[n]) for n, m in some.named_modules() if "before" in n and n in norms)


@pytest.mark.parametrize("family", zoo.FAMILIES, ids=lambda family: family.name)
def test_static_and_smoothed_in_every_family(family: Any, tmp_path: Path) -> None:
    """Near the float model, patched too, and the same once it was saved and loaded, and in a state dictionary."""
    model = calibrated(family)
    want = last(model, family)
    twin = copy.deepcopy(model)  # with what the calibration saw
    report = fasttx.quantize(model, BOTH)
    reasons = {row.reason for row in report.replaced}
    assert "activations by one scale, smoothed" in reasons and all("one scale" in reason for reason in reasons)
    assert all(seen_by(module) is None for module in model.modules())
    found = last(model, family)
    assert 0 < (found - want).norm() < 0.2 * want.norm()
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert saved["made_by"] == {
        "activation": "static",
        "skip": [],
        "keep_float": False,
        "smooth": 0.5,
        "measure": False,
    }
    assert len(saved["static"]) == len(saved["layers"]) >= len(saved["smoothed"])
    assert saved["smoothed"] or family.norms  # which took all factors
    loaded = type(model).from_pretrained(tmp_path)
    fasttx.quantize(twin)  # neither static nor smoothed: what is loaded brings both
    twin.load_state_dict(model.state_dict())
    for other in (loaded, twin):
        for name, tensor in model.state_dict().items():
            assert torch.equal(other.state_dict()[name], tensor) and other.state_dict()[name].dtype == tensor.dtype
        assert (last(other, family) - found).norm() < 0.02 * want.norm()
    loaded.save_pretrained(tmp_path / "again")
    again = json.loads((tmp_path / "again" / "config.json").read_text())["quantization_config"]
    assert again == saved
    fasttx.patch(loaded)
    assert (last(loaded, family) - found).norm() < 0.02 * want.norm()  # the last bits of attention move a rounding


@pytest.mark.parametrize("config", [BOTH, fasttx.Int8Config(smooth=0.5), fasttx.Int8Config(activation="static")])
@pytest.mark.parametrize("family", FROZEN, ids=lambda family: family.name)
def test_captured(family: Any, config: fasttx.Int8Config) -> None:
    model = bare(family)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                module.weight[::5] *= 6
    exact = hidden(model, batch(5, 3, 9))
    with fasttx.calibrate(model):
        hidden(model, batch(5, 3, 9))
    fasttx.quantize(model, config)
    fasttx.patch(model, unpad=True)
    want = hidden(model, batch(5, 3, 9))
    with fasttx.capture(model) as captured:
        found = hidden(captured.model, batch(5, 3, 9))
        assert captured.stats["calls"] == 1
    assert (found - want).norm() < 0.02 * exact.norm() and 0 < (want - exact).norm() < 0.5 * exact.norm()


def test_layers_that_read_one_tensor_in_two_ways_are_not_frozen() -> None:
    model = bare()
    with fasttx.calibrate(model):
        hidden(model, batch(5, 3))
    fasttx.quantize(model, fasttx.Int8Config(activation="static"))
    model.encoder.layer[1].attention.self.key.input_scale *= 2
    with pytest.raises(ValueError, match="read the same input have more than one input_scale"):
        fasttx.capture(model)


def test_dequantized() -> None:
    model = calibrated()
    exact = {name: t.clone() for name, t in model.state_dict().items()}
    twin = copy.deepcopy(model)
    fasttx.quantize(model, BOTH)
    factor = model.encoder.layer[0].attention.self.query.input_factor
    fasttx.dequantize(model)
    name = "encoder.layer.0.attention.self.query.weight"
    error = (model.state_dict()[name] - exact[name]).abs()
    assert factor is not None and 0 < error.max() < 0.05 * exact[name].abs().max()
    fasttx.quantize(twin, fasttx.Int8Config(activation="static", smooth=0.5, keep_float=True))
    fasttx.dequantize(twin)
    assert all(torch.equal(t, exact[name]) for name, t in twin.state_dict().items())


def test_casts_and_devices_leave_scale_and_factor() -> None:
    model = calibrated()
    fasttx.quantize(model, BOTH)
    layer = model.encoder.layer[0].attention.self.query
    before = {name: getattr(layer, name).clone() for name in OF_INPUT}
    want = last(model)
    model.to(torch.bfloat16)
    assert all(torch.equal(getattr(layer, name), before[name]) for name in OF_INPUT)
    assert layer(torch.randn(3, 32).bfloat16()).dtype == torch.bfloat16
    assert (last(model).float() - want).norm() < 0.2 * want.norm()
    assert "input_scale, input_factor" in repr(layer)


def test_padding_is_left_out() -> None:
    inputs = zoo.inputs_for(zoo.BERT, "BertModel")
    found = []
    for fill in (5, 60):
        model = tiny()
        ids = torch.where(inputs["attention_mask"].bool(), inputs["input_ids"], fill)
        with fasttx.calibrate(model), torch.no_grad():
            model(ids, attention_mask=inputs["attention_mask"])
        what = seen_by(model.encoder.layer[0].attention.self.query)
        assert what is not None and what.calls == {sum(zoo.LENGTHS): 1} and len(what.rows) == sum(zoo.LENGTHS)
        found.append(what.largest)
        assert what is seen_by(model.encoder.layer[0].attention.self.value)
        assert what is not seen_by(model.encoder.layer[0].attention.output.dense)
    torch.testing.assert_close(found[0], found[1])


def test_a_block_begins_anew_and_one_that_fails_changes_nothing() -> None:
    model, inputs = tiny(), zoo.inputs_for(zoo.BERT, "BertModel")
    linear = model.encoder.layer[1].output.dense
    with fasttx.calibrate(model) as same:
        assert same is model
        model(**inputs)
    first = seen_by(linear)
    with pytest.raises(KeyError), fasttx.calibrate(model):
        model(**inputs)
        raise KeyError
    assert seen_by(linear) is first and not linear._forward_pre_hooks and not model._forward_pre_hooks
    with fasttx.calibrate(model):
        pass
    assert seen_by(linear) is None


def test_an_int8_model_is_refused() -> None:
    model = tiny()
    fasttx.quantize(model)
    with pytest.raises(ValueError, match="whose linear layers are int8; allowed is .* before fasttx.quantize"):
        fasttx.calibrate(model).__enter__()
    with pytest.raises(ValueError, match="model: got .*, without an encoder layer"):
        fasttx.calibrate(nn.Linear(2, 2)).__enter__()


def test_layers_that_did_not_run_are_named_and_nothing_is_changed() -> None:
    model = calibrated()
    for layer in model.encoder.layer:
        layer.output.dense.__dict__.pop(seen.SEEN)
    with pytest.raises(ValueError, match="smooth: got 0.5 for encoder.layer.0.output.dense and 1 more"):
        fasttx.quantize(model, BOTH)
    assert not int8_names(model)
    fasttx.quantize(model, fasttx.Int8Config(smooth=0.5, skip=["*.?.output.dense"]))
    assert len(int8_names(model)) == 10


def test_some_rows_of_all_are_kept() -> None:
    what, total, before = Seen(), 0, torch.get_rng_state()
    for n in (7, 1000, 300, 0, 1, 4000):
        what.add(torch.arange(total, total + n)[:, None].float())
        total += n
    kept = what.rows[:, 0].sort().values
    assert len(kept.unique()) == ROWS and what.largest == total - 1 and what.calls.total() == 5
    halves = int((kept < total / 2).sum())
    assert 0.4 * ROWS < halves < 0.6 * ROWS and 0.3 < (kept % 2).mean() < 0.7
    assert torch.equal(torch.get_rng_state(), before)


def test_a_scale_reaches_the_largest_value() -> None:
    what = Seen()
    what.add(torch.tensor([[1.0, -2.0], [0.5, 0.0]]))
    assert what.scale(None) == torch.tensor(2.0) / 127
    assert what.scale(torch.tensor([4.0, 1.0])) == torch.tensor(4.0) / 127


def test_the_factor_is_smoothquants(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Seen, "errors", lambda self, weights, factor: (float(factor is None),) * 2)
    sizes, weights = torch.tensor([1.0, 2.0, 16.0]), torch.tensor([[0.5, 1.0, 4.0], [-1.0, 0.25, 1.0]])
    what = Seen()
    what.add(torch.randn(50, 3).clamp(-1, 1) * sizes)
    what.add(-sizes[None])
    for alpha, want in ((1.0, 1 / sizes), (0.0, torch.tensor([1.0, 1.0, 4.0])), (0.5, torch.tensor([1.0, 0.5, 0.5]))):
        found = what.factor([weights[:1], weights[1:]], alpha)
        assert found is not None
        ratio = (found / found[0]) / (want / want[0])
        assert torch.all(ratio.log2().abs() <= 1.0) and torch.equal(found.log2(), found.log2().round())
        assert alpha == 0.5 or torch.equal(ratio, torch.ones(3))


@pytest.mark.parametrize("keep", [False, True])
def test_verified_and_explained(keep: bool) -> None:
    """The float layer beside an int8 one knows of the factor."""
    model = calibrated()
    fasttx.quantize(model, fasttx.Int8Config(activation="static", smooth=0.5, keep_float=keep))
    fasttx.patch(model)
    inputs = zoo.inputs_for(zoo.BERT, "BertModel")
    found = fasttx.verify(model, inputs)
    assert found.ok and len(found.int8) == 12 and all(0 < layer.error < 0.06 for layer in found.int8), found
    assert "int8_linear" in str(fasttx.explain(model, inputs))


@pytest.mark.parametrize("shared", ["module", "weight"])
def test_a_norm_at_several_places_gets_no_factor_twice(shared: str) -> None:
    family = zoo.BY_NAME["ViT"]
    model = zoo.tiny_model(family, family.bare)
    layers = [m for m in model.modules() if hasattr(m, "layernorm_before")]
    if shared == "module":
        layers[1].layernorm_before = layers[0].layernorm_before
    else:
        layers[1].layernorm_before.weight = layers[0].layernorm_before.weight
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    given, want = model.state_dict(), last(model, family)
    with fasttx.calibrate(model):
        last(model, family)
    fasttx.quantize(model, fasttx.Int8Config(smooth=0.5))
    assert (last(model, family) - want).norm() < 0.1 * want.norm()
    assert all(torch.equal(given[name], tensor) for name, tensor in state.items())  # the caller's tensors


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_loaded_in_another_dtype(dtype: torch.dtype, tmp_path: Path) -> None:
    model = calibrated(zoo.BERT)
    fasttx.quantize(model, BOTH)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, dtype=dtype)
    want = last(model, zoo.BERT)
    assert (last(loaded, zoo.BERT).float() - want).norm() < 0.2 * want.norm()  # bfloat16 moves roundings
    for name, layer in fasttx.quant.int8_layers(loaded).items():
        of_model = fasttx.quant.int8_layers(model)[name]
        assert layer.input_scale is not None and torch.equal(layer.input_scale, of_model.input_scale)


def test_an_error_in_between_leaves_the_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    family = zoo.BY_NAME["ViT"]
    model = calibrated(family)
    before, want = {n: t.clone() for n, t in model.state_dict().items()}, last(model, family)

    def fails(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib.import_module("fasttx.models.quantize"), "mark", fails)
    with pytest.raises(KeyboardInterrupt):
        fasttx.quantize(model, fasttx.Int8Config(smooth=0.5))
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items()) and not int8_names(model)
    assert torch.equal(last(model, family), want)
