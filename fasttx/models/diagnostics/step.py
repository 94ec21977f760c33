"""One step of a model that leaves no trace: for ``fasttx.explain`` and ``fasttx.verify``."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ... import nn as fasttx_nn

RATES = ("attention_dropout", "dropout")
"""What attention modules that hold a probability, not a Dropout, call it; torch.nn.MultiheadAttention the second."""


def loss_of(output: Any) -> Tensor | None:
    """The loss in an output that can be differentiated, or None.

    By its name; where outputs have none (a tensor, a tuple), a single number that is the output or its first item.
    """
    loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if isinstance(output, (Tensor, tuple, list)) and loss is None:
        first = output if isinstance(output, Tensor) else next(iter(output), None)
        loss = first if isinstance(first, Tensor) and first.dim() == 0 else None
    return loss if isinstance(loss, Tensor) and loss.requires_grad else None


def named_outputs(output: Any) -> dict[str, Tensor]:
    """The floating tensors of an output by name, the loss left out; those of a tuple are numbered."""
    if isinstance(output, Mapping):
        named = dict(output)
    else:
        items = output if isinstance(output, (tuple, list)) else (output,)
        named = {"output" if items is not output else f"output[{i}]": item for i, item in enumerate(items)}
    tensors = {name: x for name, x in named.items() if isinstance(x, Tensor) and x.is_floating_point()}
    return {name: x for name, x in tensors.items() if name != "loss" and (isinstance(output, Mapping) or x.dim() > 0)}


@contextlib.contextmanager
def without_trace(model: nn.Module) -> Iterator[None]:
    """Gives parameters back their gradients, and the generators their states; parameters have none inside."""
    parameters = list(model.parameters())
    grads = [p.grad for p in parameters]
    devices = sorted({p.device.index or 0 for p in parameters if p.device.type == "cuda"})
    with torch.random.fork_rng(devices):
        try:
            for p in parameters:
                p.grad = None
            yield
        finally:
            for p, grad in zip(parameters, grads, strict=True):
                p.grad = grad


def _rates_of(module: nn.Module) -> tuple[str, ...]:
    """What this module may call its probability: a Dropout p, and so those of fasttx.nn that drop within an op."""
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return ("p",)
    own = any(cls.__module__.startswith(fasttx_nn.__name__) for cls in type(module).__mro__)
    return (*RATES, "p") if own else RATES


@contextlib.contextmanager
def training_without_dropout(model: nn.Module) -> Iterator[None]:
    """Training mode, every dropout at 0: the way of a training step, with a result that can be compared."""
    modes = [(module, module.training) for module in model.modules()]
    drops = [
        (module, name, value)
        for module in model.modules()
        for name in _rates_of(module)
        if isinstance(value := getattr(module, name, None), float)
    ]
    try:
        model.train()
        for module, name, _ in drops:
            setattr(module, name, 0.0)
        yield
    finally:
        for module, name, value in drops:
            setattr(module, name, value)
        for module, training in modes:
            module.training = training
