"""What ends each sublayer of a post-norm layer, dropout, sum with its input and layer norm, as one kernel.

A patched module calls its products as ever and passes over dropout and norm. Where one of these is not exactly torch's
or has a hook, and where no kernel would run (a CPU, on which torch's three functions are as fast), transformers' own
forward runs.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...functional._dropout_add_layer_norm import _dropout_add_layer_norm
from ...nn.bypass import bypass_reason
from ...ops import decisions
from ...ops.backends import forced_backend
from ...ops.decisions import note
from ..options import ModulePatch
from ..subclass import subclass_of
from .fusion import Fusion, unfused_reason_now, weight_and_bias

REPORTED_AS = "dropout, sum, layer norm"
SUM = "sum, layer norm"


@dataclass(frozen=True)
class PostNorm:
    """What a module does with the result of a sublayer: layer norm of dropout(result) + the sublayer's input.

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

    def unfused_reason(self, module: Any) -> str | None:
        """Why dropout and norm of this module must be called unfused, or None."""
        children = module._modules
        norm = children.get(self.norm)
        reason = bypass_reason(norm, self.norm, source=self.source, cls=self.kind)
        if reason is None and self.dropout is not None:
            reason = bypass_reason(children.get(self.dropout), self.dropout, cls="Dropout")
        if reason is not None:
            return reason
        if len(getattr(norm, "normalized_shape", (1,))) != 1:
            return f"{self.norm} is over several dimensions"
        if self.dropout is not None and children[self.dropout].p >= 1.0:
            return "dropout drops everything"
        return None

    def unfused_reason_now(self, module: Any, x: Tensor, patch: ModulePatch) -> str | None:
        """Why this call of a module that `patch` touched does not fuse them, or None."""
        backend = patch.options.forced or forced_backend()
        return unfused_reason_now(module, x, backend, self.unfused_reason, self.norm)

    def fused(self, module: Any, patch: ModulePatch, x: Tensor, residual: Tensor) -> Tensor:
        """The layer norm of dropout(x) + residual."""
        norm, p = module._modules[self.norm], 0.0
        if self.dropout is not None:
            dropout = module._modules[self.dropout]
            p = dropout.p if dropout.training else 0.0
        weight, bias = weight_and_bias(norm)
        eps, backend = getattr(norm, self.eps), patch.options.forced
        return _dropout_add_layer_norm(x, residual, weight, bias, dropout_p=p, eps=eps, backend=backend, sure=True)

    def unfused(self, module: Any, x: Tensor, residual: Tensor) -> Tensor:
        """The same from the module's own children."""
        if self.dropout is not None:
            x = getattr(module, self.dropout)(x)
        out: Tensor = getattr(module, self.norm)(x + residual)
        return out


# --------------------------------------------------------------------------------------- a module that ends a sublayer


BERT_NORM = PostNorm()


def residual_norm_class(original: type, module: str, post_norm: PostNorm) -> type:
    """The subclass of a transformers module that ends a sublayer.

    Args:
        original: with ``dense``, dropout, layer norm and ``forward(hidden_states, input_tensor)``.
        module: where pickle finds the class.
        post_norm: its dropout and layer norm.
    """
    original_forward: Callable[..., Any] = original.forward  # type: ignore[attr-defined]

    @functools.wraps(original_forward)
    def forward(self: Any, hidden_states: Tensor, input_tensor: Tensor) -> Any:
        patch: ModulePatch | None = getattr(self, "_fasttx", None)
        if patch is None or not patch.options.norm:
            return original_forward(self, hidden_states, input_tensor)
        reason = post_norm.unfused_reason_now(self, input_tensor, patch)
        if decisions.records:
            note(REPORTED_AS, "three calls" if reason else "one call", reason or "")
        if reason is not None:
            return original_forward(self, hidden_states, input_tensor)
        return post_norm.fused(self, patch, self._modules["dense"](hidden_states), input_tensor)

    return subclass_of(original, forward, module)


def residual_norm(post_norm: PostNorm) -> Fusion:
    """The fusion of a module that is a product and this norm."""
    return Fusion(
        option="norm",
        before=REPORTED_AS,
        after="dropout_add_layer_norm",
        op="dropout_add_layer_norm",
        unfused_reason=post_norm.unfused_reason,
        replace=lambda original, module: residual_norm_class(original, module, post_norm),
    )


RESIDUAL_NORM = residual_norm(BERT_NORM)


# ----------------------------------------------------- a self-attention, or a layer, that ends its sublayers by itself


def attention_norm(post_norm: PostNorm) -> Fusion:
    """The fusion of a self-attention that adds and norms in its own forward; fusions/qkv.py makes its class."""
    return dataclasses.replace(
        RESIDUAL_NORM,
        unfused_reason=post_norm.unfused_reason,
        replace=lambda original, module: original,
        needs_attention=True,
    )


@dataclass(frozen=True)
class SubLayer:
    """A half of a layer: attention, or the MLP.

    Attributes:
        run: of (layer, hidden states, attention mask, the call's other arguments): its result, before the sum.
        norm: name of the norm that follows the sum with its input; None if the result has both already.
    """

    run: Callable[[Any, Tensor, Tensor | None, dict[str, Any]], Tensor]
    norm: str | None


def layer_norms(sublayers: Sequence[SubLayer], unfused_too: Callable[[Any], str | None] = lambda layer: None) -> Fusion:
    """The fusion of a layer that adds and norms in its own forward, ``(hidden_states, attention_mask=None, **kwargs)``.

    Args:
        sublayers: in the order of the forward.
        unfused_too: why the forward is more than its sublayers, or None.
    """
    steps = [(part.run, None if part.norm is None else PostNorm(part.norm, None)) for part in sublayers]
    norms = [norm for _, norm in steps if norm is not None]

    def unfused_reason(layer: Any) -> str | None:
        return next((reason for norm in norms if (reason := norm.unfused_reason(layer))), None) or unfused_too(layer)

    def replace(original: type, module: str) -> type:
        original_forward: Callable[..., Any] = original.forward  # type: ignore[attr-defined]

        @functools.wraps(original_forward)
        def forward(self: Any, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Any:
            patch: ModulePatch | None = getattr(self, "_fasttx", None)
            if patch is None or not patch.options.norm:
                return original_forward(self, hidden_states, attention_mask, **kwargs)
            backend = patch.options.forced or forced_backend()
            reason = unfused_reason_now(self, hidden_states, backend, unfused_reason, norms[0].norm)
            note(SUM, "two calls" if reason else "one call", reason or "")
            if reason is not None:
                return original_forward(self, hidden_states, attention_mask, **kwargs)
            for run, norm in steps:
                out = run(self, hidden_states, attention_mask, kwargs)
                hidden_states = out if norm is None else norm.fused(self, patch, out, hidden_states)
            return hidden_states

        forward._fasttx_packs = original_forward  # type: ignore[attr-defined]
        return subclass_of(original, forward, module)

    return Fusion(
        option="norm",
        before=SUM,
        after="dropout_add_layer_norm",
        op="dropout_add_layer_norm",
        unfused_reason=unfused_reason,
        replace=replace,
    )
