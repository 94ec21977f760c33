"""What a frozen encoder has to know of a family: where the parts of its layers are, as data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn


class FreezeError(Exception):
    """Why this encoder cannot be frozen as it is."""


@dataclass(frozen=True)
class LayerParts:
    """A post-norm layer by the paths of its modules.

    .. math:: h = \\mathrm{norm}_1(x + \\mathrm{attended}(\\mathrm{attention}(x))), \\quad
        y = \\mathrm{norm}_2(h + \\mathrm{narrow}(\\mathrm{gelu}(\\mathrm{wide}(h))))

    Attributes:
        attention: what knows head size and scale.
        query, key, value, attended, attended_norm, wide, activation, narrow, norm: modules of the layer.
        layers: the layers of an encoder, in the order in which they run; one may come more than once.
        first: of an encoder, the linear layer before them; "" for none.
    """

    attention: str = "attention.self"
    query: str = "attention.self.query"
    key: str = "attention.self.key"
    value: str = "attention.self.value"
    attended: str = "attention.output.dense"
    attended_norm: str = "attention.output.LayerNorm"
    wide: str = "intermediate.dense"
    activation: str = "intermediate.intermediate_act_fn"
    narrow: str = "output.dense"
    norm: str = "output.LayerNorm"
    layers: Callable[[Any], Sequence[nn.Module]] = lambda encoder: list(encoder.layer)
    first: str = ""

    @property
    def linears(self) -> tuple[str, ...]:
        return self.query, self.key, self.value, self.attended, self.wide, self.narrow

    @property
    def norms(self) -> tuple[str, ...]:
        return self.attended_norm, self.norm


BERT_LAYER = LayerParts()
