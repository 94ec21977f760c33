"""One draw of dropout's states a call of a model, and the same states where a layer is run again for its gradient."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import model_zoo as zoo
from torch import Tensor
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.utils._python_dispatch import TorchDispatchMode

import fasttx
from fasttx.models.dropout import HANDED
from fasttx.ops.dropout import state

LAYERS = 2
PLACES = 1 + 3 * LAYERS
"""The embeddings; attention and both ends of a half of each layer."""


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(seed, offset) of each place that dropped something since, in order."""
    found: list[tuple[int, int]] = []
    original = state.new_rng_state

    def noting(device: torch.device) -> Tensor:
        given = original(device)
        found.append(tuple(given.tolist()))
        return given

    for name in ("_dropout_add_layer_norm", "_embedding_layer_norm", "_gelu", "_softmax"):
        monkeypatch.setattr(f"fasttx.functional.{name}.new_rng_state", noting)
    for name in ("autograd", "layouts"):
        monkeypatch.setattr(f"fasttx.functional.attention.{name}.new_rng_state", noting)
    return found


def patched(**options: Any) -> Any:
    """A BERT whose every dropout is fasttx's, in training."""
    dropout = {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.3}
    model = zoo.tiny_model(zoo.BERT, "BertModel", num_hidden_layers=LAYERS, **dropout).train()
    fasttx.patch(model, backend="triton", **options)
    return model


def batch() -> dict[str, Tensor]:
    return zoo.inputs_for(zoo.BERT, "BertModel")


def gradients(model: Any, seed: int = 7) -> list[Tensor]:
    model.zero_grad()
    torch.manual_seed(seed)
    model(**batch()).last_hidden_state.square().sum().backward()
    return [p.grad for p in model.parameters() if p.grad is not None]


class Drawn(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.times = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.times += func is torch.ops.fasttx.rng_state.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("unpad", [False, True])
def test_a_call_of_a_model_draws_once(unpad: bool, taken: list[tuple[int, int]]) -> None:
    model = patched(unpad=unpad)
    with Drawn() as drawn:
        model(**batch()).last_hidden_state.sum().backward()
    assert drawn.times == 1
    assert len(taken) == PLACES
    seed, offset = taken[0]
    assert taken == [(seed, offset + n) for n in range(PLACES)]
    with torch.no_grad():
        model(**batch())
        model(**batch())
    assert len(set(taken)) == 3 * PLACES  # nor are two of different calls equal
    assert len({seed for seed, _ in taken}) == 3
    taken.clear()
    model.eval()(**batch())
    assert not taken


def test_the_draw_follows_manual_seed(taken: list[tuple[int, int]]) -> None:
    model = patched()
    first, second, other = gradients(model), gradients(model), gradients(model, seed=8)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert taken[:PLACES] == taken[PLACES : 2 * PLACES] != taken[2 * PLACES :]


@pytest.mark.parametrize(
    "unpad, use_reentrant",
    [
        (True, False),
        *(pytest.param(*each, marks=pytest.mark.slow) for each in [(False, False), (False, True), (True, True)]),
    ],
)
def test_checkpointed_layers_drop_what_others_drop(
    use_reentrant: bool, unpad: bool, taken: list[tuple[int, int]]
) -> None:
    model = patched(unpad=unpad)
    expected, states = gradients(model), list(taken)
    taken.clear()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
    if use_reentrant:
        model.enable_input_require_grads()
    found = gradients(model)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert taken[:PLACES] == states
    again = [states[1 + 3 * layer :][:3] for layer in reversed(range(LAYERS))]  # the last layer first
    assert taken[PLACES:] == again[0] + again[1]


@pytest.mark.parametrize("path", ["encoder.layer.{}", "encoder.layer.{}.attention", "encoder.layer.{}.output"])
@pytest.mark.parametrize("reentrant", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_checkpoint_that_nobody_announced_drops_the_same_twice(
    path: str, reentrant: bool, taken: list[tuple[int, int]]
) -> None:
    """Its part draws for itself, and PyTorch rewinds the generator for it."""

    class Rerun(torch.nn.Module):
        def __init__(self, part: torch.nn.Module) -> None:
            super().__init__()
            self.part = part

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            def run(*args: Any) -> Any:
                return self.part(*args, **kwargs)

            return torch.utils.checkpoint.checkpoint(run, *args, use_reentrant=reentrant)

    model = patched(unpad=False)
    for layer in range(LAYERS):
        name = path.format(layer)
        part = model.get_submodule(name)
        model.set_submodule(name, Rerun(part) if reentrant else checkpoint_wrapper(part))
    gradients(model)
    first, again = taken[:PLACES], taken[PLACES:]
    assert len(first) == len(set(first)) and again
    assert len(again) == len(set(again)) and set(again) <= set(first)


def test_the_whole_model_may_be_checkpointed(taken: list[tuple[int, int]]) -> None:
    model = patched()
    expected = gradients(model)
    taken.clear()
    model.zero_grad()
    torch.manual_seed(7)
    embeddings = torch.ones((), requires_grad=True)

    def run(one: Tensor) -> Tensor:
        return model(**batch()).last_hidden_state * one

    torch.utils.checkpoint.checkpoint(run, embeddings, use_reentrant=True).square().sum().backward()
    for a, b in zip([p.grad for p in model.parameters() if p.grad is not None], expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert taken[:PLACES] == taken[PLACES:]


def test_layers_and_modules_called_alone_draw_for_themselves(taken: list[tuple[int, int]]) -> None:
    model = patched(unpad=False)
    hidden = torch.randn(2, 5, model.config.hidden_size)
    layer = model.encoder.layer[0]
    layer(hidden)
    layer(hidden)
    assert len({seed for seed, _ in taken}) == len(taken) == 6


def test_an_error_leaves_nothing_behind(taken: list[tuple[int, int]]) -> None:
    model = patched()

    def fail(*_: Any) -> None:
        raise RuntimeError("on purpose")

    handle = model.encoder.layer[1].output.register_forward_pre_hook(fail)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="on purpose"):
            model(**batch())
    handle.remove()
    assert state.calls.running is None
    taken.clear()
    model.encoder.layer[0](torch.randn(1, 3, model.config.hidden_size))
    assert len({seed for seed, _ in taken}) == 3


@pytest.mark.slow
def test_models_in_models_and_models_of_several_share_nothing(taken: list[tuple[int, int]]) -> None:
    class Two(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = patched(), patched()

        def forward(self) -> Any:
            return self.first(**batch()), self.second(**batch()), self.first(**batch())

    Two()()
    assert len(set(taken)) == len(taken) == 3 * PLACES
    assert state.calls.running is None

    inner, outer = patched(), patched()
    taken.clear()

    def hook(*_: Any) -> None:
        inner(**batch())

    outer.encoder.layer[0].output.register_forward_pre_hook(hook)
    outer(**batch())
    assert len(set(taken)) == len(taken) == 2 * PLACES


def test_threads_share_no_draw(taken: list[tuple[int, int]]) -> None:
    model = patched(unpad=False)
    together = threading.Barrier(2, timeout=60)
    seen: dict[str, list[Any]] = {"a": [], "b": []}
    original: Callable[..., Any] = state._Call.take

    def slowly(self: Any, device: torch.device) -> Any:
        together.wait()
        given = original(self, device)
        seen[threading.current_thread().name].append(tuple(given.tolist()))
        return given

    with pytest.MonkeyPatch.context() as patching:
        patching.setattr(state._Call, "take", slowly)
        for name in ("_layer_norm", "_embedding_layer_norm", "_gelu", "attention.autograd"):
            module = importlib.import_module(f"fasttx.functional.{name}")
            run = module._fwd  # Triton's interpreter knows one thread only
            patching.setattr(module, "_fwd", lambda *args, run=run: run(*args[:-1], "torch"))
        threads = [threading.Thread(target=lambda: model(**batch()), name=name) for name in seen]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(seen["a"]) == len(seen["b"]) == PLACES
    assert len({seed for seed, _ in seen["a"]}) == len({seed for seed, _ in seen["b"]}) == 1
    assert not set(seen["a"]) & set(seen["b"])


@pytest.mark.slow
def test_a_layer_shows_its_states_to_nobody() -> None:
    """The argument that a checkpointed layer gets does not reach transformers' forwards."""
    model = patched(unpad=False)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    seen: list[str] = []
    for module in model.encoder.layer[0].children():
        module.register_forward_pre_hook(lambda m, args, kwargs: seen.extend(kwargs), with_kwargs=True)
    gradients(model)
    assert seen and HANDED not in seen


# --------------------------------------------------------------------------------------------------------- in a graph


def compiled(model: Any) -> tuple[Any, list[Any]]:
    graphs: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph

    return torch.compile(model, backend=backend, fullgraph=True), graphs


def draws_in(graph: Any) -> int:
    found = 0
    for module in graph.modules():
        for node in getattr(getattr(module, "graph", None), "nodes", ()):
            found += node.target is torch.ops.fasttx.rng_state.default
    return found


@pytest.mark.slow
def test_a_graph_holds_one_draw_and_each_call_has_other_masks() -> None:
    model = patched(unpad=False)
    run, graphs = compiled(model)
    inputs = batch()
    first, second = run(**inputs).last_hidden_state, run(**inputs).last_hidden_state
    assert [draws_in(graph) for graph in graphs] == [1]
    assert not torch.equal(first, second)
    torch.manual_seed(3)
    first = run(**inputs).last_hidden_state
    torch.manual_seed(3)
    assert torch.equal(run(**inputs).last_hidden_state, first)
    torch.manual_seed(3)
    torch.testing.assert_close(model(**inputs).last_hidden_state, first)
    assert state.calls.traced is None


@pytest.mark.slow
def test_a_graph_with_checkpoints_draws_within_them() -> None:
    model = patched(unpad=False)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    run, graphs = compiled(model)
    out = run(**batch(), use_cache=False).last_hidden_state  # or transformers warns, which breaks a graph
    assert sum(draws_in(graph) for graph in graphs) == PLACES
    out.square().sum().backward()


@pytest.mark.slow
def test_a_broken_graph_lets_no_part_take_another_draw(taken: list[tuple[int, int]]) -> None:
    """A part that eager code checkpoints between two graphs draws for itself."""
    model = patched(unpad=False)
    part = model.encoder.layer[0].output
    model.encoder.layer[0].output = checkpoint_wrapper(part)
    torch._dynamo.reset()
    run = torch.compile(model, backend="eager")
    torch.manual_seed(0)
    run(**batch()).last_hidden_state.square().sum().backward()
    assert state.calls.traced is None
    expected, model.encoder.layer[0].output = [p.grad.clone() for p in part.parameters()], part
    assert all(torch.isfinite(grad).all() for grad in expected)
