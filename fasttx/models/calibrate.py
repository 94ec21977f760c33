"""``fasttx.calibrate``: looks at the inputs of a float model's linear layers, for the int8 layers that come of them."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..quant.seen import SEEN, Seen
from .linears import candidates
from .patch import _root


@contextlib.contextmanager
def calibrate(model: Any) -> Iterator[Any]:
    """Look at what a float model's linear layers are given, while batches of yours run in the ``with`` block.

    :func:`fasttx.quantize` needs that for ``Int8Config(activation="static")`` and ``smooth``. A few dozen texts like
    those to come are enough, short ones among them. Run the model in eval mode, without torch.compile. Of each
    layer's inputs at most 512 rows and the largest value of each channel are kept, until the model is quantised;
    padding is left out. A new block begins anew. The model's results stay as they are.

    Args:
        model: whatever :func:`fasttx.quantize` takes, patched or not, before it is quantised.

    Returns:
        A context manager, which gives the model.

    Raises:
        ValueError: `model` holds no float linear layer in an encoder of a known family.
    """
    root = _root(model)
    floats = [each.layer for each in candidates(root, ()) if each.inside and isinstance(each.layer, nn.Linear)]
    if not floats:
        raise ValueError(
            f"model: got {type(root).__name__}, whose linear layers are int8; allowed is one that is float: call "
            "fasttx.calibrate before fasttx.quantize"
        )
    watch = _Watch()
    with contextlib.ExitStack() as stack:
        for module in root.modules():
            if isinstance(module, PreTrainedModel):
                hook = module.register_forward_pre_hook(watch.note_mask, with_kwargs=True)
                stack.callback(hook.remove)
        for linear in floats:
            hook = linear.register_forward_pre_hook(watch.look)
            stack.callback(hook.remove)
        yield model
    for linear in floats:  # not before all has gone well
        linear.__dict__.pop(SEEN, None)
        seen = watch.seen.get(id(linear))
        if seen is not None:
            linear.__dict__[SEEN] = seen


class _Watch:
    """What the hooks of a calibration share."""

    def __init__(self) -> None:
        self.seen: dict[int, Seen] = {}
        self._mask: Tensor | None = None
        self._last: tuple[Tensor, Seen] | None = None

    def note_mask(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        names = list(inspect.signature(model.forward).parameters)
        mask = {**dict(zip(names, args)), **kwargs}.get("attention_mask")
        self._mask = mask if isinstance(mask, Tensor) and mask.dim() == 2 else None
        self._last = None

    def look(self, linear: Any, args: tuple[Any, ...]) -> None:
        given = args[0]
        last, self._last = self._last, None
        seen = self.seen.get(id(linear))
        if last is not None and last[0] is given and seen in (None, last[1]):
            self.seen[id(linear)] = last[1]  # the same rows, which were looked at already
            self._last = last
            return
        if seen is None:
            seen = self.seen[id(linear)] = Seen()
        with torch.inference_mode(False), torch.no_grad():
            rows = given.detach()
            if self._mask is not None and rows.dim() == 3 and rows.shape[:2] == self._mask.shape:
                rows = rows[self._mask.bool()]
            seen.add(rows.reshape(-1, rows.shape[-1]))
        self._last = (given, seen)
