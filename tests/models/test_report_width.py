"""What patch, quantize, explain and verify print fits the terminal: no line is longer, no word is lost."""

from __future__ import annotations

from typing import Any

import pytest
from models import model_zoo as zoo
from torch import nn

import fasttx
from fasttx.models.fusions import fusion


def everything() -> dict[str, Any]:
    model, inputs = zoo.tiny_model(zoo.BERT, "BertForMaskedLM").train(), zoo.inputs_for(zoo.BERT, "BertForMaskedLM")
    return {
        "patch": fasttx.patch(model, unpad=True),
        "verify": fasttx.verify(model, inputs),
        "explain": fasttx.explain(model, inputs),
        "quantize": fasttx.quantize(zoo.tiny_model(zoo.BERT, "BertForMaskedLM")),
    }


def test_neither_is_the_first_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is longest where most waits for a GPU, and where there is nothing to differentiate."""
    monkeypatch.setattr(fusion, "UNFUSED_ON", frozenset(("cpu",)))  # which the other tests take away
    model, inputs = zoo.tiny_model(zoo.BERT, "BertForMaskedLM").cpu(), zoo.inputs_for(zoo.BERT, "BertForMaskedLM")
    inputs.pop("labels")
    report = fasttx.patch(model)
    for each in (report, fasttx.explain(model, inputs), fasttx.verify(model, inputs)):
        for columns in (60, 80):
            monkeypatch.setenv("COLUMNS", str(columns))
            assert max(map(len, str(each).splitlines())) <= columns, f"{columns}\n{each}"
    assert "that change on a GPU only" in " ".join(str(report).split())


def words(text: str) -> list[str]:
    """Without rules and arrows, in any order."""
    return sorted(word.strip("():,") for word in text.split() if set(word) - set("-> "))


def test_no_line_is_longer_than_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    found = everything()
    for columns in (80, 100, 400):
        monkeypatch.setenv("COLUMNS", str(columns))
        for name, each in found.items():
            assert max(map(len, str(each).splitlines())) <= columns, f"{name} in {columns}\n{each}"
    monkeypatch.delenv("COLUMNS")
    assert all(len(line) <= 80 for each in found.values() for line in str(each).splitlines())  # of a pipe


def test_a_narrow_terminal_gets_every_word(monkeypatch: pytest.MonkeyPatch) -> None:
    found = everything()
    monkeypatch.setenv("COLUMNS", "400")
    wide = {name: str(each) for name, each in found.items()}
    monkeypatch.setenv("COLUMNS", "80")
    for name, each in found.items():
        headings = {"module", "from", "to", "backend", "reason"}
        lost = set(words(wide[name])) - set(words(str(each))) - headings
        assert not lost, f"{name}: {lost}"
    for line in ("bert.encoder", "  padded batch -> real tokens only (torch)"):
        assert line in str(found["patch"]).splitlines()
    assert "output logits" in str(found["verify"])


def test_a_wide_terminal_gets_a_row_for_each_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    lines = str(everything()["patch"]).splitlines()
    assert lines[1].split() == ["module", "from", "to", "backend", "reason"] and set(lines[2]) == {"-"}
    assert sum("dropout_add_layer_norm" in line for line in lines) == 2


def test_layers_at_the_end_of_a_name_are_one_row() -> None:
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)
    assert "layers.* (2x)" in str(fasttx.patch(encoder))
