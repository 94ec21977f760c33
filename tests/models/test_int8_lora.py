"""LoRA on int8 layers by PEFT: adapters train as on the float layers that the integers stand for, which stay."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from models import model_zoo as zoo
from models.test_quantize import int8_names, tiny
from torch import Tensor

import fasttx
from fasttx.nn import Int8Linear
from fasttx.nn.int8 import FLOATS_OF_IT

peft = pytest.importorskip("peft", reason="peft is not installed")
HEAD = "BertForSequenceClassification"
INPUTS = zoo.inputs_for(zoo.BERT, HEAD)


def config(**options: Any) -> Any:
    return peft.LoraConfig(**{"target_modules": ["query", "value"], "r": 4, "init_lora_weights": False} | options)


def adapted(smooth: bool = False, patch: bool = False, **options: Any) -> Any:
    """A quantised classifier with adapters, the same each time."""
    model = zoo.tiny_model(zoo.BERT, HEAD)
    if smooth:
        with fasttx.calibrate(model), torch.no_grad():
            model(**INPUTS)
    fasttx.quantize(model, fasttx.Int8Config(smooth=0.5 if smooth else None))
    if patch:
        fasttx.patch(model)
    given = fasttx.lora_on_int8(model, config(**options))
    torch.manual_seed(1)
    return peft.get_peft_model(model, given)


def integers(model: Any) -> dict[str, Tensor]:
    return {n: b.clone() for n, b in model.named_buffers() if n.rsplit(".", 1)[-1] in ("weight", *FLOATS_OF_IT)}


def gradients(model: Any) -> dict[str, Tensor]:
    model.zero_grad()
    model(**INPUTS).loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad and p.grad is not None}


@pytest.mark.parametrize("patch", [False, True])
@pytest.mark.parametrize("smooth", [False, True])
def test_a_step_trains_adapters_and_leaves_integers(smooth: bool, patch: bool) -> None:
    """Also those below int8 layers without one; gradients are nearly those of the float model."""
    model = adapted(smooth, patch).train()
    before = integers(model)
    assert len(int8_names(model)) == 12 and len(before) >= 24
    floats = copy.deepcopy(model)
    fasttx.dequantize(floats)
    found, want = gradients(model), gradients(floats)
    assert len(found) == 2 * 2 * 2 and found.keys() == {name for name in want if "lora" in name}
    for name, gradient in found.items():
        cosine = torch.nn.functional.cosine_similarity(gradient.flatten(), want[name].flatten(), dim=0)
        assert cosine > 0.9 and gradient.any(), f"{name}: {cosine}"
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)
    losses = []
    for _ in range(12):
        loss = model(**INPUTS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]
    assert all(torch.equal(buffer, before[name]) for name, buffer in integers(model).items())


def test_adapters_are_saved_and_loaded(tmp_path: Path) -> None:
    model = adapted(target_modules=["query", "dense"], modules_to_save=["classifier"]).eval()
    with torch.no_grad():
        want = model(**INPUTS).logits
    model.save_pretrained(tmp_path)
    base = zoo.tiny_model(zoo.BERT, HEAD)
    fasttx.quantize(base)
    given = fasttx.lora_on_int8(base, peft.PeftConfig.from_pretrained(tmp_path))
    found = peft.PeftModel.from_pretrained(base, tmp_path, config=given).eval()
    with torch.no_grad():
        torch.testing.assert_close(found(**INPUTS).logits, want)


def test_merged_into_floats_alone() -> None:
    model = adapted().eval()
    with pytest.raises(ValueError, match="merge: got an adapter on an int8 layer; allowed .* fasttx.dequantize"):
        model.merge_and_unload()
    fasttx.dequantize(model)
    with torch.no_grad():
        want = model(**INPUTS).logits
        merged = model.merge_and_unload()
        torch.testing.assert_close(merged(**INPUTS).logits, want, rtol=1e-4, atol=1e-5)


def test_the_gradients_of_one_layer() -> None:
    """Those of the float layer to the last bits, in each dtype, through GELU, and of a bias."""
    linear = torch.nn.Linear(24, 16)
    factor = torch.randint(-3, 4, (24,)).float().exp2()
    for dtype in (torch.float32, torch.bfloat16):
        int8 = Int8Linear.from_float(copy.deepcopy(linear), None, factor).to(dtype)
        int8.straight_through = True
        plain = int8.dequantize()
        x, dout = torch.randn(2, 5, 24, dtype=dtype), torch.randn(2, 5, 16, dtype=dtype)
        grads = []
        for each in (int8, plain):
            given = x.clone().requires_grad_()
            each.bias.grad = None
            each(given).backward(dout)
            grads.append((given.grad, each.bias.grad.clone()))
        for a, b in zip(*grads):
            assert a.dtype == dtype
            torch.testing.assert_close(a, b, rtol=2e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-2)
    int8, x = Int8Linear.from_float(linear), torch.randn(3, 24)
    with torch.no_grad():
        fused = int8(x, "gelu_tanh")
    int8.straight_through = True
    found, want = x.clone().requires_grad_(), x.clone().requires_grad_()
    out = int8(found, "gelu_tanh")
    torch.testing.assert_close(out, fused)
    out.sum().backward()
    torch.nn.functional.gelu(int8.dequantize()(want), approximate="tanh").sum().backward()
    torch.testing.assert_close(found.grad, want.grad, rtol=0.05, atol=0.02)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"init_lora_weights": "pissa"}, ValueError, "config: got init_lora_weights='pissa'; allowed are True"),
        ({"target_modules": "all-linear"}, ValueError, "config: got target_modules='all-linear'; allowed are names"),
        ({"use_dora": True}, ValueError, "config: got use_dora=True; allowed is False"),
    ],
)
def test_refusals(options: dict[str, Any], error: type[Exception], message: str) -> None:
    model = tiny()
    fasttx.quantize(model)
    with pytest.raises(error, match=message):
        fasttx.lora_on_int8(model, config(**options))
    assert not any(m.straight_through for m in model.modules() if isinstance(m, Int8Linear))
    with pytest.raises(TypeError, match="config: got dict; allowed is a peft.LoraConfig"):
        fasttx.lora_on_int8(model, {})
    with pytest.raises(ValueError, match="model: got a BertModel without an int8 layer"):
        fasttx.lora_on_int8(tiny(), config())
