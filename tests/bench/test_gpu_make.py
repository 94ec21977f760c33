"""`make gpu-check` and `make gpu-prepare` as commands: which Python they take, and what a machine lacks."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench import requirements

ROOT = Path(__file__).resolve().parents[2]


def make_gpu_check(tmp_path: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS")) and k != "PYTHON"}
    settings = [f"{name}={value}" for name, value in ({"VENV": str(tmp_path / "no-venv")} | variables).items()]
    return subprocess.run(
        ["make", "gpu-check", *settings], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60
    )


def candidate(path: Path, lack: str) -> str:
    """A program in place of a Python, which lacks something or, without `lack`, would run the check."""
    answer = f'echo "{lack}"; exit 1' if lack else "exit 0"
    script = f'#!/bin/sh\ncase "$*" in *bench.requirements*) {answer};; *) echo "ran $0 $*";; esac\n'
    path.write_text(script, encoding="utf-8")
    path.chmod(0o755)
    return str(path)


def test_make_asks_every_candidate(tmp_path: Path) -> None:
    first = candidate(tmp_path / "first", "pytest, a GPU that its torch 2.9.0+cpu can see")
    second = candidate(tmp_path / "second", "")
    done = make_gpu_check(tmp_path, CANDIDATES=f"no-such-python {first} {second}", PART="first")
    assert done.returncode == 0, done.stderr
    assert f"gpu-check: {first} lacks pytest, a GPU that its torch 2.9.0+cpu can see" in done.stderr
    assert "no-such-python" not in done.stderr
    assert f"ran {second} -m bench.gpu.check" in done.stdout and "--part first" in done.stdout


def test_make_asks_only_the_python_that_was_named(tmp_path: Path) -> None:
    named, other = candidate(tmp_path / "named", ""), candidate(tmp_path / "other", "")
    done = make_gpu_check(tmp_path, PYTHON=named, CANDIDATES=other)
    assert f"ran {named} -m bench.gpu.check" in done.stdout, done.stderr


def test_needs() -> None:
    """What this Python lacks: nothing but the GPU where there is none, and what cannot be imported by name."""
    gpu = [] if torch.cuda.is_available() else [f"a GPU that its torch {torch.__version__} can see"]
    assert requirements.lacks() == gpu
    assert requirements.lacks(("pytest", "no_such_package")) == ["no_such_package", *gpu]


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


@pytest.mark.slow
def test_plugin(tmp_path: Path) -> None:
    (tmp_path / "test_sample.py").write_text(PLUGIN_TESTS, encoding="utf-8")
    (tmp_path / "test_unreadable.py").write_text("import no_such_module\n", encoding="utf-8")
    environ = os.environ | {
        "PYTHONPATH": str(ROOT),
        "FASTTX_TEST_LOG": str(tmp_path / "log"),
        "FASTTX_TEST_SECONDS": "1",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.support.budget", "-p", "no:timeout", "--rootdir=."]
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
