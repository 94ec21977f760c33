"""explain and verify on a patched model that is made of torch.nn's modules, whatever form its output has."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fasttx
from fasttx.ops.backends import backend


class Classifier(nn.Module):
    """Gives a mapping, a tuple, logits or the loss alone, as `form` says."""

    def __init__(self, form: str) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 24, dropout=0.5, batch_first=True)
        self.encoder, self.head, self.form = nn.TransformerEncoder(layer, 1), nn.Linear(16, 3), form

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        logits = self.head(self.encoder(x).mean(1))
        if labels is None:
            return logits
        loss = nn.functional.cross_entropy(logits, labels)
        return {"mapping": {"loss": loss, "logits": logits}, "tuple": (loss, logits), "loss": loss}[self.form]


def batch(labels: bool = True) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {"x": torch.randn(2, 5, 16)} | ({"labels": torch.tensor([0, 2])} if labels else {})


def patched(form: str) -> nn.Module:
    model = Classifier(form)
    fasttx.patch(model)
    return model


@pytest.mark.parametrize(
    ("form", "labels", "outputs"),
    [
        ("mapping", True, ["logits"]),
        ("tuple", True, ["output[1]"]),
        ("loss", True, []),
        ("mapping", False, ["output"]),
    ],
)
def test_what_a_step_gives(form: str, labels: bool, outputs: list[str]) -> None:
    model = patched(form)
    before = {name: p.clone() for name, p in model.named_parameters()}
    explained, verified = fasttx.explain(model, batch(labels)), fasttx.verify(model, batch(labels))
    assert explained.backward is labels
    assert {d.what for d, _ in explained.rows} == {"scaled_dot_product_attention", "dropout_add_layer_norm"}
    names = {kind: [row.name for row in verified.rows if row.kind == kind] for kind in ("output", "loss", "gradient")}
    assert names["output"] == outputs and names["loss"] == (["loss"] if labels else [])
    assert names["gradient"] == (list(before) if labels else [])
    assert verified.ok and verified.model == "Classifier" and verified.reference == "float64"
    for name, p in model.named_parameters():
        assert p.grad is None and torch.equal(p, before[name])


def test_dropout_of_attention_weights_is_off_and_comes_back() -> None:
    """Its masks are not those of torch where a kernel draws them."""
    model = patched("mapping")
    with backend("triton"):
        assert fasttx.verify(model, batch()).ok
    assert model.encoder.layers[0].self_attn.dropout == model.encoder.layers[0].dropout.p == 0.5


def test_a_wrong_layer_is_found() -> None:
    model = patched("tuple")
    attention = model.encoder.layers[0].self_attn
    forward = type(attention).forward

    class Wrong(type(attention)):
        _fasttx_original = type(attention)._fasttx_original

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            out, weights = forward(self, *args, **kwargs)
            return out * 1.01, weights

    attention.__class__ = Wrong
    assert not fasttx.verify(model, batch()).ok


def test_sequential_is_called_by_name() -> None:
    model = nn.Sequential(nn.TransformerEncoderLayer(16, 2, 24, batch_first=True))
    fasttx.patch(model)
    given = {"input": batch()["x"]}
    assert not fasttx.explain(model, given).backward
    assert [row.name for row in fasttx.verify(model, given).rows] == ["output"]


def test_what_cannot_be_compared_is_said() -> None:
    message = "^model: got a Classifier that is not patched and holds nothing of fasttx.nn; allowed is"
    with pytest.raises(ValueError, match=message):
        fasttx.verify(Classifier("tuple"), batch())
    for call in (fasttx.explain, fasttx.verify):
        with pytest.raises(TypeError, match="batch: got float; allowed is"):
            call(patched("tuple"), 3.0)
