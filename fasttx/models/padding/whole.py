"""Bare models that call their layers themselves: real tokens only, from the embeddings on.

There is no encoder to take the place of, so the model's own forward gets one row of real tokens: ids (or embeddings),
token types and positions, (1, total), and where the sequences start. Positions are those that a token has in its padded
row, so that rotary embeddings turn queries and keys as they do there.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...functional._packing import Layout, put_rows, take_rows
from ...ops.decisions import note
from ..attention.role import otherwise_built
from ..options import ModulePatch
from ..role import Found
from ..subclass import original_of, subclass_of
from .decision import PART, ROW_PER_QUERY, decide
from .encoder import Encoder, starts_of
from .layers import Forwards

PER_TOKEN = ("input_ids", "token_type_ids", "inputs_embeds", "position_ids")
"""Arguments that have a row for each row of the batch, or one for all, and an entry for each token."""


@dataclass(frozen=True)
class WholeModel(Encoder):
    """A bare model that a patch makes run on real tokens only; it has no encoder that could.

    Its ``forward(input_ids=None, attention_mask=None, ...)`` returns an output with a last_hidden_state.
    """

    def plan(self, found: Found) -> bool:
        reason = otherwise_built(found.module)
        if reason is not None:
            found.leave(PART, reason)
            return False
        return super().plan(found)

    def make_class(self, original: type, module: str) -> type:
        return whole_model_class(original, module, self, self.forwards(original_of(original)))


def whole_model_class(original: type, module: str, encoder: WholeModel, forwards: Forwards) -> type:
    """The subclass of a bare model of transformers' that runs on real tokens only.

    Args:
        original: the bare model.
        module: where pickle finds the class.
        encoder: what is known of it.
        forwards: transformers' own; a layer with another one is not given a packed batch.
    """
    original_forward: Callable[..., Any] = original.forward  # type: ignore[attr-defined]
    names = tuple(inspect.signature(original_forward).parameters)[1:]

    @functools.wraps(original_forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        patch: ModulePatch | None = getattr(self, "_fasttx", None)
        arguments = dict(zip(names, args)) | kwargs
        ids, embeds, mask = (arguments.get(name) for name in ("input_ids", "inputs_embeds", "attention_mask"))
        x = ids if embeds is None else embeds
        if patch is None or not patch.options.unpad or x is None or (ids is not None and embeds is not None):
            return original_forward(self, *args, **kwargs)
        if mask is not None and not isinstance(mask, Tensor):
            note(PART, "padded", ROW_PER_QUERY)
            return original_forward(self, *args, **kwargs)
        hidden = _stand_in(self, x) if embeds is None else x
        layout, arguments["attention_mask"] = decide(self, encoder, forwards, hidden, mask, (), arguments)
        if layout is None:
            return original_forward(self, **arguments)
        return_dict = arguments.pop("return_dict", None)
        output = original_forward(self, **_packed(arguments, names, layout, hidden), return_dict=True)
        batch, seqlen = hidden.shape[:2]
        last = output.last_hidden_state.squeeze(0)  # on another device where layers are spread over several
        padded = put_rows(last, layout.indices.to(last.device), batch * seqlen).view(batch, seqlen, last.shape[-1])
        output = type(output)(**{**output, "last_hidden_state": padded})
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()

    return subclass_of(original, forward, module)


def _stand_in(model: Any, ids: Tensor) -> Tensor:
    """What has the shape, the dtype and the device of the hidden states of `ids`, and no memory of that size."""
    return ids.new_empty((), dtype=model.dtype).expand(*ids.shape, model.config.hidden_size)


def _packed(arguments: dict[str, Any], names: tuple[str, ...], layout: Layout, hidden: Tensor) -> dict[str, Any]:
    """The arguments of a call with one row of real tokens."""
    batch, seqlen = hidden.shape[:2]
    packed = arguments | {"attention_mask": None} | starts_of(layout)
    for name in PER_TOKEN:
        x = arguments.get(name)
        if x is not None:
            x = x.expand(batch, *x.shape[1:])
            packed[name] = take_rows(x.reshape(batch * seqlen, *x.shape[2:]), layout.indices.to(x.device))[None]
        elif name == "position_ids" and name in names:
            packed[name] = (layout.indices % seqlen)[None]
    return packed
