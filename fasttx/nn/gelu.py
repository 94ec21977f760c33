"""GELU, torch.nn's class on fasttx.functional.gelu, and LinearGELU: a linear layer, GELU and dropout in one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..functional import _gelu
from ..functional._checks import check_dropout_p
from ..ops.checks import described, wrong


class GELU(torch.nn.GELU):
    """torch.nn.GELU on fasttx kernels; see :func:`fasttx.functional.gelu`.

    Args:
        approximate: "none" or "tanh".
    """

    def forward(self, input: Tensor) -> Tensor:
        return _gelu.gelu(input, approximate=self.approximate)


class LinearGELU(torch.nn.Linear):
    """A linear layer, then GELU and dropout; see :func:`fasttx.functional.linear_gelu`.

    It is a torch.nn.Linear with the same parameters, so state dictionaries fit either.

    Args:
        in_features, out_features, bias, device, dtype: as in torch.nn.Linear.
        approximate: "none" or "tanh".
        p: probability of zeroing an element of the result in training, in [0, 1).

    Raises:
        ValueError: approximate is another word.
        TypeError, ValueError: p is not a number in [0, 1).
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        approximate: str = "none",
        p: float = 0.0,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if approximate not in ("none", "tanh"):
            raise ValueError(wrong("approximate", repr(approximate), "'none' or 'tanh'"))
        check_dropout_p(p, "p")
        super().__init__(in_features, out_features, bias, device, dtype)
        self.approximate, self.p = approximate, p

    @classmethod
    def from_linear(cls, linear: torch.nn.Linear, approximate: str = "none", p: float = 0.0) -> LinearGELU:
        """A LinearGELU that shares the parameters of `linear`, in its mode.

        Args:
            linear: a torch.nn.Linear, and no subclass, which may compute something else.
            approximate, p: as of the class.

        Raises:
            TypeError: `linear` is of another class.
            TypeError, ValueError: approximate or p is not as above.
        """
        if type(linear) is not torch.nn.Linear:
            raise TypeError(wrong("linear", described(linear), "a torch.nn.Linear, and no subclass"))
        made = cls(linear.in_features, linear.out_features, linear.bias is not None, approximate, p, device="meta")
        made.weight, made.bias = linear.weight, linear.bias
        return made.train(linear.training)

    def forward(self, input: Tensor, row_index: Tensor | None = None) -> Tensor:
        """(..., in_features) -> (..., out_features). Equal numbers in `row_index` drop the same columns."""
        return _gelu.linear_gelu(
            input,
            self.weight,
            self.bias,
            approximate=self.approximate,
            dropout_p=self.p,
            training=self.training,
            row_index=row_index,
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, approximate={self.approximate!r}, p={self.p}"
