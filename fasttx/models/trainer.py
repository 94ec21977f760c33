"""A callback for transformers' Trainer: patches its model, and logs how many real tokens a second it trains on."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from .heads.kinds import KINDS
from .patch import is_patched, patch
from .plan import FAMILIES, known_base
from .report import Report
from .subclass import key_of


class FastTxCallback(TrainerCallback):
    """``Trainer(..., callbacks=[fasttx.FastTxCallback()])``: the Trainer's model is patched, and stays so.

    Beside each loss it logs ``tokens_per_second``, real tokens of this process in the time of its steps (loading and
    evaluation are not in it), and ``padding_share``, the share of the batches that is padding. Both are missing where
    nothing can be counted: images, and models that ``torch.compile`` runs. They stand in ``state.log_history``;
    Trainer tells TensorBoard and other reports of a loss before its callbacks, so these do not have them. It warns
    where the loss is another number than without fasttx.

    Args:
        **options: arguments of :func:`fasttx.patch`. Without any a model that is patched already stays as it is.

    Attributes:
        report: of the patch; None before it, and where the model was patched already.
    """

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.report: Report | None = None
        self._patched_one = False
        self._hook: Any = None
        self._real: Tensor | int = 0  # on the device: nobody waits for it before a loss is logged
        self._all, self._seconds, self._began = 0, 0.0, 0.0

    def on_init_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Patches the model before accelerate prepares it; a later one too, which ``model_init`` or a search makes."""
        if model is None or (self._patched_one and is_patched(model)):
            return
        if self.options or not is_patched(model):
            self.report = patch(model, **self.options)
        self._patched_one = True
        parts = args.gradient_accumulation_steps * args.world_size
        for head in _divided_otherwise(model) if parts > 1 else ():
            warnings.warn(
                f"loss: {head} divides by the labels of all {parts} parts of a step, as Trainer asks; transformers' "
                f"own loss does not, and would be about {parts} times as large. FastTxCallback(loss='hf') keeps it",
                stacklevel=2,
            )

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Starts to count; patches where the callback was added to a Trainer that was there already."""
        self.on_init_end(args, state, control, model, **kwargs)
        self.on_train_end(args, state, control)
        self._real, self._all, self._seconds = 0, 0, 0.0
        self._hook = model.register_forward_pre_hook(self._count, with_kwargs=True)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Takes the counter off the model."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._seconds += time.perf_counter() - self._began

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Adds the two numbers to what is logged beside a loss, and to ``state.log_history``."""
        if logs is None or "loss" not in logs or not self._all or not self._seconds:
            return
        real = int(self._real)
        found = {"tokens_per_second": real / self._seconds, "padding_share": 1 - real / self._all}
        logs.update(found)
        state.log_history[-1].update(found)
        self._real, self._all, self._seconds = 0, 0, 0.0

    def _count(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if not module.training or torch.compiler.is_compiling():
            return
        ids, embeds, mask = (kwargs.get(name) for name in ("input_ids", "inputs_embeds", "attention_mask"))
        if ids is not None:
            shape = ids.shape
        elif embeds is not None:
            shape = embeds.shape[:-1]
        else:
            return
        real: Any = shape.numel()
        if kwargs.get("seq_lens") is not None:
            real = sum(kwargs["seq_lens"])
        elif mask is not None:
            if mask.shape != shape:
                return
            real = mask.count_nonzero()
        self._real = self._real + real
        self._all += shape.numel()


def _divided_otherwise(model: nn.Module) -> list[str]:
    """Classes of heads whose loss honours ``num_items_in_batch`` by the patch alone."""
    found = []
    for module in model.modules():
        base, mark = known_base(type(module)), getattr(module, "_fasttx", None)
        if base is None or mark is None or mark.options.loss != "correct":
            continue
        for family in FAMILIES:
            kind = KINDS.get(family.heads.get(base.__name__, ""))
            if key_of(base)[0] == family.source and kind is not None and kind.counted and not kind.honours:
                found.append(base.__name__)
    return found
