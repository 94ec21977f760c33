"""REHEARSE=1: every line of `make gpu-check` runs on a CPU at tiny size, and writes the files that a GPU would."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

from bench.gpu import records, report, stages
from fasttx.ops import OPS

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 600


@pytest.mark.timeout(SECONDS + 60)
@pytest.mark.parametrize("part", stages.PARTS)
@pytest.mark.slow
def test_rehearsal(part: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench.gpu.check", "--rehearse", "--part", part, "--seconds", str(SECONDS)]
    done = subprocess.run([*command, "--out", str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert {path.name for path in tmp_path.iterdir()} == stages.files((part,))
    lines = [line for path in tmp_path.glob("*.jsonl") for line in records.read(path)]
    assert all(line["ok"] and line["rehearsal"] is True for line in lines)
    assert {line["stage"] for line in lines} == {stage.name for stage in stages.PARTS[part]}
    assert any(line.get("expected") for line in lines)
    if part == "first":
        for stage in ("ops", "sweep"):
            found = {
                (line["op"], line["direction"]) for line in lines if line["stage"] == stage and "direction" in line
            }
            assert found == {(op.name, direction) for op in OPS.values() for direction in op.directions}
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 1 << 20  # small enough to commit
    log = (tmp_path / stages.LOG).read_text(encoding="utf-8")
    assert "a REHEARSAL: no figures" in log and f"part {part}, in short:" in log
    assert report.main([str(tmp_path), "--to", str(tmp_path / "results")]) == 1  # never to be taken for a GPU's
    assert not (tmp_path / "results").exists()
