"""The docstrings of what is public: they name every parameter, and what is returned, raised and saved."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

import fasttx
import fasttx.testing
from fasttx import data, functional, nn, quant

HIDDEN = {"_stacklevel"}
"""A parameter of PyTorch's own functions that its docstrings leave out."""
FUNCTIONS = [getattr(functional, name) for name in functional.__all__]
CALLS = [getattr(fasttx, name) for name in fasttx.__all__ if inspect.isfunction(getattr(fasttx, name))]
RULE = [fasttx.testing.assert_as_accurate, fasttx.testing.row_bounds, data.PackingCollator, data.LengthBucketSampler]
FUNCTION_OF = {
    nn.DistillationLoss: "distillation_loss",
    nn.DropoutAddLayerNorm: "dropout_add_layer_norm",
    nn.EmbeddingLayerNorm: "embedding_layer_norm",
    nn.HiddenStateLoss: "hidden_state_loss",
    nn.Int8Linear: "int8_linear",
    nn.LinearGELU: "linear_gelu",
}
"""The classes that torch.nn has not in any version, and the functions that they call."""
DROP_INS = [getattr(nn, name) for name in nn.__all__ if name != "functional" and getattr(nn, name) not in FUNCTION_OF]
SHORT = {fasttx.is_patched, fasttx.patched, fasttx.unpatch, fasttx.unpatch_transformers, fasttx.dequantize}
"""Functions of a model, which the first sentence names."""


def _documented(doc: str) -> set[str]:
    """The names of the entries under "Args"."""
    found = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", doc, re.DOTALL | re.MULTILINE)
    entries = re.findall(r"^    ([\w*, ]+): ", found[1], re.MULTILINE) if found else []
    return {name.strip(" *") for entry in entries for name in entry.split(",")}


def _check(what: Callable[..., Any], *sections: str) -> None:
    doc = inspect.getdoc(what) or ""
    first = doc.split("\n")[0]
    assert first.endswith("."), first
    wanted = {name for name in inspect.signature(what).parameters if name not in HIDDEN}
    assert wanted - _documented(doc) == set()
    for section in sections:
        assert re.search(rf"^{section}", doc, re.MULTILINE), section


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_a_function_says_what_it_takes_gives_raises_and_saves(function: Callable[..., Any]) -> None:
    _check(function, "Args:", "Returns:", "Raises:", "Saved for backward: ")


@pytest.mark.parametrize("function", [f for f in CALLS + RULE if f not in SHORT], ids=lambda f: f.__name__)
def test_so_does_a_call_on_a_model(function: Callable[..., Any]) -> None:
    _check(function)


@pytest.mark.parametrize("function", sorted(SHORT, key=lambda f: f.__name__), ids=lambda f: f.__name__)
def test_a_short_call_has_a_sentence(function: Callable[..., Any]) -> None:
    assert re.match(r"[A-Z:][^\n]{20,}\.\s|[A-Z:][^\n]{20,}\.$", inspect.getdoc(function) or "")


@pytest.mark.parametrize("cls", FUNCTION_OF, ids=lambda c: c.__name__)
def test_a_module_of_its_own_names_its_arguments(cls: type) -> None:
    _check(cls, "Args:")
    assert f":func:`fasttx.functional.{FUNCTION_OF[cls]}`" in (cls.__doc__ or "") and not hasattr(
        torch.nn, cls.__name__
    )


@pytest.mark.parametrize("name", quant.__all__)
def test_every_name_of_quant_has_a_docstring(name: str) -> None:
    assert (inspect.getdoc(getattr(quant, name)) or "").split("\n")[0].endswith(".")


@pytest.mark.parametrize("cls", DROP_INS, ids=lambda c: c.__name__)
def test_a_drop_in_names_the_class_that_it_stands_for(cls: type) -> None:
    assert re.match(rf"torch\.nn\.{cls.__name__} (on fasttx kernels|that packs)", inspect.getdoc(cls) or "")
