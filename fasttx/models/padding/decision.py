"""Whether a call of a patched encoder runs on real tokens only, and where these are.

Lengths that the caller knows (``seq_lens=``, Python ints: ``fasttx.data`` provides them) are taken from there;
otherwise the mask is counted, for which the host waits once a call on a GPU. A graph that is being compiled or exported
must not depend on the values of a mask: without ``seq_lens`` the padded kernels run there, with the mask. So they do
while a CUDA graph is captured: a replay would have the lengths of the capture.

Poolers and classifiers read the first position of a row. Where it is padding (rows padded on the left, empty rows)
transformers has them read the hidden state of a padding token there, so that such a batch stays padded too, unless
``unpad=True`` asks for packing whatever the mask.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...functional._packing import Layout, first_tokens, layout_of
from ...functional._routing import unsupported_reason
from ...ops import decisions
from ...ops.decisions import note
from ...ops.forms import PACKED, PADDED, PADDING
from ..attention.interface import IMPLEMENTATION
from ..attention.masks import for_batch
from ..options import ModulePatch
from ..tracing import captured, graph_in_the_making
from ..transformers_names import CACHE
from .layers import Forwards, strange_part
from .lengths import checked_lengths, mask_with_lengths
from .model import tokens_of_the_call

if TYPE_CHECKING:
    from .encoder import Encoder

STAY_PADDED = "fasttx_stay_padded"
"""Argument of a call, from a patched head to its encoder: True keeps the batch padded."""

PART = "padded batch"
TOO_SMALL = "too little padding for packing to pay"
NO_PADDING = "there is no padding"
ROW_PER_QUERY = "the mask has a row for every query"

WORTH_IT = 1 / 32
"""Share of padding from which packing pays under ``unpad="auto"``: two gathers of the hidden states against that share
of every layer."""

WORTH_IT_ON_CPU = 40_000_000
"""Multiply-adds that packing must save a layer on a CPU besides: sequences cost attention a call each there. A padded
token has 12 hidden^2 in the products, 4 hidden seqlen in attention, and elementwise work that takes as long as 500
hidden. Measured by ``python -m bench.padding``."""


def static_reason(config: Any) -> str | None:
    """Why an encoder can never run packed as it is configured now, or None."""
    if getattr(config, "is_decoder", False):
        return "is a decoder: causal masks and caches are padded"
    if config.chunk_size_feed_forward:
        return f"config.chunk_size_feed_forward is {config.chunk_size_feed_forward}: chunks are cut from padded rows"
    if config.output_attentions or config.output_hidden_states:
        return "config asks for attentions or hidden states, which have padded shapes"
    return None


def padded_call(config: Any, hidden: Tensor, mask: Tensor, rest: Sequence[Any], asked: dict[str, Any]) -> str | None:
    """Why this call has to run padded, whatever its mask says, or None."""
    if config._attn_implementation != IMPLEMENTATION:  # another one would let sequences see each other
        return f"attn_implementation is {config._attn_implementation!r}"
    cross_or_cache = ("encoder_hidden_states", "encoder_attention_mask", *CACHE)
    if any(value is not None for value in rest) or any(asked.get(name) is not None for name in cross_or_cache):
        return "the call has encoder states or a cache"
    if asked.get("cu_seq_lens_q") is not None:
        return "the caller has packed the batch"
    if asked.get("output_attentions") or asked.get("output_hidden_states"):
        return "attentions or hidden states are asked for, which have padded shapes"
    if hidden.numel() == 0:
        return "there is no element"
    if mask.shape != hidden.shape[:2]:
        return ROW_PER_QUERY
    return unsupported_reason(hidden) or static_reason(config)


def _enough_for_a_cpu(config: Any, hidden: Tensor, tokens: int) -> bool:
    """Whether it pays to save `tokens` on hidden's device, as far as it is a CPU."""
    if hidden.device.type != "cpu":
        return True
    saved = _saved_work(config, hidden, tokens)
    return PADDING.takes(hidden, PACKED if saved >= WORTH_IT_ON_CPU else PADDED, saved) == PACKED


def _saved_work(config: Any, hidden: Tensor, tokens: int) -> int:
    """Multiply-adds of a layer for `tokens` of its rows, as :data:`WORTH_IT_ON_CPU` counts them."""
    seqlen, width = hidden.shape[-2], config.hidden_size
    return tokens * width * (12 * width + 4 * seqlen + 500)


def _never_enough(config: Any, hidden: Tensor) -> bool:
    """Whether a CPU would not pack such a batch, however much of it were padding."""
    if hidden.device.type != "cpu" or PADDING.ever_takes(hidden.device, hidden.dtype, PACKED):
        return False
    return not _enough_for_a_cpu(config, hidden, math.prod(hidden.shape[:-1]))


def _full_on_a_cpu(hidden: Tensor, mask: Tensor) -> bool:
    """Whether a CPU, which need not wait for that, sees a batch without padding: nothing else need be asked then."""
    return (
        hidden.device.type == "cpu"
        and mask.shape == hidden.shape[:2]
        and not graph_in_the_making(hidden)
        and bool(mask.all())
    )


def decide(
    module: Any,
    encoder: Encoder,
    forwards: Forwards,
    hidden: Tensor,
    attention_mask: Tensor | None,
    rest: Sequence[Any],
    kwargs: dict[str, Any],
) -> tuple[Layout | None, Tensor | None]:
    """Where the real tokens of a batch are, or None and the mask for a call that stays padded.

    Args:
        module: the patched module.
        encoder: what is known of it.
        forwards: transformers' own; a layer with another one is not given a packed batch.
        hidden: (batch, seqlen, width); its values are not read.
        attention_mask: as the module got it.
        rest: its other positional arguments.
        kwargs: its arguments by name; those that are fasttx's alone are taken out.
    """
    patch: ModulePatch = module._fasttx
    seq_lens, stay_padded = kwargs.pop("seq_lens", None), kwargs.pop(STAY_PADDED, False)
    config = encoder.config(module)
    if attention_mask is not None:
        attention_mask = for_batch(attention_mask, hidden.shape[0])
    lengths: Sequence[int] | None = None
    if seq_lens is not None:
        given = checked_lengths(seq_lens, hidden)
        attention_mask = mask_with_lengths(config, attention_mask, given, hidden)
        lengths = None if isinstance(given, Tensor) or captured(hidden) else given
    auto = patch.options.unpad == "auto"
    keys = None if attention_mask is None else encoder.key_mask(attention_mask)
    reason: str | None
    if attention_mask is None:
        reason = "there is no mask"
    elif keys is None:
        reason = ROW_PER_QUERY
    elif _full_on_a_cpu(hidden, keys):
        reason, attention_mask = NO_PADDING, None
    elif stay_padded:
        reason = "transformers' value of the loss depends on what stands at padding (loss='hf')"
    elif lengths is None and graph_in_the_making(hidden):
        reason = "a graph without seq_lens must not depend on the mask"
    elif auto and _never_enough(config, hidden):
        work = _saved_work(config, hidden, math.prod(hidden.shape[:-1]))
        reason = PADDING.measured(hidden, work) or TOO_SMALL
    else:
        reason = padded_call(config, hidden, keys, rest, kwargs) or strange_part(module, forwards, encoder.beside)
        reason = reason or encoder.not_ready(module)
    if reason is not None:
        note(PART, "padded", reason)
        return None, attention_mask
    assert keys is not None  # or there were a reason
    batch, seqlen = hidden.shape[:2]
    counts, tokens, wanted = None, None, -1
    if lengths is None:
        real = keys if keys.dtype == torch.bool else keys != 0
        counts = real.sum(-1, dtype=torch.int32)
        looks = [counts, real[:, 0]]
        tokens = tokens_of_the_call(hidden) if auto else None
        if tokens is not None:  # a token that is hidden and no padding, or -1
            ids = tokens.ids.to(real.device)
            looks.append(torch.where(real | (ids == tokens.padding), -1, ids).amax(-1))
        if encoder.distances:  # how often tokens begin after padding
            looks.append((real[:, 1:] & ~real[:, :-1]).sum(-1) + real[:, 0])
        lengths, starts, *found = torch.stack(looks).tolist()
        wanted = -1 if tokens is None else max(found[0])
        if encoder.distances and max(found[-1]) > 1:
            note(PART, "padded", "there is padding between tokens, whose distances count")
            return None, attention_mask
    else:  # the mask is not read: were it to say something else, sequences would be cut at wrong places
        real = first_tokens(lengths, seqlen, hidden.device)
        starts = lengths  # padded on the right: only an empty row begins with padding
    padding = batch * seqlen - sum(lengths)
    if padding == 0:
        note(PART, "padded", NO_PADDING)
        return None, None
    pays = padding > WORTH_IT * batch * seqlen and all(starts) and _enough_for_a_cpu(config, hidden, padding)
    if sum(lengths) == 0 or (auto and not pays):
        work = _saved_work(config, hidden, padding)
        small = PADDING.measured(hidden, work) or TOO_SMALL
        note(PART, "padded", "a row begins with padding" if not all(starts) else small)
        return None, attention_mask
    if wanted >= 0:
        assert tokens is not None
        hidden_token = f"the mask hides tokens of id {wanted}, and the padding token is {tokens.padding}"
        note(PART, "padded", hidden_token)
        patch.warn_once(
            "hidden tokens",
            f"attention_mask: {hidden_token}: their outputs seem to be wanted, so such a batch runs padded; "
            "fasttx.patch(model, unpad=True) packs it, with outputs of 0 there",
        )
        return None, attention_mask
    layout = layout_of(real, lengths, counts)
    if decisions.records:  # in a graph with symbolic lengths a text of them would make constants of them
        note(PART, "real tokens only", f"{layout.total} of {batch * seqlen} tokens")
    return layout, attention_mask
