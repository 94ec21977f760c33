"""Every function in an exported program: PyTorch's own operators, and the same result."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from functional.test_error_names import CALLS
from torch import Tensor

import fasttx
from fasttx import functional


class _Call(torch.nn.Module):
    """One function, its tensors as inputs and whatever else as constants."""

    def __init__(self, name: str, arguments: dict[str, Any]) -> None:
        super().__init__()
        self.name = name
        self.options = {key: value for key, value in arguments.items() if not isinstance(value, Tensor)}

    def forward(self, **tensors: Tensor) -> Any:
        return getattr(functional, self.name)(**tensors, **self.options)


def _tensors(arguments: dict[str, Any]) -> dict[str, Tensor]:
    return {key: value for key, value in arguments.items() if isinstance(value, Tensor)}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("gradients", [False, True], ids=["inference", "gradients"])
@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("name", [name for name in CALLS if name not in ("unpad", "repad")])
def test_a_program_holds_nothing_of_ours(name: str, backend: str, gradients: bool) -> None:
    arguments = dict(CALLS[name])
    if "dropout_p" in arguments:
        arguments["dropout_p"] = 0.0
    if gradients and name == "int8_linear":
        pytest.skip("for inference alone: it has no gradient")
    differentiable = ("input", "query", "key", "value", "linear_weight")
    for key in differentiable if gradients else ():
        if isinstance(arguments.get(key), Tensor) and arguments[key].is_floating_point():
            arguments[key] = arguments[key].clone().requires_grad_()
    with fasttx.backend(backend):
        call, tensors = _Call(name, arguments), _tensors(arguments)
        program = torch.export.export(call, (), tensors, strict=False)
        want, got = call(**tensors), program.module()(**tensors)
    graphs = [m.graph for m in program.graph_module.modules() if isinstance(m, torch.fx.GraphModule)]
    assert not [node.target for graph in graphs for node in graph.nodes if "fasttx" in str(node.target)]
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["attention_varlen", "softmax", "dropout_add_layer_norm", "linear_gelu"])
def test_dropout_is_drawn_by_torch(name: str) -> None:
    arguments = {key: value for key, value in CALLS[name].items() if key != "rng_state"}
    with fasttx.backend("torch"):
        program = torch.export.export(_Call(name, arguments), (), _tensors(arguments), strict=False)
    assert not [node.target for node in program.graph.nodes if "fasttx" in str(node.target)]
    results = [program.module()(**_tensors(arguments)) for _ in range(2)]
    assert not torch.equal(*results)


class _CallOfDict(_Call):
    """The same, its tensors in one dictionary: torch.export takes no dynamic shapes of ``**tensors``."""

    def forward(self, tensors: dict[str, Tensor]) -> Any:
        return super().forward(**tensors)


NAMES = [name for name in CALLS if name not in ("unpad", "repad")]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [*NAMES, *(f"{name} dropout" for name in NAMES if "dropout_p" in CALLS[name])])
def test_sizes_of_a_program_stay_symbols(name: str) -> None:
    """Where the user says that sizes are dynamic: the number of rows is never made a constant."""
    name, _, dropout = name.partition(" ")
    arguments = dict(CALLS[name])
    if dropout:
        arguments = {key: value for key, value in arguments.items() if key not in ("rng_state", "row_index")}
    elif "dropout_p" in arguments:
        arguments["dropout_p"] = 0.0
    tensors = _tensors(arguments)
    sizes = {key: [torch.export.Dim.AUTO] * tensor.dim() for key, tensor in tensors.items()}
    with fasttx.backend("torch"):
        call = _CallOfDict(name, arguments)
        program = torch.export.export(call, (tensors,), dynamic_shapes={"tensors": sizes}, strict=False)
    first = next(iter(tensors))
    shape = next(node.meta["val"].shape for node in program.graph.nodes if node.name == f"tensors_{first}")
    assert not str(shape[0]).isdigit()  # a SymInt that was made a constant still is one
