"""Linear layers for inference on a CPU, with bias, GELU and sum in the product: of floats by oneDNN, which gets a copy
of the weight in its own layout, of int8 by the ops of fasttx.

The operators of oneDNN are private to PyTorch. So they are asked for by what they do: a small product is compared with
F.linear first, and where that fails (another build, another processor) F.linear computes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...nn.int8 import OF_INPUT, Int8Linear
from ...ops.add_layer_norm_quantize.op import ADD_LAYER_NORM_QUANTIZE
from ...ops.backends import forced_backend
from ...ops.cpu import direct
from ...ops.cpu.direct import Rows
from ...ops.exporting import called
from ...ops.int8_linear.op import INT8_LINEAR
from ...ops.quantize_per_token.op import QUANTIZE_PER_TOKEN
from .parts import FreezeError

_quantize, _int8, _norm_rows = called(QUANTIZE_PER_TOKEN), called(INT8_LINEAR), called(ADD_LAYER_NORM_QUANTIZE)
GELU = ("none", "tanh")
"""Forms of GELU that the product ends with."""

_LAYS_OUT = {
    torch.float32: None,
    torch.bfloat16: "_is_mkldnn_bf16_supported",
    torch.float16: "_is_mkldnn_fp16_supported",
}
"""dtype -> what tells whether the processor multiplies in it; None where each does."""


class Given(NamedTuple):
    """What products on int8 are given beside their input: its rows on int8 where a norm made them, and the kernels of
    :mod:`fasttx.ops.cpu.direct` where no op is to be called."""

    rows: Rows | None
    kernels: ModuleType | None


class Rounding:
    """How an int8 product wants its rows: times `factor` float32 (in_features,), then by `scale` float32 (); None where
    an input is taken as it is, and where each token gets a scale of its own."""

    def __init__(self, factor: Tensor | None, scale: Tensor | None) -> None:
        self.factor, self.scale = factor, scale


def rounding_of(linears: Sequence[Int8Linear]) -> Rounding | None:
    """How int8 layers that read the same input want it, or None for by token and as it is.

    Raises:
        FreezeError: they want it in more than one way.
    """
    first = linears[0]
    for linear in linears[1:]:
        for own in OF_INPUT:
            a, b = getattr(first, own), getattr(linear, own)
            if a is not b and (a is None or b is None or not torch.equal(a, b)):
                raise FreezeError(f"int8 layers that read the same input have more than one {own}")
    if first.input_factor is None and first.input_scale is None:
        return None
    return Rounding(first.input_factor, first.input_scale)


Wanted = tuple[bool] | tuple[bool, Rounding]
"""Whether a product wants rows on int8, and how, unless that is by token and as they are."""


class Product:
    """``x W^T + b`` with what follows it.

    Args:
        weight: (out_features, in_features).
        bias: (out_features,) or None.
        lays_out: whether oneDNN gets a copy of the weight in its own layout; False leaves the product to F.linear.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, lays_out: bool) -> None:
        self.on_int8, self.lays_out = False, lays_out
        self.wanted: Wanted = (False,)
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight) if lays_out else weight
        self.bias = bias
        self.bytes = weight.numel() * weight.element_size() if lays_out else 0

    def __call__(self, x: Tensor, given: Given) -> Tensor:
        """x (tokens, in_features) -> (tokens, out_features)."""
        if self.lays_out:
            return _plain(x, self.weight, self.bias, "none", [], "")
        return F.linear(x, self.weight, self.bias)

    def gelu(self, x: Tensor, approximate: str, given: Given) -> Tensor:
        """GELU of the product."""
        if self.lays_out:
            return _plain(x, self.weight, self.bias, "gelu", [], approximate)
        return F.gelu(F.linear(x, self.weight, self.bias), approximate=approximate)

    def plus(self, x: Tensor, residual: Tensor, given: Given) -> Tensor:
        """The product and `residual`."""
        if self.lays_out:
            return _binary(x, residual, self.weight, self.bias, "add")
        return F.linear(x, self.weight, self.bias) + residual


class Int8Product:
    """The same on int8: what comes in is quantised by token, unless its rows come too.

    Args:
        weight: int8 (out_features, in_features).
        scale: float32 (out_features,).
        bias: (out_features,) or None.
        copied: whether `weight` is a copy that nothing else holds.
        rounding: of what comes in; None for by token, as it is.
    """

    def __init__(
        self, weight: Tensor, scale: Tensor, bias: Tensor | None, copied: bool, rounding: Rounding | None = None
    ) -> None:
        self.on_int8 = True
        self.wanted: Wanted = (True,) if rounding is None else (True, rounding)
        self._factor, self._scale = (None, None) if rounding is None else (rounding.factor, rounding.scale)
        self.weight, self.scale, self.bias = weight, scale, bias
        self.bytes = weight.numel() if copied else 0
        self._direct = direct.Weight(weight, scale, bias)

    def __call__(self, x: Tensor, given: Given) -> Tensor:
        return self._run(x, "none", None, given.rows, given.kernels)

    def gelu(self, x: Tensor, approximate: str, given: Given) -> Tensor:
        return self._run(x, "gelu" if approximate == "none" else "gelu_tanh", None, given.rows, given.kernels)

    def plus(self, x: Tensor, residual: Tensor, given: Given) -> Tensor:
        return self._run(x, "none", residual, None, given.kernels)

    def _run(
        self, x: Tensor, activation: str, residual: Tensor | None, rows: Rows | None, kernels: ModuleType | None
    ) -> Tensor:
        if rows is None and self._factor is not None:
            read = x * self._factor.to(x.dtype)
        else:
            read = x
        if kernels is not None and x.is_contiguous():
            rows = rows or direct.quantized(kernels, read, self._scale)
            return self._direct.product(kernels, rows, activation, residual, x.dtype)
        backend = forced_backend()
        x_q, x_scale = rows or _quantize(read, self._scale, backend)
        return _int8(x_q, self.weight, x_scale, self.scale, self.bias, residual, activation, x.dtype, backend)


class Norm:
    """Layer norm, and the rows of what reads it where that is an int8 product."""

    def __init__(self, shape: Any, weight: Tensor | None, bias: Tensor | None, eps: float) -> None:
        weight, bias = (None if t is None else t.contiguous() for t in (weight, bias))
        self._plain = tuple(shape), weight, bias, eps
        self.dtype = None if weight is None else weight.dtype
        self._times: dict[Rounding, tuple[Tensor | None, Tensor | None]] = {}

    def __call__(
        self, x: Tensor, given: Given, for_int8: bool, rounding: Rounding | None = None
    ) -> tuple[Tensor, Given]:
        """x (tokens, width) -> the norm, and its rows on int8 if `for_int8`, as `rounding` says.

        Rows with a factor come of a second norm, whose weight and bias are multiplied by it: the sum that the residual
        takes is not to be.
        """
        kernels = given.kernels
        if not for_int8:
            return torch.layer_norm(x, *self._plain), Given(None, kernels)
        _, weight, bias, eps = self._plain
        scale, twice = None, False
        if rounding is not None:
            scale, twice = rounding.scale, rounding.factor is not None
            weight, bias = self._multiplied(rounding)
        if kernels is not None and x.is_contiguous():
            out, rows = direct.norm_and_rows(kernels, x, weight, bias, eps, scale)
        else:
            out, *found = _norm_rows(x, None, weight, bias, scale, eps, x.dtype, forced_backend())
            rows = found[0], found[1]
        return torch.layer_norm(x, *self._plain) if twice else out, Given(rows, kernels)

    def _multiplied(self, rounding: Rounding) -> tuple[Tensor | None, Tensor | None]:
        """Weight and bias times a factor."""
        _, weight, bias, _ = self._plain
        if rounding.factor is None:
            return weight, bias
        if rounding not in self._times:
            factor = rounding.factor
            wide = factor if weight is None else weight * factor.to(weight.dtype)
            self._times[rounding] = wide, None if bias is None else bias * factor.to(bias.dtype)
        return self._times[rounding]


def _plain(*arguments: Any) -> Tensor:
    found: Tensor = torch.ops.mkldnn._linear_pointwise.default(*arguments)
    return found


def _binary(*arguments: Any) -> Tensor:
    found: Tensor = torch.ops.mkldnn._linear_pointwise.binary(*arguments)
    return found


@functools.cache
def lays_out(dtype: torch.dtype) -> bool:
    """Whether oneDNN's products of laid out weights are there in this dtype, and right."""
    if dtype not in _LAYS_OUT or not torch.backends.mkldnn.is_available() or not torch.backends.mkldnn.enabled:
        return False
    try:
        asks = _LAYS_OUT[dtype]
        return (asks is None or bool(getattr(torch.ops.mkldnn, asks)())) and _is_right(dtype)
    except (AttributeError, RuntimeError, TypeError):  # no such operator, or not with these arguments
        return False


def _is_right(dtype: torch.dtype) -> bool:
    draw = torch.Generator().manual_seed(0)
    x, weight, bias, residual = (
        torch.randn(shape, generator=draw).to(dtype) for shape in ((5, 48), (32, 48), (32,), (5, 32))
    )
    product, plain = Product(weight, bias, True), Product(weight.double(), bias.double(), False)
    wide, none = x.double(), Given(None, None)
    calls: tuple[Callable[[Product, Tensor, Tensor], Tensor], ...] = (
        lambda product, x, _: product(x, none),
        lambda product, x, residual: product.plus(x, residual, none),
        *((lambda product, x, _, form=form: product.gelu(x, form, none)) for form in GELU),
    )
    allowed = 64 * torch.finfo(dtype).eps
    return all(
        float((call(product, x, residual).double() - call(plain, wide, residual.double())).abs().max()) < allowed
        for call in calls
    )
