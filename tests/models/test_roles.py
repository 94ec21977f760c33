"""A family as data: classes that transformers has, with roles; and what becomes of classes on top of them."""

from __future__ import annotations

import importlib
import pickle
from typing import Any

import pytest
from models import model_zoo as zoo

import fasttx
from fasttx.models import plan
from fasttx.models.families.family import Family
from fasttx.models.padding.encoder import Encoder

every_family = pytest.mark.parametrize("family", plan.FAMILIES, ids=lambda family: family.name)


@every_family
def test_transformers_has_every_class(family: Family) -> None:
    source = importlib.import_module(family.source)
    names = {*family.classes, family.layer, *(c for e in family.roles(Encoder).values() for c in e.passing.values())}
    assert family.bare in family.classes
    assert not [name for name in names if not isinstance(getattr(source, name, None), type)]


@every_family
def test_a_class_is_made_where_a_role_makes_one(family: Family) -> None:
    """The patched class has transformers' name, stands where pickle looks, and is made once; other names are none."""
    module = next(m for m in plan.DATA if family in m.FAMILIES)
    source = importlib.import_module(family.source)
    for name, roles in family.classes.items():
        if not any(role.makes_class for role in roles):
            with pytest.raises(AttributeError, match=name):
                getattr(module, name)
            continue
        made, original = getattr(module, name), getattr(source, name)
        assert issubclass(made, original) and made is not original and made.__name__ == name
        assert getattr(module, name) is made and pickle.loads(pickle.dumps(made)) is made
        assert made._fasttx_original is original


def _row(report: fasttx.Report, name: str, before: str) -> Any:
    return next(row for row in report.rows if row.module == name and row.before.startswith(before))


@pytest.mark.parametrize(
    "path, before",
    [
        ("encoder", "padded batch"),
        ("encoder.layer.0.attention.self", "BertSelfAttention"),
        ("encoder.layer.0.output", "dropout, sum, layer norm"),
        ("encoder.layer.0.intermediate", "product, bias, GELU"),
        ("embeddings", "embeddings, norm, dropout"),
    ],
)
def test_a_users_subclass_is_left_alone_and_reported(path: str, before: str) -> None:
    model = zoo.tiny_model(zoo.BERT, "BertModel")
    module = model.get_submodule(path)
    original = type(module)
    module.__class__ = type(original.__name__, (original,), {})
    report = fasttx.patch(model)
    row = _row(report, path, before)
    assert (
        row.after is None
        and row.reason == f"is a subclass of {original.__name__}; only transformers' own class is matched"
    )
    assert type(module).__mro__[1] is original


@pytest.mark.parametrize("cls", ["BertModel", "BertEncoder", "BertSelfAttention", "BertOutput", "BertIntermediate"])
def test_what_fully_shard_wrapped_is_left_alone_and_reported(cls: str) -> None:
    """fully_shard puts a class FSDP<name> on top of a module; every role of that module says so."""
    model = zoo.tiny_model(zoo.BERT, "BertForMaskedLM")
    module = next(m for m in model.modules() if type(m).__name__ == cls)
    original = type(module)
    module.__class__ = type(f"FSDP{cls}", (type("FSDPModule", (), {}), original), {})
    report = fasttx.patch(model)
    path = next(name for name, m in model.named_modules() if m is module)
    reasons = [row.reason for row in report.rows if row.module == path and row.after is None]
    assert reasons == ["was wrapped by fully_shard; patch first, then fully_shard"]
    assert type(module).__name__ == f"FSDP{cls}"
