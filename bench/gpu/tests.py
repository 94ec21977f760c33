"""Tests that only a GPU can run, a process a file: CUDA graphs, compiled models, the PTX of csrc/arch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from .allowed import BESIDE_THE_OPS
from .item import Context, Item, Line

ROOT = Path(__file__).resolve().parents[2]
TEST_SECONDS = 30
REHEARSED = {"tests/gpu/test_graphs.py": "losses"}
"""pytest's -k in a rehearsal; tests/bench runs the rest of tests/gpu once more."""


def tested(file: str, keyword: str, context: Context) -> Iterator[Line]:
    """A line a test that did not pass, and one for the file."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log.jsonl"
        environ = os.environ | {"FASTTX_TEST_LOG": str(log), "FASTTX_TEST_SECONDS": str(TEST_SECONDS)}
        environ["FASTTX_TEST_DEADLINE"] = str(context.until - 5)
        if context.rehearsal:
            environ["FASTTX_REHEARSAL"] = "1"
        command = [sys.executable, "-m", "pytest", file, "-q", "--tb=short", "-W", "ignore", "-o", "timeout="]
        for plugin in ("tests.support.budget", "no:cacheprovider", "no:timeout", "no:xdist"):
            command += ["-p", plugin]
        command += ["-k", keyword] if keyword else []
        done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, errors="replace")
        print(done.stdout[-20_000:], done.stderr[-5_000:])
        lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.exists() else []
    for line in lines:
        if line["outcome"] not in ("passed", "skipped"):
            yield {"text": f"{line['test']}: {line['outcome']}: {line['detail']}", "ok": False, **line}
    counts = Counter(str(line["outcome"]) for line in lines)
    text = ", ".join(f"{n} {outcome}" for outcome, n in sorted(counts.items())) or "no test"
    # a process that died at exit, or before its first test, shows in its status alone
    yield {"text": f"{text}, exit status {done.returncode}", "ok": done.returncode in (0, 1, 5), "counts": dict(counts)}


def items(context: Context) -> list[Item]:
    chosen = dict.fromkeys(BESIDE_THE_OPS, "") if not context.rehearsal else REHEARSED
    return [Item(file, partial(tested, file, keyword)) for file, keyword in chosen.items()]
