"""The end of each half of a post-norm layer, dropout, sum with the half's input and layer norm, as one kernel.

A patched module calls its products as ever and passes over dropout and norm. Where one of these is not exactly torch's
or has a hook, and where no kernel would run (a CPU, on which torch's three functions are as fast), transformers' own
forward runs.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from torch import Tensor

from ...functional._dropout_add_layer_norm import dropout_add_layer_norm_on
from ...nn.bypass import bypass_reason
from ...ops.backends import forced_backend
from ...ops.decisions import note
from ..options import ModulePatch
from ..subclass import subclass_of
from .fusion import Part, apart_now

NAME = "dropout, sum, layer norm"
SUM = "sum, layer norm"
WHERE = "on a GPU; on a CPU {} calls, which are as fast there"


@dataclass(frozen=True)
class End:
    """What a module does with the result of one half of a layer.

    Attributes:
        norm: name of its layer norm.
        dropout: name of its dropout; None if there is none.
        source, kind: the module and the name of the class of its layer norm.
        eps: what that class calls the number under the square root.
    """

    norm: str = "LayerNorm"
    dropout: str | None = "dropout"
    source: str = "torch.nn.modules"
    kind: str = "LayerNorm"
    eps: str = "eps"


def apart_reason(module: Any, end: End) -> str | None:
    """Why dropout and norm of this module must be called one by one, or None."""
    norm = getattr(module, end.norm)
    reason = bypass_reason(norm, end.norm, source=end.source, cls=end.kind)
    if reason is None and end.dropout is not None:
        reason = bypass_reason(getattr(module, end.dropout), end.dropout, cls="Dropout")
    if reason is not None:
        return reason
    if len(getattr(norm, "normalized_shape", (1,))) != 1:
        return f"{end.norm} is over several dimensions"
    if end.dropout is not None and getattr(module, end.dropout).p >= 1.0:
        return "dropout drops everything"
    return None


def end_apart_now(module: Any, end: End, x: Tensor, patch: ModulePatch) -> str | None:
    """Why this call of a module that `patch` touched does not fuse its end, or None."""
    backend = patch.options.forced or forced_backend()
    return apart_now(module, x, backend, lambda module: apart_reason(module, end), attrgetter(end.norm))


def add_and_norm(module: Any, end: End, patch: ModulePatch, x: Tensor, residual: Tensor) -> Tensor:
    """The layer norm of dropout(x) + residual."""
    norm, p = getattr(module, end.norm), 0.0
    if end.dropout is not None:
        dropout = getattr(module, end.dropout)
        p = dropout.p if dropout.training else 0.0
    return dropout_add_layer_norm_on(
        patch.options.forced, x, residual, norm.weight, norm.bias, dropout_p=p, eps=getattr(norm, end.eps)
    )


def one_by_one(module: Any, end: End, x: Tensor, residual: Tensor) -> Tensor:
    """The same from the module's own children."""
    if end.dropout is not None:
        x = getattr(module, end.dropout)(x)
    out: Tensor = getattr(module, end.norm)(x + residual)
    return out


# ------------------------------------------------------------------------------------- a module that ends one half


BERT_END = End()


def residual_norm_class(original: type, module: str, end: End) -> type:
    """The subclass of a transformers module that ends one half of a layer.

    Args:
        original: with ``dense``, dropout, layer norm and ``forward(hidden_states, input_tensor)``.
        module: where pickle finds the class.
        end: its dropout and layer norm.
    """
    original_forward: Callable[..., Any] = original.forward  # type: ignore[attr-defined]

    @functools.wraps(original_forward)
    def forward(self: Any, hidden_states: Tensor, input_tensor: Tensor) -> Any:
        patch: ModulePatch | None = getattr(self, "_fasttx", None)
        if patch is None or not patch.options.norm:
            return original_forward(self, hidden_states, input_tensor)
        reason = end_apart_now(self, end, input_tensor, patch)
        note(NAME, "three calls" if reason else "one call", reason or "")
        if reason is not None:
            return original_forward(self, hidden_states, input_tensor)
        return add_and_norm(self, end, patch, self.dense(hidden_states), input_tensor)

    return subclass_of(original, forward, module)


def residual_norm(end: End) -> Part:
    """The part of a module that is a product and this end."""
    return Part(
        option="norm",
        before=NAME,
        after="dropout_add_layer_norm",
        op="dropout_add_layer_norm",
        where=WHERE.format("three"),
        apart=lambda module: apart_reason(module, end),
        replace=lambda original, module: residual_norm_class(original, module, end),
    )


RESIDUAL_NORM = residual_norm(BERT_END)


# --------------------------------------------------------- a self-attention, or a layer, that ends its halves by itself


def attention_end(end: End) -> Part:
    """The part of a self-attention that adds and norms in its own forward; fusions/qkv.py makes its class."""
    return dataclasses.replace(
        RESIDUAL_NORM,
        apart=lambda module: apart_reason(module, end),
        replace=lambda original, module: original,
        needs_attention=True,
    )


@dataclass(frozen=True)
class Half:
    """One half of a layer.

    Attributes:
        run: of (layer, hidden states, attention mask, the call's other arguments): its result, before the sum.
        norm: name of the norm that follows the sum with the half's input; None if the result has both already.
    """

    run: Callable[[Any, Tensor, Tensor | None, dict[str, Any]], Tensor]
    norm: str | None


def layer_norms(halves: Sequence[Half], apart_too: Callable[[Any], str | None] = lambda layer: None) -> Part:
    """The part of a layer that adds and norms in its own forward, ``(hidden_states, attention_mask=None, **kwargs)``.

    Args:
        halves: in the order of the forward.
        apart_too: why the forward is more than its halves, or None.
    """
    steps = [(half.run, None if half.norm is None else End(half.norm, None)) for half in halves]
    ends = [end for _, end in steps if end is not None]

    def apart(layer: Any) -> str | None:
        return next((reason for end in ends if (reason := apart_reason(layer, end))), None) or apart_too(layer)

    def replace(original: type, module: str) -> type:
        original_forward: Callable[..., Any] = original.forward  # type: ignore[attr-defined]

        @functools.wraps(original_forward)
        def forward(self: Any, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Any:
            patch: ModulePatch | None = getattr(self, "_fasttx", None)
            if patch is None or not patch.options.norm:
                return original_forward(self, hidden_states, attention_mask, **kwargs)
            backend = patch.options.forced or forced_backend()
            reason = apart_now(self, hidden_states, backend, apart, attrgetter(ends[0].norm))
            note(SUM, "two calls" if reason else "one call", reason or "")
            if reason is not None:
                return original_forward(self, hidden_states, attention_mask, **kwargs)
            for run, end in steps:
                out = run(self, hidden_states, attention_mask, kwargs)
                hidden_states = out if end is None else add_and_norm(self, end, patch, out, hidden_states)
            return hidden_states

        forward._fasttx_packs = original_forward  # type: ignore[attr-defined]
        return subclass_of(original, forward, module)

    return Part(
        option="norm",
        before=SUM,
        after="dropout_add_layer_norm",
        op="dropout_add_layer_norm",
        where=WHERE.format("two"),
        apart=apart,
        replace=replace,
    )
