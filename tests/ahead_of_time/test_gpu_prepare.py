"""`make gpu-prepare`: what the stages launch is compiled, packed, and found again where it is unpacked."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

if os.environ.get("FASTTX_AOT") != "1":
    pytest.skip("compiles without the interpreter: run with FASTTX_AOT=1, in its own process", allow_module_level=True)
pytest.importorskip("triton", reason="triton is not installed")

from bench.gpu import prebuilt

ROOT = Path(__file__).resolve().parents[2]
STAGE, ITEM = "ops", "quantize_per_token"


def prepare(out: Path, cache: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "tests/scripts/gpu_prepare.py", "--out", str(out), "--cache", str(cache), "--jobs", "1"]
    command += ["--no-module", "--only", STAGE, "--items", ITEM, *more]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_what_is_packed_is_found_again(tmp_path: Path) -> None:
    made, cache = tmp_path / "made", tmp_path / "cache"
    done = prepare(made, cache)
    assert done.returncode == 0, done.stdout + done.stderr
    manifest = json.loads((made / prebuilt.MANIFEST).read_text())
    assert manifest["variants"] == 1 and manifest["commit"] == prebuilt.commit()
    assert manifest["python"] == prebuilt.SUFFIX and manifest["arch"] == 90
    (launcher,) = json.loads((made / prebuilt.LAUNCHERS).read_text())
    assert "cuLaunchKernelEx" in launcher["src"]
    assert {path.suffix for path in cache.rglob("*") if path.is_file()} == {".cubin", ".ptx", ".json"}
    # somewhere else: the archive alone, under the same path
    shutil.rmtree(cache)
    (tmp_path / "fasttx").mkdir()
    assert not any("compiled here" in text for text in prebuilt.unpack(False, made, cache, tmp_path / "fasttx"))
    # 1 variant loaded, none compiled: a miss would write into the cache
    before = sorted(cache.rglob("*"))
    done = prepare(tmp_path / "again", cache, "--keep-cache")
    assert done.returncode == 0 and "1 variants, " in done.stdout, done.stdout + done.stderr
    assert sorted(cache.rglob("*")) == before


def test_another_python_is_refused(tmp_path: Path) -> None:
    done = prepare(tmp_path / "made", tmp_path / "cache", "--python", "3.9")
    assert done.returncode == 2 and "--python: got 3.9; allowed is 3." in done.stderr
    assert not (tmp_path / "made").exists()


def test_nothing_prepared_is_a_failure(tmp_path: Path) -> None:
    """An empty archive would be noticed on the GPU's time."""
    done = prepare(tmp_path / "made", tmp_path / "cache", "--items", "no such item")
    assert done.returncode == 1 and "0 variants" in done.stdout
