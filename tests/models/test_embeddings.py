"""The embeddings of every family in one kernel: where they run, and where their children are called unfused."""

from __future__ import annotations

import copy
import inspect
import pickle
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from models import model_zoo as zoo
from models.accuracy import assert_as_accurate, assert_gradients_as_accurate
from torch import Tensor, nn

import fasttx
from fasttx.functional._embedding_layer_norm import embed
from fasttx.models.fusions import embeddings, fusion
from fasttx.models.fusions.fusion import Fusion
from fasttx.models.transformers_names import CACHE_LENGTH
from fasttx.ops.registry import LAUNCHES

pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # numpy's, in rows beyond the tensor
FUSED: list[tuple[int, ...]] = []
FAMILIES = [
    family
    for family in zoo.TEXT_FAMILIES
    if any(fusion.op == "embedding_layer_norm" for fusion in family.roles(Fusion).values())
]
ROBERTA = next(family for family in FAMILIES if family.name == "RoBERTa")
ERNIE = next(family for family in FAMILIES if family.name == "ERNIE")
every_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


@pytest.fixture(autouse=True)
def _count(monkeypatch: pytest.MonkeyPatch) -> None:
    """FUSED gets the shape of the ids of each fused call."""
    FUSED.clear()

    def counted(input: Tensor, *rest: Any) -> Tensor:
        FUSED.append(tuple(input.shape))
        return embed(input, *rest)

    monkeypatch.setattr(embeddings, "embed", counted)


def model_of(family: Any, **changes: Any) -> Any:
    """Its bare model, with an eps that is seen in the result; ELECTRA's tables are narrower than the rest."""
    changes = {"layer_norm_eps": 0.1} | ({"embedding_size": 20} if family.name == "ELECTRA" else {}) | changes
    return zoo.tiny_model(family, family.bare, **changes)


def part_of(model: Any) -> Any:
    return next(m for name, m in model.named_modules() if name.split(".")[-1] == "embeddings")


def calls(module: Any = None) -> dict[str, dict[str, Any]]:
    """Arguments of embeddings, or those of them that `module` takes."""
    taken = None if module is None else inspect.signature(module.forward).parameters
    if taken is not None:
        return {
            name: {argument: value for argument, value in call.items() if argument in taken}
            for name, call in calls().items()
        }
    ids = zoo.inputs_for(zoo.BERT, "BertModel")["input_ids"]
    types = (torch.arange(ids.numel()) % 2).view(ids.shape)
    return {
        "ids": {"input_ids": ids},
        "types": {"input_ids": ids, "token_type_ids": types},
        "positions": {"input_ids": ids, "position_ids": (torch.arange(11) + 3)[None], "token_type_ids": types},
        "positions of each": {"input_ids": ids, "position_ids": torch.arange(33).view(3, 11)},
        "past": {"input_ids": ids, past_name(): 5},
    }


def past_name() -> str:
    """transformers has renamed it within version 5."""
    names = inspect.signature(transformers.models.bert.modeling_bert.BertEmbeddings.forward).parameters
    return next(name for name in CACHE_LENGTH if name in names)


def run_with_gradients(module: Any, call: Callable[[Any], Tensor], dout: Tensor) -> dict[str, Tensor]:
    module.zero_grad()
    out = call(module)
    out.backward(dout.to(out.dtype))
    return {"out": out.detach()} | {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}


def hold(found: dict[str, Tensor], same: dict[str, Tensor], exact: dict[str, Tensor]) -> None:
    assert found.keys() == same.keys() == exact.keys()
    assert_as_accurate(found["out"], same["out"], exact["out"])
    assert_gradients_as_accurate(*({n: x for n, x in run.items() if n != "out"} for run in (found, same, exact)))


@pytest.mark.parametrize("backend", ["triton", "torch", "auto"])
@every_family
def test_every_family_gives_its_own_embeddings_and_gradients(family: Any, backend: str) -> None:
    plain = part_of(model_of(family)).train()
    model = model_of(family)
    report = fasttx.patch(model, backend=backend)
    (row,) = [row for row in report.replaced if row.after == "embedding_layer_norm"]
    assert row.module == "embeddings" and row.backend == ("triton" if backend == "triton" else "torch")
    module = part_of(model).train()
    assert type(module) is not type(plain) and type(module).__name__ == type(plain).__name__
    exact = copy.deepcopy(plain).double()
    dout = torch.randn(3, 11, plain.LayerNorm.weight.shape[0])
    for number, given in enumerate(calls(plain).values(), 1):
        found, same, reference = (
            run_with_gradients(m, lambda m, g=given: m(**g), dout) for m in (module, plain, exact)
        )
        assert len(FUSED) == (0 if backend == "torch" else number)
        hold(found, same, reference)
        tables = sum(isinstance(m, nn.Embedding) for m in plain.modules())
        assert len(found) == tables + 3 and not found["word_embeddings.weight"][1].any()  # the padding
    given = calls(plain)["positions"]
    names = list(inspect.signature(plain.forward).parameters)
    positional = module(*(given.get(name) for name in names[: names.index("position_ids") + 1]))
    torch.testing.assert_close(positional, plain(**given), rtol=1e-4, atol=1e-5)


@every_family
def test_every_family_gives_its_own_outputs_and_gradients(family: Any) -> None:
    plain, model = model_of(family).train(), model_of(family)
    exact = zoo.double_of(plain)
    fasttx.patch(model.train())
    inputs = zoo.inputs_for(family, family.bare) | calls(part_of(plain))["types"]
    real = inputs["attention_mask"].bool()
    dout = torch.randn(int(real.sum()), 32)
    found, same, reference = (
        run_with_gradients(m, lambda m: m(**inputs).last_hidden_state[real], dout) for m in (model, plain, exact)
    )
    assert FUSED == [(3, 11)]
    hold(found, same, reference)


@every_family
def test_dropout_in_training(family: Any) -> None:
    plain, model = (model_of(family, hidden_dropout_prob=0.5).train() for _ in range(2))
    fasttx.patch(model)
    given = calls(part_of(plain))["types"]
    outs = []
    for m in (plain, model):
        torch.manual_seed(3)
        outs.append(part_of(m)(**given))
    assert len(FUSED) == 1
    torch.testing.assert_close(*outs, rtol=1e-5, atol=1e-6)  # torch's mask, on a CPU
    fasttx.patch(model, backend="triton")
    full = part_of(plain).eval()(**given)
    torch.manual_seed(3)
    first, second = (part_of(model)(**given) for _ in range(2))
    torch.manual_seed(3)
    assert torch.equal(first, part_of(model)(**given)) and not torch.equal(first, second)
    kept = first != 0
    assert abs(float(kept.double().mean()) - 0.5) < 0.1
    torch.testing.assert_close(first[kept], 2 * full[kept], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(part_of(model).eval()(**given), full, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", [zoo.BERT, ROBERTA], ids=lambda family: family.name)
@pytest.mark.parametrize("backend", ["auto", "triton"])
def test_fullgraph(family: Any, backend: str) -> None:
    torch._dynamo.reset()
    model = model_of(family)
    fasttx.patch(model, backend=backend)
    module, dout = part_of(model), torch.randn(3, 11, 32)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    given = calls()["ids"]
    want = run_with_gradients(module, lambda m: m(**given), dout)
    got = run_with_gradients(module, lambda m: compiled(**given), dout)
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, rtol=1e-5, atol=1e-6)


def test_given_embeddings_take_transformers_forward() -> None:
    plain = model_of(zoo.BERT)
    model = copy.deepcopy(plain)
    fasttx.patch(model, backend="triton")
    given = torch.randn(3, 11, 32)
    assert torch.equal(part_of(model)(inputs_embeds=given), part_of(plain)(inputs_embeds=given)) and not FUSED


class MyEmbedding(nn.Embedding):
    """A user's table."""


def _own_table(module: Any) -> None:
    old = module.word_embeddings
    module.word_embeddings = MyEmbedding(old.num_embeddings, old.embedding_dim, old.padding_idx)
    module.word_embeddings.load_state_dict(old.state_dict())


CHANGES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "subclass": (_own_table, "word_embeddings is a .*MyEmbedding"),
    "forward hook": (lambda m: m.word_embeddings.register_forward_hook(lambda *_: None), "word_embeddings has hooks"),
    "backward hook": (
        lambda m: m.position_embeddings.register_full_backward_hook(lambda *_: None),
        "position_embeddings has hooks",
    ),
    "norm hook": (lambda m: m.LayerNorm.register_forward_pre_hook(lambda *_: None), "LayerNorm has hooks"),
    "parametrised": (
        lambda m: nn.utils.parametrize.register_parametrization(m.token_type_embeddings, "weight", nn.Identity()),
        "token_type_embeddings is a .*Parametrized",
    ),
    "own forward": (lambda m: setattr(m.dropout, "forward", m.dropout.forward), "dropout has a forward of its own"),
    "max_norm": (lambda m: setattr(m.word_embeddings, "max_norm", 1.0), "word_embeddings has max_norm"),
    "sparse": (lambda m: setattr(m.word_embeddings, "sparse", True), "word_embeddings has sparse"),
    "frequency": (
        lambda m: setattr(m.word_embeddings, "scale_grad_by_freq", True),
        "word_embeddings has scale_grad_by_freq",
    ),
    "all dropped": (lambda m: setattr(m.dropout, "p", 1.0), "dropout is 1.0"),
    "no norm": (lambda m: setattr(m, "LayerNorm", nn.Identity()), "LayerNorm is a Identity"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_parts_that_are_not_plain_are_called_and_the_report_says_why(change: str) -> None:
    """Changed before the patch, and after it."""
    mutate, reason = CHANGES[change]
    plain = model_of(zoo.BERT)
    early, late = copy.deepcopy(plain), copy.deepcopy(plain)
    for model in (plain, early):
        mutate(part_of(model))
    report = fasttx.patch(early, backend="triton")
    fasttx.patch(late, backend="triton")
    part_of(late)(**calls()["ids"])
    assert len(FUSED) == 1
    mutate(part_of(late))
    (left,) = [row for row in report.left_alone if row.before == "embeddings, norm, dropout"]
    assert left.module == "embeddings" and re.search(reason, left.reason)
    for model in (early, late):
        torch.testing.assert_close(part_of(model)(**calls()["ids"]), part_of(plain)(**calls()["ids"]))
    assert len(FUSED) == 1


def test_task_types_take_transformers_forward() -> None:
    plain = model_of(ERNIE, use_task_id=True)
    model = copy.deepcopy(plain)
    report = fasttx.patch(model, backend="triton")
    assert "there are task types" in [row.reason for row in report.left_alone]
    torch.testing.assert_close(part_of(model)(**calls()["types"]), part_of(plain)(**calls()["types"]))
    assert not FUSED


def test_where_the_kernel_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU only where a backend with kernels is forced."""
    monkeypatch.setattr(fusion, "UNFUSED_ON", frozenset(("cpu",)))
    model = model_of(zoo.BERT)
    fasttx.patch(model)
    part_of(model)(**calls()["ids"])
    assert not FUSED
    LAUNCHES.clear()
    with fasttx.backend("triton"):
        part_of(model)(**calls()["ids"])
    assert len(FUSED) == 1 and LAUNCHES["embedding_layer_norm_fwd", "triton"] == 1
    fasttx.patch(model, backend="triton")
    part_of(model)(**calls()["ids"])
    assert len(FUSED) == 2
    report = fasttx.patch(model, norm=False, backend="triton")
    part_of(model)(**calls()["ids"])
    assert len(FUSED) == 2 and "embeddings" not in [row.module for row in report.rows]
    with pytest.raises(TypeError, match="^norm: got 1; allowed are True and False"):
        fasttx.patch(model, norm=1)


def test_the_tables_may_be_resized_loaded_and_copied() -> None:
    plain = zoo.tiny_model(zoo.BERT, "BertForMaskedLM")
    other = zoo.tiny_model(zoo.BERT, "BertForMaskedLM", seed=5)
    model = copy.deepcopy(plain)
    fasttx.patch(model, backend="triton")
    given = calls()["types"]
    for m in (model, plain):
        m.load_state_dict(other.state_dict())
        torch.manual_seed(0)
        m.resize_token_embeddings(120)
    given["input_ids"][0, 0] = 119
    copies = (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model)))
    for number, m in enumerate(copies, 1):
        torch.testing.assert_close(part_of(m)(**given), part_of(plain)(**given), rtol=1e-4, atol=1e-5)
        assert len(FUSED) == number
    fasttx.unpatch(model)
    assert type(part_of(model)) is type(part_of(plain))
    assert torch.equal(part_of(model)(**given), part_of(plain)(**given)) and len(FUSED) == 3
