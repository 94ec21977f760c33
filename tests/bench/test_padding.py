"""The benchmark of padding removal."""

import csv

import torch

from bench import padding


def test_lengths_have_the_wanted_share() -> None:
    for batch, seqlen, real in padding.SHAPES:
        found = padding.lengths(batch, seqlen, real)
        assert found.max() == seqlen and found.min() >= 2 and len(found) == batch
        assert abs(float(found.sum()) / (batch * seqlen) - real) < 0.13


def test_quick_run_writes_its_rows(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(padding, "WIDTHS", ((16, 2),))
    said = []
    rows = padding.run(torch.device("cpu"), tmp_path / "padding.csv", quick=True, say=said.append)
    with (tmp_path / "padding.csv").open() as file:
        written = list(csv.DictReader(file))
    assert len(rows) == len(written) == len(said) == 4
    assert all(float(row["sdpa / auto"]) > 0 and float(row["sdpa / always"]) > 0 for row in written)
    assert {row["task"] for row in written} == {"inference", "forward and backward"}
