"""Int8Config(measure=True): each shape is timed once, what is faster as a float stays so, and is saved so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from models import model_zoo as zoo
from models.test_quantize import int8_names, run, tiny
from torch import Tensor

import fasttx
from fasttx.nn import Int8Linear
from fasttx.quant import measured

MEASURE = fasttx.Int8Config(measure=True)


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, tuple[int, ...], int]]:
    """Calls that were timed, by a clock for which layers that widen are faster as they are."""
    found: list[tuple[str, tuple[int, ...], int]] = []

    def seconds(form: Any, x: Tensor) -> float:
        name = type(form).__name__
        found.append((name, tuple(form.weight.shape), len(x)))
        widens = form.out_features > form.in_features
        return 2e-3 if (type(form) is Int8Linear) == widens else 1e-3

    monkeypatch.setattr(measured, "seconds", seconds)
    return found


def test_the_faster_form_stays(timed: list[Any], tmp_path: Path) -> None:
    model, before = tiny(), torch.get_rng_state()
    report = fasttx.quantize(model, MEASURE)
    assert torch.equal(torch.get_rng_state(), before)
    wide = {f"encoder.layer.{i}.intermediate.dense" for i in (0, 1)}
    assert len(int8_names(model)) == 10 and not int8_names(model) & wide
    reasons = {row.reason for row in report.left_alone if row.module in wide}
    assert reasons == {"float32 is faster here: 1 ms for 512 rows, int8 2"}
    shapes = {shape for _, shape, _ in timed}
    assert shapes == {(32, 32), (37, 32), (32, 37)} and len(timed) == 2 * 3 * measured.TURNS  # six layers are alike
    model.save_pretrained(tmp_path)
    found = transformers.BertModel.from_pretrained(tmp_path)
    assert int8_names(found) == int8_names(model)
    assert found.config.quantization_config.made_by["measure"] is True
    torch.testing.assert_close(run(found), run(model), rtol=0.05, atol=0.05)


def test_rows_are_those_of_the_calibration(timed: list[Any]) -> None:
    model = tiny()
    with fasttx.calibrate(model), torch.no_grad():
        for n in (3, 50, 9):
            model(torch.full((1, n), 5))
    fasttx.quantize(model, MEASURE)
    assert {rows for *_, rows in timed} == {9}


def test_nothing_is_int8_where_nothing_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "seconds", lambda form, x: 1.0 + (type(form) is Int8Linear))
    with pytest.warns(UserWarning, match="fasttx.quantize replaced nothing: .*float32 is faster here"):
        fasttx.quantize(tiny(), MEASURE)


def test_deterministic_algorithms_measure_nothing(timed: list[Any]) -> None:
    model = tiny()
    torch.use_deterministic_algorithms(True)
    try:
        fasttx.quantize(model, MEASURE)
    finally:
        torch.use_deterministic_algorithms(False)
    assert not timed and len(int8_names(model)) == 12


def test_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Real times: positive, and of two sizes of one product the larger takes longer."""
    small, large = (torch.nn.Linear(n, n) for n in (16, 768))
    times = measured.times_of({each: Int8Linear.from_float(each) for each in (small, large)})
    assert 0 < times[small].as_float < times[large].as_float and 0 < times[small].as_int8 < times[large].as_int8
    assert times[small].rows == measured.ROWS


@pytest.mark.parametrize("family", [f for f in zoo.FAMILIES if f.name in ("ALBERT", "ModernBERT", "DeBERTa", "ViT")])
def test_other_families(family: Any, timed: list[Any]) -> None:
    model = zoo.tiny_model(family, family.bare)
    fasttx.quantize(model, MEASURE)
    left = [m for m in model.modules() if type(m) is torch.nn.Linear and m.out_features > m.in_features]
    assert left and int8_names(model) and timed
