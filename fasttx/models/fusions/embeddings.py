"""The embeddings that a model begins with: words, positions and token types, their layer norm and dropout in one.

A patched module passes over its tables, its norm and its dropout, and reads their weights in every call. Where a table
is not exactly ``torch.nn.Embedding`` (LoRA, quantised, parametrised), has a hook, a norm of its rows or sparse
gradients, where embeddings are given, and with ERNIE's task types, transformers' own forward runs. So it does on a CPU,
where the kernels do not run and PyTorch's functions are the same.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ...functional._embedding_checks import NO_PADDING
from ...functional._embedding_layer_norm import embed
from ...functional._routing import unsupported_reason
from ...nn.bypass import bypass_reason
from ...ops import decisions
from ...ops.backends import forced_backend
from ...ops.checks import broadcasts
from ...ops.decisions import note
from ..options import ModulePatch
from ..subclass import subclass_of
from ..transformers_names import CACHE_LENGTH, argument
from .fusion import Fusion, unfused_reason_now


def unfused_reason(module: Any, tables: Sequence[str]) -> str | None:
    """Why the children of this module must be called unfused, or None."""
    for name in tables:
        table = getattr(module, name, None)
        reason = bypass_reason(table, name, cls="Embedding")
        if reason is not None:
            return reason
        for option in ("max_norm", "scale_grad_by_freq", "sparse"):
            if getattr(table, option) not in (None, False):
                return f"{name} has {option}"
    for name, kind in (("LayerNorm", "LayerNorm"), ("dropout", "Dropout")):
        reason = bypass_reason(getattr(module, name, None), name, cls=kind)
        if reason is not None:
            return reason
    for name in tables:
        if (getattr(module, name).weight.shape[1],) != module.LayerNorm.normalized_shape:
            return "the tables and LayerNorm differ in width"
    if not 0.0 <= module.dropout.p < 1.0:
        return f"dropout is {module.dropout.p}"
    if getattr(module, "position_embedding_type", "absolute") != "absolute":
        return f"positions are {module.position_embedding_type}"
    if getattr(module, "use_task_id", False):
        return "there are task types"
    return None


def _unfused_reason_now(
    module: Any, tables: Sequence[str], given: dict[str, Any], backend: str, unfused: Callable[[Any], str | None]
) -> str | None:
    """Why this call runs them unfused, or None."""
    ids = given.get("input_ids")
    if not isinstance(ids, Tensor) or given.get("inputs_embeds") is not None:
        return "the call gives embeddings"
    if ids.dim() != 2:
        return "input_ids is not (batch, sequence)"  # transformers' forward words the error
    for name in ("position_ids", "token_type_ids"):
        index = given.get(name)
        if index is not None and not broadcasts(index.shape, ids.shape):
            return f"{name} does not broadcast to input_ids"
    reason = unfused_reason_now(module, ids, backend, unfused, "LayerNorm")
    if reason is not None or backend != "auto":
        return reason
    weights = []
    for name in tables:
        weights.append(getattr(module, name).weight)
    return unsupported_reason(ids, *weights)


def usual_positions(module: Any, ids: Tensor, past: int) -> Tensor:
    """Positions from `past` on; RoBERTa's, in which padding has none, where the module counts them."""
    counted = getattr(module, "create_position_ids_from_input_ids", None)
    positions: Tensor = (
        module.position_ids[:, past : ids.shape[1] + past]
        if counted is None
        else counted(ids, module.padding_idx, past)
    )
    return positions


Positions = Callable[[Any, Tensor, int], Tensor]
"""Of embeddings, input ids and the number of tokens before them: position ids, as transformers makes them."""


def _indices(
    module: Any, ids: Tensor, given: dict[str, Any], typed: bool, positions: Positions
) -> tuple[Tensor, Tensor | None]:
    """Position ids and token types, where there are any, as transformers' forward makes them where not given."""
    past = argument(given, CACHE_LENGTH) or 0
    position_ids: Tensor | None = given.get("position_ids")
    types: Tensor | None = given.get("token_type_ids")
    if position_ids is None:
        position_ids = positions(module, ids, past)
    if types is None and typed:
        buffer = getattr(module, "token_type_ids", None)
        if buffer is None:
            types = torch.zeros((1, 1), dtype=torch.int64, device=ids.device)
        else:
            rows = buffer.to(position_ids.device).expand(position_ids.shape[0], -1)
            types = torch.gather(rows, 1, position_ids)
    return position_ids, types


def _padding(table: Any) -> int:
    return NO_PADDING if table is None or table.padding_idx is None else table.padding_idx


def fused_embeddings_class(original: type, module: str, tables: Sequence[str], positions: Positions) -> type:
    """The subclass of a family's embeddings that computes them in one.

    Args:
        original: the class, with the tables, ``LayerNorm``, ``dropout`` and a forward whose arguments are among
            input_ids, token_type_ids, position_ids, inputs_embeds and the length of the cache.
        module: where pickle finds the class.
        tables: names of the tables of words, positions and, where there are any, token types.
        positions: makes the position ids that are not given.
    """
    original_forward: Callable[..., Tensor] = original.forward  # type: ignore[attr-defined]
    names = tuple(inspect.signature(original_forward).parameters)[1:]

    def unfused(module: Any) -> str | None:
        return unfused_reason(module, tables)

    @functools.wraps(original_forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Tensor:
        patch: ModulePatch | None = getattr(self, "_fasttx", None)
        if patch is None or not patch.options.norm:
            return original_forward(self, *args, **kwargs)
        given = dict(zip(names, args)) | kwargs
        backend = patch.options.forced or forced_backend()
        reason = _unfused_reason_now(self, tables, given, backend, unfused)
        if decisions.records:
            note("embeddings", "one kernel" if reason is None else "unfused", reason or "")
        if reason is not None:
            return original_forward(self, *args, **kwargs)
        ids: Tensor = given["input_ids"]
        typed = len(tables) > 2
        position_ids, types = _indices(self, ids, given, typed, positions)
        word, position = getattr(self, tables[0]), getattr(self, tables[1])
        token_type = getattr(self, tables[2]) if typed else None
        paddings = _padding(word), _padding(position), _padding(token_type)
        return embed(
            ids,
            word.weight,
            position_ids,
            position.weight,
            types,
            None if token_type is None else token_type.weight,
            self.LayerNorm.weight,
            self.LayerNorm.bias,
            paddings,
            self.dropout.p if self.dropout.training else 0.0,
            self.LayerNorm.eps,
            None,
            None,
            backend,
        )

    return subclass_of(original, forward, module)


def fused_embeddings(tables: Sequence[str], positions: Positions = usual_positions) -> Fusion:
    """The fusion of a family whose embeddings are the sum of these tables."""
    return Fusion(
        option="norm",
        before="embeddings, norm, dropout",
        after="embedding_layer_norm",
        op="embedding_layer_norm",
        unfused_reason=lambda module: unfused_reason(module, tables),
        replace=lambda original, module: fused_embeddings_class(original, module, tables, positions),
    )


EMBEDDINGS = fused_embeddings(("word_embeddings", "position_embeddings", "token_type_embeddings"))
UNTYPED_EMBEDDINGS = fused_embeddings(("word_embeddings", "position_embeddings"))
