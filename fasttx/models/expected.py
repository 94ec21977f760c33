"""Which backend will probably run an op of a patched module, for the report."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..ops.backends import forced_backend
from ..ops.registry import OPS, Op

ORDER = ("cuda", "triton")
HEAD_DIM = ("attention_head_size", "head_dim")
"""What attention modules call the width of a head."""


def _examples(op: Op, module: Any, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Tensors like those on which the table of ops decides, without any memory behind their shapes."""
    one = torch.empty(1, device=device, dtype=dtype)
    if op.name == "attention":
        head_dim = next(getattr(module, name) for name in HEAD_DIM if hasattr(module, name))
        shape = (1, 128, 1, head_dim)
        return tuple(one.expand(shape) for _ in op.fwd.keys)
    if op.name == "embedding_layer_norm":
        table = module.word_embeddings.weight
        return one.long().expand(128), one.expand(128, table.shape[1])
    logits, labels = one.expand(128, 128), one.long().expand(128)
    return tuple(labels if key == "target" and op.name != "binary_cross_entropy" else logits for key in op.fwd.keys)


def expected_backend(op: str, requested: str, module: nn.Module) -> str:
    """The backend that the table of ops would choose on the device and dtype that `module` has now.

    Args:
        op: name in the table of ops.
        requested: ``"auto"`` or a backend's name.
        module: its first floating parameter tells device and dtype.
    """
    if requested == "auto":
        requested = forced_backend()
    row = OPS.get(op)
    parameter = next((p for p in module.parameters() if p.is_floating_point()), None)
    if row is None or parameter is None or requested == "torch":
        return requested
    if parameter.device.type == "meta":
        return requested
    reasons = row.reasons(*_examples(row, module, parameter.device, parameter.dtype))
    if requested != "auto":
        why = reasons[requested]
        return requested if why is None else f"{requested}, which cannot run here: {why}"
    if parameter.device.type != "cuda":
        return "torch"
    return next((name for name in ORDER if reasons[name] is None), "torch")
