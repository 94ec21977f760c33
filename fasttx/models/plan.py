"""What a patch will replace in a model, and why it leaves the rest alone: decided before anything is changed."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import transformers
from torch import nn
from transformers import PreTrainedModel

from .attention.interface import IMPLEMENTATION
from .attention.masks import calls_the_interface
from .attention.reach import how_to_set
from .families import albert, bert, data2vec, deberta, distilbert, electra, ernie, modernbert, mpnet, roberta, vit
from .families.family import Family
from .fusions.fusion import changes_here
from .fusions.qkv import unfused_reason
from .fusions.torch_nn import holds_any, plan_torch_module
from .heads.kinds import KINDS
from .heads.vocabulary import NO_LOGITS, full_head_reason
from .options import ModulePatch, Options
from .padding.encoder import static_reason
from .padding.layers import strange_part
from .report import Report, Row, expected_backend
from .subclass import has_own_forward

DATA = (bert, roberta, electra, ernie, data2vec, distilbert, albert, mpnet, deberta, modernbert, vit)
FAMILIES: tuple[Family, ...] = tuple(family for module in DATA for family in module.FAMILIES)

_ATTENTION = {(family.source, name): family for family in FAMILIES for name in family.attention}
_HEADS = {
    (family.source, name): (module, family, kind)
    for module in DATA
    for family in module.FAMILIES
    for name, kind in family.heads.items()
}
_OTHER_HEADS = {
    (family.source, name): reason
    for module in DATA
    for family in module.FAMILIES
    for name, reason in family.other_heads.items()
    if reason is not None
}
_SELF_ATTENTION = {
    (family.source, family.attention[0]): (module, family.qkv)
    for module in DATA
    for family in module.FAMILIES
    if family.qkv is not None
}
_FUSIONS = {
    (family.source, name): (module, fusions)
    for module in DATA
    for family in module.FAMILIES
    for name, fusions in family.fusions.items()
}
_ENCODERS = {
    (family.source, family.encoder.cls): (module, family, family.encoder)
    for module in DATA
    for family in module.FAMILIES
    if family.encoder is not None
}
_STAYS = {(family.source, name): stays for family in FAMILIES for name, stays in family.stays.items()}
_MODELS = frozenset((family.source, name) for family in FAMILIES for name in (family.bare, *family.heads))
_TOLD = {
    (family.source, family.bare): (module, family) for module in DATA for family in module.FAMILIES if family.is_told
}
ATTENTION_SETTING = "_attn_implementation_internal"


@dataclass
class Plan:
    """Everything that a patch will assign, and the report of it.

    Attributes:
        report: what is replaced, and what is not.
        configs: modules with a config object that is exchanged, with what they will carry.
        attention: modules whose config is to say ``attn_implementation="fasttx"``.
        classes: modules with the class that they will have.
        unknown: why the layers of models of other families stay as they are.
    """

    report: Report
    configs: list[tuple[nn.Module, ModulePatch]] = field(default_factory=list)
    attention: list[nn.Module] = field(default_factory=list)
    classes: list[tuple[nn.Module, type]] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)


def _key(cls: type) -> tuple[str, str]:
    return cls.__module__, cls.__name__


def make_plan(root: nn.Module, options: Options) -> Plan:
    """Look at every module of `root`; changes nothing.

    Raises:
        ValueError: there is no transformers model in `root`, and none of torch.nn's modules that are replaced.
    """
    models = [(name, m) for name, m in root.named_modules() if isinstance(m, PreTrainedModel)]
    if not models and not holds_any(root):
        names = ", ".join(family.name for family in FAMILIES)
        raise ValueError(
            f"model: {type(root).__name__} holds no transformers model; allowed are models of {names}, also inside "
            "PEFT, sentence-transformers or any other torch.nn.Module, and torch.nn's MultiheadAttention, "
            "TransformerEncoderLayer and TransformerEncoder"
        )
    plan = Plan(Report(type(root).__name__))
    known: set[int] = set()  # ids of the configs of models of a known family
    for name, module in root.named_modules():
        if options.attention:
            plan.classes += plan_torch_module(plan.report, name, module, options)
        cls = _unwrapped(type(module))
        if _key(cls) in _MODELS:
            known.add(id(module.config))
        if options.attention and _key(cls) in _TOLD:
            _plan_model(plan, name, module, options)
        if _key(cls) in _STAYS:
            option, what, why = _STAYS[_key(cls)]
            if getattr(options, option):
                plan.report.rows.append(Row(name, what, None, "", why))
        if _key(cls) in _ATTENTION and not ("config" in module.__dict__ and calls_the_interface(module.config)):
            reason = f"transformers {transformers.__version__} builds it otherwise than the versions that fasttx knows"
            plan.report.rows.append(Row(name, cls.__name__, None, "", reason))
        elif _key(cls) in _ATTENTION:
            known.add(id(module.config))
            if options.attention:
                taken = _plan_attention(plan, name, module, options)
                if taken and options.qkv and _key(cls) in _SELF_ATTENTION:
                    _plan_qkv(plan, name, module)
        elif options.attention and (base := _known_base(cls, _ATTENTION)):
            reason = f"is a subclass of {base.__name__}; only transformers' own class is matched"
            plan.report.rows.append(Row(name, cls.__name__, None, "", reason))
        if options.attention and options.unpad and _key(cls) in _ENCODERS:
            _plan_encoder(plan, name, module)
        if _key(cls) in _FUSIONS:
            _plan_fusions(plan, name, module, options)
        if isinstance(module, PreTrainedModel) and options.loss is not None:
            _plan_head(plan, name, module, options)
    for name, module in models:
        family_known = id(module.config) in known
        inside_known = any(name.startswith(f"{outer}.") or not outer for outer, m in models if id(m.config) in known)
        if not family_known and not inside_known and not _covers_known(module, known):
            reason = f"model_type {module.config.model_type!r} is not one of fasttx's families; its attention "
            reason += how_to_set(module)
            plan.report.rows.append(Row(name, type(module).__name__, None, "", reason))
            plan.unknown.append(f"{name or 'the model'}: {reason}")
    if plan.attention:
        marks = {id(m.config): _exchange(m.config, options) for m in plan.attention}
        for module in root.modules():
            mark = marks.get(id(module.__dict__.get("config")))
            if mark is not None:
                plan.configs.append((module, mark))
    return plan


def _covers_known(model: PreTrainedModel, known: set[int]) -> bool:
    """Whether `model` is a container (an encoder-decoder, say) around a model that is patched."""
    return any(id(m.__dict__.get("config")) in known for m in model.modules())


def _unwrapped(cls: type) -> type:
    """The class under the one that fully_shard puts on top (FSDP<name>)."""
    if cls.__name__.startswith("FSDP") and any(base.__name__ == "FSDPModule" for base in cls.__bases__):
        return next(base for base in cls.__bases__ if base.__name__ != "FSDPModule")
    return cls


def _known_base(cls: type, table: Mapping[tuple[str, str], Any]) -> type | None:
    return next((base for base in cls.__mro__[1:] if _key(base) in table), None)


def _fixed(module: nn.Module) -> str | None:
    """Why the class of this module cannot be exchanged any more, or None."""
    if _unwrapped(type(module)) is not type(module):
        return "was wrapped by fully_shard; patch first, then fully_shard"
    if has_own_forward(module):
        return "its forward was replaced on the instance (accelerate does that); patch before it is prepared"
    return None


def _plan_attention(plan: Plan, name: str, module: nn.Module, options: Options) -> bool:
    config: Any = module.config
    now = config._attn_implementation
    if config.output_attentions and now in ("eager", None):
        # transformers refuses to save or validate a config with output_attentions under any other implementation
        reason = "config.output_attentions is set, for which transformers demands eager; pass it to the call instead"
        plan.report.rows.append(Row(name, f"attention: {now}", None, "", reason))
        return False
    plan.attention.append(module)
    backend = expected_backend("attention", options.backend, module)
    plan.report.rows.append(Row(name, f"attention: {now}", f"attention: {IMPLEMENTATION}", backend, ""))
    return True


def _plan_qkv(plan: Plan, name: str, module: nn.Module) -> None:
    cls = type(module)
    data, projections = _SELF_ATTENTION[_key(cls)]
    reason = _fixed(module) or unfused_reason(module, projections.layers)
    if reason is None:
        plan.classes.append((module, getattr(data, cls.__name__)))
        after, backend, reason = "one product", "torch", "on a GPU; on a CPU three, which are as fast there"
    else:
        after, backend = None, ""
    here = changes_here(module, None)
    plan.report.rows.append(Row(name, "three products for q, k, v", after, backend, reason, here))


def _plan_fusions(plan: Plan, name: str, module: nn.Module, options: Options) -> None:
    cls = type(module)
    data, fusions = _FUSIONS[_key(_unwrapped(cls))]
    for fusion in fusions:
        if not getattr(options, fusion.option):
            continue
        reason = _fixed(module) or fusion.unfused_reason(module)
        if fusion.needs_attention and not any(taken is module for taken in plan.attention):
            reason = "is fused with fasttx's attention alone, which this patch leaves out"
        if reason is not None:
            plan.report.rows.append(Row(name, fusion.before, None, "", reason))
            continue
        plan.classes.append((module, getattr(data, cls.__name__)))
        backend = expected_backend(fusion.op, options.backend, module) if fusion.op else "torch"
        here = changes_here(module, options.backend)
        plan.report.rows.append(Row(name, fusion.before, fusion.after, backend, fusion.where, here))


def _plan_model(plan: Plan, name: str, module: nn.Module, options: Options) -> None:
    cls = type(module)
    data, family = _TOLD[_key(_unwrapped(cls))]
    fixed = _fixed(module)
    if fixed is None:
        plan.classes.append((module, getattr(data, cls.__name__)))
        if not family.passes_on:
            why = "transformers' forward drops seq_lens and cu_seq_lens_q"
            plan.report.rows.append(Row(name, "lengths of a batch", "refused without a mask", "torch", why))
    elif family.encoder is not None and options.unpad == "auto":
        plan.report.rows.append(Row(name, "tokens that the mask hides", None, "", fixed))


def _plan_encoder(plan: Plan, name: str, module: nn.Module) -> None:
    cls = type(module)
    data, family, encoder = _ENCODERS[_key(_unwrapped(cls))]
    reason = static_reason(encoder.config(module))
    strange = strange_part(module, family.forwards())
    if strange is not None:
        reason = f"{strange} is not transformers' own, and may not cope with a packed batch"
    reason = _fixed(module) or reason
    if reason is not None:
        plan.report.rows.append(Row(name, "padded batch", None, "", reason))
        return
    plan.classes.append((module, getattr(data, cls.__name__)))
    if not family.attention:  # an encoder that reads the mask of keys for its layers
        plan.attention.append(module)
    reason = "positions of padding are 0; unpad=False keeps them"
    plan.report.rows.append(Row(name, "padded batch", "real tokens only", "torch", reason))


def _plan_head(plan: Plan, name: str, module: PreTrainedModel, options: Options) -> None:
    cls = type(module)
    entry = _HEADS.get(_key(cls))
    if _key(cls) in _OTHER_HEADS:
        plan.report.rows.append(Row(name, f"loss of {cls.__name__}", None, "", _OTHER_HEADS[_key(cls)]))
    if entry is None:
        base = _known_base(cls, _HEADS)
        if base is not None:
            reason = f"is a subclass of {base.__name__}; only transformers' own class is matched"
            reason = _fixed(module) or reason
            plan.report.rows.append(Row(name, f"loss of {cls.__name__}", None, "", reason))
        return
    data, family, kind_name = entry
    kind = KINDS[kind_name]
    fixed = _fixed(module)
    if fixed is not None:
        plan.report.rows.append(Row(name, f"loss of {cls.__name__}", None, "", fixed))
        return
    plan.classes.append((module, getattr(data, cls.__name__)))
    if kind.own(module):
        reason = "transformers' forward selects labelled rows by itself, or the model has a loss function of its own"
        plan.report.rows.append(Row(name, f"loss of {cls.__name__}", None, "", reason))
        return
    if kind.counted is None:
        but = ", but padding takes no part in the softmax" if kind.reads_padding else ""
        reason = "as in transformers" if options.loss == "hf" else f"as in transformers{but}; 0 where {kind.zero}"
    elif options.loss == "hf":
        reason = "loss='hf': transformers' value" + ("" if kind.honours else ", which ignores num_items_in_batch")
    else:
        reason = f"loss='correct': honours num_items_in_batch; 0 where {kind.zero}"
    backend = expected_backend(kind.ops[0], options.backend, module)
    plan.report.rows.append(Row(name, f"loss of {cls.__name__}", ", ".join(kind.ops), backend, reason))
    if kind.vocabulary is not None and family.vocabulary is not None and options.labelled_rows:
        full = full_head_reason(module, family.vocabulary)
        if full is None:
            reason = f"linear_cross_entropy; {NO_LOGITS}"
            if options.capacity is not None:
                reason += f"; in graphs {options.mlm_head} of all rows, and NaN where more are labelled"
            backend = expected_backend("linear_cross_entropy", options.backend, module)
            plan.report.rows.append(Row(name, "logits of all rows", "labelled rows only", backend, reason))
        else:
            plan.report.rows.append(Row(name, "logits of all rows", None, "", full))


def _exchange(config: Any, options: Options) -> ModulePatch:
    own = copy.copy(config)
    own.__dict__[ATTENTION_SETTING] = IMPLEMENTATION
    return ModulePatch(options, own, config, dict(own.__dict__))
