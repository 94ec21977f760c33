"""binary_cross_entropy_with_logits and BCEWithLogitsLoss, beside torch's own."""

from __future__ import annotations

import copy
import itertools
import pickle
from typing import Any

import pytest
import torch
from nn.losses_beside_torch import BCE, same

import fasttx.nn as fasttx_nn
from fasttx.ops.backends import backend
from fasttx.ops.checks import FLOATS as DTYPES
from fasttx.ops.registry import LAUNCHES


@pytest.fixture(autouse=True)
def _clear() -> None:
    LAUNCHES.clear()
    torch._dynamo.reset()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_binary_cross_entropy(dtype: torch.dtype, device: torch.device) -> None:
    x, y = torch.randn(3, 5).to(device, dtype), torch.rand(3, 5).to(device, dtype)
    weights = [None, torch.rand(5).to(device, dtype), torch.rand(3, 1).to(device, dtype)]
    with backend("triton"):
        for weight, pos_weight, reduction in itertools.product(weights, weights, ("none", "mean", "sum")):
            same(*BCE, x, y, weight, reduction=reduction, pos_weight=pos_weight)
    assert LAUNCHES["binary_cross_entropy_bwd", "triton"] == 27


@pytest.mark.parametrize(
    "options",
    [{}, {"weight": torch.rand(5), "pos_weight": torch.rand(5)}, {"reduction": "none"}],
    ids="-".join,
)
def test_bce_with_logits_loss_is_a_module_of_torch(options: dict[str, Any], device: torch.device) -> None:
    fasttx_module, torch_module = (
        fasttx_nn.BCEWithLogitsLoss(**options).to(device),
        torch.nn.BCEWithLogitsLoss(**options).to(device),
    )
    assert isinstance(fasttx_module, torch.nn.BCEWithLogitsLoss) and repr(fasttx_module) == repr(torch_module)
    assert fasttx_module.state_dict().keys() == torch_module.state_dict().keys()
    x = torch.randn(3, 5, device=device)
    with backend("triton"):
        for module in (fasttx_module, copy.deepcopy(fasttx_module), pickle.loads(pickle.dumps(fasttx_module))):
            same(module, torch_module, x, torch.rand_like(x))
    assert LAUNCHES["binary_cross_entropy_fwd", "triton"] == 3
