"""``fasttx.prune``: weights of encoders that are zero, and stay so while the model is fine-tuned."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..nn.int8 import Int8Linear
from ..ops.checks import FLOATS, is_number
from ..quant.config import names_to_skip
from .all_or_nothing import all_or_nothing
from .linears import Candidate, candidates
from .masks import drop_masks, hold, mask_of, set_masks
from .patch import _root
from .report import Report, Row

SEMI_STRUCTURED = "2:4"


@dataclass(repr=False)
class PruningReport(Report):
    """What :func:`fasttx.prune` did: a report as :func:`fasttx.patch` gives it, and the share of zeros.

    Attributes:
        sparsity: the name of each pruned layer -> the share of its weights that is zero.
        zeros: the share of all their weights.
    """

    call: str = "fasttx.prune"
    sparsity: dict[str, float] = field(default_factory=dict)
    zeros: float = 0.0

    def counts(self) -> str:
        """The heading's words."""
        return f"{len(self.replaced)} layers, {self.zeros:.1%} zeros; {len(self.left_alone)} left alone"

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data, for JSON."""
        return super().to_dict() | {"sparsity": dict(self.sparsity), "zeros": self.zeros}


def prune(
    model: Any, amount: float | str | None = None, *, skip: Iterable[str] = (), finish: bool = False
) -> PruningReport:
    """Set the smallest weights of a model's encoder to zero, in place, and keep them zero while you fine-tune.

    .. math:: w_{ij} = 0 \\quad \\text{where} \\quad |w_{ij}| \\text{ is among the smallest}

    of its layer, ``round(amount * n)`` of n weights (Han et al. 2015, arXiv:1506.02626), or for ``"2:4"`` two of each
    four in a row, ``weight[i, 4k:4k + 4]`` (Mishra et al. 2021, arXiv:2104.08378). The linear layers inside of the
    encoder's layers are pruned; embeddings, poolers, heads and biases are not.

    The weights stay plain parameters (out_features, in_features), which now hold zeros: state-dict keys,
    ``save_pretrained`` and what a patch fuses do not change, before or after :func:`fasttx.patch`. Masks are applied
    again after each step of any ``torch.optim`` optimizer that holds the weights, and after ``load_state_dict``. They
    follow a deepcopy and a pickle, and are not in the ``state_dict()``: prune a loaded model again by the same amount.

    A second call with a larger amount keeps what was pruned, so that a schedule is a few calls: by Zhu and Gupta
    (2017, arXiv:1710.01878) ``amount = final * (1 - (1 - t) ** 3)`` with t above 0, up to 1.

    Args:
        model: a transformers model, or anything that holds some (sentence-transformers, a pipeline, DDP).
        amount: the share of each layer's weights, between 0 and 1, or ``"2:4"``.
        skip: names of layers to leave alone, as they are called within the model. A shell's wildcards work.
        finish: take the masks off for good, without an amount. The zeros stay.

    Returns:
        A :class:`~fasttx.models.prune.PruningReport` with one row for each linear layer.

    Raises:
        ValueError: `model` holds no encoder layer of a known family, an int8 layer, or weights that FSDP has cut up
            already; `amount` is not as above, or less than a layer is pruned by already; a pattern of `skip` matches no
            layer; with `finish`, `model` has no masks. Nothing is changed then.
        TypeError: skip or finish is something else.
    """
    if not isinstance(finish, bool):
        raise TypeError(f"finish: got {finish!r}; allowed are True and False")
    names = names_to_skip(skip)
    if finish:
        if amount is not None or names:
            name, given = ("skip", list(names)) if amount is None else ("amount", amount)
            raise ValueError(f"{name}: got {given!r}; allowed is finish=True without it")
        return _finish(_root(model))
    is_share = is_number(amount) and 0.0 < float(amount) < 1.0  # type: ignore[arg-type]
    if not is_share and amount != SEMI_STRUCTURED:
        raise ValueError(f"amount: got {amount!r}; allowed are a share between 0 and 1, and {SEMI_STRUCTURED!r}")
    root = _root(model)
    found = candidates(root, names)
    for each in found:
        _refuse(root, each)
    report = PruningReport(type(root).__name__)
    chosen: list[tuple[nn.Module, Tensor]] = []
    for each in found:
        reason = each.asked_reason or each.foreign_reason or _kept_reason(each.layer, amount)
        if reason is None:
            pruned = _pruned(each, amount)
            chosen.append((each.layer, pruned))
            what = "two of each four inputs" if amount == SEMI_STRUCTURED else "the smallest of the layer"
            _note(report, each, pruned, f"{what}; masked until finish=True")
        else:
            report.rows.append(Row(each.name, each.before, None, "", reason))
    _sum_up(report, [pruned for _, pruned in chosen])
    if not chosen:
        warnings.warn(f"fasttx.prune pruned nothing: {'; '.join(report.reasons())}", stacklevel=2)

    def change() -> PruningReport:
        set_masks(chosen)
        return report

    return all_or_nothing(root, change)


def _finish(root: nn.Module) -> PruningReport:
    report = PruningReport(type(root).__name__)
    found = [each for each in candidates(root, ()) if mask_of(each.layer) is not None]
    if not found:
        raise ValueError(f"model: got a {type(root).__name__} without masks; allowed is one that fasttx.prune changed")
    for each in found:
        if each.layer._parameters.get("weight") is None:
            got = f"{each.name}, whose weight something computes now (a parametrization, weight norm)"
            raise ValueError(f"model: got {got}; allowed are weights that are parameters: take that off first")
    moved, pruned = 0, []
    for each in found:
        changed, zeros = hold(each.layer, count=True)
        moved += changed
        pruned.append(zeros)
        _note(report, each, zeros, "the zeros stay; the mask is gone")
    drop_masks([each.layer for each in found])
    _sum_up(report, pruned)
    if moved:
        warnings.warn(
            f"fasttx.prune: {moved} pruned weights were not zero any more, and are now: something other than a step of "
            "a torch.optim optimizer on these parameters has changed them (DeepSpeed's and apex's copies, a merged "
            "adapter), so the model was not trained as it is now",
            stacklevel=3,
        )
    return report


def _note(report: PruningReport, each: Candidate, pruned: Tensor, reason: str) -> None:
    share = float(pruned.count_nonzero()) / pruned.numel()
    report.sparsity[each.name] = share
    report.rows.append(Row(each.name, each.before, f"{share:.1%} zeros", "", reason))


def _sum_up(report: PruningReport, masks: list[Tensor]) -> None:
    total = sum(mask.numel() for mask in masks)
    report.zeros = sum(int(mask.count_nonzero()) for mask in masks) / total if total else 0.0


def _refuse(root: nn.Module, each: Candidate) -> None:
    """What must not be pruned in a model, so that none of it is."""
    if isinstance(each.layer, Int8Linear):
        raise ValueError(
            f"model: got a {type(root).__name__} whose {each.name} is int8; allowed is pruning before fasttx.quantize"
        )
    weight = each.layer._parameters.get("weight")
    if weight is not None and (weight.dim() != 2 or weight.numel() == 0 or hasattr(weight, "placements")):
        raise ValueError(
            f"model: got a {type(root).__name__} of whose {each.name} each process holds a part; allowed is pruning "
            "first, fully_shard afterwards"
        )


def _kept_reason(linear: Any, amount: Any) -> str | None:
    """Why this layer of an encoder is not pruned, or None."""
    cls = type(linear)
    if cls.__name__ != "Linear" or not cls.__module__.startswith("torch.nn.modules."):
        return f"it is a {cls.__module__}.{cls.__name__}"
    weight = linear._parameters.get("weight")
    if type(weight) is not nn.Parameter:
        return "its weight is made of other tensors before each call, as torch.nn.utils does it"
    if weight.is_meta or weight.dtype not in FLOATS:
        return f"its weight is {weight.dtype} on {weight.device}"
    if not bool(weight.isfinite().all()):
        return "its weight holds a NaN or an infinity"
    if amount == SEMI_STRUCTURED and weight.shape[1] % 4:
        return f"its {weight.shape[1]} inputs are no multiple of 4"
    return None


def _pruned(each: Candidate, amount: Any) -> Tensor:
    """What of a layer's weights is to be zero: what is so already, and the smallest of the others."""
    weight = each.layer.weight.detach()
    mask = mask_of(each.layer)
    before = torch.zeros_like(weight, dtype=torch.bool) if mask is None else mask.pruned.to(weight.device)
    size = weight.abs().masked_fill_(before, -1)
    if amount == SEMI_STRUCTURED:
        fours = size.unflatten(1, (-1, 4))
        smallest = fours.topk(2, largest=False).indices
        return before | torch.zeros_like(fours, dtype=torch.bool).scatter_(2, smallest, True).flatten(1)
    number, already = round(float(amount) * size.numel()), int(before.count_nonzero())
    if number < already:
        least = already / size.numel()
        raise ValueError(
            f"amount: got {amount}; allowed is at least {least:.3g}, by which {each.name} is pruned already"
        )
    smallest = size.flatten().topk(number, largest=False).indices
    return torch.zeros_like(before).flatten().index_fill_(0, smallest, True).view_as(before)
