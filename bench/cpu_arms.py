"""What bench.cpu compares: one model's weights under transformers, fasttx, compilers and other runtimes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import fasttx

from .contenders import gradients, loss_of
from .cpu_cases import TRAINING
from .own_arms import embedding
from .settings import Settings

FP32, BF16, INT8 = "fp32", "bf16", "int8"
LEAST_COSINE = {FP32: 1 - 1e-5, BF16: 0.99, INT8: 0.95}
"""Of each embedding to transformers' in float32: an arm below it computes something else, and gets no time."""
GRADIENT_ERROR = {FP32: 1e-4, BF16: 0.05}
"""Norm of the difference of all gradients over the norm of transformers' in float32: likewise, at most."""
PLAIN = "transformers, fp32"
OURS = "fasttx"
COMPILED, CAPTURED = "torch.compile", "capture"
"""How a model is run, besides eagerly."""

Batch = dict[str, Tensor]
Run = Callable[[Batch], Any]


@dataclass(frozen=True)
class Arm:
    """One way to run the model.

    Attributes:
        name: in the table.
        precision: of the products, which says how accurate it has to be.
        make: what makes it ready. What it gives answers a batch, or makes a step with it.
        compiles: whether that takes a compiler.
        gradients: of a batch, by the name of the parameter; of an arm that trains.
    """

    name: str
    precision: str
    make: Callable[[], tuple[Run, Callable[[Batch], dict[str, Tensor]] | None]]
    compiles: bool = False


def arms_of(base: nn.Module, task: str, batch: Batch, settings: Settings, *, compilers: bool) -> list[Arm]:
    """All arms of a task; `batch` is one of those that will be timed."""

    def arm(who: str, precision: str, how: str = "") -> Arm:
        make = partial(_model, base, task, settings, precision, who == OURS, how)
        return Arm(f"{who}, {precision}{how and ' + ' + how}", precision, make, how == COMPILED)

    floats = (FP32, BF16)
    arms = [arm(who, precision) for who in ("transformers", OURS) for precision in floats]
    if task != TRAINING:
        arms += [arm(OURS, INT8), *(arm(OURS, precision, CAPTURED) for precision in (*floats, INT8))]
    if compilers:
        arms += [arm(who, precision, COMPILED) for who in ("transformers", OURS) for precision in floats]
    if task != TRAINING:
        arms += [
            Arm("ONNX Runtime, fp32", FP32, partial(_runtime, "onnx_runtime", base, batch), True),
            Arm("ONNX Runtime, int8", INT8, partial(_runtime, "onnx_runtime", base, batch, int8=True), True),
            Arm("OpenVINO, fp32", FP32, partial(_runtime, "openvino", base, batch), True),
            Arm("OpenVINO, its own choice", BF16, partial(_runtime, "openvino", base, batch, precision=None), True),
        ]
    return arms


def _model(base: nn.Module, task: str, settings: Settings, precision: str, patched: bool, how: str) -> Any:
    model: Any = copy.deepcopy(base)
    if precision == BF16 and task != TRAINING:  # what trains keeps float32 weights, and multiplies under autocast
        model.to(torch.bfloat16)
    if patched:
        fasttx.patch(model, unpad=settings.unpad)
    if precision == INT8:
        fasttx.quantize(model)
    if how == CAPTURED:
        fasttx.capture(model)
    if how == COMPILED:
        model.compile(dynamic=True, backend=settings.backend)
    return _step(model, precision == BF16) if task == TRAINING else (_answer(model), None)


def _answer(model: nn.Module) -> Run:
    model.eval()

    def answer(batch: Batch) -> Tensor:
        with torch.inference_mode():
            return embedding(model(**batch).last_hidden_state.float(), batch["attention_mask"])

    return answer


def _step(model: Any, autocast: bool) -> Any:
    """A step of AdamW with dropout as the model has it; and its gradients without dropout."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)

    def step(batch: Batch) -> None:
        model.train()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = loss_of(model, batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def found(batch: Batch) -> dict[str, Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return gradients(model, batch)

    return step, found


def _runtime(name: str, base: nn.Module, batch: Batch, **options: Any) -> Any:
    from . import exported

    run = getattr(exported, name)(base, batch, **options)
    return (lambda batch: embedding(run(batch), batch["attention_mask"])), None
