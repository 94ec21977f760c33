"""Captured int8 models: norms hand rows on int8 on, and the kernels are called without the table where nobody looks."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
import torch.utils.flop_counter
from models import model_zoo as zoo
from models.test_capture import BATCHES, FAMILIES, bare, batch, hidden
from torch import Tensor

import fasttx
from fasttx.models.capture import products
from fasttx.models.capture.frozen import FrozenEncoder
from fasttx.models.capture.products import Given
from fasttx.ops import dispatch, tuned, verdicts
from fasttx.ops.cpu import direct, launch
from fasttx.testing import poisoned_outputs

SEEN = {
    "a profiler": lambda: torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]),
    "poisoned outputs": poisoned_outputs,
    "a mode": lambda: torch.utils.flop_counter.FlopCounterMode(display=False),
    "another backend": lambda: fasttx.backend("torch"),
    "a measurement": lambda: tuned.taking("int8_linear", torch.device("cpu"), torch.float32, "torch", ["any"]),
}
"""What makes the ops themselves be called."""


def one_after_the_other(self: products.Norm, x: Tensor, given: Given, for_int8: bool) -> tuple[Tensor, Given]:
    out = torch.layer_norm(x, *self._plain)
    return out, Given(fasttx.functional.quantize_per_token(out) if for_int8 else None, given.kernels)


@pytest.mark.parametrize("skip", [(), ("*.0.*output.dense",)], ids=["all", "some"])
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_family(family: Any, skip: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """The same integers, and so the same numbers up to the last rounding of what is between them.

    The last bit of a norm or of attention decides about some integers, and an integer about its sentence: in widths as
    small as here by some hundredths. So PyTorch's norm takes the place of the fused one, and one batch may be off.
    """
    monkeypatch.setattr(products.Norm, "__call__", one_after_the_other)
    skip = () if family.model_type in ("distilbert", "albert") else skip
    model = bare(family)
    fasttx.quantize(model, fasttx.Int8Config(skip=skip))
    fasttx.patch(model, unpad=True)
    off = []
    for lengths in BATCHES.values():
        want = hidden(model, batch(*lengths))
        with fasttx.capture(model) as captured:
            off.append(float((hidden(captured.model, batch(*lengths)) - want).abs().max()))
            assert captured.stats["calls"] == 1
    assert max(off) < 0.2 and sum(each < 1e-5 for each in off) >= len(BATCHES) - 1, off


@pytest.mark.parametrize("seen", [False, True], ids=["direct", "op"])
def test_a_norm_and_its_integers(seen: bool) -> None:
    x, weight, bias = torch.randn(40, 96), torch.randn(96), torch.randn(96)
    given, norm = Given(None, None if seen else direct.taken(x)), products.Norm((96,), weight, bias, 1e-5)
    for rows in (x, torch.randn(96, 40).t()):
        out, found = norm(rows, given, True)
        torch.testing.assert_close(out, torch.layer_norm(rows, (96,), weight, bias, 1e-5), rtol=1e-5, atol=1e-6)
        assert found.rows is not None
        expected_q, expected_scale = fasttx.functional.quantize_per_token(out)
        assert torch.equal(found.rows[0], expected_q) and torch.equal(found.rows[1], expected_scale)
        assert norm(rows, given, False)[1] == Given(None, given.kernels)


def test_integers_that_change_are_seen() -> None:
    model = bare()
    fasttx.quantize(model)
    with fasttx.capture(model) as captured:
        before = hidden(captured.model, batch(5, 3))
        model.encoder.layer[1].output.dense.weight.neg_()
        assert not torch.allclose(hidden(captured.model, batch(5, 3)), before, atol=1e-2)
        model.encoder.layer[1].output.dense.weight.neg_()
        assert torch.equal(hidden(captured.model, batch(5, 3)), before) and captured.stats["freezes"] == 3
        fasttx.dequantize(model)
        hidden(captured.model, batch(5, 3))
        assert captured.stats["freezes"] == 4 and captured.stats["calls"] == 4


@pytest.mark.skipif(launch.why_not_loaded() is not None, reason="fasttx._C_cpu is not built")
class TestDirect:
    def launches(self, model: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, dict[tuple[str, str], int]]:
        hidden(model, inputs)  # the first call also asks for the class of the output
        before = dispatch.LAUNCHES.copy()
        found = hidden(model, inputs)
        return found, dict(dispatch.LAUNCHES - before)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_the_same_bits_as_the_ops(self, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
        model = bare(dtype=dtype)
        fasttx.quantize(model)
        with fasttx.capture(model):
            for lengths in BATCHES.values():
                found, launched = self.launches(model, batch(*lengths))
                monkeypatch.setattr(direct, "taken", lambda x: None)
                by_ops, launched_by_ops = self.launches(model, batch(*lengths))
                monkeypatch.undo()
                assert torch.equal(found, by_ops)
                int8 = {key: n for key, n in launched.items() if key[1] == "cpu"}
                assert int8 == {key: n for key, n in launched_by_ops.items() if key[1] == "cpu"}
                assert int8["int8_linear_fwd", "cpu"] == 4 * model.config.num_hidden_layers

    @pytest.mark.parametrize("what", SEEN)
    def test_where_somebody_looks_the_ops_are_called(self, what: str) -> None:
        with SEEN[what]():
            assert direct.taken(torch.ones(2, 8)) is None
        assert direct.taken(torch.ones(2, 8)) is not None

    def test_a_record_of_decisions_names_the_ops(self) -> None:
        model = bare()
        fasttx.quantize(model)
        with fasttx.capture(model):
            assert "int8_linear" in str(fasttx.explain(model, batch(5, 3)))

    def test_rows_that_are_not_contiguous_or_empty(self) -> None:
        assert direct.taken(torch.ones(8, 4).t()) is None and direct.taken(torch.ones(0, 8)) is None

    def test_a_backend_that_failed_its_check_is_left_out(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(verdicts, "reason", lambda op, backend, *x: "failed" if op == "int8_linear" else None)
        with contextlib.ExitStack() as stack:
            stack.callback(direct._known.clear)
            direct._known.clear()
            assert direct.taken(torch.ones(2, 8)) is None

    def test_integers_reach_the_next_layer(self) -> None:
        """Two products of a layer quantise, what attention and GELU give; the first one of all does, too."""
        model = bare()
        fasttx.quantize(model)
        with fasttx.capture(model):
            _, launched = self.launches(model, batch(6))
        layers = model.config.num_hidden_layers
        assert launched["quantize_per_token_fwd", "cpu"] == 2 * layers + 1
        assert launched["add_layer_norm_quantize_fwd", "cpu"] == 2 * layers - 1


def test_a_layer_after_a_float_one_quantises_for_itself() -> None:
    family = zoo.BERT
    model = bare(family)
    fasttx.quantize(model, fasttx.Int8Config(skip=("*.0.*",)))
    with fasttx.capture(model) as captured:
        frozen = model.encoder.__dict__["_fasttx_frozen"]._layers
        assert isinstance(frozen, FrozenEncoder)
        assert [layer.qkv.on_int8 for layer in frozen._layers] == [False, True]
        hidden(model, batch(5, 3))
        assert captured.stats["calls"] == 1
