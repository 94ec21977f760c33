"""The class of a patched head: transformers' own forward without labels, and the loss from what it returned."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from ..attention.masks import additive
from ..options import ModulePatch
from ..padding.decision import STAY_PADDED
from ..padding.model import refuse_lengths, with_arguments
from ..subclass import subclass_of
from ..tracing import graph_in_the_making
from .kind import Call, Kind, LabelledCall
from .kinds import KINDS
from .labels import IGNORE, LABEL_COUNTS, any_at_padding, check_given, without_padding
from .vocabulary import NO_LOGITS, VocabularyHead, full_head_reason, plain_linear


def _scaled(loss: Tensor, labels: Tensor, num_items: Tensor | int) -> Tensor:
    """mean -> this call's share of a mean over `num_items` labels, which may be spread over several calls."""
    # no item at all: Trainer passes 0 there, and 0/0 would undo the zero that the loss already is
    if isinstance(num_items, Tensor):
        num_items = num_items.to(loss.device).clamp(min=1)
    else:
        num_items = max(num_items, 1)
    labelled = (labels != IGNORE).sum().to(loss.device)
    return (loss.float() * (labelled / num_items)).to(loss.dtype)


def _needs_padding(kind: Kind, arguments: Mapping[str, Any]) -> bool:
    """Whether transformers' value of the loss depends on what it computes at padding."""
    labels = arguments["labels"] if kind.per_token else None
    if labels is None:
        return kind.reads_padding
    return graph_in_the_making(labels) or any_at_padding(labels, arguments)


def _padded(model: Any, source: str, passes_on: bool, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The argument of a call that keeps the encoder's batch padded; `source` is transformers' modelling file."""
    mask = arguments.get("attention_mask")
    if passes_on:
        return {STAY_PADDED: True}
    if mask is None or mask.dim() != 2:
        return {}
    if not hasattr(sys.modules[source], "create_bidirectional_mask"):  # transformers 5.0: it makes four dims of three
        return {"attention_mask": mask[:, None, :].expand(-1, mask.shape[1], -1)}
    return {"attention_mask": additive(mask, model.dtype).expand(-1, -1, mask.shape[1], -1)}  # a mask of pairs


def _mask_of_choices(arguments: Mapping[str, Any]) -> Tensor | None:
    """A mask (1, choices, length) as one for each question of a batch; None where there is nothing to do."""
    mask, ids = arguments.get("attention_mask"), arguments.get("input_ids")
    if mask is None or mask.dim() != 3 or mask.shape[0] != 1:
        return None
    return mask.repeat((arguments["inputs_embeds"] if ids is None else ids).shape[0], 1, 1)


def replacement_class(
    original: type, module: str, kind_name: str, head: VocabularyHead | None, packs: bool = True, passes_on: bool = True
) -> type:
    """The subclass of a transformers head that a patched model's class is set to.

    It has the same name (config.architectures, pipelines and Trainer go by it), the same signature of forward, and is
    found by pickle as an attribute of `module`. An instance that carries no patch behaves as `original` does. `head`
    says where the family keeps its head over the vocabulary, if it has one, `packs` whether its encoder may run on real
    tokens only, and `passes_on` whether arguments that the head does not know reach the encoder.
    """
    kind = KINDS[kind_name]
    original_forward: Callable[..., Any] = original.forward  # type: ignore[attr-defined]
    names = tuple(inspect.signature(original_forward).parameters)[1:]
    without_labels = dict.fromkeys(kind.labels) | dict(kind.without_labels)

    @functools.wraps(original_forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        # `original_forward`, not super(): a bound forward that accelerate or a replica kept must outlive unpatch
        patch: ModulePatch | None = getattr(self, "_fasttx", None)
        arguments = dict(zip(names, args)) | kwargs
        if patch is not None:
            kwargs.pop(LABEL_COUNTS, None)
        if patch is not None and not passes_on:
            refuse_lengths(arguments)
        if patch is not None and (mask := _mask_of_choices(arguments)) is not None:
            arguments["attention_mask"] = mask
            args, kwargs = with_arguments({"attention_mask": mask}, names, args, kwargs)
        if patch is None or any(arguments.get(name) is None for name in kind.labels) or kind.own(self):
            return original_forward(self, *args, **kwargs)
        return_dict = arguments.get("return_dict")
        num_items = kwargs.pop("num_items_in_batch", None)
        check_given(self, {name: arguments[name] for name in kind.labels}, num_items)
        correct, forced = patch.options.loss == "correct", patch.options.forced
        counted = kind.counted if num_items is not None and (correct or kind.honours) else None
        replaced = without_labels | {"return_dict": True}
        if correct:
            if kind.per_token:
                arguments["labels"] = without_padding(arguments["labels"], arguments)
        elif packs and patch.options.attention and patch.options.unpad and _needs_padding(kind, arguments):
            replaced |= _padded(self, original.__module__, passes_on, arguments)
        args, kwargs = with_arguments(replaced, names, args, kwargs)
        if (
            kind.vocabulary is not None
            and head is not None
            and self.training
            and patch.options.labelled_rows
            and (not graph_in_the_making(arguments[kind.labels[0]]) or plain_linear(head.decoder(self)))
            and full_head_reason(self, head) is None
        ):
            kwargs.update(zip(names, args))
            inner = {name: value for name, value in kwargs.items() if name not in kind.labels}
            output = self.base_model(**inner)
            call = LabelledCall(
                self, output, arguments, correct or counted is not None, forced, head, patch.options.capacity
            )
            output, loss = kind.vocabulary(call)
            patch.warn_once("logits", f"fasttx.patch: {NO_LOGITS}")
        else:
            output = original_forward(self, *args, **kwargs)
            loss = kind.loss(Call(self, output, arguments, correct or counted is not None, forced))
        if counted is not None:
            loss = _scaled(loss, arguments[counted], num_items)
        output = type(output)(loss=loss, **{name: value for name, value in output.items() if name != "loss"})
        if return_dict is None:
            return_dict = self.config.return_dict
        return output if return_dict else output.to_tuple()

    return subclass_of(original, forward, module)
