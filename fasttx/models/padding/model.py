"""The model around an encoder: what the encoder needs to know of a call and does not get from transformers' forward.

Where a batch is packed, outputs at padding are 0. A token that the mask hides and that is not the padding token says
that its output is wanted all the same (ColBERT fills up its queries with [MASK] and hides them). So the encoder asks
which tokens stand where the mask is 0, and the model tells it.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from ..attention.interface import refuse_lengths_alone
from ..attention.masks import for_batch
from ..dropout import with_one_draw
from ..heads.labels import LABEL_COUNTS
from ..options import ModulePatch
from ..role import Found, Role
from ..subclass import subclass_of
from ..tracing import graph_in_the_making


class Tokens(NamedTuple):
    """What a model was called with.

    Attributes:
        ids: int (batch, seqlen).
        padding: the id of the padding token.
    """

    ids: Tensor
    padding: int


class _Calls(threading.local):
    """The call that each thread is in: MPNet's forward hands its encoder nothing that it does not know."""

    tokens: Tokens | None = None


_CALLS = _Calls()


def tokens_of_the_call(hidden: Tensor) -> Tokens | None:
    """What the model was called with whose encoder runs on `hidden`; None where it is not known or not ids."""
    tokens = _CALLS.tokens
    return tokens if tokens is not None and tokens.ids.shape == hidden.shape[:2] else None


def refuse_lengths(arguments: Mapping[str, Any]) -> None:
    """ValueError for lengths that would be lost, where nothing else says what is padding and where sequences start."""
    if arguments.get("cu_seq_lens_q") is not None:
        raise ValueError(
            "cu_seq_lens_q: got a packed batch; allowed is a padded one, as this model's layers take no other"
        )
    if arguments.get("seq_lens") is None or arguments.get("attention_mask") is not None:
        return
    ids = arguments.get("input_ids")
    refuse_lengths_alone(arguments["seq_lens"], arguments["inputs_embeds"].shape[-2] if ids is None else ids.shape[-1])


def with_arguments(
    replaced: Mapping[str, Any], names: tuple[str, ...], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call, some of them `replaced`; `names` are those that may be positional."""
    positional = names[: len(args)]
    return (
        tuple(replaced.get(name, value) for name, value in zip(positional, args)),
        {**kwargs, **{name: value for name, value in replaced.items() if name not in positional}},
    )


@dataclass(frozen=True)
class Model(Role):
    """A bare model whose own forward is replaced: it tells its encoder about a call, or refuses lengths.

    Attributes:
        packs: whether its encoder may run on real tokens only.
        passes_on: whether arguments that it does not know reach the encoder.
    """

    packs: bool = True
    passes_on: bool = True
    option = "attention"

    def plan(self, found: Found) -> bool:
        if found.fixed_reason is not None:
            if self.packs and found.options.unpad == "auto":
                found.leave("tokens that the mask hides", found.fixed_reason)
            return False
        if not self.passes_on:
            why = "transformers' forward drops seq_lens and cu_seq_lens_q"
            found.replace("lengths of a batch", "refused without a mask", "torch", why)
        return True

    def make_class(self, original: type, module: str) -> type:
        return model_class(original, module, self.packs, self.passes_on)


def model_class(original: type, module: str, packs: bool, passes_on: bool) -> type:
    """The subclass of a bare model that tells its encoder which tokens it was called with.

    Args:
        original: the bare model.
        module: where pickle finds the class.
        packs: whether its encoder may run on real tokens only.
        passes_on: whether arguments that it does not know reach the encoder; else lengths that would be lost are
            refused.
    """
    original_forward: Callable[..., Any] = original.forward  # type: ignore[attr-defined]
    names = tuple(inspect.signature(original_forward).parameters)[1:]

    @functools.wraps(original_forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        patch: ModulePatch | None = getattr(self, "_fasttx", None)
        if patch is None:
            return original_forward(self, *args, **kwargs)
        kwargs.pop(LABEL_COUNTS, None)  # of a collator, for a head that takes no notice
        arguments = dict(zip(names, args)) | kwargs
        if not passes_on:
            refuse_lengths(arguments)
        ids, mask = arguments.get("input_ids"), arguments.get("attention_mask")
        if ids is not None and mask is not None and mask.dim() == 2 and mask.shape[0] < ids.shape[0]:
            args, kwargs = with_arguments({"attention_mask": for_batch(mask, ids.shape[0])}, names, args, kwargs)
        x, run = arguments.get("inputs_embeds") if ids is None else ids, original_forward
        if self.training and isinstance(x, Tensor):
            run = functools.partial(with_one_draw, original_forward, x.device)
        if not packs or ids is None or graph_in_the_making(ids):
            return run(self, *args, **kwargs)
        padding = getattr(self.config, "pad_token_id", None)
        before, _CALLS.tokens = _CALLS.tokens, None if padding is None else Tokens(ids, padding)
        try:
            return run(self, *args, **kwargs)
        finally:
            _CALLS.tokens = before

    made = subclass_of(original, forward, module)
    made._fasttx_begins = True  # type: ignore[attr-defined]
    return made
