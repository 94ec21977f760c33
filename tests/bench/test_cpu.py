"""bench.cpu at tiny size: every arm is right before it is timed, a wrong one gets no time, a missing one is a row."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import corpus, cpu, cpu_arms
from bench.cpu import COLUMNS, batches_of, text_of
from bench.cpu_cases import ALIKE, CASES, INFERENCE, ONE, RAGGED, TRAINING, CpuCase
from bench.table import IDENTITY

TINY = CpuCase("tiny", RAGGED, INFERENCE, size=4, batches=2)
FLOATS = ("transformers, fp32", "transformers, bf16", "fasttx, fp32", "fasttx, bf16")


def rehearse(tmp_path: Path, case: CpuCase) -> list[dict[str, Any]]:
    return cpu.run(tmp_path / "cpu.csv", cases=[case], rehearsal=True, threads=1, say=lambda _: None)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "cpu.csv"
    assert cpu.main(["--tiny", "--task", TRAINING, "--kind", RAGGED, "--threads", "1", "--out", str(out)]) == 0
    with out.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert set(rows[0]) == {*COLUMNS, *IDENTITY}
    assert [row["arm"] for row in rows] == list(FLOATS)
    for row in rows:
        assert row["status"] == "ok" and row["threads"] == "1" and row["weights"] == "random", row
        assert float(row["ms"]) > 0 and float(row["gain"]) > 0
        assert float(row["gradient_error"]) <= cpu_arms.GRADIENT_ERROR[row["precision"]]
    printed = capsys.readouterr().out
    assert "tiny, training, ragged: batches of 4, 58% real" in printed and "fasttx, bf16" in printed
    assert all(len(line) <= 80 for line in printed.splitlines() if not line.startswith("Other work"))
    assert torch.get_num_threads() >= 1


def test_every_arm_of_inference(tmp_path: Path) -> None:
    rows = {row["arm"]: row for row in rehearse(tmp_path, TINY)}
    ours = [*FLOATS, "fasttx, int8", "fasttx, fp32 + capture", "fasttx, bf16 + capture", "fasttx, int8 + capture"]
    assert list(rows)[: len(ours)] == ours
    for name, row in rows.items():
        assert row["status"] == "ok" or row["status"].startswith("not installed: ") and name not in ours, row
    assert rows["fasttx, fp32 + capture"]["least_cosine"] > 1 - 1e-6 and rows["transformers, fp32"]["gain"] == 1.0
    assert {"ONNX Runtime, fp32", "ONNX Runtime, int8", "OpenVINO, fp32", "OpenVINO, its own choice"} < set(rows)


@pytest.mark.slow
def test_compilers_and_one_sentence(tmp_path: Path) -> None:
    one = CpuCase("tiny", ONE, INFERENCE)
    found = cpu.run(tmp_path / "cpu.csv", cases=[one], threads=1, say=lambda _: None, seconds=600)
    rows = {row["arm"]: row for row in found}
    for name in ("transformers, fp32 + torch.compile", "fasttx, fp32 + torch.compile", "fasttx, bf16 + torch.compile"):
        assert rows[name]["status"] == "ok" and rows[name]["batch"] == 1, rows[name]


def test_a_wrong_arm_gets_no_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = cpu_arms._answer

    def off(model: Any) -> Any:
        run, patched = plain(model), hasattr(model, "_fasttx") or "_fasttx" in model.embeddings.__dict__
        return (lambda batch: run(batch).flip(0)) if patched else run

    monkeypatch.setattr(cpu_arms, "_answer", off)
    rows = {row["arm"]: row for row in rehearse(tmp_path, TINY)}
    assert rows["fasttx, fp32"]["status"].startswith("wrong: a cosine is ") and "ms" not in rows["fasttx, fp32"]
    assert rows["transformers, bf16"]["status"] == "ok"
    assert cpu._failed(rows["fasttx, fp32"]) and not cpu._failed(rows["transformers, bf16"])


def test_a_missing_runtime_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bench import exported

    def missing(*_: Any, **__: Any) -> Any:
        raise ModuleNotFoundError("No module named 'openvino'", name="openvino")

    monkeypatch.setattr(exported, "openvino", missing)
    monkeypatch.setattr(exported, "onnx_runtime", missing)
    rows = rehearse(tmp_path, TINY)
    assert [row["status"] for row in rows if "OpenVINO" in row["arm"]] == ["not installed: openvino"] * 2
    assert "not installed: openvino" in text_of(rows)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_batches_are_of_their_kind(case: CpuCase) -> None:
    try:
        corpus.model_directory(None)
    except corpus.InputError:
        pytest.skip("MiniLM's vocabulary is not installed")
    batches = batches_of(case, 30522)
    real = sum(int(b["attention_mask"].sum()) for b in batches) / sum(b["attention_mask"].numel() for b in batches)
    if case.kind == ONE:
        assert len(batches) == 8 and real == 1.0 and len({b["input_ids"].shape[1] for b in batches}) > 3
    else:
        assert len(batches) == case.batches and all(len(b["input_ids"]) == case.size for b in batches)
        assert real > 0.9 if case.kind == ALIKE else 0.1 < real < 0.6
    assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(batches, batches_of(case, 30522)))


def test_no_case_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cpu.main(["--tiny", "--kind", ALIKE])
    assert "no case is all of these" in capsys.readouterr().err
