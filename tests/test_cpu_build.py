"""What an installation compiles for the CPU, what it says where it cannot, and that it goes on then."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import backend
import cpu_build
import cuda_build
import pytest

ROOT = Path(__file__).resolve().parents[1]
FAILS = "#!/bin/sh\necho 'kernels.cpp:3: error: no such thing' >&2; exit 1\n"


@pytest.fixture(autouse=True)
def nothing_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FASTTX_CPU", "FASTTX_CUDA", "FASTTX_CUDA_ARCHS"):
        monkeypatch.delenv(name, raising=False)


def test_a_machine_without_a_compiler_is_told_so(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    reason = "no int8 kernels for the CPU are compiled, as no C++ compiler was found (CXX, or g++ on PATH)"
    assert cpu_build.why_not() == reason
    monkeypatch.setattr(backend.build_meta, "build_wheel", lambda *a: "made")
    assert backend.build_wheel("") == "made" and reason in capsys.readouterr().out
    monkeypatch.setenv("FASTTX_CPU", "0")
    assert cpu_build.why_not().startswith("FASTTX_CPU=0")
    assert backend.build_wheel("") == "made" and "for the CPU" not in capsys.readouterr().out
    monkeypatch.setenv("FASTTX_CPU", "1")
    with pytest.raises(SystemExit, match="FASTTX_CPU=1 asks for the int8 kernels for the CPU, but no C.. compiler"):
        cpu_build.why_not()
    monkeypatch.setenv("FASTTX_CPU", "yes")
    with pytest.raises(SystemExit, match="FASTTX_CPU='yes': allowed are 'auto', '0', '1'"):
        cpu_build.why_not()


def test_a_machine_without_pythons_headers_is_told_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cpu_build, "compiler", lambda: "/usr/bin/g++")
    monkeypatch.setattr(cpu_build.sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    assert "Python's headers are missing" in cpu_build.why_not()
    (tmp_path / "Python.h").touch()
    assert cpu_build.why_not() is None


def test_each_form_is_compiled_without_contraction(monkeypatch: pytest.MonkeyPatch) -> None:
    """By it forms with fused multiply-add would have other bits than those without."""
    monkeypatch.setattr(cpu_build, "compiler", lambda: "g++")
    kernels = [job for job in cpu_build.jobs() if job.inputs[0].name == "kernels.cpp"]
    assert [job.name.removesuffix(".o") for job in kernels] == list(cpu_build.FORMS)
    assert all("-ffp-contract=off" in job.command and f"-DFTX_FORM={job.name[:-2]}" in job.command for job in kernels)
    compiled = {job.inputs[0] for job in cpu_build.jobs()}
    assert compiled == set(cpu_build.SOURCES.glob("*.cpp")), "a source that nobody compiles"


def build_in(tree: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """setup.py's build in a copy of what it reads."""
    for name in ("buildsystem", "csrc", "fasttx", "kernels", "bench"):
        ignored = shutil.ignore_patterns("__pycache__", "*.so")
        shutil.copytree(ROOT / name, tree / name, ignore=ignored, dirs_exist_ok=True)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    given = os.environ | {"FASTTX_CUDA": "0", **environment}
    return subprocess.run(command, cwd=tree, env=given, capture_output=True, text=True, timeout=240)


@pytest.mark.skipif(cpu_build.lacks() is not None, reason="no C++ compiler is here")
def test_what_was_built_loads_and_runs_without_the_sources(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", reason="setuptools is not installed")
    done = build_in(tmp_path / "tree", FASTTX_CPU="1")
    assert done.returncode == 0, done.stderr
    assert re.search(r"fasttx: compiling \d files of the int8 kernels for the CPU by ", done.stdout)
    (made,) = (tmp_path / "tree" / "fasttx").glob("_C_cpu.*.so")
    shutil.rmtree(tmp_path / "tree" / "csrc")
    code = (
        "import torch, fasttx; from fasttx.ops.cpu import launch; "
        "fasttx.functional.quantize_per_token(torch.randn(3, 8)); "
        "from fasttx.ops.registry import LAUNCHES; "
        "print(fasttx.__file__, launch.built_form(), dict(LAUNCHES))"
    )
    environment = os.environ | {"PYTHONPATH": str(made.parents[1])}
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    where, form, launches = ran.stdout.split(" ", 2)
    assert where.startswith(str(tmp_path)) and form in cpu_build.FORMS
    assert launches.strip() == "{('quantize_per_token_fwd', 'cpu'): 1}"


@pytest.mark.parametrize("asked", ["auto", "1"])
def test_sources_that_do_not_compile_end_no_installation_unless_they_are_asked_for(tmp_path: Path, asked: str) -> None:
    pytest.importorskip("setuptools", reason="setuptools is not installed")
    if cpu_build.lacks() is not None:
        pytest.skip("no Python headers are here")
    compiler = tmp_path / "g++"
    compiler.write_text(FAILS)
    compiler.chmod(0o755)
    done = build_in(tmp_path / "tree", FASTTX_CPU=asked, CXX=str(compiler))
    assert (done.returncode == 0) == (asked == "auto"), done.stderr
    assert "no such thing" in done.stdout + done.stderr
    assert ("no int8 kernels for the CPU, as they did not compile here" in done.stdout) == (asked == "auto")
    assert not list((tmp_path / "tree" / "fasttx").glob("_C_cpu.*"))


def test_the_two_modules_are_chosen_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTTX_CUDA", "0")
    monkeypatch.setattr(cpu_build, "lacks", lambda: None)
    assert cpu_build.why_not() is None and cuda_build.why_not() is not None
