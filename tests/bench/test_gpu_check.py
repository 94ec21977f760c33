"""gpu_check where there is no GPU: it says so; and its rehearsal runs both parts at tiny size."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench import gpu_check

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_says_that_there_is_no_gpu(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert gpu_check.main(["--out", str(tmp_path / "out")]) == 2
    assert "sees no NVIDIA GPU" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_order() -> None:
    """GPU-only tests first; nothing that needs packages a bare machine lacks, nothing twice."""
    files = [path.relative_to(ROOT).as_posix() for path in gpu_check.files_to_test()]
    assert files[0].startswith("tests/gpu/") and len(set(files)) == len(files)
    assert not any(file.startswith(("tests/cli", "tests/bench", "tests/ahead_of_time")) for file in files)
    assert "tests/test_registry.py" in files


def test_rehearsal_of_the_tests(tmp_path: Path) -> None:
    arguments = ["--part", "tests", "--cpu-rehearsal", "--out", str(tmp_path), "--jobs", "1"]
    assert gpu_check.main([*arguments, "--only", "gpu_graphs", "--keyword", "losses"]) == 0
    with (tmp_path / "tests.csv").open(encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert row["test"].endswith("test_losses") and row["outcome"] == "passed"
    log = (tmp_path / "tests.log").read_text(encoding="utf-8")
    assert "commit: " in log and "copy_GBps" in log and "tests: done, no problems" in log


def test_too_little_time(tmp_path: Path) -> None:
    """Files that no time is left for are named, and that is a problem and not a success."""
    log = gpu_check.Log(tmp_path / "log")
    assert gpu_check.run_tests(tmp_path, log, 0.01, 1, True, only="gpu_graphs") == 1
    text = (tmp_path / "log").read_text(encoding="utf-8")
    assert "test_gpu_graphs.py: did not fit" in text and "the time was too short" in text


def test_rehearsal_of_the_benchmark(tmp_path: Path) -> None:
    """In a process of its own: torch.compile and the interpreter leave state behind."""
    command = [sys.executable, "-m", "bench.gpu_check", "--part", "bench", "--cpu-rehearsal", "--out", str(tmp_path)]
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, "--only", "cross_entropy-bert"], cwd=ROOT, capture_output=True, text=True, env=environ, timeout=280
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for name in ("kernels.csv", "model.csv", "host.csv", "compiled.csv", "bench.log"):
        assert (tmp_path / name).stat().st_size > 0
    with (tmp_path / "kernels.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["peer"] for row in rows} == {"fasttx[triton]", "eager", "torch.compile"}
    assert all(row["device"] == "rehearsal" and float(row["median_ms"]) > 0 for row in rows)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 1 << 20  # small enough to commit


PLUGIN_TESTS = """
import time, pytest
def test_good(): pass
def test_wrong(): assert 1 == 2, "not so"
def test_hangs(): time.sleep(30)
@pytest.fixture
def broken(): raise RuntimeError("no set-up")
def test_set_up(broken): pass
def test_left_out(): pytest.skip("for a reason")
"""


def test_plugin(tmp_path: Path) -> None:
    import json

    (tmp_path / "test_sample.py").write_text(PLUGIN_TESTS, encoding="utf-8")
    (tmp_path / "test_unreadable.py").write_text("import no_such_module\n", encoding="utf-8")
    environ = os.environ | {
        "PYTHONPATH": str(ROOT), "FASTTX_TEST_LOG": str(tmp_path / "log"), "FASTTX_TEST_SECONDS": "1"
    }  # fmt: skip
    command = [sys.executable, "-m", "pytest", "-q", "-p", "bench.pytest_budget", "-p", "no:timeout", "--rootdir=."]
    command += ["--continue-on-collection-errors", "."]
    subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, timeout=100)
    rows = [json.loads(line) for line in (tmp_path / "log").read_text(encoding="utf-8").splitlines()]
    outcomes = {row["test"].rpartition("::")[2]: (row["outcome"], row["detail"]) for row in rows}
    assert outcomes["test_good"] == ("passed", "")
    assert outcomes["test_wrong"][0] == "failed" and "not so" in outcomes["test_wrong"][1]
    assert outcomes["test_hangs"][0] == "failed" and "longer than 1 s" in outcomes["test_hangs"][1]
    assert outcomes["test_set_up"][0] == "error" and "no set-up" in outcomes["test_set_up"][1]
    assert outcomes["test_left_out"] == ("skipped", "Skipped: for a reason")
    assert outcomes["test_unreadable.py"][0] == "not collected"
    environ["FASTTX_TEST_DEADLINE"] = "1"
    (tmp_path / "log").unlink()
    subprocess.run([*command, "-k", "good"], cwd=tmp_path, env=environ, capture_output=True, timeout=100)
    rows = [json.loads(line) for line in (tmp_path / "log").read_text(encoding="utf-8").splitlines()]
    assert any(row["outcome"] == "skipped" and "time budget spent" in row["detail"] for row in rows)


@pytest.mark.slow
def test_rehearsal_of_every_gpu_test() -> None:
    environ = os.environ | {"FASTTX_REHEARSAL": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/gpu"]
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=290)
    assert done.returncode == 0, done.stdout[-4000:]
