"""Query, key and value of self-attention as one product, and the end of the half of a layer where that is its own.

A patched self-attention passes over its three layers and joins their weights, in every forward anew: no copy is kept
that an optimizer or a loaded checkpoint would leave behind. Where a layer is not exactly ``torch.nn.Linear`` (LoRA,
quantised, parametrised), has a hook or a tensor subclass for a weight, and in calls with a cache, transformers' own
forward runs. So it does on a CPU, where joining the weights costs more than two products less gain.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from ...functional._routing import unsupported_reason
from ...nn.bypass import bypass_reason
from ...ops import decisions
from ...ops.decisions import note
from ...ops.forms import JOINT, QKV, SEPARATE
from ..attention.interface import IMPLEMENTATION, attention_of_rows
from ..options import ModulePatch
from ..role import Found, Role
from ..subclass import subclass_of
from ..transformers_names import CACHE, argument
from . import fusion
from .fusion import weight_and_bias
from .joint_linear import joint_linear
from .residual_norm import REPORTED_AS, PostNorm

SEPARATELY = "q, k, v computed separately"


@dataclass(frozen=True)
class Projections(Role):
    """Query, key and value of a self-attention, and what that does around the attention function.

    Attributes:
        layers: the names of its three linear layers, for query, key and value.
        head_dim: the name of the width of a head.
        dropout: of the module: the probability of dropout in training.
        finish: of the module and what attention gives, (batch, seqlen, heads * head_dim): the module's output, or what
            comes before its end.
        post_norm: what the module does then, with its input as the residual; None if that is done elsewhere.
    """

    layers: tuple[str, str, str] = ("query", "key", "value")
    head_dim: str = "attention_head_size"
    dropout: Callable[[Any], float] = lambda module: module.dropout.p  # dynamo cannot trace an attrgetter
    finish: Callable[[Any, Tensor], Tensor] = lambda module, out: out
    post_norm: PostNorm | None = None
    option = "qkv"

    def plan(self, found: Found) -> bool:
        if not found.has_attention:
            return False
        before, here = "three products for q, k, v", fusion.changes_here(found.module, None)
        parts = found.fixed_reason or parts_of(found.module, self.layers)
        if isinstance(parts, str):
            found.leave(before, parts)
            return False
        weight = parts[0][0]
        here = here or QKV.ever_takes(weight.device, weight.dtype, JOINT)
        where = fusion.WHERE
        found.replace(before, "one product", "torch", where, here)
        return True

    def make_class(self, original: type, module: str) -> type:
        return joint_qkv_class(original, module, self)


Parts = tuple[list[Tensor], list[Any] | None]
"""The weights of several linear layers, and their biases, if they have any."""


def parts_of(attention: Any, names: Sequence[str]) -> Parts | str:
    """The weights and biases of the layers of these names, or why they must be called unfused."""
    weights: list[Tensor] = []
    biases: list[Any] = []
    for name in names:
        layer = attention._modules.get(name)
        reason = bypass_reason(layer, name, cls="Linear")
        if reason is not None:
            return reason
        own = layer._parameters
        weight, bias = (own["weight"], own["bias"]) if "weight" in own and "bias" in own else weight_and_bias(layer)
        weights.append(weight)
        biases.append(bias)
        first = weights[0]
        if weight.dtype != first.dtype or weight.device != first.device or weight.shape[1] != first.shape[1]:
            return "query, key and value differ in dtype, device or width"
        if (bias is None) != (biases[0] is None):
            return "some of query, key and value have a bias, others none"
    return weights, None if biases[0] is None else biases


def parts_now(attention: Any, names: Sequence[str], hidden_states: Tensor) -> Parts | str:
    """The same for a call on such an input, or why it runs unfused."""
    # numel() would make constants of sizes that an exported program has as symbols
    device, tokens = hidden_states.device.type, math.prod(hidden_states.shape[:-1])
    default = SEPARATE if device in fusion.UNFUSED_ON else JOINT
    if QKV.takes(hidden_states, default, tokens) == SEPARATE:
        return QKV.measured(hidden_states, tokens) or fusion.AS_FAST.format(device.upper())
    parts = parts_of(attention, names)
    if isinstance(parts, str):
        return parts
    return unsupported_reason(hidden_states, *parts[0]) or parts


def note_of_parts(parts: Parts | str, hidden_states: Tensor) -> None:
    """Notes what a call does, and why."""
    if isinstance(parts, str):
        note("query, key, value", SEPARATELY, parts)
    else:
        note("query, key, value", "one product", QKV.measured(hidden_states, math.prod(hidden_states.shape[:-1])))


def _their_call(attention: Any, cache: Any) -> str | None:
    """Why fasttx's attention cannot be called in place of this self-attention's, or None."""
    if cache is not None:
        return "the call has a cache"
    if attention.config._attn_implementation != IMPLEMENTATION:
        return f"attn_implementation is {attention.config._attn_implementation!r}"
    return None


def joint_qkv_class(original: type, module: str, projections: Projections) -> type:
    """The subclass of a transformers self-attention that computes query, key and value in one product.

    Args:
        original: the self-attention, with ``scaling`` and ``forward(hidden_states, attention_mask=None, ...)``, which
            may take a cache.
        module: where pickle finds the class.
        projections: what else is in it.
    """
    original_forward: Callable[..., Any] = original.forward  # type: ignore[attr-defined]
    names = tuple(inspect.signature(original_forward).parameters)[3:]
    linear, head_dim, dropout_of, finish, post_norm = (getattr(projections, f.name) for f in fields(projections))

    @functools.wraps(original_forward)
    def forward(
        self: Any, hidden_states: Tensor, attention_mask: Tensor | None = None, *rest: Any, **kwargs: Any
    ) -> Any:
        patch: ModulePatch | None = getattr(self, "_fasttx", None)
        joins = patch is not None and patch.options.qkv
        fuses = patch is not None and patch.options.norm and post_norm is not None
        if patch is None or not (joins or fuses):
            return original_forward(self, hidden_states, attention_mask, *rest, **kwargs)
        given = dict(zip(names, rest)) | kwargs
        cache = argument(given, CACHE)
        for name in CACHE:
            given.pop(name, None)
        parts: Parts | str = "qkv=False"
        if joins:
            parts = _their_call(self, cache) or parts_now(self, linear, hidden_states)
            joins = not isinstance(parts, str)
            if decisions.records:
                note_of_parts(parts, hidden_states)
        if fuses:
            reason = post_norm.unfused_reason_now(self, hidden_states, patch) or _their_call(self, cache)
            note(REPORTED_AS, "three calls" if reason else "one call", reason or "")
            fuses = reason is None
        if not (joins or fuses):
            return original_forward(self, hidden_states, attention_mask, *rest, **kwargs)
        lead = hidden_states.shape[:-1]
        packed = given.get("cu_seq_lens_q") is not None and lead[0] == 1
        heads = (*(lead[1:] if packed else lead), -1, getattr(self, head_dim))
        if isinstance(parts, str):
            q, k, v = (self._modules[name](hidden_states).view(heads) for name in linear)
        else:
            q, k, v = joint_linear(hidden_states, *parts, heads)
        dropout = dropout_of(self) if self.training else 0.0
        out, probabilities = attention_of_rows(self, q, k, v, attention_mask, dropout, self.scaling, **given)
        out = finish(self, out.reshape(*lead, -1))
        if fuses:
            out = post_norm.fused(self, patch, out, hidden_states)
        elif post_norm is not None:
            out = post_norm.unfused(self, out, hidden_states)
        return out, probabilities

    forward._fasttx_packs = original_forward  # type: ignore[attr-defined]
    return subclass_of(original, forward, module)
