"""What a patch will replace in a model, and why it leaves the rest alone: decided before anything is changed."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from .attention.interface import IMPLEMENTATION
from .attention.reach import how_to_set
from .families import albert, bert, data2vec, deberta, distilbert, electra, ernie, modernbert, mpnet, roberta, vit
from .families.family import Family
from .fusions.torch_nn import holds_any, plan_torch_module
from .options import ModulePatch, Options
from .report import Report, Row
from .role import Found, Role
from .subclass import key_of, without_fsdp

DATA = (bert, roberta, electra, ernie, data2vec, distilbert, albert, mpnet, deberta, modernbert, vit)
FAMILIES: tuple[Family, ...] = tuple(family for module in DATA for family in module.FAMILIES)

_ROLES: dict[tuple[str, str], tuple[ModuleType, tuple[Role, ...]]] = {
    (family.source, name): (module, roles)
    for module in DATA
    for family in module.FAMILIES
    for name, roles in family.classes.items()
}
"""Every class of every family, with the module that its patched class stands in."""
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


def make_plan(root: nn.Module, options: Options) -> Plan:
    """Look at every module of `root`; changes nothing.

    Raises:
        ValueError: there is no transformers model in `root`, and none of torch.nn's modules that are replaced.
    """
    models = [(name, m) for name, m in root.named_modules() if isinstance(m, PreTrainedModel)]
    if not models and not holds_any(root):
        names = ", ".join(family.name for family in FAMILIES)
        raise ValueError(
            f"model: got {type(root).__name__}, without a transformers model; allowed are models of {names}, also "
            "inside PEFT, sentence-transformers or any other torch.nn.Module, and torch.nn's MultiheadAttention, "
            "TransformerEncoderLayer and TransformerEncoder"
        )
    plan = Plan(Report(type(root).__name__))
    known: set[int] = set()  # ids of the configs of models of a known family
    for name, module in root.named_modules():
        if options.attention:
            plan.classes += plan_torch_module(plan.report, name, module, options)
        base = known_base(type(module))
        if base is None:
            continue
        data, roles = _ROLES[key_of(base)]
        found = Found(name, module, options, plan.report.rows, plan.attention)
        wanted = [role for role in roles if role.is_wanted(options)]
        if base is not without_fsdp(type(module)):
            _leave_subclass(found, wanted, base)
            continue
        if "config" in module.__dict__:
            known.add(id(module.config))
        if any([role.plan(found) for role in wanted]):  # a list: each of them reports
            plan.classes.append((module, getattr(data, base.__name__)))
    _plan_unknown(plan, models, known)
    if plan.attention:
        marks = {id(m.config): _exchange(m.config, options) for m in plan.attention}
        for module in root.modules():
            mark = marks.get(id(module.__dict__.get("config")))
            if mark is not None:
                plan.configs.append((module, mark))
    return plan


def known_base(cls: type) -> type | None:
    """The class of a known family that `cls` is, or is made on top of."""
    return next((base for base in cls.__mro__ if key_of(base) in _ROLES), None)


def _leave_subclass(found: Found, roles: Sequence[Role], base: type) -> None:
    for role in roles:
        before = role.before_in(found.module)
        if before is not None:
            found.leave(before, f"is a subclass of {base.__name__}; only transformers' own class is matched")


def _plan_unknown(plan: Plan, models: Sequence[tuple[str, PreTrainedModel]], known: set[int]) -> None:
    """Reports the models of no known family that neither hold such a model nor are a part of one."""
    outer = [name for name, model in models if id(model.config) in known]
    for name, module in models:
        inside = any(not above or name == above or name.startswith(f"{above}.") for above in outer)
        if inside or any(id(m.__dict__.get("config")) in known for m in module.modules()):
            continue
        reason = f"model_type {module.config.model_type!r} is not one of fasttx's families; its attention "
        reason += how_to_set(module, name)
        plan.report.rows.append(Row(name, type(module).__name__, None, "", reason))
        plan.unknown.append(f"{name or 'the model'}: {reason}")


def _exchange(config: Any, options: Options) -> ModulePatch:
    own = copy.copy(config)
    own.__dict__[ATTENTION_SETTING] = IMPLEMENTATION
    return ModulePatch(options, own, config, dict(own.__dict__))
