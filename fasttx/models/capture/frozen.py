"""An encoder of post-norm layers for inference on a CPU: seven calls a layer over weights that are laid out once.

    qkv = x Wqkv^T + b            one product
    a   = attention(qkv)
    h   = layer_norm(x + a Wo^T + b)          the sum within the product
    y   = layer_norm(h + gelu(h Wi^T + b) Wd^T + b)

In an int8 model the norms hand rows on int8 to the products that read them, and the other two products quantise first.

A frozen encoder holds copies of the weights, and must never answer by old ones. Before each call it looks at every
parameter (its place, its version, its address, some of its values, as no version tells of a change through ``.data``)
and at every module (its place, its hooks). Where a parameter has changed, all is laid out anew.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...functional._packing import Layout
from ...functional.attention.layouts import attention_packed, attention_padded
from ...nn.bypass import bypass_reason
from ...nn.int8 import Int8Linear
from ...ops.cpu import direct
from ..attention.masks import as_bias
from ..fusions.mlp import APPROXIMATE
from ..subclass import has_own_forward, original_of
from .parts import FreezeError, LayerParts
from .products import Given, Int8Product, Norm, Product, Wanted, lays_out, rounding_of

AnyProduct = Product | Int8Product
Attend = Callable[[Tensor, int, float], Tensor]
"""Of q, k and v in a row (tokens, 3 width), heads and scale: (tokens, width)."""
SAMPLES = 4
"""Values of a parameter that are looked at before each call: each is a line of memory that no layer reads."""


@dataclass
class _Layer:
    """One layer; `qkv`, `attended`, `wide` and `narrow` are its products, and `dtype` is that of its floats."""

    dtype: torch.dtype
    heads: int
    scale: float
    qkv: AnyProduct
    attended: AnyProduct
    attended_norm: Norm
    wide: AnyProduct
    activation: str | Callable[[Tensor], Tensor]
    narrow: AnyProduct
    norm: Norm

    def run(self, x: Tensor, given: Given, attend: Attend, next_wants: Wanted) -> tuple[Tensor, Given]:
        """x (tokens, width) and what is given of it -> the same of the next layer, which may want its rows on int8."""
        attended = attend(self.qkv(x, given), self.heads, self.scale)
        x, given = self.attended_norm(self.attended.plus(attended, x, given), given, *self.wide.wanted)
        if isinstance(self.activation, str):
            wide = self.wide.gelu(x, self.activation, given)
        else:
            wide = self.activation(self.wide(x, given))
        return self.norm(self.narrow.plus(wide, x, given), given, *next_wants)

    @property
    def products(self) -> tuple[AnyProduct, ...]:
        return self.qkv, self.attended, self.wide, self.narrow


class FrozenEncoder:
    """The layers of an encoder as they were when it was made; :meth:`changed` tells whether they still are.

    Args:
        encoder: a patched encoder on a CPU.
        parts: where its parts are.

    Raises:
        FreezeError: its layers are more, or other, than `parts` says; it is not on a CPU.
    """

    def __init__(self, encoder: Any, parts: LayerParts) -> None:
        layers = parts.layers(encoder)
        self._modules: list[tuple[dict[str, Any], str, Any]] = []
        self._states: list[dict[str, Any]] = []
        self._hooks: list[dict[int, Any]] = []
        self._parameters: list[tuple[dict[str, Any], str, Tensor, int, int]] = []
        self._samples: list[tuple[Any, bytes]] = []
        made: dict[int, _Layer] = {}
        with torch.inference_mode(False), torch.no_grad():
            self._first = _product([_linear(encoder, parts.first)]) if parts.first else None
            for i, layer in enumerate(layers):
                if id(layer) not in made:
                    _refuse_more(layer, parts, f"layer {i}")
                    made[id(layer)] = _layer_of(layer, parts, f"layer {i}")
            self._watch(encoder)
        self._layers = [made[id(layer)] for layer in layers]
        products = [product for layer in made.values() for product in layer.products]
        if self._first is not None:
            products.append(self._first)
        self.bytes = sum(product.bytes for product in products)
        self._on_int8 = any(product.on_int8 for product in products)
        (self.dtype, *others) = dict.fromkeys(layer.dtype for layer in made.values())
        if others:
            raise FreezeError(f"its layers have weights in {', '.join(map(str, (self.dtype, *others)))}")

    # ------------------------------------------------------------------------------------------- what it was made of

    def _watch(self, encoder: nn.Module) -> None:
        for path, module in encoder.named_modules():
            for child, own in module._modules.items():
                if own is not None:
                    self._modules.append((module._modules, child, own))
                    self._states.append(own.__dict__)
                    self._hooks += [own._forward_hooks, own._forward_pre_hooks]
            own_tensors = [(module._parameters, *item) for item in module._parameters.items()]
            if _is_int8(module):
                own_tensors += [(module._buffers, *item) for item in module._buffers.items()]
            for holder, name, parameter in own_tensors:
                if parameter is None:
                    continue
                if parameter.device.type != "cpu":
                    raise FreezeError(f"{path}.{name} is on {parameter.device}; only a CPU's layers are frozen")
                if parameter.is_inference():
                    raise FreezeError(f"{path}.{name} was made in inference mode, and cannot tell when it changes")
                seen = (parameter, parameter._version, parameter.data_ptr())
                self._parameters.append((holder, name, *seen))
                sample = _sample(parameter, f"{path}.{name}")
                self._samples.append((sample, sample.tobytes()))

    def changed(self) -> bool:
        """Whether a module or a parameter is another one, or has other values, than when this was made."""
        for children, name, module in self._modules:
            if children.get(name) is not module:
                return True
        for parameters, name, parameter, version, address in self._parameters:
            if (
                parameters.get(name) is not parameter
                or parameter._version != version
                or parameter.data_ptr() != address
            ):
                return True
        for sample, before in self._samples:  # loops, not generators: each call of a model comes here
            if sample.tobytes() != before:
                return True
        return False

    @property
    def trains(self) -> bool:
        """Whether a module below is in training mode: a dropout alone may be, to draw several answers."""
        for state in self._states:
            if state["training"]:
                return True
        return False

    def hook(self) -> str | None:
        """A module below that must be called, as it has hooks or a forward of its own, by its name; or None."""
        for state in self._states:
            if "forward" in state:
                break
        else:
            if not any(self._hooks):  # as always: each call of a model comes here
                return None
        for _, name, module in self._modules:
            state = module.__dict__
            if "forward" in state and has_own_forward(module):
                return name
            hooks = (*state["_forward_hooks"].values(), *state["_forward_pre_hooks"].values())
            if not all(getattr(hook, "__module__", "").startswith("transformers.") for hook in hooks):
                return name  # those of transformers collect what a call asks for, which is then not frozen
        return None

    # ------------------------------------------------------------------------------------------------------- running

    def padded(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        """hidden (batch, seqlen, width), mask of keys bool (batch, seqlen) or None -> last hidden states."""
        batch, seqlen, width = hidden.shape

        def attend(qkv: Tensor, heads: int, scale: float) -> Tensor:
            found = qkv.view(batch, seqlen, 3, heads, -1)
            if mask is None:
                q, k, v = found.permute(2, 0, 3, 1, 4).unbind()
                out = torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2)
            else:
                bias = as_bias(mask, (batch, heads, seqlen, seqlen))
                out = attention_padded(*found.unbind(2), attn_bias=bias, softmax_scale=scale)
            return out.reshape(batch * seqlen, -1)

        return self._run(hidden.reshape(batch * seqlen, width), attend).view(batch, seqlen, -1)

    def packed(self, tokens: Tensor, layout: Layout) -> Tensor:
        """tokens (total, width) of several sequences -> the same shape."""
        starts, longest, total = layout.cu_seqlens, layout.max_seqlen, tokens.shape[0]

        def attend(qkv: Tensor, heads: int, scale: float) -> Tensor:
            q, k, v = qkv.view(total, 3, heads, -1).unbind(1)
            out: Tensor = attention_packed(q, k, v, starts, starts, longest, longest, scale=scale, sure=True)
            return out.reshape(total, -1)

        return self._run(tokens, attend)

    def _run(self, x: Tensor, attend: Attend) -> Tensor:
        if self._first is not None:
            x = self._first(x, Given(None, None))
        given = Given(None, direct.taken(x) if self._on_int8 else None)
        for layer, following in zip(self._layers, [*self._layers[1:], None]):
            x, given = layer.run(x, given, attend, following.qkv.wanted if following is not None else (False,))
        return x


def _sample(parameter: Tensor, name: str) -> Any:
    """Some values of a parameter, as bits: a view in NumPy, which is read in a fraction of PyTorch's time."""
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[parameter.element_size()]
    own = parameter.detach()
    own = own if own.is_contiguous() or own.dim() != 2 else own.t()
    if not own.is_contiguous():  # a copy would not change with it
        raise FreezeError(f"{name} is not contiguous")
    return own.view(-1).view(bits).numpy()[:: max(1, own.numel() // SAMPLES)][:SAMPLES]


def _refuse_more(layer: nn.Module, parts: LayerParts, name: str) -> None:
    """FreezeError if the layer holds more than its parts."""
    expected = {f"{path}.{own}" for path in (*parts.linears, *parts.norms) for own in ("weight", "bias")}
    for path, _ in layer.named_parameters():
        if path not in expected:
            raise FreezeError(f"{name} has a parameter {path}, which is no part of a plain layer")
    source = original_of(type(layer)).__module__
    for path, module in layer.named_modules():
        home = original_of(type(module)).__module__
        known = home.startswith(("torch.nn.modules.", "transformers.activations")) or home == source
        if not (known or _is_int8(module)):
            raise FreezeError(f"{name}.{path} is a {home}.{type(module).__name__}, not transformers' own")


def _is_int8(module: Any) -> bool:
    return type(module) is Int8Linear


def _linear(module: Any, path: str) -> Any:
    linear = module.get_submodule(path)
    reason = bypass_reason(linear, path, source=type(linear).__module__ if _is_int8(linear) else "torch.nn.modules")
    if reason is None and type(linear) not in (nn.Linear, Int8Linear):
        reason = f"{path} is a {type(linear).__name__}"
    if reason is not None:
        raise FreezeError(reason)
    return linear


def _product(linears: list[Any]) -> AnyProduct:
    """One product of several layers that read the same input."""
    weights, biases = [linear.weight.detach() for linear in linears], [linear.bias for linear in linears]
    bias: Tensor | None = None
    if any(each is not None for each in biases):
        some = next(each for each in biases if each is not None)
        biases = [some.new_zeros(w.shape[0]) if b is None else b.detach() for w, b in zip(weights, biases)]
        bias = torch.cat(biases)
    weight = weights[0] if len(weights) == 1 else torch.cat(weights)
    if _is_int8(linears[0]):
        scales = [linear.weight_scale.detach() for linear in linears]
        scale = scales[0] if len(scales) == 1 else torch.cat(scales)
        return Int8Product(weight, scale, bias, len(linears) > 1, rounding_of(linears))
    return Product(weight, bias, lays_out(weight.dtype))


def _norm(module: Any, path: str) -> Norm:
    norm = module.get_submodule(path)
    reason = bypass_reason(norm, path, cls="LayerNorm")
    if reason is not None:
        raise FreezeError(reason)
    weight, bias = (None if x is None else x.detach() for x in (norm.weight, norm.bias))
    return Norm(norm.normalized_shape, weight, bias, norm.eps)


def _layer_of(layer: Any, parts: LayerParts, name: str) -> _Layer:
    try:
        q, k, v, attended, wide, narrow = (_linear(layer, path) for path in parts.linears)
        norms = [_norm(layer, path) for path in parts.norms]
    except FreezeError as reason:
        raise FreezeError(f"{name}: {reason}") from None
    if len({type(linear) for linear in (q, k, v)}) != 1:
        raise FreezeError(f"{name}: some of query, key and value are int8, others not")
    dtypes = {linear.weight.dtype for linear in (q, k, v, attended, wide, narrow) if not _is_int8(linear)}
    dtypes |= {norm.dtype for norm in norms if norm.dtype is not None}
    if len(dtypes) != 1 or not {torch.float32, torch.bfloat16, torch.float16} >= dtypes:
        raise FreezeError(f"{name} has weights in {', '.join(sorted(map(str, dtypes)))}")
    attention = layer.get_submodule(parts.attention)
    holder, _, own = parts.activation.rpartition(".")
    function = getattr(layer.get_submodule(holder), own)
    form = APPROXIMATE.get(type(function).__name__)
    known = form is not None and bypass_reason(function, own, source="transformers.activations") is None
    return _Layer(
        dtype=next(iter(dtypes)),
        heads=q.weight.shape[0] // attention.attention_head_size,
        scale=float(attention.scaling),
        qkv=_product([q, k, v]),
        attended=_product([attended]),
        attended_norm=norms[0],
        wide=_product([wide]),
        activation=form if known and form is not None else function,
        narrow=_product([narrow]),
        norm=norms[1],
    )
