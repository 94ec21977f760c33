"""The process that measures for `tune`: what it says, and what becomes of one that dies, hangs or is another's."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench import tuning
from fasttx.ops import tuned
from fasttx.trust import measurer

CPU = torch.device("cpu")
ITEM = "softmax/float32/to 512 cols, few rows"

CHILD = """
import json, sys
print(json.dumps({{"device": "", "key": {key!r}}}), flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    print("an import that prints")
    print(json.dumps({{"item": asked["item"], "runs": "triton"}}), flush=True)
    {then}
"""
ANSWER = {"default": "cuda", "own": "torch", "left_out": {}, "wrong": []}
ANSWER["times"] = {"plain": {"cuda": (3.0, 3.0, 3.0), "triton": (1.0, 1.0, 1.0)}}  # type: ignore[assignment]


def _child(monkeypatch: pytest.MonkeyPatch, then: str, key: Mapping[str, str] | None = None) -> measurer.Measurer:
    code = CHILD.format(key=dict(key or tuned.key(CPU)), then=then)
    monkeypatch.setattr(measurer, "COMMAND", (sys.executable, "-c", code))
    return measurer.Measurer(CPU, False)


@pytest.mark.parametrize(
    "then, answer",
    [
        (f"print(json.dumps({{'item': asked['item'], 'found': {ANSWER!r}}}), flush=True)", {"found": ANSWER}),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", {"crashed": "triton", "how": "ended by signal 11"}),
        ("import os; os._exit(70)", {"crashed": "triton", "how": "ended with code 70"}),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "the process that measures ended by signal 9"),
        ("print(json.dumps({'item': asked['item'], 'problem': 'no transformers'}), flush=True)", "no transformers"),
    ],
)
def test_what_the_child_says(then: str, answer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    child = _child(monkeypatch, then)
    try:
        for item in (ITEM, ITEM):  # a second process, where the first has died
            found = json.loads(json.dumps(child.ask(item, {}, 60.0)))
            found.pop("item", None)
            assert found == ({"problem": answer} if isinstance(answer, str) else json.loads(json.dumps(answer)))
    finally:
        child.stop()


def test_a_child_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    child = _child(monkeypatch, "import time; time.sleep(10_000)")
    assert child.ask(ITEM, {}, 0.5) == {"problem": "no time was left"}
    monkeypatch.setattr(measurer, "ITEM_S", 0.5)
    assert child.ask(ITEM, {}, 0.5) == {"problem": "it took more than 0 s"}


@pytest.mark.parametrize("change", ["threads", "driver"])
def test_a_child_with_another_key_is_not_believed(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    child = _child(monkeypatch, "pass", tuned.key(CPU) | {change: "another"})
    assert child.ask(ITEM, {}, 60.0)["problem"].startswith("the process that measures has another device")


def test_a_child_that_cannot_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measurer, "COMMAND", ("no such program",))
    assert "no child process" in measurer.Measurer(CPU, False).ask(ITEM, {}, 1.0)["problem"]


def test_a_device_that_a_kernel_has_broken_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes after it would be blamed for it else."""
    assert tuning._survived(ValueError("no such\nthing"), CPU) == "ValueError: no such"
    monkeypatch.setattr(tuning, "torch", SimpleNamespace(ones=lambda *_, **__: 1 / 0))
    with pytest.raises(tuning.Broken):
        tuning._survived(ValueError(), CPU)
