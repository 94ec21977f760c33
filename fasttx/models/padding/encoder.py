"""Padding-free encoders: tokens are packed once after the embeddings, and put back once after the last layer.

A patched encoder runs transformers' own forward, and so transformers' own layers, on one row of real tokens,
(1, total, hidden), and passes on where its sequences start: the attention function needs that, every other part of a
layer looks at one token at a time. Padded positions of the result are 0.

Which calls run so is decided in :mod:`fasttx.models.padding.decision`.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from ...functional._packing import Layout, put_rows, take_rows
from ..capture.capture import FROZEN, frozen_layers
from ..capture.parts import LayerParts
from ..dropout import with_one_draw
from ..options import ModulePatch, Options
from ..role import Found, Role
from ..subclass import original_of, subclass_of, without_fsdp
from .decision import PART, decide, padded_call, static_reason
from .layers import Forwards, strange_part


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
        beside: other parts of it that see a packed batch, on which a hook must not hang either.
        parts: where the parts of its layers are, for :func:`fasttx.capture`; None where it cannot freeze them.
    """

    passing: Mapping[str, str] = field(hash=False)
    config: Callable[[Any], Any] = lambda encoder: encoder.config  # dynamo cannot trace an attrgetter
    key_mask: Callable[[Tensor], Tensor | None] = lambda mask: mask
    run: Callable[[Any, Tensor, Layout], Tensor] | None = None
    not_ready: Callable[[Any], str | None] = lambda encoder: None
    distances: bool = False
    sets_config: bool = False
    beside: tuple[str, ...] = ()
    parts: LayerParts | None = None
    option = "unpad"

    def is_wanted(self, options: Options) -> bool:
        return options.attention and bool(options.unpad)

    def before_in(self, module: nn.Module) -> str:
        return PART

    def plan(self, found: Found) -> bool:
        module = found.module
        reason = static_reason(self.config(module))
        strange = strange_part(module, self.forwards(without_fsdp(type(module))), self.beside)
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


def starts_of(layout: Layout) -> dict[str, Any]:
    """What tells attention where the sequences of a packed batch start, by transformers' names."""
    return {
        "cu_seq_lens_q": layout.cu_seqlens,
        "cu_seq_lens_k": layout.cu_seqlens,
        "max_length_q": layout.max_seqlen,
        "max_length_k": layout.max_seqlen,
    }


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
                self, hidden_states, lambda: padded_call(config_of(self), hidden_states, mask, rest, kwargs)
            )
            if frozen is not None:
                keys = None if attention_mask is None else attention_mask != 0
                return frozen.answer(original_forward, hidden_states, frozen.layers.padded(hidden_states, keys))
        return original_forward(self, hidden_states, attention_mask, *rest, **kwargs)

    def padding_free(
        self: Any, hidden_states: Tensor, attention_mask: Tensor | None = None, *rest: Any, **kwargs: Any
    ) -> Any:
        layout, attention_mask = decide(self, encoder, forwards, hidden_states, attention_mask, rest, kwargs)
        if layout is None:
            return run_padded(self, hidden_states, attention_mask, rest, kwargs)
        batch, seqlen, width = hidden_states.shape
        packed = take_rows(hidden_states.reshape(batch * seqlen, width), layout.indices)
        frozen = frozen_layers(self, packed, lambda: None) if FROZEN in self.__dict__ else None
        if frozen is not None:
            output = frozen.answer(original_forward, hidden_states, packed)
            last = frozen.layers.packed(packed, layout)
        elif encoder.run is None:
            kwargs.update(starts_of(layout))
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
