"""What a captured model leaves as it was: calls that run as patched, release, copies, and models that are refused."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from models import model_zoo as zoo
from models.test_capture import FAMILIES, assert_right, bare, batch, hidden
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

import fasttx
from fasttx.models.capture.capture import FROZEN, Captured

OTHERS = [family for family in zoo.FAMILIES if family not in FAMILIES]


# ------------------------------------------------------------------------------------------------------ runs as patched


def fallback_of(captured: Captured, call: Any) -> str:
    before = dict(captured.stats["fallbacks"])
    call()
    found = {name: n - before.get(name, 0) for name, n in captured.stats["fallbacks"].items()}
    (reason,) = [name for name, n in found.items() if n]
    return reason


def test_calls_that_are_more_than_layers() -> None:
    plain = bare()
    inputs = batch(5, 3)
    with fasttx.capture(copy.deepcopy(plain)) as captured:
        model = captured.model
        for option, length in (("output_attentions", 2), ("output_hidden_states", 3)):
            name = option.removeprefix("output_")
            assert "asked for" in fallback_of(captured, lambda option=option: captured(**inputs, **{option: True}))
            assert len(captured(**inputs, **{option: True})[name]) == length
        assert "training" in fallback_of(captured, lambda: captured.model.train() and captured(**inputs))
        model.eval()
        model.encoder.layer[1].output.dropout.train()  # as for answers with dropout
        assert "training" in fallback_of(captured, lambda: captured(**inputs))
        model.eval()

        def under_autocast() -> None:
            with torch.autocast("cpu", torch.bfloat16):
                captured(**inputs)

        assert "autocast" in fallback_of(captured, under_autocast)
        seen: list[Any] = []
        with model.encoder.layer[0].output.register_forward_hook(lambda *given: seen.append(given)):
            assert "output has a hook" in fallback_of(captured, lambda: captured(**inputs))
        assert len(seen) == 1
        with register_module_forward_hook(lambda *given: None):
            assert "every module" in fallback_of(captured, lambda: captured(**inputs))
        assert_right(captured, plain, inputs)


def test_a_forward_of_its_own_is_called() -> None:
    with fasttx.capture(bare()) as captured:
        linear, calls = captured.model.encoder.layer[1].output.dense, []
        own = linear.forward
        linear.forward = lambda x: calls.append(1) or own(x)
        assert "dense has a hook or a forward" in fallback_of(captured, lambda: captured(**batch(4)))
        assert calls == [1]


def test_a_module_that_becomes_strange_runs_as_patched() -> None:
    class Doubled(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    plain = bare()
    with fasttx.capture(copy.deepcopy(plain)) as captured:
        for model in (plain, captured.model):
            old = model.encoder.layer[0].output.dense
            model.encoder.layer[0].output.dense = new = Doubled(old.in_features, old.out_features)
            new.load_state_dict(old.state_dict())
        for _ in range(2):
            assert "Doubled" in fallback_of(captured, lambda: captured(**batch(5, 3)))
        assert torch.allclose(captured(**batch(5)).last_hidden_state, plain(**batch(5)).last_hidden_state, atol=1e-5)


def test_hidden_states_of_another_dtype_run_as_patched() -> None:
    """Which is torch's error."""
    with fasttx.capture(bare()) as captured:
        captured.model.embeddings.to(torch.bfloat16)
        with pytest.raises(RuntimeError):
            captured(**batch(4))
        assert captured.stats["fallbacks"] == {"the hidden states are torch.bfloat16, the layers torch.float32": 1}


def test_a_graph_holds_what_is_patched() -> None:
    with fasttx.capture(bare()) as captured:
        want = hidden(captured.model, batch(6, 6))
        torch._dynamo.reset()
        compiled = torch.compile(captured.model, backend="eager", fullgraph=True)
        assert torch.allclose(hidden(compiled, batch(6, 6)), want, atol=1e-5)


# --------------------------------------------------------------------------------------------------- as it was before


def state_of(model: nn.Module) -> dict[str, Any]:
    return {name: (type(module), set(module.__dict__)) for name, module in model.named_modules()}


def test_release_puts_everything_back() -> None:
    model = bare()
    before, keys = state_of(model), list(model.state_dict())
    captured = fasttx.capture(model)
    assert list(model.state_dict()) == keys and fasttx.is_patched(model)
    captured(**batch(4, 2))
    captured.release()
    captured.release()
    assert state_of(model) == before
    assert captured.stats == {"encoders": 0, "calls": 0, "fallbacks": {}, "freezes": 0, "bytes": 0}


def test_a_patched_model_stays_patched() -> None:
    model = bare()
    fasttx.patch(model)
    before = state_of(model)
    with fasttx.capture(model):
        assert state_of(model) != before
    assert state_of(model) == before


def test_unpatch_ends_it() -> None:
    model = bare()
    before = state_of(model)
    captured = fasttx.capture(model)
    fasttx.unpatch(model)
    assert state_of(model) == before
    captured.release()
    assert state_of(model) == before


def test_again_captures_anew_and_the_first_one_is_over() -> None:
    model = bare()
    first = fasttx.capture(model)
    second = fasttx.capture(model)
    second(**batch(3))
    assert second.stats["calls"] == 1
    first.release()
    second.release()
    assert not fasttx.is_patched(model) and FROZEN not in model.encoder.__dict__


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_run_as_patched(copied: Any) -> None:
    model = bare()
    with fasttx.capture(model) as captured:
        other = copied(model)
        assert torch.allclose(hidden(other, batch(5, 3)), hidden(model, batch(5, 3)), atol=1e-5)
        assert captured.stats["calls"] == 1


def test_many_times() -> None:
    model = bare()
    before = state_of(model)
    for _ in range(50):
        with fasttx.capture(model) as captured:
            captured(**batch(3))
    assert state_of(model) == before


# ------------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize("family", OTHERS, ids=lambda family: family.name)
def test_other_layers_are_refused(family: Any) -> None:
    model = bare(family)
    before = state_of(model)
    with pytest.raises(ValueError, match=r"^model: got \w+; allowed is one whose encoder can be frozen: "):
        fasttx.capture(model)
    assert state_of(model) == before


def adapter(model: Any) -> None:
    model.encoder.layer[1].output.add_module("adapter", nn.Linear(32, 32))


def weights_of_inference(model: Any) -> None:
    with torch.inference_mode():
        model.encoder.layer[0].output.dense.weight = nn.Parameter(torch.zeros(32, 37), requires_grad=False)


def wide_norm(model: Any) -> None:
    model.encoder.layer[0].output.LayerNorm.double()


def some_int8(model: Any) -> None:
    fasttx.quantize(model, fasttx.Int8Config(skip=["*.0.attention.self.key"]))


@pytest.mark.parametrize(
    "change, reason",
    [
        (adapter, "layer 1 has a parameter output.adapter.weight, which is no part of a plain layer"),
        (weights_of_inference, "was made in inference mode, and cannot tell when it changes"),
        (wide_norm, "layer 0 has weights in torch.float32, torch.float64"),
        (some_int8, "layer 0: some of query, key and value are int8, others not"),
    ],
)
def test_what_cannot_be_frozen_is_said(change: Any, reason: str) -> None:
    model = bare()
    change(model)
    with pytest.raises(ValueError, match=reason):
        fasttx.capture(model)


@pytest.mark.parametrize("options", [{"unpad": False}, {"attention": False, "unpad": False}])
def test_an_encoder_that_the_patch_left_alone_is_refused(options: dict[str, bool]) -> None:
    model = bare()
    fasttx.patch(model, **options)
    with pytest.raises(ValueError, match="was patched with attention=True and unpad='auto' or True"):
        fasttx.capture(model)
    assert fasttx.is_patched(model)


def test_what_is_no_model_is_said() -> None:
    with pytest.raises(ValueError, match="^model: got int"):
        fasttx.capture(3)


def test_it_prints_what_it_did() -> None:
    with fasttx.capture(bare()) as captured:
        captured(**batch(4))
        captured(**batch(4), output_attentions=True)
        printed = str(captured)
    assert printed.startswith("fasttx.capture(BertModel): 1 frozen, 0 left alone, ")
    assert "1 calls frozen, 1 as patched" in printed and "1 x: attentions or hidden states" in printed


def test_explain_says_which_calls_run_frozen() -> None:
    model = bare()
    with fasttx.capture(model), torch.no_grad():
        assert "frozen" in str(fasttx.explain(model, batch(5, 3)))
