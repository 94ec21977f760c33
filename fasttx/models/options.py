"""What a patch was asked for, and what a patched module remembers of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ..functional.attention_autograd import deterministic_gradients
from ..ops.registry import BACKENDS, backend, forced_backend


@dataclass(frozen=True)
class Options:
    """The arguments of :func:`fasttx.patch`, checked.

    Raises:
        TypeError, ValueError: an argument is not what it may be; the message names it and what is allowed.
    """

    attention: bool = True
    loss: str | None = "correct"
    backend: str = "auto"
    deterministic: bool | None = None
    strict: bool = False

    def __post_init__(self) -> None:
        for name in ("attention", "strict"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name}: got {getattr(self, name)!r}; allowed are True and False")
        if self.deterministic is not None and not isinstance(self.deterministic, bool):
            raise TypeError(f"deterministic: got {self.deterministic!r}; allowed are True, False and None")
        if self.loss not in ("correct", "hf", None):
            raise ValueError(f"loss: got {self.loss!r}; allowed are 'correct', 'hf' and None (leave the heads alone)")
        if self.backend not in ("auto", *BACKENDS):
            raise ValueError(f"backend: got {self.backend!r}; allowed are 'auto', {', '.join(map(repr, BACKENDS))}")
        if not self.attention and self.loss is None:
            raise ValueError("attention=False with loss=None leaves nothing to patch; ask for at least one of them")

    @property
    def as_usual(self) -> bool:
        """Whether calls need no :func:`run_as_asked` around them."""
        return self.backend == "auto" and self.deterministic is None


@dataclass
class ModulePatch:
    """What a patched module carries in its ``__dict__`` as ``_fasttx``; deepcopy and pickle take it along.

    Attributes:
        options: what the patch was asked for.
        own_config: the config object that the patch gave to the module, or None if it left the config alone.
        original_config: the one that unpatch gives back.
        snapshot: attributes of `own_config` at first, to carry over what is changed in it meanwhile.
    """

    options: Options
    own_config: Any = None
    original_config: Any = None
    snapshot: dict[str, Any] = field(default_factory=dict)


@contextlib.contextmanager
def run_as_asked(options: Options) -> Iterator[None]:
    """The backend and the determinism that a patch asked for, around one call."""
    with backend(forced_backend() if options.backend == "auto" else options.backend):
        with deterministic_gradients(options.deterministic):
            yield
