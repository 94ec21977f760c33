"""The emulator is built before the first test, once, and a build that fails is one failure."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import compiling
import host_build
import instruction_library
import pytest

pytestmark = pytest.mark.skipif(host_build.lacks() is not None, reason=str(host_build.lacks()))


def test_what_the_tests_load_is_built_before_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def compile_nothing(command: list[str]) -> str:
        raise AssertionError(f"within a test: {' '.join(command)}")

    monkeypatch.setattr(compiling, "run", compile_nothing)
    others = ("faults", "cluster_faults", "int8_config", "attention_config")
    for variant in ("plain", "race"):
        host_build.build_module(variant)
        for name in instruction_library.SOURCES:
            instruction_library.for_emulator.__wrapped__(variant, name)
        for name in others:
            host_build.build_library(variant, [host_build.HERE / f"{name}.cu"], bindings=False)
    assert {p.stem for p in host_build.ALONE} == {*others, *instruction_library.SOURCES}


def test_environments_with_the_same_headers_share_a_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def jobs() -> list[Path]:
        return [job.list_in(tmp_path) for job in host_build._objects("plain", host_build.KERNELS[:1], True)]

    before = jobs()
    copy = shutil.copytree(host_build.cuda_headers(), tmp_path / "headers")
    monkeypatch.setattr(host_build, "cuda_headers", lambda: copy)
    assert jobs() == before
    (tmp_path / "more").mkdir()
    other = shutil.copytree(copy, tmp_path / "more" / "headers")
    (other / "cuda_fp16.h").write_text("// another release")
    monkeypatch.setattr(host_build, "cuda_headers", lambda: other)
    assert not set(jobs()) & set(before)


def test_every_header_of_ours_is_in_the_key_or_in_the_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler's list leaves out what is included from headers of a system, as CUDA's are here."""
    source = host_build.ROOT / "csrc" / "linear_cross_entropy" / "linear_cross_entropy.cu"
    (job,) = [job for job in host_build._objects("plain", [source], False) if job.inputs == [source]]
    words = [word for word in job.command if word not in ("-c", "-O1")]
    done = subprocess.run([*words, "-E", "-MMD", "-MF", str(tmp_path / "list.d")], capture_output=True, text=True)
    listed = {path.resolve() for path in compiling.read_list((tmp_path / "list.d").read_text())}
    read = {Path(name).resolve() for name in re.findall(r'^# \d+ "(/[^"]+)"', done.stdout, re.MULTILINE)}
    left_out = {path for path in read - listed if path.is_relative_to(host_build.HERE)}
    assert left_out == {(host_build.HERE / "include" / "nv" / "target").resolve()}
    before = job.list_in(tmp_path)
    include = shutil.copytree(host_build.HERE / "include", tmp_path / "include")
    contents = host_build._contents
    monkeypatch.setattr(host_build, "_contents", lambda f: contents(include / "nv" if f.name == "nv" else f))
    assert host_build._object(source, list(job.command[1:-2])).list_in(tmp_path) == before
    (include / "nv" / "target").write_text("// another one")
    contents.cache_clear()
    assert host_build._object(source, list(job.command[1:-2])).list_in(tmp_path) != before


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What the build of the emulator and a test of it need, with one kernel, and an error in it."""
    for folder in ("csrc", "buildsystem"):
        shutil.copytree(host_build.ROOT / folder, tmp_path / folder)
    for other in (p for p in (tmp_path / "csrc").glob("*/*.cu") if p.stem != "softmax"):
        other.unlink()
    for name in ("runtime", "include"):
        shutil.copytree(host_build.HERE / name, tmp_path / "tests" / "emulator" / name)
    for name in ("host_build.py", "host_module.py"):
        shutil.copy(host_build.HERE / name, tmp_path / "tests" / "emulator")
    shutil.copy(host_build.ROOT / "tests" / "conftest.py", tmp_path / "tests")
    for name in ("cpu_module.py", "selection.py"):  # what conftest imports
        shutil.copy(host_build.ROOT / "tests" / "support" / name, tmp_path / "tests" / "emulator")
    (tmp_path / "pyproject.toml").write_text(
        '[tool.pytest.ini_options]\npythonpath = ["tests/emulator", "buildsystem"]\n'
        'markers = ["slow: x", "exhaustive: x"]\n'
    )
    (tmp_path / "tests" / "test_it.py").write_text(
        "import pytest\n"
        "@pytest.mark.parametrize('i', range(9))\n"
        "def test_with(device, i): pass\n"
        "def test_without(): pass\n"
    )
    kernel = tmp_path / "csrc" / "softmax" / "softmax.cu"
    kernel.write_text(kernel.read_text() + "\nint broken() { return no_such_name; }\n")
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_build_that_fails_is_one_failure(checkout: Path, workers: int) -> None:
    """With the compiler's message; tests without a kernel run, and workers count it once."""
    if workers:
        pytest.importorskip("xdist", reason="pytest-xdist is not installed")
    environment = {n: v for n, v in os.environ.items() if not n.startswith("PYTEST")} | {
        "PYTHONPATH": str(host_build.ROOT),
        "MAX_JOBS": "1",
    }
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "-n", str(workers), "tests"]
    command = command if workers else [part for part in command if part not in ("-n", "0")]
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)
    assert re.search(r"\b1 failed, 1 passed", done.stdout), done.stdout[-3000:] + done.stderr[-3000:]
    assert "the emulator cannot be built" in done.stdout and "no_such_name" in done.stdout


def test_the_program_says_what_does_not_compile(checkout: Path) -> None:
    command = [sys.executable, "tests/emulator/host_build.py", "plain"]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("fasttx: the emulator cannot be built")
    assert "no_such_name" in done.stderr and "Traceback" not in done.stderr
    assert re.search(r"^fasttx: building the emulator \(plain\): \d+ files by ", done.stdout)
    done = subprocess.run([*command[:2], "fast"], cwd=checkout, capture_output=True, text=True)
    assert done.stderr.strip() == "variants: got 'fast'; allowed are 'plain', 'race', 'asan'"
