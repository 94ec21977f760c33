"""What a patch was asked for, and what a patched module remembers of it."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field
from typing import Any

import torch

from ..ops.backends import BACKENDS


@dataclass(frozen=True)
class Options:
    """The arguments of :func:`fasttx.patch`, checked.

    Raises:
        TypeError, ValueError: an argument is not what it may be; the message names it and what is allowed.
    """

    attention: bool = True
    unpad: bool | str = "auto"
    norm: bool = True
    mlp: bool = True
    qkv: bool = True
    mlm_head: bool | float | str = True
    loss: str | None = "correct"
    backend: str = "auto"
    deterministic: bool | None = None
    strict: bool = False
    forced: str | None = field(init=False, default=None)
    """The backend that this patch forces its calls to; None leaves it to :func:`fasttx.backend`."""
    labelled_rows: bool = field(init=False, default=True)
    """Whether heads over the vocabulary compute labelled rows alone."""
    capacity: int | None = field(init=False, default=None)
    """How many rows of 1,024 a head over the vocabulary computes in a graph; None stands for all. `mlm_head` as an
    integer, because dynamo would make an input of the graph of a float, and the number of rows would depend on it."""

    def __post_init__(self) -> None:
        for name in ("attention", "norm", "mlp", "qkv", "strict"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name}: got {getattr(self, name)!r}; allowed are True and False")
        if not isinstance(self.unpad, bool) and self.unpad != "auto":
            raise ValueError(f"unpad: got {self.unpad!r}; allowed are 'auto', True and False")
        if self.unpad is True and not self.attention:
            raise ValueError(
                "unpad: got True with attention=False; allowed is attention=True, which a packed batch needs"
            )
        share = isinstance(self.mlm_head, float) and 0.0 < self.mlm_head <= 1.0
        if not isinstance(self.mlm_head, bool) and self.mlm_head != "full" and not share:
            raise ValueError(
                f"mlm_head: got {self.mlm_head!r}; allowed are True, False, 'full' and a float above 0 and up "
                "to 1, the share of rows to compute in graphs"
            )
        object.__setattr__(self, "capacity", math.ceil(float(self.mlm_head) * 1024) if share else None)
        object.__setattr__(self, "labelled_rows", self.mlm_head is True or share)
        if self.deterministic is not None and not isinstance(self.deterministic, bool):
            raise TypeError(f"deterministic: got {self.deterministic!r}; allowed are True, False and None")
        if self.loss not in ("correct", "hf", None):
            raise ValueError(f"loss: got {self.loss!r}; allowed are 'correct', 'hf' and None (leave the heads alone)")
        if self.backend not in ("auto", *BACKENDS):
            raise ValueError(f"backend: got {self.backend!r}; allowed are 'auto', {', '.join(map(repr, BACKENDS))}")
        if not (self.attention or self.norm or self.mlp) and self.loss is None:
            raise ValueError(
                "attention, norm, mlp: got False for all, and None for loss; allowed is at least one of them to patch"
            )
        object.__setattr__(self, "forced", None if self.backend == "auto" else self.backend)


@dataclass
class ModulePatch:
    """What a patched module carries in its ``__dict__`` as ``_fasttx``; deepcopy and pickle take it along.

    Attributes:
        options: what the patch was asked for.
        own_config: the config object that the patch gave to the module, or None if it left the config alone.
        original_config: the one that unpatch gives back.
        snapshot: attributes of `own_config` at first, to carry over what is changed in it meanwhile.
        warned: the warnings that were given already.
    """

    options: Options
    own_config: Any = None
    original_config: Any = None
    snapshot: dict[str, Any] = field(default_factory=dict)
    warned: set[str] = field(default_factory=set)

    def warn_once(self, about: str, message: str) -> None:
        """A warning that a patched model gives once, and that a graph in the making leaves out."""
        if torch.compiler.is_compiling() or about in self.warned:
            return
        self.warned.add(about)
        warnings.warn(message, stacklevel=2)
