"""Patched models held to float64, beside the unpatched model in the same dtype."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from fasttx import testing
from fasttx.models.diagnostics.verify import LEAST_GRADIENT


def assert_as_accurate(out: Tensor, same_dtype: Tensor, ref64: Tensor, name: str = "out", **options: Any) -> None:
    """The rule of fasttx.testing for the whole tensor: every row of it has the errors of all layers."""
    testing.assert_as_accurate(out, same_dtype, ref64, name, by="tensor", **options)


def gradients_of(model: nn.Module) -> dict[str, Tensor]:
    """The gradient of every parameter that has one."""
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_gradients_as_accurate(
    found: Mapping[str, Tensor], same_dtype: Mapping[str, Tensor], ref64: Mapping[str, Tensor]
) -> None:
    """The same of every gradient; one counts as at least a tenth of the largest, as in ``fasttx.verify``."""
    assert found.keys() == same_dtype.keys()
    least = LEAST_GRADIENT * max((float(ref.abs().max()) for ref in ref64.values()), default=0.0)
    for name, gradient in found.items():
        assert_as_accurate(gradient, same_dtype[name], ref64[name], f"gradient of {name}", least=least)
