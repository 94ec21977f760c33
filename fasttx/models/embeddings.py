"""The embeddings that a model begins with: words, positions and token types, their layer norm and dropout in one.

A patched module passes over its tables, its norm and its dropout, and reads their weights in every call. Where a table
is not exactly ``torch.nn.Embedding`` (LoRA, quantised, parametrised), has a hook, a norm of its rows or sparse
gradients, where embeddings are given, and with ERNIE's task types, transformers' own forward runs. So it does on a CPU,
where the kernels do not run and PyTorch's functions are the same.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..functional.eligibility import uncovered
from ..functional.embedding import NO_PADDING, embed
from ..nn.bypass import bypass_reason
from ..ops.arguments import broadcasts
from ..ops.decisions import note
from ..ops.registry import forced_backend
from .call_names import CACHE_LENGTH, argument
from .options import ModulePatch
from .part import Part, as_fast_apart
from .replacement import subclass_of

TABLES = ("word_embeddings", "position_embeddings", "token_type_embeddings")


def separate_embeddings_reason(module: Any) -> str | None:
    """Why the parts of this module must be called one by one, or None."""
    for name in TABLES:
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
    widths = {(getattr(module, name).weight.shape[1],) for name in TABLES}
    if widths != {module.LayerNorm.normalized_shape}:
        return "the tables and LayerNorm differ in width"
    if not 0.0 <= module.dropout.p < 1.0:
        return f"dropout is {module.dropout.p}"
    if getattr(module, "position_embedding_type", "absolute") != "absolute":
        return f"positions are {module.position_embedding_type}"
    if getattr(module, "use_task_id", False):
        return "there are task types"
    return None


def _separate_now(module: Any, given: dict[str, Any], backend: str) -> str | None:
    """Why this call runs the parts one by one, or None."""
    ids = given.get("input_ids")
    if not isinstance(ids, Tensor) or given.get("inputs_embeds") is not None:
        return "the call gives embeddings"
    if ids.dim() != 2:
        return "input_ids is not (batch, sequence)"  # transformers' forward words the error
    for name in ("position_ids", "token_type_ids"):
        index = given.get(name)
        if index is not None and not broadcasts(index.shape, ids.shape):
            return f"{name} does not broadcast to input_ids"
    reason = as_fast_apart(ids) if backend in ("auto", "torch") else None
    reason = reason or separate_embeddings_reason(module)
    if reason is not None or backend not in ("auto", "torch"):
        return reason
    return uncovered(ids, module.LayerNorm.weight, *(getattr(module, name).weight for name in TABLES))


def _indices(module: Any, ids: Tensor, given: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Position ids and token types, as transformers' forward makes them where they are not given."""
    past = argument(given, CACHE_LENGTH) or 0
    position_ids: Tensor | None = given.get("position_ids")
    types: Tensor | None = given.get("token_type_ids")
    if position_ids is None:
        counted = getattr(module, "create_position_ids_from_input_ids", None)  # RoBERTa's: padding has no position
        if counted is not None:
            position_ids = counted(ids, module.padding_idx, past)
        else:
            position_ids = module.position_ids[:, past : ids.shape[1] + past]
    if types is None:
        buffer = getattr(module, "token_type_ids", None)
        if buffer is None:
            types = torch.zeros((1, 1), dtype=torch.int64, device=ids.device)
        else:
            rows = buffer.to(position_ids.device).expand(position_ids.shape[0], -1)
            types = torch.gather(rows, 1, position_ids)
    return position_ids, types


def fused_embeddings_class(original: type, module: str) -> type:
    """The subclass of a family's embeddings that computes them in one.

    Args:
        original: the class, with the three tables, ``LayerNorm``, ``dropout`` and
            ``forward(input_ids, token_type_ids, ..., position_ids, inputs_embeds, ...)``: last, the cache's length.
        module: where pickle finds the class.
    """
    original_forward: Callable[..., Tensor] = original.forward  # type: ignore[attr-defined]
    names = tuple(inspect.signature(original_forward).parameters)[1:]

    @functools.wraps(original_forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Tensor:
        patch: ModulePatch | None = getattr(self, "_fasttx", None)
        if patch is None or not patch.options.norm:
            return original_forward(self, *args, **kwargs)
        given = dict(zip(names, args)) | kwargs
        backend = patch.options.forced or forced_backend()
        reason = _separate_now(self, given, backend)
        note("embeddings", "one kernel" if reason is None else "one by one", reason or "")
        if reason is not None:
            return original_forward(self, *args, **kwargs)
        ids: Tensor = given["input_ids"]
        position_ids, types = _indices(self, ids, given)
        word, position, token_type = (getattr(self, name) for name in TABLES)
        word_padding, position_padding, type_padding = (
            NO_PADDING if table.padding_idx is None else table.padding_idx for table in (word, position, token_type)
        )
        return embed(
            ids, word.weight, position_ids, position.weight, types, token_type.weight, self.LayerNorm.weight,
            self.LayerNorm.bias, (word_padding, position_padding, type_padding),
            self.dropout.p if self.dropout.training else 0.0, self.LayerNorm.eps, None, None, backend,
        )  # fmt: skip

    return subclass_of(original, forward, module)


EMBEDDINGS = Part(
    option="norm",
    before="embeddings, norm, dropout",
    after="embedding_layer_norm",
    op="embedding_layer_norm",
    where="on a GPU; on a CPU one by one, which is as fast there",
    apart=separate_embeddings_reason,
    replace=fused_embeddings_class,
)
