"""torch.nn's submodules: attributes of fasttx.nn, not modules of it."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fasttx
import fasttx.nn as nn

NAMES = ["init", "utils", "utils.rnn", "utils.parametrizations", "modules", "modules.loss", "parameter", "attention"]


@pytest.mark.parametrize("name", NAMES)
def test_an_attribute_is_the_module_of_torch(name: str) -> None:
    found = nn
    for part in name.split("."):
        found = getattr(found, part)
    assert found is importlib.import_module(f"torch.nn.{name}")


@pytest.mark.parametrize("name", [*NAMES, "nothing", "utils.nothing"])
def test_none_is_imported_under_our_name(name: str) -> None:
    with pytest.raises(ModuleNotFoundError, match="fasttx.nn"):
        importlib.import_module(f"fasttx.nn.{name}")


def test_a_program_in_a_fresh_process() -> None:
    """The first to use these names: nothing was imported for it, and no finder is left behind."""
    code = """
import sys
finders = list(sys.meta_path)
import fasttx.nn as nn
from fasttx.nn import init, utils
import torch, torch.nn.utils
assert nn.utils.clip_grad_norm_ is torch.nn.utils.clip_grad_norm_
assert utils is nn.utils is torch.nn.utils and init is torch.nn.init
assert nn.utils.rnn.pad_sequence is torch.nn.utils.rnn.pad_sequence and nn.Parameter is torch.nn.Parameter
from fasttx.nn.functional import softmax
import fasttx.nn.functional as F, fasttx.functional
assert softmax is F.softmax is fasttx.functional.softmax
assert not [f for f in sys.meta_path if type(f).__module__.startswith("fasttx")], sys.meta_path
assert not [n for n, m in sys.modules.items() if n.startswith("fasttx.nn.") and m.__name__ != n]
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(fasttx.__file__).parents[1])


def test_a_name_that_neither_has() -> None:
    with pytest.raises(AttributeError, match="neither fasttx.nn nor torch.nn has 'nothing'"):
        _ = nn.nothing


def test_files_of_ours_stay_ours() -> None:
    assert importlib.import_module("fasttx.nn.losses").__name__ == "fasttx.nn.losses"
    assert not hasattr(torch.nn, "losses")
