"""Patching and unpatching: one engine for all families; what it knows about them is the data in the family files.

A patch is planned first, with every check, and nothing is changed; then it is carried out by plain assignments. Each
touched module carries its own undo record (``_fasttx``), so that deepcopy and pickle take it along, and a part of a
patched model can be unpatched.

The attention is switched on in the config, where transformers looks it up. As models may share one config object, a
patched model gets a copy of its own, and gets the original object back from :func:`unpatch`.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

from torch import nn

from ..ops import verdicts
from .all_or_nothing import all_or_nothing
from .attention.interface import IMPLEMENTATION
from .capture.capture import FROZEN
from .checked import are_checked_later, check_kernels, measured_choices
from .dropout import places_of
from .fusions.torch_nn import REPLACED
from .heads.kinds import KINDS
from .options import ModulePatch, Options
from .plan import ATTENTION_SETTING, FAMILIES, Plan, make_plan
from .report import Report
from .subclass import become


def _root(model: Any) -> nn.Module:
    """The module to search: `model`, or the module that a pipeline or another wrapper holds as ``.model``."""
    root = model if isinstance(model, nn.Module) else getattr(model, "model", None)
    if not isinstance(root, nn.Module):
        raise ValueError(
            f"model: got {type(model).__name__}; allowed are a transformers model and whatever holds one: a PEFT "
            "model, a sentence-transformers model or CrossEncoder, a pipeline, any torch.nn.Module"
        )
    return root


def _marks(root: nn.Module) -> list[tuple[nn.Module, ModulePatch]]:
    return [(m, m.__dict__["_fasttx"]) for m in root.modules() if "_fasttx" in m.__dict__]


# ------------------------------------------------------------------------------------------------- doing and undoing


def _carry_out(plan: Plan, options: Options) -> Report:
    plain = ModulePatch(options)
    for module, mark in plan.configs:
        module.__dict__.update(_fasttx=mark, config=mark.own_config)
    for module in (*plan.attention, *(module for module, _ in plan.classes)):
        module.__dict__.setdefault("_fasttx", plain)
    for module, cls in plan.classes:
        become(module, cls)
        if hasattr(cls, "_fasttx_begins"):
            module.__dict__["_fasttx_places"] = places_of(module)
    return plan.report


def _restore(module: nn.Module) -> None:
    mark: ModulePatch | None = module.__dict__.pop("_fasttx", None)
    module.__dict__.pop("_fasttx_places", None)
    module.__dict__.pop(FROZEN, None)
    if mark is None:
        return
    if mark.own_config is not None and module.__dict__.get("config") is mark.own_config:
        _carry_back(mark)
        module.__dict__["config"] = mark.original_config
    original = type(module).__dict__.get("_fasttx_original")
    if original is not None:
        become(module, original)


def _restore_all(marks: list[tuple[nn.Module, ModulePatch]]) -> None:
    for module, _ in marks:
        _restore(module)


def _carry_back(mark: ModulePatch) -> None:
    """Write what was changed in the model's own config since the patch into the original one."""
    own, original = mark.own_config.__dict__, mark.original_config.__dict__
    missing = object()
    for name in mark.snapshot.keys() | own.keys():
        value = own.get(name, missing)
        if value is mark.snapshot.get(name, missing) or name == ATTENTION_SETTING:
            continue
        if value is missing:
            original.pop(name, None)
        else:
            original[name] = value


def _refuse_wrapped(root: nn.Module) -> None:
    """A class made on top of ours (fully_shard does that) cannot be taken apart."""
    for name, module in root.named_modules():
        cls = type(module)
        if "_fasttx" in module.__dict__ and "_fasttx_original" not in cls.__dict__ and hasattr(cls, "_fasttx_original"):
            raise ValueError(
                f"model: got {name or 'one'} of the class {cls.__name__}, which was put on top of a patched one "
                "(fully_shard does that); allowed is unpatching before that"
            )


# ---------------------------------------------------------------------------------------------------------- public


def patch(
    model: Any,
    *,
    attention: bool = True,
    unpad: bool | str = "auto",
    norm: bool = True,
    mlp: bool = True,
    qkv: bool = True,
    mlm_head: bool | float | str = True,
    loss: str | None = "correct",
    backend: str = "auto",
    deterministic: bool | None = None,
    strict: bool = False,
) -> Report:
    """Put a transformers model's attention, norms, MLPs and losses on fasttx, in place, and skip its padding.

    :func:`unpatch` puts everything back. State-dict keys, ``save_pretrained``, deepcopy, pickling, class names and
    forward signatures stay as they are. Patching a patched model again unpatches it first: the last call's options
    hold.

    Args:
        model: a transformers model, or anything that holds some: a PEFT model, a SentenceTransformer or CrossEncoder, a
            pipeline, any ``torch.nn.Module``. A model that holds torch.nn's MultiheadAttention, TransformerEncoderLayer
            or TransformerEncoder will do, too.
        attention: use ``attn_implementation="fasttx"``, in this model only. torch.nn's classes become those of
            ``fasttx.nn``; `backend` and `deterministic` do not reach these, so with either they are left alone.
        unpad: run the encoder on real tokens only: ``"auto"`` where a batch has enough padding, True where it has any,
            False never. Needs `attention`. On a GPU the host waits once a call for the number of tokens, unless the
            call passes ``seq_lens=`` (see ``fasttx.data``). Compiled graphs run padded without it. Captured ones always
            do.
        norm: compute the end of each half of a layer, which is dropout, residual and layer norm, as one kernel, and the
            embeddings with their layer norm and dropout as another. The parts are called unfused on a CPU, and where a
            norm, a dropout or a table is not plain (hooks, another class, LoRA). The linear layers may be anything.
        mlp: compute bias and GELU after the MLP's first product as one kernel. transformers' own calls run on a CPU,
            and where the layer is not plain or the activation is no GELU.
        qkv: compute query, key and value of self-attention in one product, from weights joined in every forward. They
            are computed separately on a CPU, and where a layer is not plain (LoRA, quantised, hooks). Needs
            `attention`.
        mlm_head: compute only the labelled rows in training with labels, in heads for masked language modelling and
            pretraining. ``logits`` is None then (missing from a tuple). ``"full"`` or False keeps the logits complete;
            in eval mode and without labels they always are. Graphs (compiled, exported, captured) need fixed shapes, so
            they compute every row. A float, 0.25 say, computes that share of the rows there, labelled rows first; if
            more are labelled, the loss is NaN without gradients. Needs `loss`.
        loss: ``"correct"``: the head's mean times (labels != -100).sum() / num_items_in_batch where that number is
            passed, and 0 where nothing is labelled. ``"hf"``: transformers' value. None: leave the heads alone.
        backend: ``"auto"``, or ``"cuda"``, ``"triton"`` or ``"torch"`` to force one for this model.
        deterministic: True asks for bitwise reproducible gradients. None follows
            ``torch.are_deterministic_algorithms_enabled()``.
        strict: if nothing could be replaced, raise an error in place of a warning.

    Returns:
        A report to ``print``; ``rows`` and ``to_dict()`` hold the same.

    Raises:
        ValueError: `model` holds no transformers model and none of those modules; an argument has a value that is not
            allowed; with `strict`, nothing could be replaced. The model is then as it was.
        TypeError: an argument is unknown or of another type.
    """
    options = Options(attention, unpad, norm, mlp, qkv, mlm_head, loss, backend, deterministic, strict)
    root = _root(model)
    marks = _marks(root)
    if marks:
        _refuse_wrapped(root)

    def change() -> Report:
        _restore_all(marks)
        return _patch_plain(root, options)

    return all_or_nothing(root, change)


def _patch_plain(root: nn.Module, options: Options) -> Report:
    plan, before = make_plan(root, options), verdicts.generation
    checks = check_kernels(root, plan.report.ops, options.backend)
    if verdicts.generation != before:  # another backend may run now
        plan = make_plan(root, options)
    plan.report.checks, plan.report.checks_later = checks, are_checked_later(checks, options.backend)
    plan.report.tuned = measured_choices(root, plan.report.ops, options.backend)
    if not plan.report.replaced:
        reasons = "; ".join(plan.report.reasons()) or "no attention or loss was found"
        message = f"fasttx.patch replaced nothing in {type(root).__name__}: {reasons}"
        if options.strict:
            raise ValueError(message)
        warnings.warn(message, stacklevel=5)
    elif plan.unknown and all(row.after.startswith("fasttx.nn.") for row in plan.report.replaced if row.after):
        message = f"fasttx.patch replaced only torch.nn's modules in {type(root).__name__}"
        warnings.warn(f"{message}: {'; '.join(plan.unknown)}", stacklevel=5)
    return _carry_out(plan, options)


def unpatch(model: Any) -> None:
    """Undo :func:`patch`: the model gets its own classes and config object back.

    What was changed in the model's config meanwhile stays changed.

    Raises:
        ValueError: nothing in `model` is patched, or a class was put on top of a patched one (fully_shard).
    """
    root = _root(model)
    marks = _marks(root)
    if not marks:
        raise ValueError(
            f"model: got a {type(root).__name__} that is not patched; allowed is one that fasttx.patch changed"
        )
    _refuse_wrapped(root)
    all_or_nothing(root, lambda: _restore_all(marks))


def is_patched(model: Any) -> bool:
    """Whether any module in `model` is patched."""
    return bool(_marks(_root(model)))


@contextlib.contextmanager
def patched(model: Any, **options: Any) -> Iterator[Report]:
    """:func:`patch` within a ``with`` block. Afterwards the model is as before, even if it was patched already."""
    marks = _marks(_root(model))
    before = marks[0][1].options if marks else None
    report = patch(model, **options)
    try:
        yield report
    finally:
        if is_patched(model):
            unpatch(model)
        if before is not None:
            root = _root(model)
            _carry_out(make_plan(root, before), before)


def supported() -> list[dict[str, str]]:
    """List what :func:`patch` can replace, one row for each family and class.

    Returns:
        Dictionaries with ``family``, ``model_type``, ``class``, ``attention`` (the attn_implementation) and ``loss``
        (the functions that compute it, "" for a model without a loss). Attention and loss are "transformers' own" where
        that stays. The last rows are torch.nn's own classes: their family is "torch.nn", their attention that of
        ``fasttx.nn``.
    """
    rows = []
    for family in FAMILIES:
        losses = {cls: ", ".join(KINDS[kind].ops) for cls, kind in family.heads.items()}
        losses |= {cls: "" if why is None else "transformers' own" for cls, why in family.other_heads.items()}
        attention = IMPLEMENTATION if family.replaces_attention else "transformers' own"
        for cls, ops in ({family.bare: ""} | losses).items():
            row = {"family": family.name, "model_type": family.model_type, "class": cls, "attention": attention}
            rows.append(row | {"loss": ops})
    for original in REPLACED:
        row = {"family": "torch.nn", "model_type": "", "class": original.__name__}
        rows.append({**row, "attention": "fasttx.nn", "loss": ""})
    return rows
