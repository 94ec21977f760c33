"""Weights of which a process holds a part: flat pieces (FSDP1) or nothing, shape (0,) (FSDP1, ZeRO-3)."""

from __future__ import annotations

import warnings

import pytest
from models import model_zoo as zoo

import fasttx
from fasttx.models.families.family import Family

REASON = "which FSDP or ZeRO-3 has sharded; wrap the model afterwards"
OF_MATRICES = {"embedding_layer_norm", "one product", "linear_gelu"}
OF_WEIGHTS = OF_MATRICES | {"dropout_add_layer_norm"}
"""What runs in place of child modules, whose weights it reads. A piece of a norm's weight looks like a narrower norm's,
which is whole in a forward under FSDP1."""


@pytest.mark.parametrize("held", [0, 3], ids=["nothing", "a flat piece"])
@pytest.mark.parametrize("family", zoo.FAMILIES, ids=lambda family: family.name)
def test_sharded_weights_are_left_alone_with_the_reason(family: Family, held: int) -> None:
    model = zoo.tiny_model(family, family.bare)
    whole = fasttx.patch(model)
    fasttx.unpatch(model)
    for parameter in model.parameters():
        parameter.data = parameter.data.reshape(-1)[:held].clone()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nothing at all may be left to replace
        report = fasttx.patch(model)
    left = [(row.module, row.before) for row in report.left_alone if REASON in row.reason]
    read = OF_MATRICES if held else OF_WEIGHTS
    assert left == [(row.module, row.before) for row in whole.replaced if row.after in read]
    with pytest.warns(UserWarning, match="replaced nothing"):
        rows = fasttx.quantize(model).rows
    assert sum(REASON in row.reason for row in rows) >= 4 * zoo.DISTINCT.get(family.model_type, 2)
