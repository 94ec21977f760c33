"""The check at first use of the kernels that a patched model may run on the device where it is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ..ops import OPS, tuned
from ..ops.backends import forced_backend
from ..ops.verdicts import Verdict
from ..trust import first_use

LOSSES = ("cross_entropy", "binary_cross_entropy")
"""Of which some heads make the logits float32 first."""


def measured_choices(root: nn.Module, ops: Sequence[str], backend: str) -> dict[str, dict[str, str]]:
    """What was measured on a device of a model (``python -m fasttx tune``) and is another choice than the default, in
    words: of these ops, and of the forms that are no op's."""
    if backend != "auto" or forced_backend() != "auto":
        return {}
    devices = dict.fromkeys(p.device for p in root.parameters() if p.device.type != "meta")
    found = {}
    for device in devices:
        words = {}
        for item, each in tuned.known(device).items():
            part = item.split("/", 1)[0].split(":", 1)[0]
            if each.takes != each.default and (part in ops or part not in OPS):
                gain = "" if each.gain is None else f", {each.gain:.2f} times as fast"
                words[item] = f"{each.takes} in place of {each.default}{gain}"
        if words:
            found[str(device)] = words
    return found


def check_kernels(root: nn.Module, ops: Sequence[str], backend: str) -> dict[str, dict[str, Verdict]]:
    """What is known of the kernels of these ops, by device; checks those that were never checked.

    `backend` is what is asked for: a forced one runs whatever was found, so that nothing is checked. Dtypes are those
    of the model's parameters, and those that autocast may take on their device: in a later block, which may name
    bfloat16 where the default is float16. Losses are computed in float32, too, as transformers' own are.
    """
    if backend != "auto" or forced_backend() != "auto":
        return {}
    dtypes: dict[torch.device, dict[torch.dtype, None]] = {}
    for parameter in root.parameters():
        if parameter.is_floating_point() and parameter.device.type != "meta":
            dtypes.setdefault(parameter.device, {})[parameter.dtype] = None
    found = {}
    for device, used in dtypes.items():
        if torch.amp.is_autocast_available(device.type):
            used |= dict.fromkeys((torch.bfloat16, torch.get_autocast_dtype(device.type)))
        wanted = [(op, dtype) for dtype in used for op in ops]
        wanted += [(op, torch.float32) for op in ops if op in LOSSES and torch.float32 not in used]
        checked = first_use.check(device, wanted)
        if checked:
            found[str(device)] = checked
    return found
