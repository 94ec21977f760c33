"""The README's picture is what the script draws from the launches that it counts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers

pytest.importorskip("triton", reason="triton is not installed")

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs" / "images" / "layer.svg"
COUNTS = re.compile(r"(\d+) launches, on padded batches.* (\d+) launches, on real tokens.*: (\d+) and (\d+)\.")


@pytest.fixture(scope="module")
def drawn() -> str:
    command = [sys.executable, str(ROOT / "tests" / "scripts" / "layer_picture.py")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return done.stdout


def counts(text: str) -> list[int]:
    found = COUNTS.search(text)
    assert found
    return [int(each) for each in found.groups()]


@pytest.mark.slow
def test_a_patched_layer_launches_less(drawn: str) -> None:
    before, after, step_before, step_after = counts(drawn)
    assert after < before < step_before and step_after < step_before
    assert drawn.count('class="torch"') + drawn.count('class="fast"') == before + after


@pytest.mark.slow
def test_the_picture_is_what_is_counted(drawn: str) -> None:
    if not torch.__version__.startswith("2.13") or not transformers.__version__.startswith("5.17"):
        pytest.skip("the picture shows torch 2.13 and transformers 5.17, and others launch other operators")
    assert PICTURE.read_text(encoding="utf-8") == drawn, "python tests/scripts/layer_picture.py > docs/images/layer.svg"


def test_the_readme_says_the_same() -> None:
    said = re.search(
        r"!\[One BERT layer.*: (\d+) and (\d+) launches .*, (\d+) and (\d+) in", (ROOT / "README.md").read_text()
    )
    assert said and [int(each) for each in said.groups()] == counts(PICTURE.read_text(encoding="utf-8"))
