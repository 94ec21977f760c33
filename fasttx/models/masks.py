"""Which weights of a linear layer stay zero, and what keeps them so.

A mask lies in its layer's ``__dict__``. It is no buffer, so state dictionaries do not have it, and a deepcopy or a
pickle takes it along. It is applied after ``load_state_dict``, and after each step of an optimizer by torch's hook for
all of them: whoever makes one (Trainer, accelerate) need not know of the masks. A hook on the layer would keep it from
being fused. A hook on the gradient alone would leave the weights to weight decay and to an older momentum.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from ..ops.checks import wrong

KEY = "_fasttx_pruned"
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Bytes of a weight -> the integers of as many."""
ALLOWED = "DDP and fully_shard for a model with masks"

_live: dict[int, weakref.ref[Mask]] = {}
"""Every mask of this process; it is read and changed by single steps of the interpreter, which need no lock."""
_hooks: list[Any] = []
"""The hook for optimizers, while there are masks."""


class Mask:
    """The weights of a linear layer that stay zero.

    Args:
        layer: the linear layer, which will carry this.
        pruned: bool, of the weight's shape.
    """

    def __init__(self, layer: nn.Module, pruned: Tensor) -> None:
        self.pruned = pruned
        self._part: tuple[Any, Tensor] | None = None
        self._kept: tuple[Tensor, Tensor] | None = None
        self._belong_to(layer)

    def _belong_to(self, layer: Any) -> None:
        self._layer: weakref.ref[Any] = weakref.ref(layer)
        key = id(self)
        _live[key] = weakref.ref(self, lambda _: _live.pop(key, None))
        _watch()

    def __getstate__(self) -> dict[str, Any]:
        return {"layer": self._layer(), "pruned": self.pruned}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.pruned, self._part, self._kept = state["pruned"], None, None
        self._belong_to(state["layer"])

    @property
    def weight(self) -> Any:
        """The layer's own parameter, or None where the layer is gone, or holds its weight in another way."""
        layer = self._layer()
        return None if layer is None else layer._parameters.get("weight")

    def hold(self, count: bool = False) -> int:
        """Makes the weights zero.

        Args:
            count: look at them before.

        Returns:
            How many were not zero; 0 where nobody counts.

        Raises:
            ValueError: the weight has another shape now.
        """
        weight = self.weight
        if weight is None or weight.is_meta:
            return 0
        if tuple(weight.shape) != tuple(self.pruned.shape):
            shapes = f"{tuple(weight.shape)} under a mask of {tuple(self.pruned.shape)}, as FSDP1 and ZeRO-3 make it"
            raise ValueError(wrong("weight", shapes, ALLOWED))
        weight = weight.detach()  # the same memory and the same count of changes
        if hasattr(weight, "placements"):
            local, pruned = weight.to_local(), self._part_of(weight)
        else:
            pruned = self.pruned = self.pruned.to(weight.device)
            local = weight
        moved = int(local[pruned].count_nonzero()) if count else 0
        if local.device.type != "cpu" or local.element_size() not in INTEGERS:
            local.masked_fill_(pruned, 0)
            return moved
        bits = INTEGERS[local.element_size()]  # PyTorch's masked_fill_ takes 20 times as long on a CPU
        if self._kept is None or self._kept[0] is not pruned or self._kept[1].dtype != bits:
            self._kept = pruned, pruned.to(bits).sub_(1)  # 0 where pruned, all bits elsewhere
        local.view(bits).bitwise_and_(self._kept[1])
        return moved

    def _part_of(self, weight: Any) -> Tensor:
        """What of the mask is this process's, where fully_shard has given the weight to several."""
        layout = (weight.device_mesh, weight.placements)
        if self._part is None or self._part[0] != layout:
            from torch.distributed.tensor import distribute_tensor

            whole = self.pruned.to(weight.device)  # the same in each process: nothing is sent
            self._part = layout, distribute_tensor(whole, *layout, src_data_rank=None).to_local()
        return self._part[1]


def _watch() -> None:
    if not _hooks:
        _hooks.append(register_optimizer_step_post_hook(_after_step))


def _after_step(optimizer: Optimizer, *_: Any) -> None:
    """Holds the masks of what the optimizer has changed."""
    if not _live:
        return
    stepped = {id(parameter): parameter for group in optimizer.param_groups for parameter in group["params"]}
    for found in list(_live.values()):
        mask = found()
        weight = None if mask is None else mask.weight
        if mask is not None and id(weight) in stepped:
            mask.hold()
        elif mask is not None and weight is None and any(hasattr(p, "_is_flat_param") for p in stepped.values()):
            raise ValueError(wrong("weight", "a piece of a flat parameter of FSDP1", ALLOWED))


def _after_loading(layer: nn.Module, _: Any) -> None:
    mask = mask_of(layer)
    if mask is not None:
        mask.hold()


def mask_of(layer: nn.Module) -> Mask | None:
    """The mask of a linear layer, or None."""
    found: Mask | None = layer.__dict__.get(KEY)
    return found


def set_masks(chosen: list[tuple[nn.Module, Tensor]]) -> None:
    """Prunes linear layers: these weights are zero from now on."""
    for layer, pruned in chosen:
        if mask_of(layer) is None:
            layer.register_load_state_dict_post_hook(_after_loading)
        layer.__dict__[KEY] = Mask(layer, pruned)  # a new one, so that an old one can be put back
    for layer, _ in chosen:
        hold(layer, count=False)


def hold(layer: nn.Module, count: bool) -> tuple[int, Tensor]:
    """Applies a layer's mask once more. How many weights were not zero, if they are counted, and the mask."""
    mask: Mask = layer.__dict__[KEY]
    return mask.hold(count), mask.pruned


def drop_masks(layers: list[nn.Module]) -> None:
    """Takes the masks off; the last one of this process takes the optimizers' hook along."""
    for layer in layers:
        layer.__dict__.pop(KEY, None)
        hooks = layer._load_state_dict_post_hooks
        for number in [number for number, hook in hooks.items() if hook is _after_loading]:
            del hooks[number]
    if not _live:
        taken = list(_hooks)
        for hook in taken:
            hook.remove()
        del _hooks[: len(taken)]
        if _live:  # a thread has made one meanwhile
            _watch()
