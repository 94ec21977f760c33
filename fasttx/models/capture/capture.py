"""``fasttx.capture``: a patched model's encoders frozen for inference on a CPU, until they are released."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...ops import decisions
from ...ops.decisions import note
from ..all_or_nothing import all_or_nothing
from ..layout import heading, wrapped
from ..tracing import graph_in_the_making
from .frozen import FrozenEncoder
from .parts import FreezeError, LayerParts

FROZEN = "_fasttx_frozen"
"""In the ``__dict__`` of an encoder: its :class:`Frozen`."""
PART = "layers"
NONE_FOUND = "none of its encoders has BERT's layers and was patched with attention=True and unpad='auto' or True"


class Frozen:
    """What a captured encoder carries: its frozen layers, and how often they ran. A copy or a pickle of the encoder
    carries None in its place, and runs as it does without capture.
    """

    def __init__(self, encoder: nn.Module, parts: LayerParts) -> None:
        self._parts, self._lock = parts, threading.Lock()
        self.calls, self.freezes, self.fallbacks = 0, 1, Counter[str]()
        self._layers = FrozenEncoder(encoder, parts)
        self.output_class: Any = None

    def __deepcopy__(self, memo: Any) -> None:
        return None

    def __reduce__(self) -> Any:
        return type(None), ()

    @property
    def bytes(self) -> int:
        return self._layers.bytes

    def layers_for(self, encoder: Any, hidden: Tensor, other_reason: str | None) -> FrozenEncoder | None:
        """The layers for a call, frozen anew where a weight has changed; None, and why, where it has to run unfrozen.

        Args:
            encoder: that carries this.
            hidden: what it is called with.
            other_reason: why the call is more than its layers on these hidden states, or None.
        """
        reason = self._reason(encoder, hidden) or other_reason
        if reason is None:
            with self._lock:
                if self._layers.changed():
                    try:
                        self._layers = FrozenEncoder(encoder, self._parts)
                        self.freezes += 1
                    except FreezeError as problem:
                        reason = str(problem)
                layers = self._layers
            if reason is None and hidden.dtype != layers.dtype:
                reason = f"the hidden states are {hidden.dtype}, the layers {layers.dtype}"
        if reason is not None:
            self.fallbacks[reason] += 1
            note(PART, "as patched", reason)
            return None
        self.calls += 1
        if decisions.records:
            note(PART, "frozen", "fasttx.capture")
        return layers

    def _reason(self, encoder: Any, hidden: Tensor) -> str | None:
        if torch.is_grad_enabled():
            return "gradients are recorded: call it under torch.no_grad() or torch.inference_mode()"
        if encoder.training or self._layers.trains:
            return "the model, or a part of its layers, is in training mode"
        if graph_in_the_making(hidden):
            return "a graph is being compiled or exported"
        if hidden.device.type != "cpu":
            return f"the hidden states are on {hidden.device}"
        if torch.is_autocast_enabled("cpu"):
            return "autocast is on: convert the model instead, model.to(torch.bfloat16)"
        hook = self._layers.hook()
        if hook is not None:
            return f"{hook} has a hook or a forward of its own"
        if nn.modules.module._has_any_global_hook():
            return "there are hooks on every module"
        return None


@dataclass(frozen=True)
class Running:
    """What a captured encoder runs one call with."""

    frozen: Frozen
    encoder: Any
    layers: FrozenEncoder

    def answer(self, original: Any, hidden: Tensor, last: Tensor) -> Any:
        """`last` in what the encoder's own forward returns, whose class a call with one token tells."""
        if self.frozen.output_class is None:
            self.frozen.output_class = type(original(self.encoder, hidden[:1, :1], None))
        return self.frozen.output_class(last_hidden_state=last)


def frozen_layers(encoder: Any, hidden: Tensor, other_reason: Callable[[], str | None]) -> Running | None:
    """What a captured encoder runs this call with; None where it has to run as patched.

    Args:
        other_reason: why the call is more than its layers on these hidden states, or None.
    """
    frozen: Frozen | None = encoder.__dict__[FROZEN]
    if frozen is None:
        return None
    layers = frozen.layers_for(encoder, hidden, other_reason())
    return None if layers is None else Running(frozen, encoder, layers)


# ----------------------------------------------------------------------------------------------------------- public


class Captured:
    """A captured model: call it, or the model itself, under ``torch.no_grad()``. See :func:`capture`.

    Attributes:
        model: what was given.
        left: encoders that run as patched, and why.
    """

    def __init__(self, model: Any, encoders: dict[str, nn.Module], left: dict[str, str], patched_here: bool) -> None:
        self.model, self.left = model, left
        self._encoders, self._patched_here = encoders, patched_here

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own call, without gradients."""
        with torch.no_grad():
            return self.model(*args, **kwargs)

    def __enter__(self) -> Captured:
        return self

    def __exit__(self, *_: Any) -> None:
        self.release()

    def release(self) -> None:
        """The model as it was before; a second call does nothing."""
        for encoder in self._encoders.values():
            encoder.__dict__.pop(FROZEN, None)
        self._encoders = {}
        from .. import patch as patching

        if self._patched_here and patching.is_patched(self.model):
            patching.unpatch(self.model)
        self._patched_here = False

    @property
    def stats(self) -> dict[str, Any]:
        """``encoders``, ``calls`` that ran frozen, ``fallbacks`` (reason -> calls), ``freezes`` (one an encoder, one
        more after each change of weights), ``bytes`` of the copies."""
        found = [encoder.__dict__[FROZEN] for encoder in self._encoders.values() if encoder.__dict__.get(FROZEN)]
        fallbacks: Counter[str] = sum((each.fallbacks for each in found), Counter())
        return {
            "encoders": len(found),
            "calls": sum(each.calls for each in found),
            "fallbacks": dict(fallbacks),
            "freezes": sum(each.freezes for each in found),
            "bytes": sum(each.bytes for each in found),
        }

    def __str__(self) -> str:
        stats = self.stats
        frozen_left = f"{stats['encoders']} frozen, {len(self.left)} left alone"
        size = f"{stats['bytes'] / 2**20:.0f} MiB of weights laid out"
        lines = [heading(f"fasttx.capture({type(self.model).__name__}): {frozen_left}, {size}")]
        for name, encoder in self._encoders.items():
            lines.append(name or "(the model)")
            frozen: Frozen | None = encoder.__dict__.get(FROZEN)
            if frozen is not None:
                lines += wrapped(f"{frozen.calls} calls frozen, {sum(frozen.fallbacks.values())} as patched")
                for reason, count in frozen.fallbacks.items():
                    lines += wrapped(f"{count} x: {reason}")
        for name, reason in self.left.items():
            lines += [name or "(the model)", *wrapped(f"as patched: {reason}")]
        return "\n".join(lines)


def capture(model: Any) -> Captured:
    """Freeze the encoders of a model on a CPU for inference: fewer calls, and weights that are laid out once.

    A layer becomes seven calls of PyTorch: one product for query, key and value; attention; two products that add the
    residual; one with GELU inside; two layer norms. oneDNN reads weights in a layout of its own, into which it copies
    them at every call of a linear layer. A captured model keeps the copies. That gains most where a batch is small: one
    sentence, a few short ones. Padding is skipped as in the patched model, which is patched here if it was not.

    Args:
        model: a transformers model, or anything that holds some (sentence-transformers, a CrossEncoder, a pipeline), in
            float32, bfloat16 or float16.

    Returns:
        A :class:`Captured`, which is a context manager: ``release()`` or the end of the ``with`` block puts everything
        back. ``stats`` counts calls; ``print`` it for a report.

    Raises:
        ValueError: no encoder of `model` can be frozen; the message says why. The model is then as it was.

    Gradients are not recorded: a call with gradients, in training mode, under autocast, with hooks on a layer, or that
    asks for attentions or hidden states runs as the patched model does, and `stats` counts it with the reason. Answers
    are never stale: a weight that has changed (``load_state_dict``, an optimizer, ``model.to``) is laid out anew at the
    next call. The copies take as much memory as the weights of the layers.

    Numerics: the sum with the residual is rounded once, not twice, and GELU is computed before the product is rounded.
    """
    from .. import patch as patching  # which imports the families, and they this

    root = patching._root(model)
    return all_or_nothing(root, lambda: _captured(model, root))


def _captured(model: Any, root: nn.Module) -> Captured:
    from .. import patch as patching

    patched_here = not patching.is_patched(root)
    if patched_here:
        patching.patch(root)
    encoders: dict[str, nn.Module] = {}
    left: dict[str, str] = {}
    for name, module in root.named_modules():
        parts: LayerParts | None = getattr(type(module), "_fasttx_parts", None)
        if parts is None or "_fasttx" not in module.__dict__:
            continue
        try:
            module.__dict__[FROZEN] = Frozen(module, parts)
            encoders[name] = module
        except FreezeError as reason:
            left[name] = str(reason)
    if not encoders:
        reasons = "; ".join(dict.fromkeys(left.values())) or NONE_FOUND
        raise ValueError(f"model: got {type(root).__name__}; allowed is one whose encoder can be frozen: {reasons}")
    return Captured(model, encoders, left, patched_here)
