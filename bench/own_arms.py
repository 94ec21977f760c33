"""The ways to run the user's model that bench.own compares; each is a copy of the same weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import fasttx

from .own_model import TRAINS, Batch
from .settings import Settings, one_line

PLAIN, FASTTX = "as it is", "fasttx"
COMPILED, FASTTX_COMPILED = "torch.compile", "fasttx + torch.compile"
INT8, CAPTURED, ONNX = "fasttx, int8", "fasttx + capture", "ONNX Runtime"

Run = Callable[[Batch], Any]


def answer_of(model: nn.Module) -> Run:
    """Logits, or the normalised mean of the hidden states, in float32 on the host."""

    def answer(batch: Batch) -> Tensor:
        with torch.inference_mode():
            return _answer(model(**batch), batch["attention_mask"]).float().cpu()

    return answer


def _answer(output: Any, mask: Tensor) -> Tensor:
    if "logits" in output:
        logits: Tensor = output["logits"]
        return logits
    return embedding(output["last_hidden_state"], mask)


def embedding(hidden: Tensor, mask: Tensor) -> Tensor:
    """The normalised mean of the hidden states of real tokens."""
    weights = mask[..., None].to(hidden.dtype)
    return nn.functional.normalize((hidden * weights).sum(1) / weights.sum(1), dim=-1)


def step_of(model: nn.Module) -> Run:
    """A step with AdamW, with dropout as the model has it."""
    model.train().requires_grad_()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)

    def step(batch: Batch) -> None:
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


@dataclass(frozen=True)
class Arm:
    """One way to run the model: its name, what makes it ready, and whether that takes a compiler."""

    name: str
    make: Callable[[], Run]
    compiles: bool = False

    @property
    def patched(self) -> bool:
        return self.name.startswith(FASTTX)


def arms_of(base: nn.Module, task: str, batch: Batch, settings: Settings, *, int8: bool, compilers: bool) -> list[Arm]:
    """What can be compared on this device; `batch` is one of those that will be timed."""

    def model(patched: bool, compiled: bool = False, quantised: bool = False, captured: bool = False) -> Run:
        own: Any = copy.deepcopy(base)
        if patched:
            fasttx.patch(own, unpad=settings.unpad)
        if quantised:
            fasttx.quantize(own)
        if captured:
            fasttx.capture(own)
        if compiled:
            own.compile(dynamic=True, backend=settings.backend)
        return (step_of if task in TRAINS else answer_of)(own)

    arms = [Arm(PLAIN, partial(model, patched=False)), Arm(FASTTX, partial(model, patched=True))]
    if task not in TRAINS and settings.device.type == "cpu":
        arms.append(Arm(CAPTURED, partial(model, patched=True, captured=True)))
    if int8 and task not in TRAINS:
        arms.append(Arm(INT8, partial(model, patched=True, quantised=True)))
    if compilers:
        arms.append(Arm(COMPILED, partial(model, patched=False, compiled=True), True))
        arms.append(Arm(FASTTX_COMPILED, partial(model, patched=True, compiled=True), True))
    if compilers and task not in TRAINS and settings.device.type == "cpu":
        arms.append(Arm(ONNX, partial(_onnx, base, batch), True))
    return arms


def _onnx(base: nn.Module, batch: Batch) -> Run:
    from .exported import onnx_runtime

    run = onnx_runtime(base, batch)

    def answer(batch: Batch) -> Tensor:
        found = run(batch)
        return found if found.dim() == 2 else embedding(found, batch["attention_mask"])

    return answer


def ready(arm: Arm, batch: Batch, settings: Settings) -> Run | str:
    """What the arm does with a batch, once it has done so with `batch`; or why it cannot."""
    if settings.late(arm.compiles):
        return "not run: time budget"
    try:
        run = arm.make()
        run(batch)  # what compiles does so at its first call
    except ModuleNotFoundError as problem:
        return f"not installed: {problem.name}"
    except Exception as problem:  # one arm that cannot be made is a row
        return one_line(problem)
    return run
