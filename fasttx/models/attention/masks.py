"""The masks of attention under ``attn_implementation="fasttx"``: what transformers hands over, and what it means."""

from __future__ import annotations

import functools
import sys
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.masking_utils import bidirectional_mask_function, eager_mask, sdpa_mask

from ...ops.attention.masks import with_infinities

PASS_ON_THEIR_WINDOW = frozenset(("modernbert",))
"""``model_type`` of encoders whose local layers call attention with ``sliding_window``, so that no mask of every pair
of tokens need say the same."""


def calls_the_interface(config: Any) -> bool:
    """Whether transformers' modelling file of this configuration looks its attention up in the registry.

    Many families (MPNet, MegatronBERT, XGLM) have an attention of their own, and yet ask the registry for their masks.
    A file without any attention (DPR's) builds its models from another family's, which looks it up.
    """
    modelling = _modelling(config)
    return (
        modelling is None or hasattr(modelling, "ALL_ATTENTION_FUNCTIONS") or not _defines_attention(modelling.__name__)
    )


@torch.compiler.assume_constant_result
def _defines_attention(file: str) -> bool:
    """Whether a modelling file has a class of attention that it did not import."""
    return any(
        name.endswith("Attention") and getattr(value, "__module__", None) == file
        for name, value in vars(sys.modules[file]).items()
    )


def _modelling(config: Any) -> ModuleType | None:
    """transformers' modelling file of a configuration."""
    package, _, name = type(config).__module__.rpartition(".configuration_")
    return sys.modules.get(f"{package}.modeling_{name}") if package.startswith("transformers.models.") else None


@functools.cache
def _only_eager(modelling: ModuleType) -> bool:
    """Whether a model in this file is made for its eager attention, and some of its layers may add masks themselves."""
    classes: list[Any] = [cls for cls in vars(modelling).values() if isinstance(cls, type)]
    models = [cls for cls in classes if issubclass(cls, PreTrainedModel) and cls.__module__ == modelling.__name__]
    return any(not cls._supports_sdpa for cls in models)


@torch.compiler.assume_constant_result
def _adds_masks(file: str) -> bool:
    return _only_eager(sys.modules[file])


def adds_masks(config: Any) -> bool:
    """Whether masks have to be numbers that can be added to scores, as ``"eager"`` gets them.

    So it is where an attention is the family's own, and where a class does not support ``"sdpa"``, which gets bool
    masks: Informer, Pegasus-X, NLLB-MoE, BigBird-Pegasus and GIT look up some of their attention, and add the same mask
    to scores elsewhere, or invert it.
    """
    modelling = _modelling(config)
    if modelling is None:
        return False
    name = modelling.__name__
    return _adds_masks(name) if hasattr(modelling, "ALL_ATTENTION_FUNCTIONS") else _defines_attention(name)


def for_batch(mask: Tensor, batch: int) -> Tensor:
    """A mask of keys with a row for each of `batch`: one row (1, length) stands for all of them."""
    return mask.expand(batch, -1) if mask.dim() == 2 and mask.shape[0] == 1 else mask


def fasttx_mask(**arguments: Any) -> Tensor | None:
    """The mask that :func:`fasttx.models.fasttx_attention` gets, from what transformers knows about it.

    A padding mask alone, (batch, kv_length) bool, is returned as it is: it stays two-dimensional, and nothing
    depends on its values, so that ``torch.compile(fullgraph=True)`` works. So it is beside the window of a model whose
    layers pass that on. A causal or composed mask is made by transformers' sdpa_mask. A family that adds a mask to its
    scores, whatever its attn_implementation, gets 0 and the lowest number, as under ``"eager"``; (batch, 1, 1,
    kv_length) where it is a padding mask alone.
    """
    mask = arguments.get("attention_mask")
    if isinstance(mask, Tensor):
        mask = arguments["attention_mask"] = for_batch(mask, arguments["batch_size"])
    windowed = arguments.get("local_size") is not None
    padding_only = not arguments.get("use_vmap", False) and (
        arguments.get("mask_function") is bidirectional_mask_function
        if not windowed
        else getattr(arguments.get("config"), "model_type", None) in PASS_ON_THEIR_WINDOW
    )
    if padding_only and mask is None:
        return None
    added = adds_masks(arguments.get("config"))
    if padding_only and isinstance(mask, Tensor) and mask.dim() == 2 and mask.shape[-1] == arguments["kv_length"]:
        return additive(mask, arguments.get("dtype", torch.float32)) if added else mask
    return eager_mask(**arguments) if added else sdpa_mask(**arguments)


def additive(real: Tensor, dtype: torch.dtype) -> Tensor:
    """(batch, length) bool -> (batch, 1, 1, length) of `dtype`: 0 at real tokens, its lowest number at padding."""
    zeros = torch.zeros(real.shape, dtype=dtype, device=real.device)
    return zeros.masked_fill(~real.bool(), torch.finfo(dtype).min)[:, None, None]


Scores = tuple[int, int, int, int]
"""The shape of a call's scores: (batch, heads, query length, key length)."""


def as_bias(mask: Tensor | None, scores: Scores) -> Tensor | None:
    """`mask` as the four-dimensional attn_bias of fasttx's attention.

    Raises:
        ValueError: another shape or dtype.
    """
    if mask is None:
        return None
    batch, key_length = scores[0], scores[3]
    if mask.dim() == 2:
        if mask.shape not in ((batch, key_length), (1, key_length)):
            raise ValueError(
                f"attention_mask: got shape {tuple(mask.shape)}; allowed is (batch, key length) = ({batch}, "
                f"{key_length}), or one row for all, (1, {key_length})"
            )
        return (mask if mask.dtype == torch.bool else mask != 0)[:, None, None]
    if mask.dim() != 4:
        raise ValueError(
            f"attention_mask: got {mask.dim()} dimensions; allowed are (batch, key length) and "
            "(batch, heads, query length, key length), each of which but the last may be 1"
        )
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise ValueError(
            f"attention_mask: got dtype {mask.dtype} of four dimensions; allowed is bool (True = attend) or floating "
            "(added to the scores)"
        )
    _check_shape("attention_mask", mask, scores)
    return mask


def checked_position_bias(bias: Any, scores: Scores) -> Tensor:
    """`bias`, if it is numbers that can be added to the scores.

    Raises:
        TypeError, ValueError: it is not.
    """
    if not isinstance(bias, Tensor):
        raise TypeError(f"position_bias: got {type(bias).__name__}; allowed is a floating tensor")
    if bias.dim() != 4 or not bias.is_floating_point():
        raise ValueError(
            f"position_bias: got {bias.dtype} of {bias.dim()} dimensions; allowed is a floating tensor (batch, heads, "
            "query length, key length), each of which may be 1"
        )
    _check_shape("position_bias", bias, scores)
    return bias


def _check_shape(name: str, bias: Tensor, scores: Scores) -> None:
    if any(n != 1 and n != m for n, m in zip(bias.shape, scores, strict=True)):
        raise ValueError(
            f"{name}: got shape {tuple(bias.shape)}; allowed is (batch, heads, query length, key length) = {scores}, "
            "or 1 in any dimension"
        )


def with_position_bias(bias: Tensor | None, position_bias: Tensor) -> Tensor:
    """A mask and a position bias as one attn_bias: -inf where the mask hides a key, which no number brings back."""
    if bias is None:
        return position_bias
    if bias.dtype == torch.bool:
        return torch.where(bias, position_bias, float("-inf"))
    return position_bias + with_infinities(bias)
