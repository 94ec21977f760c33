"""--help: fast, as it imports neither torch nor transformers, and its usage lines can be typed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("typer", reason="typer is not installed: the command line needs fasttx[cli]")
pytest.importorskip("rich", reason="rich is not installed: the command line needs fasttx[cli]")

from cli.test_commands import invoke

from fasttx.bench.options import ABOUT
from fasttx.cli.bench import Benchmark

EACH = """
import os, sys
from fasttx.__main__ import main

HEAVY = {"torch", "transformers", "triton", "matplotlib", "numpy"}
for arguments in CALLS:
    child = os.fork()  # a fresh process for each, without the start of Python and of typer
    if child == 0:
        sys.argv = ["fasttx", *arguments]
        try:
            main()
        except SystemExit as ended:
            assert not ended.code, ended.code
        print("heavy:", sorted({name.split(".")[0] for name in sys.modules} & HEAVY), flush=True)
        os._exit(0)
    print("status:", os.waitpid(child, 0)[1], flush=True)
    print("end of", " ".join(arguments), flush=True)
"""
COMMANDS = ("doctor", "supported", "tune", "demo", "verify", "plot", "bench")


BENCHMARKS = ("kernels", "model", "serving", "host", "padding", "cpu", "int8", "own", "report")
CALLS = [
    ("--help",),
    ("--version",),
    *((name, "--help") for name in COMMANDS),
    *(("bench", name, "--help") for name in BENCHMARKS),
]


@pytest.fixture(scope="module")
def shown() -> dict[str, str]:
    """Arguments -> what the command printed, and how it ended."""
    done = subprocess.run(
        [sys.executable, "-c", EACH.replace("CALLS", repr(CALLS))],
        capture_output=True,
        text=True,
        timeout=240,
        cwd=Path(__file__).resolve().parents[2],
    )
    assert done.returncode == 0, done.stderr
    parts = re.findall(r"(.*?)^end of (.*?)\n", done.stdout, re.M | re.S)
    return {arguments: text for text, arguments in parts}


@pytest.mark.parametrize("arguments", CALLS, ids=" ".join)
def test_help_waits_for_no_heavy_package(arguments: tuple[str, ...], shown: dict[str, str]) -> None:
    text = shown[" ".join(arguments)]
    assert text.endswith("heavy: []\nstatus: 0\n") and len(text.splitlines()) > 2, text


def test_these_are_all_commands() -> None:
    from fasttx.cli.app import app

    assert {command.name or command.callback.__name__ for command in app.registered_commands} == set(COMMANDS)
    assert [name.value for name in Benchmark] == list(ABOUT) == list(BENCHMARKS)


def test_bench_says_how_it_is_called() -> None:
    assert "Usage: fasttx bench BENCHMARK [OPTIONS OF IT]..." in invoke("bench", "--help", columns=80)
    for name in BENCHMARKS:
        text = invoke("bench", name, "--help", columns=80)
        assert text.startswith(f"usage: fasttx bench {name} [-h]") and ("--seconds" in text or name == "report")
        assert max(map(len, text.splitlines())) <= 80


def test_bench_says_what_training_is() -> None:
    assert '"training" is a masked language model' in " ".join(invoke("bench", "--help").split())
    assert "training: a step of a masked language model" in " ".join(invoke("bench", "model", "--help").split())
