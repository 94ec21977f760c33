"""The ways to run the user's model that bench.own compares; each is a copy of the same weights."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fasttx

from .own_model import TRAINS, Batch
from .settings import Settings, one_line

PLAIN, FASTTX = "as it is", "fasttx"
COMPILED, FASTTX_COMPILED = "torch.compile", "fasttx + torch.compile"
INT8, ONNX = "fasttx, int8", "ONNX Runtime"

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

    def model(patched: bool, compiled: bool = False, quantised: bool = False) -> Run:
        own: Any = copy.deepcopy(base)
        if patched:
            fasttx.patch(own, unpad=settings.unpad)
        if quantised:
            fasttx.quantize(own)
        if compiled:
            own.compile(dynamic=True, backend=settings.backend)
        return (step_of if task in TRAINS else answer_of)(own)

    arms = [Arm(PLAIN, partial(model, patched=False)), Arm(FASTTX, partial(model, patched=True))]
    if int8 and task not in TRAINS:
        arms.append(Arm(INT8, partial(model, patched=True, quantised=True)))
    if compilers:
        arms.append(Arm(COMPILED, partial(model, patched=False, compiled=True), True))
        arms.append(Arm(FASTTX_COMPILED, partial(model, patched=True, compiled=True), True))
    if compilers and task not in TRAINS and settings.device.type == "cpu":
        arms.append(Arm(ONNX, partial(_onnx, base, batch), True))
    return arms


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


# ------------------------------------------------------------------------------------------------------ ONNX Runtime


class _Outputs(nn.Module):
    """The tensor that an answer is made of, with the batch's arguments in a fixed order."""

    def __init__(self, model: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *arguments: Tensor) -> Tensor:
        output = self.model(**dict(zip(self.names, arguments, strict=True)))
        found: Tensor = output["logits"] if "logits" in output else output["last_hidden_state"]
        return found


def _onnx(base: nn.Module, batch: Batch) -> Run:
    """The unpatched model, exported and run by ONNX Runtime with as many threads as PyTorch has."""
    import onnxruntime
    import onnxscript  # noqa: F401  # the exporter's own requirement: named here, it is what is reported as missing

    names = list(batch)
    sizes = {0: torch.export.Dim("batch", min=1, max=4096), 1: torch.export.Dim("tokens", min=2, max=8192)}
    wrapped = _Outputs(copy.deepcopy(base), names).eval()
    rows = {name: torch.cat([value, value]) for name, value in batch.items()}  # a batch of one would be a constant
    with torch.no_grad():
        program = torch.onnx.export(
            wrapped,
            tuple(rows.values()),
            dynamo=True,
            dynamic_shapes=(tuple(sizes for _ in names),),
            verbose=False,
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "model.onnx"
        program.save(path)  # type: ignore[union-attr]
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feeds = [given.name for given in session.get_inputs()]

    def answer(batch: Batch) -> Tensor:
        given = {feed: batch[name].numpy() for feed, name in zip(feeds, names, strict=True)}
        found = torch.from_numpy(session.run(None, given)[0])
        return found if found.dim() == 2 else embedding(found, batch["attention_mask"])

    return answer
