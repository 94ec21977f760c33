"""Every function and a patched model under FakeTensorMode: shapes alone, no value is asked for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from functional.test_error_names import CALLS
from torch import Tensor
from torch._subclasses import FakeTensorMode

import fasttx
import fasttx.nn as nn
from fasttx import functional


def _shapes(found: Any) -> list[Any]:
    found = found if isinstance(found, tuple) else (found,)
    return [(tuple(x.shape), x.dtype) if isinstance(x, Tensor) else x for x in found]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("name", [name for name in CALLS if name != "unpad"])
def test_a_function_gives_the_shapes_that_it_gives_of_real_tensors(name: str, backend: str) -> None:
    function, arguments = getattr(functional, name), CALLS[name]
    mode = FakeTensorMode()
    for gradients in (False, True):

        def given(value: Any, gradients: bool = gradients) -> Any:
            if not isinstance(value, Tensor):
                return value
            return value.detach().clone().requires_grad_(gradients and value.is_floating_point())

        options = {
            key: given(value, gradients and key in ("input", "query", "key", "value", "packed", "linear_weight"))
            for key, value in arguments.items()
        }
        with fasttx.backend(backend):
            wanted = _shapes(function(**options))
            fakes = {k: mode.from_tensor(v) if isinstance(v, Tensor) else v for k, v in options.items()}
            with mode:
                assert _shapes(function(**fakes)) == wanted


@pytest.mark.parametrize("shape", [(2, 1, 1, 5), (2, 1, 5, 5)], ids=str)
def test_masks_of_attention_are_not_read(shape: tuple[int, ...]) -> None:
    for gradients in (False, True):
        with FakeTensorMode():
            x = torch.randn(2, 4, 5, 8, requires_grad=gradients)
            mask = torch.ones(shape, dtype=torch.bool)
            for dropout_p in (0.0, 0.5):
                assert functional.scaled_dot_product_attention(x, x, x, mask, dropout_p).shape == x.shape


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_modules_read_no_mask() -> None:
    hidden = torch.tensor([[False] * 5, [False, False, True, True, True]])
    for training in (False, True):
        encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2).train(training)
        with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.set_grad_enabled(training):
            x = torch.randn(2, 5, 16)
            assert encoder(x, src_key_padding_mask=mode.from_tensor(hidden)).shape == x.shape
            assert encoder(x, mode.from_tensor(torch.zeros(5, 5))).shape == x.shape
            if training:
                encoder(x).sum().backward()


def test_unpad_says_what_it_misses() -> None:
    with FakeTensorMode(), pytest.raises(ValueError, match="unpad: mask: got a Tensor whose values cannot be read"):
        functional.unpad(torch.randn(2, 3, 4), torch.ones(2, 3, dtype=torch.bool))
