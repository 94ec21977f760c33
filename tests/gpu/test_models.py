"""A patched BERT on the device: torch.compile, autocast, CUDA graphs of a whole inference, several devices."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fasttx
import fasttx.functional as F

pytest.importorskip("transformers")


def _models(
    device: torch.device, dtype: torch.dtype = torch.float32, dropout: float = 0.0
) -> tuple[nn.Module, nn.Module]:
    """(unpatched, patched) with the same weights."""
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        vocab_size=99,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=96,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        attn_implementation="sdpa",
    )
    torch.manual_seed(0)
    plain = BertForMaskedLM(config).to(device, dtype)
    patched = BertForMaskedLM(config).to(device, dtype)
    patched.load_state_dict(plain.state_dict())
    fasttx.patch(patched)
    return plain.eval(), patched.eval()


def _batch(device: torch.device) -> dict[str, Tensor]:
    ids = torch.randint(5, 99, (3, 20), device=device)
    mask = (torch.arange(20, device=device) < torch.tensor([[20], [7], [13]], device=device)).long()
    return {"input_ids": ids * mask, "attention_mask": mask, "labels": torch.where(mask.bool(), ids, -100)}


def test_compiled_functions(device: torch.device, compile_backend: str) -> None:
    q, k, v = (torch.randn(2, 2, 40, 32, device=device, requires_grad=True) for _ in range(3))
    target = torch.arange(80, device=device) % 32

    def step(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = F.scaled_dot_product_attention(q, k, v)
        return F.cross_entropy(F.softmax(out, -1).flatten(0, 1).flatten(0, 1)[:80], target)

    with fasttx.backend("triton"):
        expected = step(q, k, v)
        grads = torch.autograd.grad(expected, (q, k, v))
        compiled = torch.compile(step, fullgraph=True, backend=compile_backend)
        loss = compiled(q, k, v)
        torch.testing.assert_close(loss, expected)
        for actual, grad in zip(torch.autograd.grad(loss, (q, k, v)), grads, strict=True):
            torch.testing.assert_close(actual, grad, rtol=1e-4, atol=1e-6)


def test_compiled_model(device: torch.device, compile_backend: str) -> None:
    _, patched = _models(device)
    batch = _batch(device)
    with fasttx.backend("triton"):
        expected = patched(**batch).loss
        expected.backward()
        grad = patched.bert.encoder.layer[0].attention.self.query.weight.grad.clone()
        patched.zero_grad()
        loss = torch.compile(patched, fullgraph=True, backend=compile_backend)(**batch).loss
        loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        patched.bert.encoder.layer[0].attention.self.query.weight.grad, grad, rtol=1e-3, atol=1e-5
    )


def test_autocast(device: torch.device) -> None:
    """bf16 autocast: the patched loss is as near to float32 as the unpatched one."""
    plain, patched = _models(device)
    batch = _batch(device)
    exact = plain(**batch).loss.item()
    with torch.autocast(device.type, torch.bfloat16), fasttx.backend("triton"):
        loss = patched(**batch).loss
    with torch.autocast(device.type, torch.bfloat16):
        same = plain(**batch).loss.item()
    loss.backward()
    assert abs(loss.item() - exact) <= 2 * abs(same - exact) + 8e-3 * abs(exact)
    assert all(torch.isfinite(p.grad).all() for p in patched.parameters() if p.grad is not None)


def test_graph_of_an_inference(device: torch.device, capture: Any) -> None:
    plain, patched = _models(device)
    batch = _batch(device)
    del batch["labels"]
    found: dict[str, Tensor] = {}

    def step() -> None:
        with torch.no_grad():
            found["logits"] = patched(**batch).logits

    with fasttx.backend("triton"):
        graph = capture(step)
        batch["input_ids"].copy_(_batch(device)["input_ids"])
        graph.replay()
    with torch.no_grad():
        expected = plain(**batch).logits
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(found["logits"][real], expected[real], rtol=1e-3, atol=1e-3)


def test_second_device() -> None:
    """A model on a device that is not the current one."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs a second GPU")
    device = torch.device("cuda", 1)
    plain, patched = _models(device)
    batch = _batch(device)
    torch.testing.assert_close(patched(**batch).loss, plain(**batch).loss, rtol=1e-3, atol=1e-3)
