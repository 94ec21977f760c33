"""What a patch does to the modules of a class of transformers': a family gives each of its classes a tuple of roles.

To plan a patch is a loop over the modules of a model and the roles of their classes, and so is to make a patched class.
A role knows all about itself: which option asks for it, what it replaces, why it may not, and what the report says.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import Any

from torch import nn

from .options import Options
from .report import Row
from .subclass import has_own_forward, without_fsdp


@dataclass(frozen=True)
class Found:
    """A module that a patch looks at, and what it has planned so far.

    Attributes:
        name: its name within the model; "" is the model itself.
        module: the module.
        options: what the patch was asked for.
        rows: of the report; a role adds its own.
        attention: modules whose config is to name fasttx's attention; a role may add this one.
    """

    name: str
    module: Any
    options: Options
    rows: list[Row]
    attention: list[nn.Module]

    def leave(self, before: str, reason: str) -> None:
        """Reports what stays as it is, and why."""
        self.rows.append(Row(self.name, before, None, "", reason))

    def replace(
        self, before: str, after: str, backend: str, reason: str, here: bool = True, ops: tuple[str, ...] = ()
    ) -> None:
        """Reports what is replaced; the arguments are those of :class:`Row`."""
        self.rows.append(Row(self.name, before, after, backend, reason, here, ops))

    @property
    def has_attention(self) -> bool:
        """Whether its attention is going to be fasttx's."""
        return any(taken is self.module for taken in self.attention)

    @property
    def fixed_reason(self) -> str | None:
        """Why its class cannot be exchanged any more, or None."""
        cls = type(self.module)
        if without_fsdp(cls) is not cls:
            return "was wrapped by fully_shard; patch first, then fully_shard"
        if has_own_forward(self.module):
            return "its forward was replaced on the instance (accelerate does that); patch before it is prepared"
        return None


class Role(abc.ABC):
    """One thing that a patch replaces in the modules of a class, or leaves and says why.

    Attributes:
        option: the argument of :func:`fasttx.patch` that asks for it.
    """

    option: str

    @property
    def makes_class(self) -> bool:
        """Whether a module gets another class by it."""
        return type(self).make_class is not Role.make_class

    def is_wanted(self, options: Options) -> bool:
        """Whether the options of a patch ask for it."""
        return bool(getattr(options, self.option))

    def before_in(self, module: nn.Module) -> str | None:
        """What transformers runs in a module, for the report; None if a subclass without this role is not reported."""
        return None

    @abc.abstractmethod
    def plan(self, found: Found) -> bool:
        """Decides about a module and reports it. True: the module gets the patched class. Nothing is changed yet."""

    def make_class(self, original: type, module: str) -> type:
        """The subclass of a class of transformers', or of one that another role made, that does it.

        Args:
            original: the class.
            module: where pickle finds the new one, under the same name.
        """
        return original


@dataclass(frozen=True)
class Stays(Role):
    """What stays transformers' own.

    Attributes:
        option: the argument of :func:`fasttx.patch` that asks for it elsewhere.
        before: what it is.
        reason: why it stays.
    """

    option: str
    before: str
    reason: str

    def plan(self, found: Found) -> bool:
        found.leave(self.before, self.reason)
        return False
