"""Families whose layers are not BERT's: what of DistilBERT, ALBERT, ViT and DeiT is replaced, and what stays theirs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import model_zoo as zoo
from models.accuracy import assert_as_accurate
from models.unfused import assert_like, assert_stays_unfused, hidden_and_gradients
from torch import Tensor, nn

import fasttx
from fasttx.functional._dropout_add_layer_norm import _dropout_add_layer_norm
from fasttx.models.fusions import fusion, mlp, qkv, residual_norm

DISTILBERT, ALBERT, VIT = (zoo.BY_NAME[name] for name in ("DistilBERT", "ALBERT", "ViT"))
FUSED: list[float] = []
CALLS: list[str] = []
ENDS = 4
LAYER = "encoder.albert_layer_groups.0.albert_layers.0"
EXAMPLES = [(DISTILBERT, "DistilBertForMaskedLM"), (ALBERT, "AlbertForMaskedLM"), (VIT, "ViTForImageClassification")]


@pytest.fixture(autouse=True)
def _count(monkeypatch: pytest.MonkeyPatch) -> None:
    """FUSED gets the dropout probability of each fused end of a half, CALLS the name of each other fused call."""
    FUSED.clear()
    CALLS.clear()

    def counted(*arguments: Any, dropout_p: float, **options: Any) -> Tensor:
        FUSED.append(dropout_p)
        return _dropout_add_layer_norm(*arguments, dropout_p=dropout_p, **options)

    def noted(name: str, function: Any) -> Any:
        return lambda *args, **kwargs: (CALLS.append(name), function(*args, **kwargs))[1]

    monkeypatch.setattr(residual_norm, "_dropout_add_layer_norm", counted)
    monkeypatch.setattr(qkv, "joint_linear", noted("qkv", qkv.joint_linear))
    monkeypatch.setattr(mlp, "_linear_gelu", noted("mlp", mlp._linear_gelu))


def rows(report: Any, module: str) -> dict[str, str | None]:
    return {row.before: row.after for row in report.rows if row.module == module}


# -------------------------------------------------------------------------------------------------- what takes part


@zoo.needs("ViT")
def test_reports_name_the_parts_where_they_are() -> None:
    report = fasttx.patch(zoo.tiny_model(DISTILBERT, "DistilBertModel"))
    assert rows(report, "transformer") == {"padded batch": "real tokens only"}
    assert rows(report, "transformer.layer.0") == {residual_norm.SUM: "dropout_add_layer_norm"}
    assert rows(report, "transformer.layer.1.ffn") == {mlp.REPORTED_AS: "linear_gelu"}
    report = fasttx.patch(zoo.tiny_model(ALBERT, "AlbertModel"))
    assert rows(report, LAYER) == {residual_norm.SUM: "dropout_add_layer_norm", mlp.REPORTED_AS: "linear_gelu"}
    assert rows(report, f"{LAYER}.attention") == {
        "attention: sdpa": "attention: fasttx", "three products for q, k, v": "one product",
        residual_norm.REPORTED_AS: "dropout_add_layer_norm",
    }  # fmt: skip
    report = fasttx.patch(zoo.tiny_model(VIT, "ViTForMaskedImageModeling"))
    assert [row.reason for row in report.left_alone] == [VIT.other_heads["ViTForMaskedImageModeling"]]
    report = fasttx.patch(zoo.tiny_model(VIT, "ViTForMaskedImageModeling"), loss=None)
    assert not report.left_alone


@pytest.mark.parametrize("groups", [{"num_hidden_groups": 2}, {"inner_group_num": 2}], ids=str)
def test_albert_with_several_layers(groups: dict[str, int]) -> None:
    plain = zoo.tiny_model(ALBERT, "AlbertModel", **groups)
    model = copy.deepcopy(plain)
    report = fasttx.patch(model)
    assert sum(row.after == "one product" for row in report.rows) == 2
    inputs = zoo.inputs_for(ALBERT, "AlbertModel")
    shapes: list[Any] = []
    zoo.before(zoo.layers_of(model)[1], lambda args: shapes.append(tuple(args[0].shape)))
    assert_like(hidden_and_gradients(model, inputs), hidden_and_gradients(plain, inputs))
    assert set(shapes) == {(1, sum(zoo.LENGTHS), 32)}


@pytest.mark.parametrize("option", ["attention", "qkv", "norm", "mlp", "unpad"])
@pytest.mark.parametrize("family", [DISTILBERT, ALBERT], ids=lambda family: family.name)
def test_without_one_of_the_parts(family: Any, option: str) -> None:
    """The others stay right, whatever the module that they share does."""
    plain = zoo.tiny_model(family, family.bare)
    model = copy.deepcopy(plain)
    report = fasttx.patch(model, **{option: False})
    inputs = zoo.inputs_for(family, family.bare)
    found = hidden_and_gradients(model, inputs)
    assert CALLS.count("qkv") == (0 if option in ("qkv", "attention") else 2)
    assert CALLS.count("mlp") == (0 if option == "mlp" else 2)
    without_attention = family is ALBERT and option == "attention"
    assert len(FUSED) == {"norm": 0}.get(option, ENDS // 2 if without_attention else ENDS)
    assert any("with fasttx's attention alone" in row.reason for row in report.left_alone) is without_attention
    assert_like(found, hidden_and_gradients(plain, inputs))


def test_dropout_of_albert_is_fused_and_that_of_distilbert_is_its_mlps_own() -> None:
    for family, wanted in ((ALBERT, [0.5, 0.0] * 2), (DISTILBERT, [0.0] * 4)):
        model = zoo.tiny_model(family, family.bare, hidden_dropout_prob=0.5)
        inputs = zoo.inputs_for(family, family.bare)
        fasttx.patch(model)
        still = [model(**inputs).last_hidden_state for _ in range(2)]
        assert FUSED == [0.0] * 2 * ENDS and torch.equal(*still)
        FUSED.clear()
        model.train()
        unused: list[Any] = []
        if family is ALBERT:  # a layer's own dropout is in no forward of transformers' either
            model.get_submodule(LAYER).dropout.register_forward_hook(lambda *_, seen=unused: seen.append(1))
        drawn = [model(**inputs).last_hidden_state for _ in range(2)]
        assert FUSED == wanted * 2 and not torch.allclose(*drawn) and not unused
        FUSED.clear()


@pytest.mark.parametrize("norm", [True, False])
def test_what_drops_in_the_end_of_alberts_attention(norm: bool) -> None:
    """Its product, and not the residual; also where products are joined and the end is not fused."""
    model = zoo.tiny_model(ALBERT, "AlbertModel")
    fasttx.patch(model, norm=norm)
    attention = model.get_submodule(f"{LAYER}.attention")
    attention.output_dropout.p = 0.5
    hidden = torch.randn(2, 5, 32)
    still = attention(hidden)[0]
    attention.train()
    assert not torch.allclose(attention(hidden)[0], still)
    for parameter in attention.dense.parameters():
        nn.init.zeros_(parameter)
    wanted = attention.LayerNorm(hidden)
    CALLS.clear()
    torch.testing.assert_close(attention(hidden)[0], wanted, rtol=1e-4, atol=1e-5)
    assert CALLS == ["qkv"]


def test_attention_dropout_reaches_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    for family, cls in EXAMPLES:
        model = zoo.tiny_model(family, cls, attention_probs_dropout_prob=0.25)
        fasttx.patch(model)
        inputs = zoo.inputs_for(family, cls)
        calm, again = model(**inputs).loss, model(**inputs).loss
        assert torch.equal(calm, again)
        assert len({float(model.train()(**inputs).loss) for _ in range(3)}) == 3


# ------------------------------------------------------------------------------------------------- what stays unfused


@zoo.needs("ViT")
def test_another_version_of_transformers_may_build_attention_otherwise() -> None:
    """5.0 has a ViTAttention that holds the self-attention, of another class, and no config."""
    model = zoo.tiny_model(VIT, "ViTModel")
    del model.layers[0].attention.config
    report = fasttx.patch(model)
    assert [(row.module, "otherwise" in row.reason) for row in report.left_alone] == [("layers.0.attention", True)]
    fasttx.unpatch(model)


def _hook(path: str) -> Callable[[Any], Any]:
    return lambda module: module.get_submodule(path).register_forward_hook(lambda *_: None)


UNFUSED: dict[str, tuple[Any, Callable[[Any], Any], str, str, str, int]] = {
    "first norm": (DISTILBERT, _hook("sa_layer_norm"), "sa_layer_norm has hooks", residual_norm.SUM,
                   "transformer.layer.1", 2),
    "second norm": (DISTILBERT, lambda layer: setattr(layer, "output_layer_norm", nn.LayerNorm((11, 32))),
                    "output_layer_norm is over several dimensions", residual_norm.SUM, "transformer.layer.0", 2),
    "norm of attention": (ALBERT, _hook("LayerNorm"), "LayerNorm has hooks", residual_norm.REPORTED_AS,
                          f"{LAYER}.attention", 2),
    "dropout of attention": (ALBERT, _hook("output_dropout"), "output_dropout has hooks", residual_norm.REPORTED_AS,
                             f"{LAYER}.attention", 2),
    "norm of the layer": (ALBERT, _hook("full_layer_layer_norm"), "full_layer_layer_norm has hooks",
                          residual_norm.SUM, LAYER, 2),
}  # fmt: skip


@pytest.mark.parametrize("change", list(UNFUSED))
def test_ends_that_are_not_plain_stay_unfused(change: str) -> None:
    family, mutate, reason, before, where, fewer = UNFUSED[change]
    assert_stays_unfused(mutate, reason, before, where, FUSED, ENDS, family, fewer)


def test_a_chunked_mlp_stays_transformers_own() -> None:
    plain = zoo.tiny_model(ALBERT, "AlbertModel", chunk_size_feed_forward=11)
    model = copy.deepcopy(plain)
    report = fasttx.patch(model)
    assert rows(report, LAYER)[residual_norm.SUM] is None
    inputs = zoo.inputs_for(ALBERT, "AlbertModel")
    found = hidden_and_gradients(model, inputs)
    assert len(FUSED) == ENDS // 2
    assert_like(found, hidden_and_gradients(plain, inputs))


def test_distilberts_mlp_stays_in_chunks() -> None:
    plain = zoo.tiny_model(DISTILBERT, "DistilBertModel", chunk_size_feed_forward=1)
    model = copy.deepcopy(plain)
    fasttx.patch(model)
    inputs = zoo.inputs_for(DISTILBERT, "DistilBertModel")
    found = hidden_and_gradients(model, inputs)
    assert CALLS.count("mlp") == 2 * 11
    assert_like(found, hidden_and_gradients(plain, inputs))


def test_another_attention_afterwards_is_obeyed() -> None:
    model, plain = (zoo.tiny_model(ALBERT, "AlbertModel") for _ in range(2))
    fasttx.patch(model)
    model.set_attn_implementation("eager")
    inputs = zoo.inputs_for(ALBERT, "AlbertModel")
    found = hidden_and_gradients(model, inputs)
    assert len(FUSED) == ENDS // 2 and "qkv" not in CALLS
    assert_like(found, hidden_and_gradients(plain, inputs))


def test_a_hook_on_alberts_head_keeps_the_logits() -> None:
    model, inputs = zoo.tiny_model(ALBERT, "AlbertForMaskedLM").train(), zoo.inputs_for(ALBERT, "AlbertForMaskedLM")
    fasttx.patch(model)
    assert model(**inputs).logits is None
    model.predictions.register_forward_hook(lambda *_: None)
    assert model(**inputs).logits is not None


def test_adapters_keep_their_products_separate() -> None:
    """A hook on one product: three products and an end that is fused all the same."""
    model, plain = (zoo.tiny_model(ALBERT, "AlbertModel") for _ in range(2))
    seen: list[int] = []
    query = model.get_submodule(f"{LAYER}.attention.query")
    fasttx.patch(model, unpad=False)
    query.register_forward_hook(lambda *_: seen.append(1))
    inputs = zoo.inputs_for(ALBERT, "AlbertModel")
    found = hidden_and_gradients(model, inputs)
    assert len(seen) == 2 and len(FUSED) == ENDS
    assert_like(found, hidden_and_gradients(plain, inputs))


def test_a_cpu_runs_transformers_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fusion, "UNFUSED_ON", frozenset(("cpu",)))
    for family in (DISTILBERT, ALBERT):
        model = zoo.tiny_model(family, family.bare)
        fasttx.patch(model)
        text = str(fasttx.explain(model, zoo.inputs_for(family, family.bare)))
        assert not FUSED and "on a CPU separate calls are as fast" in text


# ----------------------------------------------------------------------------------------------------- packed batches


@pytest.mark.parametrize(
    ("family", "change"),
    [(f, c) for f in (DISTILBERT, ALBERT) for c in ("layer", "attention", "hook")] + [(ALBERT, "group")],
    ids=lambda x: getattr(x, "name", x),
)
def test_a_part_that_may_lose_the_lengths_gets_a_padded_batch(family: Any, change: str) -> None:
    plain, model = (zoo.tiny_model(family, family.bare) for _ in range(2))
    fasttx.patch(model)
    layer = zoo.layers_of(model)[0]
    if change == "hook":
        layer.attention.register_forward_hook(lambda *_: None)
    else:
        group = model.encoder.albert_layer_groups[0] if change == "group" else None
        module = {"layer": layer, "attention": layer.attention, "group": group}[change]
        inner = module.forward
        module.forward = lambda hidden, attention_mask=None, **_: inner(hidden, attention_mask)
    shapes: list[Any] = []
    zoo.before(layer, lambda args: shapes.append(tuple(args[0].shape)))
    inputs = zoo.inputs_for(family, family.bare)
    real = zoo.padding_mask().bool()
    got, want = (m(**inputs).last_hidden_state[real] for m in (model, plain))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    assert set(shapes) == {(3, 11, 32)}


@pytest.mark.parametrize("family", [DISTILBERT, ALBERT], ids=lambda family: family.name)
def test_a_cpu_packs_by_the_width_of_the_layers(family: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """ALBERT's encoder gets narrower rows than its layers."""
    from fasttx.models.padding import decision as padding_free

    model, inputs = zoo.tiny_model(family, family.bare), zoo.inputs_for(family, family.bare)
    fasttx.patch(model)
    shapes: list[Any] = []
    zoo.before(zoo.layers_of(model)[0], lambda args: shapes.append(args[0].shape[0]))
    spared = zoo.padding_mask().numel() - sum(zoo.LENGTHS)
    least = spared * 32 * (12 * 32 + 4 * 11 + 500)
    for worth, batch in ((least, 1), (least + 1, 3)):
        monkeypatch.setattr(padding_free, "WORTH_IT_ON_CPU", worth)
        shapes.clear()
        model(**inputs)
        assert shapes[0] == batch


@pytest.mark.parametrize("name", ["DistilBERT", "ALBERT"])
def test_on_triton(name: str) -> None:
    """The parts that hold these families' own names, on kernels."""
    family = zoo.BY_NAME[name]
    plain = zoo.tiny_model(family, family.bare, num_hidden_layers=1)
    inputs = {key: t[:2] for key, t in zoo.inputs_for(family, family.bare).items()}
    real = inputs["attention_mask"].bool()
    model = copy.deepcopy(plain)
    report = fasttx.patch(model, backend="triton")
    assert {row.backend for row in report.rows if row.after in ("linear_gelu", "dropout_add_layer_norm")} == {"triton"}
    with torch.no_grad():
        got, want = (m(**inputs).last_hidden_state[real] for m in (model, plain))
        exact = zoo.double_of(plain)(**inputs).last_hidden_state[real]
    assert len(FUSED) == 2
    assert_as_accurate(got, want, exact, "hidden states")
