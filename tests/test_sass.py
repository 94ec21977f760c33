"""`make sass`: the table of machine code by nvcc and by Triton."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import cuda_build
import pytest
import sass
from cuda import machine_code


def run(*parts: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, sass.__file__, *parts]
    return subprocess.run(command, capture_output=True, text=True, timeout=1200)


def test_what_is_counted() -> None:
    wide = ["LDG.E.128", "LDG.E.128.CONSTANT", "LDGSTS.E.BYPASS.128", "STG.E.128"]
    others = ["LDG.E", "STG.E.64", "LDS.128", "STS.128", "FFMA", "IMAD", "HFMA2.MMA", "WARPGROUP.DEPBAR.LE"]
    products = [
        "HMMA.16816.F32",
        "IMMA.16832.S8.S8",
        "HGMMA.64x64x16.F32",
        "IGMMA.64x64x32.S8.S8",
        "UTCHMMA",
        "UTCIMMA",
    ]
    found = sass.row("file sm_90", "kernel", 32, 8, 1024, [*wide, *others, *products])
    assert found == ("file sm_90", "kernel", 32, 8, 1024, 18, 3, 1, 6)
    assert str(found).split() == ["32", "8", "1024", "18", "3", "1", "6", "kernel"]
    header = sass.COLUMNS.split()
    assert len(header) == len(str(found).split()) and header[0] == "registers" and header[-1] == "kernel"


def test_a_file_is_asked_for_the_archs_in_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []
    monkeypatch.setattr(machine_code, "kernels", lambda source, arch: asked.append((source.stem, arch)) or [])
    assert list(sass.of_nvcc(["attention_fwd"])) == []
    names = [("attention_fwd_sm80", "80"), ("attention_fwd_sm80", "90a"), ("attention_fwd_sm90", "90a")]
    assert asked == names


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_a_name_that_no_file_has() -> None:
    done = run("no_such_kernel")
    assert done.returncode == 2 and "no kernel's file has no_such_kernel in its name" in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_one_op() -> None:
    """Rows of its own file alone, in each arch; each kernel has 16-byte loads, and no tensor cores."""
    done = run("kl_div")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    lines = done.stdout.splitlines()
    headings = {line for line in lines if " sm_" in line}
    expected = {f"kernels/kl_div.py sm_{arch}" for arch in (80, 90, 100)}
    if cuda_build.lacks() is None:
        expected |= {f"csrc/kl_div/kl_div.cu sm_{arch}" for arch in ("80", "90a")}
    assert headings == expected
    rows = [line.split() for line in lines if line.split() and line.split()[0].isdigit()]
    assert len(rows) >= 40 and all(int(r[1]) == 0 and int(r[4]) >= 1 and int(r[6]) == 0 for r in rows)
    assert any("_forward" in line and "BLOCK=1024 4 warps" in line for line in lines)
