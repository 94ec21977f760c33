"""The check at first use of the kernels that a patched model may run on the device where it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from ..ops import OPS, tuned
from ..ops.backends import forced_backend
from ..ops.verdicts import Verdict
from ..trust import first_use, later

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

    `backend` is what is asked for: a forced one runs whatever was found, so that nothing is checked. A device to which
    the model is moved later is checked when the model first runs there, and its verdicts are added to what was
    returned.
    """
    if backend != "auto" or forced_backend() != "auto":
        return {}
    found: dict[str, dict[str, Verdict]] = {}

    def check(model: nn.Module) -> set[torch.device]:
        """Checks the devices on which the model has parameters, and says which these are."""
        dtypes = _dtypes(model)
        for device, used in dtypes.items():
            wanted = [(op, dtype) for dtype in used for op in ops]
            wanted += [(op, torch.float32) for op in ops if op in LOSSES and torch.float32 not in used]
            checked = first_use.check(device, wanted)
            if checked:
                found[str(device)] = checked
        return set(dtypes)

    later.watch(root, ops, check, done=check(root))
    return found


def _dtypes(model: nn.Module) -> dict[torch.device, dict[torch.dtype, None]]:
    """In which dtypes a model may call ops: those of its parameters, and those that autocast may take on their device.

    Autocast in a later block, which may name bfloat16 where the default is float16.
    """
    found: dict[torch.device, dict[torch.dtype, None]] = {}
    for parameter in model.parameters():
        if parameter.is_floating_point() and parameter.device.type != "meta":
            found.setdefault(parameter.device, {})[parameter.dtype] = None
    for device, used in found.items():
        if torch.amp.is_autocast_available(device.type):
            used |= dict.fromkeys((torch.bfloat16, torch.get_autocast_dtype(device.type)))
    return found


def are_checked_later(checks: Mapping[str, object], backend: str) -> bool:
    """Whether a model of which nothing is checked yet may be moved to a GPU; no context is made to see that."""
    return not checks and backend == "auto" == forced_backend() and torch.cuda.device_count() > 0
