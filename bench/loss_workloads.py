"""Softmax and the losses at given shapes, and their peers."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from .op_case import BF16, OpCase, Workload, randn
from .peers import (
    Peer,
    liger_cross_entropy,
    liger_softmax,
    vocabulary_losses,
    wide,
    written_out,
)


def softmax(name: str, n_rows: int, n_cols: int, dtype: torch.dtype = BF16) -> Workload:
    def build(device: torch.device, size: str, seed: int) -> OpCase:
        rows, cols = {"full": (n_rows, n_cols), "check": (64, n_cols), "tiny": (4, min(n_cols, 100))}[size]
        x = randn(device, dtype, seed, rows, cols)
        fn = functools.partial(F.softmax, dim=-1)
        peers = written_out(fn, (x,)) | liger_softmax(x, fn)
        return OpCase([x, None, None, 1.0, 0.0, False], peers)

    return Workload(name, "softmax", build)


def cross_entropy(name: str, n_rows: int, n_cols: int, dtype: torch.dtype = BF16, smoothing: float = 0.0) -> Workload:
    """Mean loss; one target in seven is ignored."""

    def build(device: torch.device, size: str, seed: int) -> OpCase:
        rows, cols = {"full": (n_rows, n_cols), "check": (64, n_cols), "tiny": (5, min(n_cols, 100))}[size]
        logits = randn(device, dtype, seed, rows, cols)
        target = torch.arange(rows, device=device) * 7919 % cols
        target[::7] = -100

        def loss(logits: Tensor) -> Tensor:
            return F.cross_entropy(wide(logits), target, label_smoothing=smoothing)

        peers = written_out(loss, (logits,)) | liger_cross_entropy(logits, target, smoothing, loss)
        return OpCase([logits, target, None, -100, smoothing, 1], peers, step=True)

    return Workload(name, "cross_entropy", build)


def linear_cross_entropy(
    name: str, n_rows: int, n_cols: int, in_features: int, dtype: torch.dtype = BF16, *, bias: bool = True
) -> Workload:
    """Mean loss of a vocabulary; one target in seven is ignored."""

    def build(device: torch.device, size: str, seed: int) -> OpCase:
        rows, cols = {"full": (n_rows, n_cols), "check": (64, n_cols), "tiny": (5, min(n_cols, 100))}[size]
        x = randn(device, dtype, seed, rows, in_features)
        rest = (randn(device, dtype, seed + 2, cols),) if bias else ()
        weight = randn(device, dtype, seed + 1, cols, in_features) * in_features**-0.5
        target = torch.arange(rows, device=device) * 7919 % cols
        target[::7] = -100

        def loss(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
            return F.cross_entropy(wide(F.linear(x, weight, bias)), target)

        inputs = (x, weight, *rest)
        peers = written_out(loss, inputs) | vocabulary_losses(inputs, target, loss)
        return OpCase([x, weight, rest[0] if bias else None, target, None, -100, 0.0, 1], peers, step=True)

    return Workload(name, "linear_cross_entropy", build)


def binary_cross_entropy(name: str, n_rows: int, n_cols: int, dtype: torch.dtype = BF16) -> Workload:
    def build(device: torch.device, size: str, seed: int) -> OpCase:
        rows, cols = {"full": (n_rows, n_cols), "check": (64, n_cols), "tiny": (5, min(n_cols, 100))}[size]
        x = randn(device, dtype, seed, rows, cols)
        target = (randn(device, dtype, seed + 1, rows, cols) > 0).to(dtype)

        def loss(x: Tensor) -> Tensor:
            return F.binary_cross_entropy_with_logits(wide(x), target.to(wide(x).dtype))

        return OpCase([x, target, None, None, 1], written_out(loss, (x,)))

    return Workload(name, "binary_cross_entropy", build)


def kl_div(name: str, n_rows: int, n_cols: int, dtype: torch.dtype = BF16) -> Workload:
    """Distillation: log-probabilities of a student against those of its teacher."""

    def build(device: torch.device, size: str, seed: int) -> OpCase:
        rows, cols = {"full": (n_rows, n_cols), "check": (64, n_cols), "tiny": (5, min(n_cols, 100))}[size]
        x, target = (randn(device, dtype, s, rows, cols).log_softmax(-1) for s in (seed, seed + 1))

        def loss(x: Tensor) -> Tensor:
            return F.kl_div(x.float(), target.float(), reduction="batchmean", log_target=True)

        peers = {"eager": Peer(loss, (x,)), "torch.compile": Peer(loss, (x,), compiled=True)}
        return OpCase([x, target, 3, True], peers)

    return Workload(name, "kl_div", build)
