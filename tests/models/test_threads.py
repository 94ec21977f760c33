"""Models that were patched with different options, called by several threads at once."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from models import model_zoo as zoo

import fasttx
from fasttx.functional import _cross_entropy, _softmax
from fasttx.functional.attention import autograd as attention_autograd
from fasttx.models.attention import interface
from fasttx.ops.backends import forced_backend

ASKED = {"torch": True, "triton": False}


def test_two_threads_keep_their_own_backend_and_determinism(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are inside of their attention function at once, and each op is called as its own model's patch asked."""
    meet = threading.Barrier(2, timeout=60)
    seen: list[tuple[str, str]] = []
    attend = interface._attend

    def attend_together(*args: Any) -> Any:
        meet.wait()
        found = attend(*args)
        meet.wait()
        return found

    def spy(module: Any, name: str) -> None:
        original = getattr(module, name)

        def call(*args: Any) -> Any:
            seen.append((threading.current_thread().name, args[-1]))
            return original(*args[:-1], "torch")  # Triton's interpreter knows one thread only

        monkeypatch.setattr(module, name, call)

    monkeypatch.setattr(interface, "_attend", attend_together)
    spy(attention_autograd, "_fwd")
    spy(_cross_entropy, "_ce_fwd")
    spy(_cross_entropy, "_ce_bwd")
    spy(_softmax, "_fwd")
    backward: list[tuple[Any, Any]] = []  # autograd may run it in another thread
    original = attention_autograd._bwd
    monkeypatch.setattr(
        attention_autograd, "_bwd", lambda *a: (backward.append((a[-1], a[-3])), original(*a[:-1], "torch"))[1]
    )
    failed: list[BaseException] = []

    def train(name: str) -> None:
        try:
            model = zoo.tiny_model(zoo.BERT, "BertForSequenceClassification")
            inputs = zoo.inputs_for(zoo.BERT, "BertForSequenceClassification")
            fasttx.patch(model, backend=name, deterministic=ASKED[name])
            inputs["labels"] = torch.tensor([0, 1, 2])
            model(**inputs).loss.backward()
            model(**inputs, output_attentions=True)
        except BaseException as e:
            meet.abort()
            failed.append(e)

    threads = [threading.Thread(target=train, args=(name,), name=name) for name in ASKED]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failed, failed
    assert forced_backend() == "auto"
    assert {thread for thread, _ in seen} == set(ASKED)
    assert all(thread == backend for thread, backend in seen), seen
    assert set(backward) == set(ASKED.items())
