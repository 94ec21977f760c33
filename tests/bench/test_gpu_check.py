"""gpu_check where there is no GPU: it says so; and its rehearsal runs both parts at tiny size."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from bench import gpu_check, requirements

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


def test_the_extension_is_built_for_the_gpu_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import cuda_build

    calls = []

    def run(command, env, **rest):
        calls.append((command[1:], env["FASTTX_CUDA"], env["FASTTX_CUDA_ARCHS"]))
        return subprocess.CompletedProcess(command, status, "", "nvcc: no such option")

    log = gpu_check.Log(tmp_path / "log")
    monkeypatch.setattr(gpu_check.subprocess, "run", run)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(cuda_build, "lacks", lambda: "no nvcc was found")
    assert gpu_check.build_extension(log) == 0 and not calls
    monkeypatch.setattr(cuda_build, "lacks", lambda: None)
    for status in (0, 1):
        assert gpu_check.build_extension(log) == status
    assert calls == [(["setup.py", "-q", "build_ext", "--inplace"], "1", "90a")] * 2
    text = (tmp_path / "log").read_text()
    assert "not built, and the rows" in text and "sm_90a: built" in text
    assert text.index("sm_90a: failed") < text.index("no such option")


@pytest.mark.slow
def test_rehearsal_of_the_tests(tmp_path: Path) -> None:
    arguments = ["--part", "tests", "--cpu-rehearsal", "--out", str(tmp_path), "--jobs", "1"]
    assert gpu_check.main([*arguments, "--only", "graphs", "--keyword", "losses"]) == 0
    with (tmp_path / "tests.csv").open(encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert row["test"].endswith("test_losses") and row["outcome"] == "passed"
    log = (tmp_path / "tests.log").read_text(encoding="utf-8")
    assert "commit: " in log and "copy_GBps" in log and "tests: done, no problems" in log


def test_too_little_time(tmp_path: Path) -> None:
    """Files that no time is left for are named, and that is a problem and not a success."""
    log = gpu_check.Log(tmp_path / "log")
    assert gpu_check.run_tests(tmp_path, log, 0.01, 1, True, only="graphs") == 1
    text = (tmp_path / "log").read_text(encoding="utf-8")
    assert "test_graphs.py: did not fit" in text and "the time was too short" in text


@pytest.mark.slow
def test_rehearsal_of_the_benchmark(tmp_path: Path) -> None:
    """In a process of its own: torch.compile and the interpreter leave state behind."""
    command = [sys.executable, "-m", "bench.gpu_check", "--part", "bench", "--cpu-rehearsal", "--out", str(tmp_path)]
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, "--only", "cross_entropy-bert"], cwd=ROOT, capture_output=True, text=True, env=environ, timeout=280
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for name in ("kernels.csv", "model.csv", "serving.csv", "host.csv", "compiled.csv", "bench.log"):
        assert (tmp_path / name).stat().st_size > 0
    with (tmp_path / "kernels.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {"fasttx[triton]", "eager", "torch.compile"} <= {row["peer"] for row in rows if row["median_ms"]}
    assert all(row["device"] == "rehearsal" for row in rows)
    assert all(row["median_ms"] or row["status"].startswith(("unavailable: ", "not timed: ")) for row in rows)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 1 << 20  # small enough to commit


def test_both_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each log ends with its own problems; the exit code is of both."""
    monkeypatch.setattr(gpu_check, "environment", lambda *_: None)
    monkeypatch.setattr(gpu_check, "run_tests", lambda *_: 2)
    monkeypatch.setattr(gpu_check, "run_bench", lambda *_: 0)
    assert gpu_check.main(["--cpu-rehearsal", "--out", str(tmp_path)]) == 1
    assert "tests: done, 2 problems" in (tmp_path / "tests.log").read_text(encoding="utf-8")
    assert "bench: done, no problems" in (tmp_path / "bench.log").read_text(encoding="utf-8")


def test_a_part_that_breaks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its log says how, and the other part still runs."""

    def breaks(*_: object) -> int:
        raise RuntimeError("no such clock")

    monkeypatch.setattr(gpu_check, "environment", lambda *_: None)
    monkeypatch.setattr(gpu_check, "run_tests", breaks)
    monkeypatch.setattr(gpu_check, "run_bench", lambda *_: 0)
    assert gpu_check.main(["--cpu-rehearsal", "--out", str(tmp_path)]) == 1
    log = (tmp_path / "tests.log").read_text(encoding="utf-8")
    assert "RuntimeError: no such clock" in log and "tests: done, 1 problem" in log
    assert "bench: done, no problems" in (tmp_path / "bench.log").read_text(encoding="utf-8")


def test_the_table_grows_with_each_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is cut off from outside leaves the results that it had."""

    def run_file(path: Path, out: Path, *_: object) -> tuple[Path, str, str]:
        if path.name == "test_b.py":  # begins in a thread of its own, perhaps before the results of a are written
            table, until = tmp_path / "tests.csv", time.time() + 20
            while "test_a.py" not in table.read_text(encoding="utf-8"):
                assert time.time() < until, "the table does not grow"
                time.sleep(0.01)
        return path, "did not fit", ""

    monkeypatch.setattr(gpu_check, "files_to_test", lambda: [gpu_check.ROOT / f"test_{x}.py" for x in "ab"])
    monkeypatch.setattr(gpu_check, "_run_file", run_file)
    assert gpu_check.run_tests(tmp_path, gpu_check.Log(tmp_path / "log"), 1.0, 1, True) == 2


LEAVES_A_CHILD = """
import subprocess, sys, time
def test_sleeps():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(40)"])
    open("child", "w").write(str(child.pid))
    time.sleep(40)
"""


@pytest.mark.slow
def test_the_deadline_ends_the_children_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that holds the output open would keep the whole run waiting after the deadline."""
    (tmp_path / "test_child.py").write_text(LEAVES_A_CHILD, encoding="utf-8")
    monkeypatch.setattr(gpu_check, "ROOT", tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    began = time.time()
    _, verdict, _ = gpu_check._run_file(tmp_path / "test_child.py", tmp_path, began + 12, True, "")
    assert verdict == "killed at the deadline" and time.time() - began < 20
    child = int((tmp_path / "child").read_text())
    for _ in range(50):
        stat = Path(f"/proc/{child}/stat")
        if not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z":
            break
        time.sleep(0.1)
    else:
        pytest.fail(f"process {child} is still there")


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
    done = make_gpu_check(tmp_path, CANDIDATES=f"no-such-python {first} {second}", PART="tests")
    assert done.returncode == 0, done.stderr
    assert f"gpu-check: {first} lacks pytest, a GPU that its torch 2.9.0+cpu can see" in done.stderr
    assert "no-such-python" not in done.stderr
    assert f"ran {second} -m bench.gpu_check" in done.stdout and "--part tests" in done.stdout


def test_make_asks_only_the_python_that_was_named(tmp_path: Path) -> None:
    named, other = candidate(tmp_path / "named", ""), candidate(tmp_path / "other", "")
    done = make_gpu_check(tmp_path, PYTHON=named, CANDIDATES=other)
    assert f"ran {named} -m bench.gpu_check" in done.stdout, done.stderr


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
    import json

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
