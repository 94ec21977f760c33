"""A plain model made of torch.nn's encoder modules: patched, unpatched, reported, saved."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fasttx
import fasttx.nn as fasttx_nn
from fasttx.models.fusions import fusion
from fasttx.ops.backends import backend
from fasttx.ops.registry import LAUNCHES

ORIGINAL = ("MultiheadAttention", "TransformerEncoderLayer", "TransformerEncoder", "LayerNorm")


class Plain(nn.Module):
    """Embeddings, an encoder with a final norm, and attention pooling; one norm of its own that is left alone."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        self.first = nn.LayerNorm(16)
        layer = nn.TransformerEncoderLayer(16, 2, 24, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(16))
        self.pool = nn.MultiheadAttention(16, 2, batch_first=True)
        self.query = nn.Parameter(torch.randn(1, 1, 16))

    def forward(self, ids: Tensor, padding: Tensor) -> Tensor:
        x = self.encoder(self.first(self.embed(ids)), src_key_padding_mask=padding)
        query = self.query.expand(len(ids), -1, -1)
        return self.pool(query, x, x, key_padding_mask=padding, need_weights=False)[0][:, 0]


@pytest.fixture
def model() -> Plain:
    return Plain()


def batch() -> tuple[Tensor, Tensor]:
    return torch.randint(0, 20, (3, 6)), torch.arange(6) >= torch.tensor([[6], [4], [1]])


def gradients(model: nn.Module, *args: Any) -> list[Any]:
    model.zero_grad()
    out = model(*args)
    (out * torch.linspace(-1, 2, out.numel()).view(out.shape)).sum().backward()
    return [out, *(p.grad for p in model.parameters())]


def test_patched_and_back(model: Plain) -> None:
    args = batch()
    before = gradients(model, *args)
    classes, keys = [type(m) for m in model.modules()], list(model.state_dict())
    values = [p.data_ptr() for p in model.parameters()]
    report = fasttx.patch(model, strict=True)
    found = {row.module: (row.before, row.after, row.backend) for row in report.replaced}
    assert found["encoder"] == ("TransformerEncoder", "fasttx.nn.TransformerEncoder", "torch")
    assert found["encoder.layers.1"][1] == "fasttx.nn.TransformerEncoderLayer"
    assert found["encoder.layers.0.self_attn"][1] == found["pool"][1] == "fasttx.nn.MultiheadAttention"
    assert set(found) == {
        "pool",
        "encoder",
        "encoder.norm",
        *(f"encoder.layers.{i}{part}" for i in range(2) for part in ("", ".self_attn", ".norm1", ".norm2")),
    }
    assert not report.left_alone and type(model.first) is nn.LayerNorm and fasttx.is_patched(model)
    assert [type(m).__name__ for m in model.modules()] == [cls.__name__ for cls in classes]
    assert list(model.state_dict()) == keys and [p.data_ptr() for p in model.parameters()] == values
    for name in ("auto", "torch"):
        with backend(name):
            torch.testing.assert_close(gradients(model, *args), before)
    fasttx.unpatch(model)
    assert [type(m) for m in model.modules()] == classes and not fasttx.is_patched(model)
    torch.testing.assert_close(gradients(model, *args), before)


def test_a_norm_waits_for_a_gpu(model: Plain, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU torch's own function computes it, and the report does not count it; a forced kernel runs everywhere."""
    monkeypatch.setattr(fusion, "UNFUSED_ON", frozenset(("cpu",)))  # which the other tests take away
    report = fasttx.patch(model.cpu())
    waits = {row.module for row in report.replaced if not row.here}
    assert waits == {"encoder.norm", *(f"encoder.layers.{i}.norm{j}" for i in range(2) for j in (1, 2))}
    assert ": 6 replaced, 5 that change on a GPU only, 0 left alone" in str(report)
    fasttx.unpatch(model)
    with backend("triton"):
        assert all(row.here for row in fasttx.patch(model).replaced)


def test_the_kernels_run(model: Plain) -> None:
    args = batch()
    expected = model(*args)
    with fasttx.patched(model), backend("triton"):
        LAUNCHES.clear()
        # the model's own torch.nn.LayerNorm is torch's whatever is forced
        torch.testing.assert_close(model(*args), expected)
    assert LAUNCHES == {("attention_fwd", "triton"): 3, ("dropout_add_layer_norm_fwd", "triton"): 5}
    assert type(model.pool) is nn.MultiheadAttention


def test_evaluation_packs_and_agrees(model: Plain) -> None:
    args = batch()
    with torch.no_grad():
        expected = model.eval()(*args)
        fasttx.patch(model)
        for name in ("auto", "torch"):
            with backend(name):
                torch.testing.assert_close(model(*args), expected)


def test_copies_pickles_and_states(model: Plain) -> None:
    args = batch()
    expected = model(*args)
    fasttx.patch(model)
    for m in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(m(*args), expected)
        fasttx.unpatch(m)
        assert not any(type(part).__module__.startswith("fasttx") for part in m.modules())
    fresh = Plain()
    fresh.load_state_dict(model.state_dict())
    torch.testing.assert_close(fresh(*args), expected)


def test_what_is_left_alone_says_why(model: Plain) -> None:
    class Mine(nn.MultiheadAttention):
        pass

    model.pool.__class__ = Mine
    model.encoder.layers[0].norm1 = nn.Identity()
    model.encoder.layers[1].forward = model.encoder.layers[1].forward
    report = fasttx.patch(model)
    reasons = {row.module: row.reason for row in report.left_alone}
    assert set(reasons) == {"pool", "encoder.layers.0.norm1", "encoder.layers.1"}
    assert "subclass of MultiheadAttention" in reasons["pool"] and type(model.pool) is Mine
    assert "replaced on the instance" in reasons["encoder.layers.1"]
    model(*batch())


@pytest.mark.parametrize("options", [{"attention": False}, {"backend": "triton"}, {"deterministic": True}])
def test_options_that_do_not_reach_them(model: Plain, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="replaced nothing"):
        fasttx.patch(model, strict=True, **options)
    with pytest.warns(UserWarning, match="replaced nothing in Plain"):
        fasttx.patch(model, **options)
    assert not fasttx.is_patched(model)


def test_a_model_of_our_own_modules_is_not_touched() -> None:
    layer = fasttx_nn.TransformerEncoderLayer(16, 2, 24, batch_first=True)
    with pytest.warns(UserWarning, match="replaced nothing"):
        fasttx.patch(layer)
    assert type(layer) is fasttx_nn.TransformerEncoderLayer and not fasttx.is_patched(layer)


def test_every_class_knows_what_unpatch_gives_back() -> None:
    for name in ORIGINAL:
        assert getattr(fasttx_nn, name).__dict__["_fasttx_original"] is getattr(nn, name)


def test_a_model_of_neither_kind() -> None:
    with pytest.raises(
        ValueError, match="^model: got .*, without a transformers model; allowed are .*TransformerEncoder"
    ):
        fasttx.patch(nn.Linear(2, 2))
