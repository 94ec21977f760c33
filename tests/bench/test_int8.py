"""bench.int8 on real weights: smoothed int8 stays as near to float32 as docs/int8.md says, on texts of every kind."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch

import fasttx
from bench import corpus, int8, int8_texts
from bench.settings import Settings
from bench.table import IDENTITY

PLAIN, SMOOTH = "int8", "int8, smooth 0.6"


@pytest.fixture(scope="module")
def rows() -> dict[str, dict[str, Any]]:
    try:
        corpus.model_directory(None)
    except corpus.InputError as problem:
        pytest.skip(str(problem))
    texts = int8_texts.selection(int8_texts.held_back(), 16)
    settings = Settings.of(torch.device("cpu"), 1, False, None)
    ways = {name: way for name, way in int8.ways_of([0.6]).items() if name in (PLAIN, SMOOTH)}
    return {row["way"]: row for row in int8.measure(texts, settings, ways)}


def test_smoothed_int8_reaches_what_it_has_to(rows: dict[str, dict[str, Any]]) -> None:
    assert int8.reached(rows[SMOOTH]) and not int8.reached(rows[PLAIN])
    assert rows[SMOOTH]["mean_cosine"] > 0.9984 and rows[SMOOTH]["least_cosine"] > 0.993
    assert 1 - rows[SMOOTH]["mean_cosine"] < 0.6 * (1 - rows[PLAIN]["mean_cosine"])
    assert rows[int8.FLOAT]["mean_cosine"] > 1 - 1e-9 and rows[int8.FLOAT]["rank_correlation"] > 1 - 1e-6
    assert all(row["status"] == "ok" and row["cpu_ms"] > 0 for row in rows.values())


def test_the_command(
    rows: dict[str, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given: list[Any] = []
    monkeypatch.setattr(int8, "measure", lambda *arguments: given.append(arguments) or list(rows.values()))
    assert int8.main(["--quick", "--smooth", "0.5", "0.6", "--out", str(tmp_path / "int8.csv")]) == 0
    with (tmp_path / "int8.csv").open(encoding="utf-8") as file:
        written = list(csv.DictReader(file))
    assert set(written[0]) == {*int8.COLUMNS, *IDENTITY} and [row["way"] for row in written] == list(rows)
    assert "ranks 0.998: int8, smooth 0.6" in capsys.readouterr().out
    texts, _, ways, _ = given[0]
    assert {text.kind for text in texts} == {"passage", "word", "language", "code"} and len(ways) == 7
    rows = {name: row for name, row in rows.items() if name != SMOOTH}
    assert int8.main(["--quick", "--out", str(tmp_path / "int8.csv")]) == 1


@pytest.mark.parametrize("wrong", ["1.5", "x", "nan"])
def test_a_wrong_alpha(wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        int8.main(["--smooth", wrong])
    assert f"got {wrong}; allowed are numbers from 0 to 1" in capsys.readouterr().err


def test_nothing_of_the_texts_is_calibrated_on() -> None:
    texts = int8_texts.held_back()
    assert len(texts) > 280 and len({text for _, text in texts}) > 280
    passages = [text for kind, text in texts if kind == "passage"]
    assert not set(passages) & set(int8_texts.seen())


def test_rank_correlation() -> None:
    a = torch.tensor([0.1, 0.5, 0.3, 0.9])
    assert int8.rank_correlation(a, a.exp()) == pytest.approx(1.0) and int8.rank_correlation(a, -a) == pytest.approx(-1)
    assert int8.rank_correlation(a, torch.tensor([1.0, 2.0, 3.0, 4.0])) == pytest.approx(0.8)
    assert isinstance(int8.ways_of([0.3])["int8, smooth 0.3"][0], fasttx.Int8Config)
