"""Int8Linear: a linear layer whose weight is kept as int8, for inference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from ..functional._int8_linear import StraightThroughFunction, int8_linear
from ..functional._quantize import quantize_per_channel
from ..functional._routing import records_gradients
from ..ops.checks import FLOATS, described, wrong

FLOATS_OF_IT = ("weight_scale", "input_scale", "input_factor")
"""Its float32 buffers: no cast touches them, and a state dictionary has their bits as int32."""
OF_INPUT = ("input_scale", "input_factor")
"""Those that a layer may lack."""


class Int8Linear(nn.Module):
    r"""A linear layer on int8 for inference; see :func:`fasttx.functional.int8_linear`.

    .. math:: y = Q(x \circ f)\, W_q^T + b, \quad W_q = \mathrm{round}(W \,\mathrm{diag}(1 / f) / scale)

    Weights are quantised by output channel, inputs by token. Buffers keep their dtypes whatever the module is cast to:
    ``weight``, int8 (out_features, in_features); ``weight_scale``, float32 (out_features,); ``input_scale``, float32
    (), one scale for all tokens, or None; ``input_factor`` f, float32 (in_features,), powers of two by which an input
    is multiplied before it is rounded, or None for 1. ``bias`` is a parameter, which a cast changes. In a
    ``state_dict()`` the integers are (out_features, 1, in_features) and the floats their bits as int32, so that no
    float layer loads them as its weight. A new module holds zeros, to load a state dictionary into, with which it gets
    or loses ``input_scale`` and ``input_factor``; :meth:`from_float` quantises a layer. There is no gradient: backward
    raises RuntimeError, unless ``straight_through`` is set to True. Then input and bias get the gradients of the float
    layer that the integers stand for, as if inputs were not rounded; the integers stay as they are.

    Args:
        in_features, out_features, bias, device: as in torch.nn.Linear.
        dtype: of bias; float32 unless given.
    """

    weight: Tensor
    weight_scale: Tensor
    input_scale: Tensor | None
    input_factor: Tensor | None
    bias: nn.Parameter | None
    straight_through: bool = False

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.register_buffer("weight", torch.zeros(out_features, in_features, dtype=torch.int8, device=device))
        self.register_buffer("weight_scale", torch.ones(out_features, dtype=torch.float32, device=device))
        self.register_buffer("input_scale", None)
        self.register_buffer("input_factor", None)
        if bias:
            self.bias = nn.Parameter(torch.zeros(out_features, device=device, dtype=dtype), requires_grad=False)
        else:
            self.register_parameter("bias", None)

    @classmethod
    def from_float(
        cls, linear: nn.Linear, input_scale: Tensor | None = None, input_factor: Tensor | None = None
    ) -> Int8Linear:
        """Quantises `linear`. The new layer keeps that layer's bias, the same parameter.

        Args:
            linear: a torch.nn.Linear in float32, float16 or bfloat16.
            input_scale: float32 (), the scale of every input, of what `input_factor` made of it; None finds one for
                each token.
            input_factor: float32 (in_features,), positive: what inputs are multiplied by before they are rounded, and
                the columns of the weight divided by. Powers of two change no number in doing so.

        Raises:
            TypeError: `linear` is not a torch.nn.Linear.
            ValueError: its weight is not float32, float16 or bfloat16, or not finite; `input_scale` or `input_factor`
                is no tensor as above.
        """
        if not isinstance(linear, nn.Linear):
            raise TypeError(wrong("linear", described(linear), "a torch.nn.Linear"))
        for name, t, shape in (("input_scale", input_scale, ()), ("input_factor", input_factor, (linear.in_features,))):
            if t is None:
                continue
            if not isinstance(t, Tensor) or t.dtype != torch.float32 or tuple(t.shape) != shape:
                raise ValueError(wrong(name, described(t), f"float32 {shape} or None"))
            if not bool((t.isfinite() & (t > 0)).all()):
                raise ValueError(wrong(name, "a number that is not positive", "positive numbers"))
        weight = linear.weight
        if input_factor is not None and weight.dtype in FLOATS:
            weight = weight.detach().float() / input_factor.to(weight.device)
        w_q, w_scale = quantize_per_channel(weight)
        if not bool(w_scale.isfinite().all()):
            raise ValueError(wrong("linear", "a weight that holds a NaN or an infinity", "one of finite numbers"))
        made = cls(linear.in_features, linear.out_features, bias=False, device="meta")
        made.weight, made.weight_scale, made.bias = w_q, w_scale, linear.bias
        made.input_scale, made.input_factor = (
            None if t is None else t.detach().to(w_q.device, copy=True) for t in (input_scale, input_factor)
        )
        return made.train(linear.training)

    def dequantize(self, dtype: torch.dtype | None = None) -> nn.Linear:
        """A torch.nn.Linear of the weights that the integers stand for, with the same bias parameter.

        Args:
            dtype: of the weight; bias's unless given, or float32 where there is no bias.
        """
        dtype = dtype or (torch.float32 if self.bias is None else self.bias.dtype)
        made = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        weight = self.weight.float() * self.weight_scale[:, None]
        if self.input_factor is not None:
            weight = weight * self.input_factor
        made.weight = nn.Parameter(weight.to(dtype))
        made.register_parameter("bias", self.bias)
        return made.train(self.training)

    def forward(self, input: Tensor, activation: str = "none") -> Tensor:
        """(..., in_features), in float32, float16 or bfloat16 -> (..., out_features). `activation`: of int8_linear."""
        if self.straight_through and records_gradients(input, self.bias):
            out: Tensor = StraightThroughFunction.apply(
                input, self.weight, self.weight_scale, self.bias, self.input_scale, self.input_factor
            )
            return out if activation == "none" else gelu(out, approximate="tanh" if "tanh" in activation else "none")
        if self.input_factor is not None:
            input = input * self.input_factor.to(input.dtype)
        return int8_linear(
            input, self.weight, self.weight_scale, self.bias, activation=activation, act_scale=self.input_scale
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Int8Linear:
        """Moves everything; a cast (half(), to(dtype), type(dtype)) leaves integers and scales unrounded."""
        before = {name: self._buffers[name] for name in ("weight", *FLOATS_OF_IT)}
        super()._apply(fn, recurse)
        for name, old in before.items():
            new = self._buffers[name]
            if old is not None and new is not None and new.dtype != old.dtype:
                self._buffers[name] = old.to(new.device)
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """Integers as (out, 1, in) and the bits of the floats as int32: no float layer takes them for its weight."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if prefix + "weight" in destination:
            destination[prefix + "weight"] = destination[prefix + "weight"][:, None]
        for name in FLOATS_OF_IT:
            if prefix + name in destination:
                destination[prefix + name] = destination[prefix + name].view(torch.int32)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Takes what :meth:`_save_to_state_dict` gave, or the buffers as they are.

        Refuses the weight of a float layer, which a copy would cut down to integers. Integers mean nothing without the
        scale and the factor of inputs that they were made with: they come and go with them.
        """
        for name in ("weight", *FLOATS_OF_IT):
            given, own = state_dict.get(prefix + name), self._buffers[name]
            if name in OF_INPUT and isinstance(state_dict.get(prefix + "weight"), Tensor):
                if (given is None) != (own is None):
                    shape = () if name == "input_scale" else (self.in_features,)
                    own = None if given is None else torch.ones(shape, dtype=torch.float32, device=self.weight.device)
                    self._buffers[name] = own
            if not isinstance(given, Tensor) or own is None:
                continue
            if name == "weight" and given.dtype == torch.int8 and given.dim() == 3 and given.shape[1] == 1:
                given = state_dict[prefix + name] = given.squeeze(1)
            if name in FLOATS_OF_IT and given.dtype == torch.int32:
                given = state_dict[prefix + name] = given.view(torch.float32)
            if given.dtype != own.dtype:
                allowed = f"{own.dtype}: load float weights into the float model, and quantise it then"
                args[-1].append(wrong(f"{prefix}{name}", given.dtype, allowed))  # error_msgs
                return
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        more = "".join(f", {name}" for name in OF_INPUT if self._buffers[name] is not None)
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}{more}"
