"""Int8Linear: a linear layer whose weight is kept as int8, for inference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..functional._int8_linear import int8_linear
from ..functional._quantize import quantize_per_channel
from ..ops.checks import described, wrong


def _as_stored(weight: Tensor) -> Tensor:
    return weight[:, None]


def _bits_of(scale: Tensor) -> Tensor:
    return scale.view(torch.int32)


class Int8Linear(nn.Module):
    """A linear layer on int8 for inference; see :func:`fasttx.functional.int8_linear`.

    Weights are quantised by output channel, inputs by token. ``weight``, int8 (out_features, in_features), and
    ``weight_scale``, float32 (out_features,), are buffers that keep their dtypes whatever the module is cast to.
    ``bias`` is a parameter, which a cast changes. In a ``state_dict()`` the integers are (out_features, 1, in_features)
    and the scales their bits as int32, so that no float layer loads them as its weight. A new module holds zeros, to
    load a state dictionary into; :meth:`from_float` quantises a layer. There is no gradient: backward raises
    RuntimeError.

    Args:
        in_features, out_features, bias, device: as in torch.nn.Linear.
        dtype: of bias; float32 unless given.
    """

    weight: Tensor
    weight_scale: Tensor
    bias: nn.Parameter | None

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
        if bias:
            self.bias = nn.Parameter(torch.zeros(out_features, device=device, dtype=dtype), requires_grad=False)
        else:
            self.register_parameter("bias", None)

    @classmethod
    def from_float(cls, linear: nn.Linear) -> Int8Linear:
        """Quantises `linear`. The new layer keeps that layer's bias, the same parameter.

        Raises:
            TypeError: `linear` is not a torch.nn.Linear.
            ValueError: its weight is not float32, float16 or bfloat16, or not finite.
        """
        if not isinstance(linear, nn.Linear):
            raise TypeError(wrong("linear", described(linear), "a torch.nn.Linear"))
        w_q, w_scale = quantize_per_channel(linear.weight)
        if not bool(w_scale.isfinite().all()):
            raise ValueError(wrong("linear", "a weight that holds a NaN or an infinity", "one of finite numbers"))
        made = cls(linear.in_features, linear.out_features, bias=False, device="meta")
        made.weight, made.weight_scale, made.bias = w_q, w_scale, linear.bias
        return made.train(linear.training)

    def dequantize(self, dtype: torch.dtype | None = None) -> nn.Linear:
        """A torch.nn.Linear of the weights that the integers stand for, with the same bias parameter.

        Args:
            dtype: of the weight; bias's unless given, or float32 where there is no bias.
        """
        dtype = dtype or (torch.float32 if self.bias is None else self.bias.dtype)
        made = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        made.weight = nn.Parameter((self.weight.float() * self.weight_scale[:, None]).to(dtype))
        made.register_parameter("bias", self.bias)
        return made.train(self.training)

    def forward(self, input: Tensor) -> Tensor:
        """(..., in_features), in float32, float16 or bfloat16 -> (..., out_features)."""
        return int8_linear(input, self.weight, self.weight_scale, self.bias)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Int8Linear:
        """Moves everything; a cast (half(), to(dtype), type(dtype)) leaves weight and scale as they are, unrounded."""
        before = {name: self._buffers[name] for name in ("weight", "weight_scale")}
        super()._apply(fn, recurse)
        for name, old in before.items():
            new = self._buffers[name]
            if old is not None and new is not None and new.dtype != old.dtype:
                self._buffers[name] = old.to(new.device)
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """Integers as (out, 1, in) and the bits of the scales as int32: no float layer takes them for its weight."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name, stored in (("weight", _as_stored), ("weight_scale", _bits_of)):
            if prefix + name in destination:
                destination[prefix + name] = stored(destination[prefix + name])

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Takes what :meth:`_save_to_state_dict` gave, or the buffers as they are.

        Refuses the weight of a float layer, which a copy would cut down to integers.
        """
        for name in ("weight", "weight_scale"):
            given, own = state_dict.get(prefix + name), self._buffers[name]
            if not isinstance(given, Tensor) or own is None:
                continue
            if name == "weight" and given.dtype == torch.int8 and given.dim() == 3 and given.shape[1] == 1:
                given = state_dict[prefix + name] = given.squeeze(1)
            if name == "weight_scale" and given.dtype == torch.int32:
                given = state_dict[prefix + name] = given.view(torch.float32)
            if given.dtype != own.dtype:
                allowed = f"{own.dtype}: load float weights into the float model, and quantise it then"
                args[-1].append(wrong(f"{prefix}{name}", given.dtype, allowed))  # error_msgs
                return
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
