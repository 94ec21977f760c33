"""Padding-free encoders: tokens are packed once after the embeddings, and put back once after the last layer.

A patched encoder runs transformers' own forward, and so transformers' own layers, on one row of real tokens,
(1, total, hidden), and passes on where its sequences start: the attention function needs that, every other part of a
layer looks at one token at a time. Padded positions of the result are 0.

Lengths that the caller knows (``seq_lens=``, Python ints: ``fasttx.data`` provides them) are taken from there;
otherwise the mask is counted, for which the host waits once a call on a GPU. A graph that is being compiled or exported
must not depend on the values of a mask: without ``seq_lens`` the padded kernels run there, with the mask. So they do
while a CUDA graph is captured: a replay would have the lengths of the capture.

Poolers and classifiers read the first position of a row. Where it is padding (rows padded on the left, empty rows)
transformers has them read the hidden state of a padding token there, so that such a batch stays padded too, unless
``unpad=True`` asks for packing whatever the mask.
"""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from ...functional._packing import Layout, first_tokens, layout_of, put_rows, take_rows
from ...functional._routing import unsupported_reason
from ...ops import decisions
from ...ops.decisions import note
from ...ops.forms import PACKED, PADDED, PADDING
from ..attention.interface import IMPLEMENTATION
from ..attention.masks import for_batch
from ..capture.capture import FROZEN, frozen_layers
from ..capture.parts import LayerParts
from ..dropout import with_one_draw
from ..options import ModulePatch, Options
from ..role import Found, Role
from ..subclass import original_of, subclass_of, without_fsdp
from ..tracing import captured, graph_in_the_making
from ..transformers_names import CACHE
from .layers import Forwards, strange_part
from .lengths import checked_lengths, mask_with_lengths
from .model import tokens_of_the_call

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


def _padded_call(config: Any, hidden: Tensor, mask: Tensor, rest: Sequence[Any], asked: dict[str, Any]) -> str | None:
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


@dataclass(frozen=True)
class Encoder(Role):
    """The module of a family that a patch makes run on real tokens only.

    Its ``forward(hidden_states, attention_mask=None, ...)`` returns an output with a last_hidden_state.

    Attributes:
        passing: what hands on to attention where sequences start: path below the encoder -> class. The layers come
            first, and each path after those above it; ``*`` stands for every entry of a list.
        config: finds the config, of an encoder.
        key_mask: where the encoder does not get the mask of keys itself: that mask, of the mask that it gets, or None.
        run: where its forward cannot run packed: the last hidden states (total, width) of an encoder, a packed batch
            (total, width) and its layout.
        not_ready: why the parts of an encoder cannot run packed as they are now, or None.
        distances: whether its layers look at how far apart tokens are, so that none may be taken out between them.
        sets_config: whether its own config, as none of its layers has one, is to name fasttx's attention.
        parts: where the parts of its layers are, for :func:`fasttx.capture`; None where it cannot freeze them.
    """

    passing: Mapping[str, str] = field(hash=False)
    config: Callable[[Any], Any] = lambda encoder: encoder.config  # dynamo cannot trace an attrgetter
    key_mask: Callable[[Tensor], Tensor | None] = lambda mask: mask
    run: Callable[[Any, Tensor, Layout], Tensor] | None = None
    not_ready: Callable[[Any], str | None] = lambda encoder: None
    distances: bool = False
    sets_config: bool = False
    parts: LayerParts | None = None
    option = "unpad"

    def is_wanted(self, options: Options) -> bool:
        return options.attention and bool(options.unpad)

    def before_in(self, module: nn.Module) -> str:
        return PART

    def plan(self, found: Found) -> bool:
        module = found.module
        reason = static_reason(self.config(module))
        strange = strange_part(module, self.forwards(without_fsdp(type(module))))
        if strange is not None:
            reason = f"{strange} is not transformers' own, and may not cope with a packed batch"
        reason = found.fixed_reason or reason
        if reason is not None:
            found.leave(PART, reason)
            return False
        if self.sets_config:
            found.attention.append(module)
        found.replace(PART, "real tokens only", "torch", "positions of padding are 0; unpad=False keeps them")
        return True

    def forwards(self, cls: type) -> Forwards:
        """transformers' own forwards of what passes on where sequences start, by the class of the encoder."""
        source = importlib.import_module(cls.__module__)
        return tuple((path.split("."), getattr(source, name).forward) for path, name in self.passing.items())

    def make_class(self, original: type, module: str) -> type:
        return padding_free_class(original, module, self, self.forwards(original_of(original)))


def padding_free_class(original: type, module: str, encoder: Encoder, forwards: Forwards) -> type:
    """The subclass of a transformers encoder that runs on real tokens only.

    Args:
        original: the encoder.
        module: where pickle finds the class.
        encoder: what is known of it.
        forwards: transformers' own; a layer with another one is not given a packed batch.
    """
    original_forward: Callable[..., Any] = original.forward  # type: ignore[attr-defined]
    config_of = encoder.config

    @functools.wraps(original_forward)
    def forward(
        self: Any, hidden_states: Tensor, attention_mask: Tensor | None = None, *rest: Any, **kwargs: Any
    ) -> Any:
        patch: ModulePatch | None = getattr(self, "_fasttx", None)
        if patch is None or not patch.options.unpad:
            return original_forward(self, hidden_states, attention_mask, *rest, **kwargs)
        if self.training:
            return with_one_draw(
                padding_free, hidden_states.device, self, hidden_states, attention_mask, *rest, **kwargs
            )
        return padding_free(self, hidden_states, attention_mask, *rest, **kwargs)

    def run_padded(
        self: Any, hidden_states: Tensor, attention_mask: Tensor | None, rest: Sequence[Any], kwargs: dict[str, Any]
    ) -> Any:
        """transformers' forward, or the frozen layers of a captured encoder."""
        if FROZEN in self.__dict__:
            mask = hidden_states[..., 0] if attention_mask is None else attention_mask
            frozen = frozen_layers(
                self, hidden_states, lambda: _padded_call(config_of(self), hidden_states, mask, rest, kwargs)
            )
            if frozen is not None:
                keys = None if attention_mask is None else attention_mask != 0
                return frozen.answer(original_forward, hidden_states, frozen.layers.padded(hidden_states, keys))
        return original_forward(self, hidden_states, attention_mask, *rest, **kwargs)

    def padding_free(
        self: Any, hidden_states: Tensor, attention_mask: Tensor | None = None, *rest: Any, **kwargs: Any
    ) -> Any:
        patch: ModulePatch = self._fasttx
        seq_lens, stay_padded = kwargs.pop("seq_lens", None), kwargs.pop(STAY_PADDED, False)
        config = config_of(self)
        if attention_mask is not None:
            attention_mask = for_batch(attention_mask, hidden_states.shape[0])
        lengths: Sequence[int] | None = None
        if seq_lens is not None:
            given = checked_lengths(seq_lens, hidden_states)
            attention_mask = mask_with_lengths(config, attention_mask, given, hidden_states)
            lengths = None if isinstance(given, Tensor) or captured(hidden_states) else given
        auto = patch.options.unpad == "auto"
        keys = None if attention_mask is None else encoder.key_mask(attention_mask)
        reason: str | None
        if attention_mask is None:
            reason = "there is no mask"
        elif keys is None:
            reason = ROW_PER_QUERY
        elif _full_on_a_cpu(hidden_states, keys):
            reason, attention_mask = NO_PADDING, None
        elif stay_padded:
            reason = "transformers' value of the loss depends on what stands at padding (loss='hf')"
        elif lengths is None and graph_in_the_making(hidden_states):
            reason = "a graph without seq_lens must not depend on the mask"
        elif auto and _never_enough(config, hidden_states):
            work = _saved_work(config, hidden_states, math.prod(hidden_states.shape[:-1]))
            reason = PADDING.measured(hidden_states, work) or TOO_SMALL
        else:
            reason = _padded_call(config, hidden_states, keys, rest, kwargs) or strange_part(self, forwards)
            reason = reason or encoder.not_ready(self)
        if reason is not None:
            note(PART, "padded", reason)
            return run_padded(self, hidden_states, attention_mask, rest, kwargs)
        assert keys is not None  # or there were a reason
        batch, seqlen, width = hidden_states.shape
        counts, tokens, wanted = None, None, -1
        if lengths is None:
            real = keys if keys.dtype == torch.bool else keys != 0
            counts = real.sum(-1, dtype=torch.int32)
            looks = [counts, real[:, 0]]
            tokens = tokens_of_the_call(hidden_states) if auto else None
            if tokens is not None:  # a token that is hidden and no padding, or -1
                ids = tokens.ids.to(real.device)
                looks.append(torch.where(real | (ids == tokens.padding), -1, ids).amax(-1))
            if encoder.distances:  # how often tokens begin after padding
                looks.append((real[:, 1:] & ~real[:, :-1]).sum(-1) + real[:, 0])
            lengths, starts, *found = torch.stack(looks).tolist()
            wanted = -1 if tokens is None else max(found[0])
            if encoder.distances and max(found[-1]) > 1:
                note(PART, "padded", "there is padding between tokens, whose distances count")
                return run_padded(self, hidden_states, attention_mask, rest, kwargs)
        else:  # the mask is not read: were it to say something else, sequences would be cut at wrong places
            real = first_tokens(lengths, seqlen, hidden_states.device)
            starts = lengths  # padded on the right: only an empty row begins with padding
        padding = batch * seqlen - sum(lengths)
        if padding == 0:
            note(PART, "padded", NO_PADDING)
            return run_padded(self, hidden_states, None, rest, kwargs)
        pays = padding > WORTH_IT * batch * seqlen and all(starts) and _enough_for_a_cpu(config, hidden_states, padding)
        if sum(lengths) == 0 or (auto and not pays):
            work = _saved_work(config, hidden_states, padding)
            small = PADDING.measured(hidden_states, work) or TOO_SMALL
            note(PART, "padded", "a row begins with padding" if not all(starts) else small)
            return run_padded(self, hidden_states, attention_mask, rest, kwargs)
        if wanted >= 0:
            assert tokens is not None
            hidden_token = f"the mask hides tokens of id {wanted}, and the padding token is {tokens.padding}"
            note(PART, "padded", hidden_token)
            patch.warn_once(
                "hidden tokens",
                f"attention_mask: {hidden_token}: their outputs seem to be wanted, so such a batch runs padded; "
                "fasttx.patch(model, unpad=True) packs it, with outputs of 0 there",
            )
            return run_padded(self, hidden_states, attention_mask, rest, kwargs)
        layout = layout_of(real, lengths, counts)
        if decisions.records:  # in a graph with symbolic lengths a text of them would make constants of them
            note(PART, "real tokens only", f"{layout.total} of {batch * seqlen} tokens")
        packed = take_rows(hidden_states.reshape(batch * seqlen, width), layout.indices)
        frozen = frozen_layers(self, packed, lambda: None) if FROZEN in self.__dict__ else None
        if frozen is not None:
            output = frozen.answer(original_forward, hidden_states, packed)
            last = frozen.layers.packed(packed, layout)
        elif encoder.run is None:
            kwargs.update(
                cu_seq_lens_q=layout.cu_seqlens,
                cu_seq_lens_k=layout.cu_seqlens,
                max_length_q=layout.max_seqlen,
                max_length_k=layout.max_seqlen,
            )
            output = original_forward(self, packed[None], None, *rest, **kwargs)
            last = output.last_hidden_state.squeeze(0)  # on another device where layers are spread over several
        else:
            output, last = BaseModelOutput(), encoder.run(self, packed, layout)
        padded = put_rows(last, layout.indices.to(last.device), batch * seqlen).view(batch, seqlen, last.shape[-1])
        return type(output)(**{**output, "last_hidden_state": padded})

    made = subclass_of(original, forward, module)
    made._fasttx_begins = True  # type: ignore[attr-defined]
    made._fasttx_parts = encoder.parts  # type: ignore[attr-defined]
    return made
