"""Ways to compute the same of PyTorch's operators, of which a machine decides which is faster: one list of them all.

Each has a default, a constant beside the code that asks. `tune` measures the options of each regime in turn
(bench/form_arms.py makes the calls), and where another is faster by a margin, it is taken here. A new choice is one
more row of this list, a question (:meth:`Form.takes`) where the code decides, and its calls in bench/form_arms.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from . import tuned
from .regimes import Axis, all_of, name_of


@dataclass(frozen=True)
class Form:
    """One such choice.

    Attributes:
        name: what is computed, as "part:choice".
        options: the ways; the first is PyTorch's or transformers' own, which "auto" leaves for a larger gain only.
        axes: classes of the numbers on which the code that asks decides.
        typical: the classes of the regime that is measured first.
        on: types of device on which there is a choice.
        dtypes: in which `tune` measures it.
    """

    name: str
    options: tuple[str, ...]
    axes: tuple[Axis, ...]
    typical: tuple[str, ...]
    on: tuple[str, ...] = ("cpu",)
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16)

    @property
    def own(self) -> str:
        return self.options[0]

    def all(self) -> dict[str, tuple[int, ...]]:
        """Every regime with its typical numbers, in the order in which they are measured."""
        return all_of(self.axes, self.typical)

    def takes(self, x: Tensor, default: str, *numbers: int) -> str:
        """The option that a call takes.

        Args:
            x: tells the device and the dtype, autocast's where that is on.
            default: what it takes without a measurement.
            numbers: of the call, one for each axis.
        """
        if x.device.type not in self.on:
            return default
        device, dtype = x.device, self._dtype_of(x)
        if _questions is not None:
            _questions.append(Question(self.name, default, name_of(self.axes, numbers)))
        if not tuned.differs(self.name, device, dtype):
            return default
        return tuned.option_of(self.name, device, dtype, name_of(self.axes, numbers)) or default

    def measured(self, x: Tensor, *numbers: int) -> str:
        """In words, what was measured of such a call; "" where a table does not say otherwise than the default."""
        if x.device.type not in self.on:
            return ""
        device, dtype = x.device, self._dtype_of(x)
        if not tuned.differs(self.name, device, dtype):
            return ""
        regime = name_of(self.axes, numbers)
        return tuned.reason_if_other(self.name, device, dtype, regime)

    def ever_takes(self, device: torch.device, dtype: torch.dtype, option: str) -> bool:
        """Whether a table takes an option, against the default, in any regime."""
        return any(tuned.option_of(self.name, device, dtype, regime) == option for regime in self.all())

    def _dtype_of(self, x: Tensor) -> torch.dtype:
        if len(self.dtypes) == 1:  # it computes in that one, whatever it is given
            return self.dtypes[0]
        device = x.device.type
        if x.dtype == torch.float32 and torch.is_autocast_enabled(device):
            return torch.get_autocast_dtype(device)
        return x.dtype


class Question(NamedTuple):
    """What code asked of a form: in which regime, and what it takes without a measurement."""

    form: str
    default: str
    regime: str


_questions: list[Question] | None = None
"""For whom questions are kept: who measures has to know that a call asks at all, and where it lies."""


@contextlib.contextmanager
def questions() -> Iterator[list[Question]]:
    """All questions that are asked within the ``with`` block."""
    global _questions
    before, _questions = _questions, []
    try:
        yield _questions
    finally:
        _questions = before


SEPARATE, JOINT = "three products", "one product"
QKV = Form(
    "encoder:qkv",
    (SEPARATE, JOINT),
    (Axis(("to 256 tokens", "to 4096 tokens", "more tokens"), (257, 4097), (64, 1024, 4608)),),
    ("to 4096 tokens",),
    on=("cpu", "cuda"),
)
"""Query, key and value of self-attention, by the tokens of the batch."""

PADDED, PACKED = "padded", "packed"
PADDING = Form(
    "encoder:padding",
    (PADDED, PACKED),
    (
        Axis(
            ("saves to 10M", "saves to 40M", "saves to 160M", "saves more"),
            (10_000_000, 40_000_000, 160_000_000),
            (5_000_000, 20_000_000, 80_000_000, 320_000_000),
        ),
    ),
    ("saves to 40M",),
)
"""A padded batch, by the multiply-adds that packing saves a layer."""

TORCHS, OURS = "torch's function", "fasttx's op"
WIDE = Form(
    "cross_entropy:wide",
    (TORCHS, OURS),
    (
        Axis(
            ("to 2M logits", "to 8M logits", "to 32M logits", "more logits"),
            (1 << 21, 1 << 23, 1 << 25),
            (1 << 20, 1 << 22, 1 << 24, 36 << 20),
        ),
    ),
    ("to 8M logits",),
    dtypes=(torch.float32,),
)
"""Rows of many classes, by the elements of the logits."""

KEPT, AGAIN = "logits kept", "logits again"
LOGITS = Form(
    "linear_cross_entropy:logits",
    (KEPT, AGAIN),
    (Axis(("to 16 MB", "to 64 MB", "more MB"), (1 << 24, 1 << 26), (8 << 20, 24 << 20, 72 << 20)),),
    ("to 64 MB",),
    dtypes=(torch.float32,),
)
"""The logits of labelled rows, by their bytes. Beyond those that are kept at all nobody asks: memory decides."""

WHOLE, SLICED = "one masked call", "a call a sequence"
KEY_MASK = Form(
    "attention:key_mask",
    (WHOLE, SLICED),
    (
        Axis(
            ("saves to 500", "saves to 2000", "saves to 8000", "saves more"),
            (500, 2000, 8000),
            (256, 1024, 4096, 16384),
        ),
    ),
    ("saves to 2000",),
)
"""Attention with masked keys, by masked keys times head_dim a sequence."""

DROPOUT = Form(
    "attention:dropout",
    (TORCHS, OURS),
    (
        Axis(
            ("to 100k scores", "to 400k scores", "to 3M scores", "more scores"),
            (100_000, 400_000, 3_000_000),
            (1 << 16, 1 << 18, 1 << 21, 1 << 22),
        ),
    ),
    ("to 400k scores",),
)
"""Attention with dropout on a CPU, by its scores."""

FUNCTION = Form(
    "attention:function",
    (TORCHS, OURS),
    (
        Axis(("to 128 tokens", "to 512 tokens", "more tokens"), (129, 513), (128, 512, 2048)),
        Axis(("head_dim to 64", "larger head_dim"), (65,), (64, 128)),
        Axis(("no mask", "mask"), (1,), (0, 1)),
        Axis(("no dropout", "dropout"), (1,), (0, 1)),
    ),
    ("to 512 tokens", "head_dim to 64", "mask", "no dropout"),
    on=("cuda",),
    dtypes=(torch.bfloat16, torch.float16, torch.float32),
)
"""Padded attention on a GPU: our op or PyTorch's own fused attention."""

FORMS = {form.name: form for form in (FUNCTION, KEY_MASK, DROPOUT, WIDE, LOGITS, QKV, PADDING)}
