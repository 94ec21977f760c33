"""Imports from fasttx.nn by the names of torch.nn's submodules."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fasttx

NAMES = [
    "init",
    "utils",
    "utils.rnn",
    "utils.parametrizations",
    "modules",
    "modules.loss",
    "parameter",
    "parallel",
    "attention",
]


@pytest.mark.parametrize("name", NAMES)
def test_the_module_is_torchs_own(name: str) -> None:
    theirs = importlib.import_module(f"torch.nn.{name}")
    assert importlib.import_module(f"fasttx.nn.{name}") is theirs
    assert theirs.__name__ == theirs.__spec__.name == f"torch.nn.{name}"


def test_a_program_of_imports_in_a_fresh_process() -> None:
    """Before torch's own modules of these names were imported, and each but once."""
    code = """
import fasttx.nn as nn
from fasttx.nn.utils import clip_grad_norm_
from fasttx.nn.utils.rnn import pad_sequence
import fasttx.nn.init as init
from fasttx.nn.parameter import Parameter
import fasttx.nn.attention.flex_attention as flex
import torch.nn.attention.flex_attention, torch, sys, pickle
assert flex is torch.nn.attention.flex_attention and Parameter is torch.nn.Parameter and init is torch.nn.init
assert nn.utils is torch.nn.utils and pad_sequence is torch.nn.utils.rnn.pad_sequence
from fasttx.nn.functional import softmax
import fasttx.nn.functional as F, fasttx.functional
assert softmax is F.softmax is fasttx.functional.softmax
here = {n: m for n, m in list(sys.modules.items()) if n.startswith("fasttx.nn.")}
files = [m.__file__ for m in here.values() if getattr(m, "__file__", None)]
assert len(set(files)) == len(files), sorted(files)
assert not [n for n, m in here.items() if m.__name__ not in (n, "torch" + n[6:])]
assert pickle.loads(pickle.dumps(pad_sequence)) is pad_sequence
import importlib
importlib.reload(nn)
assert sum(type(f).__module__ == "fasttx.nn.submodules" for f in sys.meta_path) == 1
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(fasttx.__file__).parents[1])


@pytest.mark.parametrize("name", ["nothing", "utils.nothing", "init.nothing", "nothing.at_all"])
def test_a_name_that_neither_has(name: str) -> None:
    with pytest.raises(ModuleNotFoundError, match="fasttx.nn"):
        importlib.import_module(f"fasttx.nn.{name}")


def test_files_of_ours_stay_ours() -> None:
    assert importlib.import_module("fasttx.nn.losses").__name__ == "fasttx.nn.losses"
    assert not hasattr(torch.nn, "losses")
