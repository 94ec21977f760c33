"""Captured encoders compute what they compute unfrozen, never by old weights, and leave a model as it was."""

from __future__ import annotations

import collections
import copy
import platform
from typing import Any

import pytest
import torch
from models import model_zoo as zoo
from models.accuracy import assert_as_accurate
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import fasttx
from fasttx.models.capture import frozen, products
from fasttx.models.capture.capture import Captured
from fasttx.models.padding.encoder import Encoder

FAMILIES = [family for family in zoo.TEXT_FAMILIES if any(encoder.parts for encoder in family.roles(Encoder).values())]
HEADS = [
    (family, cls) for family, cls in zoo.TEXT_CLASSES if family in FAMILIES and "causal_lm" != family.heads.get(cls)
]
BATCHES = {"ragged": (11, 4, 7), "full": (9, 9), "one": (6,), "one token": (1,)}


def bare(family: Any = zoo.BERT, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    return zoo.tiny_model(family, family.bare, **changes).to(dtype)


def batch(*lengths: int) -> dict[str, Tensor]:
    ids = torch.randint(2, zoo.VOCAB, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(1))
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return {"input_ids": torch.where(mask, ids, 1), "attention_mask": mask.long()}


def hidden(model: Any, inputs: dict[str, Any]) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(**inputs).last_hidden_state
    return found[inputs["attention_mask"].bool()]


def assert_right(captured: Captured, plain: Any, inputs: dict[str, Tensor], calls: int = 1) -> None:
    """The accuracy rule at real tokens; and that this call did run frozen."""
    before = captured.stats["calls"]
    found = captured(**inputs).last_hidden_state[inputs["attention_mask"].bool()]
    assert captured.stats["calls"] - before == calls, captured
    assert_as_accurate(found, hidden(plain, inputs), hidden(zoo.double_of(plain), inputs), "hidden states")


# ----------------------------------------------------------------------------------------------------------- numbers


@pytest.fixture(params=[True, False], ids=["laid out", "F.linear"])
def product(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With oneDNN's own layout of weights, and as where there is none."""
    if request.param and not products.lays_out(torch.float32):
        pytest.skip("this build of PyTorch has no oneDNN")
    if not request.param:
        monkeypatch.setattr(frozen, "lays_out", lambda dtype: False)


@pytest.mark.usefixtures("product")
@pytest.mark.parametrize("unpad", ["auto", True])
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_family(family: Any, unpad: Any) -> None:
    plain = bare(family)
    model = copy.deepcopy(plain)
    fasttx.patch(model, unpad=unpad)
    with fasttx.capture(model) as captured:
        for lengths in BATCHES.values():
            assert_right(captured, plain, batch(*lengths))
        found = captured(**batch(*BATCHES["ragged"]))
        assert type(found) is type(plain(**batch(2)))
        assert found.last_hidden_state[1, 4:].eq(0).all()
        assert not captured.stats["fallbacks"]


@pytest.mark.usefixtures("product")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_dtypes(dtype: torch.dtype) -> None:
    plain = bare(dtype=dtype)
    with fasttx.capture(copy.deepcopy(plain)) as captured:
        for lengths in BATCHES.values():
            assert_right(captured, plain, batch(*lengths))


@pytest.mark.parametrize("act", ["gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu"])
def test_activations(act: str) -> None:
    plain = bare(hidden_act=act)
    with fasttx.capture(copy.deepcopy(plain)) as captured:
        assert_right(captured, plain, batch(5, 3))


def test_groups_of_layers_that_share_weights() -> None:
    family = zoo.BY_NAME["ALBERT"]
    plain = bare(family, num_hidden_layers=6, num_hidden_groups=3, inner_group_num=2)
    with fasttx.capture(copy.deepcopy(plain)) as captured:
        assert_right(captured, plain, batch(7, 5))
        assert captured.stats["bytes"] > 0 or not frozen.lays_out(torch.float32)


def test_layers_without_biases() -> None:
    plain = bare()
    for layer in plain.encoder.layer:
        layer.attention.self.key.bias = None
        layer.output.dense.bias = None
    with fasttx.capture(copy.deepcopy(plain)) as captured:
        assert_right(captured, plain, batch(5, 3))


@pytest.mark.parametrize("family, cls", HEADS, ids=[cls for _, cls in HEADS])
def test_every_head(family: Any, cls: str) -> None:
    plain = zoo.tiny_model(family, cls)
    inputs = zoo.inputs_for(family, cls)
    patched = copy.deepcopy(plain)
    fasttx.patch(patched)
    with torch.no_grad(), fasttx.capture(copy.deepcopy(plain)) as captured:
        found, same = captured(**inputs), patched(**inputs)
        exact = zoo.double_of(plain)(**zoo.to_double(inputs))
        assert captured.stats["calls"] == 1
    assert list(found) == list(same)
    for name, value in found.items():
        if isinstance(value, Tensor):
            assert_as_accurate(value, same[name], exact[name], name)


class Operators(TorchDispatchMode):
    """Counts PyTorch's operators by name."""

    def __init__(self) -> None:
        super().__init__()
        self.found: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found[str(func).split(".")[1]] += 1
        return func(*args, **(kwargs or {}))


def operators_of_a_layer(captured: bool) -> collections.Counter[str]:
    """What one layer more makes one more of."""
    found = []
    for layers in (2, 3):
        model = bare(num_hidden_layers=layers)
        if captured:
            fasttx.capture(model)
        hidden(model, batch(6))
        with Operators() as seen:
            hidden(model, batch(6))
        found.append(seen.found)
    return found[1] - found[0]


@pytest.mark.skipif(not products.lays_out(torch.float32), reason="this build of PyTorch has no oneDNN")
def test_a_layer_makes_few_calls() -> None:
    """The numbers of docs/capture.md: seven that compute for twelve, 12 with reshapes for 38."""
    reshapes = {"view", "t", "transpose", "permute", "unbind"}
    for captured, computing, total in ((True, 7, 12), (False, 12, 38)):
        found = operators_of_a_layer(captured)
        assert sum(n for name, n in found.items() if name not in reshapes) == computing, found
        assert sum(found.values()) == total, found


def test_rows_that_are_all_padding_and_padding_on_the_left() -> None:
    plain = bare()
    model = copy.deepcopy(plain)
    fasttx.patch(model, unpad=True)
    inputs = batch(6, 6, 6)
    inputs["attention_mask"][0] = 0
    inputs["attention_mask"][1, :3] = 0
    with fasttx.capture(model) as captured:
        assert_right(captured, plain, inputs)


def test_a_batch_that_stays_padded() -> None:
    """Padding on the left is not packed by itself: the mask hides it."""
    plain = bare()
    inputs = batch(6, 6)
    inputs["attention_mask"][0, :3] = 0
    model = copy.deepcopy(plain)
    fasttx.patch(model)
    with fasttx.capture(model) as captured:
        assert_right(captured, plain, inputs)
        assert captured(**inputs).last_hidden_state[0, :3].ne(0).all()


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="oneDNN is what PyTorch has on x86-64")
def test_weights_are_laid_out_here() -> None:
    """Else every test of it would be skipped: what is wrong there falls back to F.linear."""
    products.lays_out.cache_clear()
    assert products.lays_out(torch.float32) == torch.backends.mkldnn.is_available()


def test_products_that_are_wrong_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    products.lays_out.cache_clear()
    plain = products._plain
    monkeypatch.setattr(products, "_binary", lambda x, residual, w, b, how: plain(x, w, b, "none", [], ""))
    assert not products.lays_out(torch.float32)
    monkeypatch.undo()
    products.lays_out.cache_clear()


# ------------------------------------------------------------------------------------------------ never by old weights


def change_in_place(model: Any) -> None:
    model.encoder.layer[1].output.dense.weight.data.mul_(2)


def change_of_a_transposed_weight(model: Any) -> None:
    model.encoder.layer[1].attention.output.dense.weight.data.neg_()


def one_element(model: Any) -> None:
    """None of the values that are looked at: its version tells."""
    with torch.no_grad():
        model.encoder.layer[0].attention.self.value.weight.view(-1)[1] += 3.0


def change_under_no_grad(model: Any) -> None:
    with torch.no_grad():
        model.encoder.layer[0].attention.output.LayerNorm.bias.add_(1.0)


def load(model: Any) -> None:
    model.load_state_dict({name: value * 1.5 for name, value in model.state_dict().items()}, strict=False)


def another_parameter(model: Any) -> None:
    linear = model.encoder.layer[0].attention.self.query
    linear.weight = nn.Parameter(linear.weight.detach() * 3)


def another_storage(model: Any) -> None:
    linear = model.encoder.layer[0].intermediate.dense
    linear.weight.data = linear.weight.data * 2


def another_layer(model: Any) -> None:
    model.encoder.layer[0] = copy.deepcopy(model.encoder.layer[1])


def another_module(model: Any) -> None:
    linear = nn.Linear(32, 32)
    nn.init.ones_(linear.weight)
    model.encoder.layer[0].attention.output.dense = linear


def one_layer_less(model: Any) -> None:
    del model.encoder.layer[1]


def narrower(model: Any) -> None:
    model.to(torch.bfloat16)


CHANGES = [
    change_in_place,
    change_of_a_transposed_weight,
    one_element,
    change_under_no_grad,
    load,
    another_parameter,
    another_storage,
    another_layer,
    another_module,
    one_layer_less,
    narrower,
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_weights_is_seen(change: Any) -> None:
    plain = bare()
    dense = plain.encoder.layer[1].attention.output.dense
    dense.weight = nn.Parameter(dense.weight.detach().t().contiguous().t())
    with fasttx.capture(copy.deepcopy(plain)) as captured:
        assert_right(captured, plain, batch(5, 3))
        for model in (plain, captured.model):
            torch.manual_seed(3)
            change(model)
        assert_right(captured, plain, batch(5, 3))
        assert captured.stats["freezes"] == 2


def test_a_step_of_an_optimizer_is_seen() -> None:
    plain = bare()
    with fasttx.capture(copy.deepcopy(plain)) as captured:
        captured(**batch(5, 3))
        for model in (plain, captured.model):
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            model(**batch(4, 4)).last_hidden_state.square().mean().backward()
            optimizer.step()
        assert captured.stats["fallbacks"] == {
            "gradients are recorded: call it under torch.no_grad() or torch.inference_mode()": 1
        }
        assert_right(captured, plain, batch(5, 3))
